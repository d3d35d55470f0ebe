"""What is known about a value of the graph: its *degree*, and what was added to it.

The degree tells how each element of a tensor scales when rows of a parameter are scaled. For each symbol (a parameter
and one of its axes) it is a sum of terms ``(coefficient, rows)``; ``rows`` has the tensor's number of dimensions, is
broadcastable to its shape, and holds the row number that scales the element (0 for none). Views, slices and
concatenations act on these small arrays as they act on the tensor. The objects here are shared and never changed; they
are not declared frozen because there are thousands of them, and frozen ones are slow to make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby, pairwise
from math import prod

import numpy as np
import numpy.typing as npt

from lightning_sphere.discovery.partition import IntArray

Term = tuple[float, IntArray]
Shape = tuple[int, ...]

MAX_FIELD = 1 << 18
"""Largest row array that a reshape may create; beyond it the rows are joined instead."""


@dataclass(slots=True, eq=False)
class Degree:
    """How a tensor scales with the parameters' rows.

    ``fields`` is precise and treats one symbol at a time; ``powers`` keeps the exponent of each whole parameter, the
    parameter multiplied last at the end, and serves to propose sets that are invariant only together.
    """

    fields: dict[int, tuple[Term, ...]] = field(default_factory=dict)
    powers: dict[int, float] = field(default_factory=dict)

    def map(self, function: Callable[[IntArray], IntArray]) -> Degree:
        """Apply a change of shape to every row array."""
        if not self.fields:
            return self
        fields = {
            symbol: tuple((coefficient, function(rows)) for coefficient, rows in terms)
            for symbol, terms in self.fields.items()
        }
        return Degree(fields, self.powers)

    def align(self, ndim: int) -> Degree:
        """Add leading dimensions of size 1 as broadcasting does."""
        return self.map(lambda rows: rows.reshape((1,) * (ndim - rows.ndim) + rows.shape))

    def scaled(self, exponent: float) -> Degree:
        """The degree of the tensor raised to a power."""
        if exponent == 1:
            return self
        if exponent == 0:
            return ZERO
        fields = {s: tuple((c * exponent, rows) for c, rows in terms) for s, terms in self.fields.items()}
        return Degree(fields, {parameter: power * exponent for parameter, power in self.powers.items()})

    def __bool__(self) -> bool:
        return bool(self.fields or self.powers)


ZERO = Degree()


@dataclass(slots=True, eq=False)
class Offset:
    """Something that was added to a value and is constant along some of its dimensions, such as a bias.

    A norm that subtracts the mean removes it, if it is constant over all normalized dimensions; any other operation
    demands that it scales as the value itself does.
    """

    degree: Degree
    varies: tuple[bool, ...]
    """Along which dimensions it is not constant."""
    constant: bool = False
    """Whether no parameter is involved: a number, or data."""
    stabilizer: int | None = None
    """Position of the sum that added it, where it is a number: it may be the ``eps`` of a norm."""
    key: object = None
    """Identity of the summand while it is unchanged: subtracting the mean by hand removes it."""
    source: str = ""
    """Where it was added, for people."""

    def rewritten(self, degree: Degree, varies: tuple[bool, ...]) -> Offset:
        """The same summand in another layout."""
        return Offset(degree, varies, self.constant, self.stabilizer, self.key, self.source)

    @property
    def identity(self) -> object:
        """What tells whether two offsets are the same summand."""
        return id(self) if self.key is None else self.key


@dataclass(slots=True, eq=False)
class Blank:
    """The part of a buffer that nothing was written to yet."""

    where: npt.NDArray[np.bool_]
    """Broadcastable to the buffer's shape."""
    zero: bool
    """Whether it is taken to hold zeros; else the numbers must show it."""


@dataclass(slots=True, eq=False)
class Value:
    """One tensor of the graph."""

    shape: Shape
    degree: Degree = ZERO
    offsets: tuple[Offset, ...] = ()
    varies: tuple[bool, ...] = ()
    """Along which dimensions the tensor is not known to be constant."""
    statistic: bool = False
    """Whether it is a reduction (mean, norm, variance), to which a small number may be added for stability."""
    via: tuple[str, ...] = ()
    """Operations passed since the last product with a parameter, for people."""
    blank: Blank | None = None
    """What is left of a buffer; only operations that write to it see this."""

    @property
    def trivial(self) -> bool:
        """Whether no parameter of interest is involved."""
        return not self.degree and not any(offset.degree for offset in self.offsets)

    def map(
        self,
        function: Callable[[IntArray], IntArray],
        shape: Shape,
        varies: Callable[[tuple[bool, ...]], tuple[bool, ...]],
    ) -> Value:
        """Apply a change of shape to the value and to its offsets."""
        offsets = tuple(o.rewritten(o.degree.map(function), varies(o.varies)) for o in self.offsets)
        return Value(shape, self.degree.map(function), offsets, varies(self.varies), self.statistic, self.via)

    def broadcast(self, shape: Shape) -> Value:
        """The value as an operand of an element-wise operation with an output of the given shape."""
        if self.shape == shape:
            return self
        ndim, missing = len(shape), len(shape) - len(self.shape)
        stretched = tuple(
            axis < missing or (self.shape[axis - missing] == 1 and size != 1) for axis, size in enumerate(shape)
        )

        def varies(flags: tuple[bool, ...]) -> tuple[bool, ...]:
            full = (False,) * missing + flags
            return tuple(flag and not wide for flag, wide in zip(full, stretched, strict=True))

        def rows(array: IntArray) -> IntArray:
            return array.reshape((1,) * (ndim - array.ndim) + array.shape)

        return self.map(rows, shape, varies)


@lru_cache(maxsize=4096)
def constant(shape: Shape) -> Value:
    """A value in which no parameter of interest is involved."""
    return Value(shape, varies=(True,) * len(shape))


@lru_cache(maxsize=4096)
def dimension_groups(source: Shape, target: Shape) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Match runs of dimensions of equal size before and after a reshape.

    Raises:
        ValueError: If the shapes do not hold the same number of elements, or none.
    """
    if prod(source) != prod(target) or not prod(source):
        raise ValueError(f"cannot match {source} with {target}")
    groups, i, j = [], 0, 0
    while i < len(source) or j < len(target):
        start, left, right = (i, j), 1, 1
        if i < len(source):
            left, i = source[i], i + 1
        if j < len(target):
            right, j = target[j], j + 1
        while left != right:
            if left < right:
                left, i = left * source[i], i + 1
            else:
                right, j = right * target[j], j + 1
        groups.append((tuple(range(start[0], i)), tuple(range(start[1], j))))
    return tuple(groups)


def reshape_rows(rows: IntArray, source: Shape, target: Shape) -> IntArray:
    """Reshape a broadcastable row array; dimensions along which it is constant stay at size 1."""
    if rows.size == 1:
        return rows.reshape((1,) * len(target))
    before, after, mixed = [1] * len(source), [1] * len(target), []
    for old, new in dimension_groups(source, target):
        if any(rows.shape[axis] > 1 for axis in old):
            for axis in old:
                before[axis] = source[axis]
            for axis in new:
                after[axis] = target[axis]
            wide = [axis for axis in new if target[axis] > 1]
            mixed += wide if len(wide) > 1 else []
    result = (rows if rows.shape == tuple(before) else np.broadcast_to(rows, before)).reshape(after)
    for axis in mixed:
        first = result.take([0], axis)
        if (result == first).all():
            result = first
    return result


def too_large(degree: Degree, source: Shape, target: Shape) -> tuple[int, ...]:
    """Dimensions of the source whose rows should be joined before a reshape, lest it creates huge arrays."""
    result: set[int] = set()
    groups = dimension_groups(source, target)
    for rows in (rows for terms in degree.fields.values() for _, rows in terms):
        active = [old for old, _ in groups if any(rows.shape[axis] > 1 for axis in old)]
        if prod(source[axis] for old in active for axis in old) > MAX_FIELD:
            result.update(axis for old in active for axis in old)
    return tuple(sorted(result))


@lru_cache(maxsize=4096)
def reshape_varies(flags: tuple[bool, ...], source: Shape, target: Shape) -> tuple[bool, ...]:
    """Carry over along which dimensions a tensor varies; a split or merged dimension varies if any part did."""
    result = [False] * len(target)
    for old, new in dimension_groups(source, target):
        added = prod(source[i] for i in old) > 1  # then dimensions of size 1 are new ones
        runs = [(flag, prod(source[i] for i in run)) for flag, run in groupby(old, key=flags.__getitem__)]
        parts = _overlaps([size for _, size in runs], [target[axis] for axis in new])
        for axis, own in zip(new, parts, strict=True):
            result[axis] = any(runs[i][0] for i in own) and not (added and target[axis] == 1)
    return tuple(result)


def _overlaps(source: Sequence[int], target: Sequence[int]) -> list[list[int]]:
    """Which dimensions before a reshape each one after it is made of: those whose steps through memory it shares."""
    ends = [_steps(source), _steps(target)]
    if any(b % a for a, b in pairwise(sorted({*ends[0], *ends[1]}))):
        return [list(range(len(source)))] * len(target)  # no common refinement
    spans = [list(zip(end[1:], end, strict=False)) for end in ends]
    return [
        [i for i, (low, high) in enumerate(spans[0]) if (low < top and bottom < high) or low == high == bottom]
        for bottom, top in spans[1]
    ]


def _steps(sizes: Sequence[int]) -> list[int]:
    """Elements from one index of each dimension to the next, the whole size first."""
    return [prod(sizes[axis:]) for axis in range(len(sizes) + 1)]


def either(first: Iterable[bool], second: Iterable[bool]) -> tuple[bool, ...]:
    """Element-wise or."""
    return tuple(a or b for a, b in zip(first, second, strict=True))
