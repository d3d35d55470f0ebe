"""Tensors of which some elements, or all, are zero or not written yet: zeros scale as their neighbours do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from lightning_sphere.discovery.degrees import Blank, Shape, Value, constant
from lightning_sphere.discovery.elements import filler
from lightning_sphere.discovery.graph import Edge
from lightning_sphere.discovery.partition import IntArray
from lightning_sphere.discovery.registry import Context
from lightning_sphere.discovery.values import LARGEST, Values

BoolArray = npt.NDArray[np.bool_]

WRITERS = ("CopySlices", "IndexPut", "IndexCopy", "IndexAdd", "ScatterAdd", "Scatter")
"""Operations that fill a buffer, by parts perhaps."""


def seen_by(ctx: Context, edge: Edge, value: Value) -> Value:
    """A buffer as an operation sees it: those that write know what is left, and a sum, whether it is all zero."""
    blank = value.blank
    assert blank is not None
    if ctx.name in WRITERS or (ctx.name in ("Add", "Sub") and blank.zero and blank.where.all()):
        return value
    return filled(ctx, edge, value)


def moved_zeros(name: str, inputs: Sequence[Value | None], shapes: Sequence[Shape]) -> tuple[Value, ...] | None:
    """What a wholly zero tensor is after its elements were moved: zero as well; ``None`` for any other tensor."""
    blank = inputs[0].blank if len(inputs) == 1 and inputs[0] is not None else None
    if blank is None or name not in _MOVES or not (blank.zero and blank.where.all()):
        return None
    return tuple(zeros(shape) for shape in shapes)


def zeros(shape: Shape) -> Value:
    """A tensor that is known to hold zeros only."""
    return replace(constant(shape), blank=Blank(np.ones((1,) * len(shape), dtype=bool), True))


_MOVES = ("View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Transpose", "Permute", "T", "Expand", "Slice",
          "Select", "Split", "SplitWithSizes", "Unbind", "Clone", "ToCopy")  # fmt: skip


def filled(ctx: Context, edge: Edge, value: Value) -> Value:
    """A buffer as others see it: what still holds zeros scales as its neighbours do."""
    blank = value.blank
    assert blank is not None
    value = replace(value, blank=None)
    if not blank.zero and not _holds_zeros(ctx, edge, blank.where):
        return value

    def fill(rows: IntArray) -> IntArray:
        for axis, size in enumerate(blank.where.shape):
            if size > 1 and rows.shape[axis] > 1:
                rows = np.where(blank.where & (rows == 0), rows.max(axis, keepdims=True), rows)
        return rows

    return replace(value, degree=value.degree.map(fill))


def _holds_zeros(ctx: Context, edge: Edge, where: BoolArray) -> bool:
    """Whether the numbers show that a tensor holds zeros somewhere."""
    if edge is None:
        return False
    numbers = Values(ctx.graph).later(edge)
    if numbers is None:
        return filler(ctx.graph, edge, torch.from_numpy(where)) == 0
    if not 0 < numbers.numel() <= LARGEST:
        return False
    return not bool((numbers.ne(0) & numbers.isfinite() & torch.from_numpy(where).to(numbers.device)).any())
