"""What is kept of the tensors over one optimizer step, and handed to the functions of a :class:`Direction`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_sphere.directions import StepTensors
from lightning_sphere.measurement.plan import Piece, Plan, Slot


class Kept(Protocol):
    """The weights before a step."""

    @property
    def copies(self) -> Sequence[Tensor]:
        """As whoever keeps them needs them."""

    def whole(self, index: int) -> Tensor:
        """Those of a slot, in the parameter's shape and dtype."""

    def piece(self, index: int, piece: Piece, rows: slice, bucket: int) -> Tensor:
        """Those of one of its pieces, ``[segments, length]``; see :attr:`Plan.segments_of_slot`."""


class Around:
    """The tensors of a plan around one step.

    Args:
        plan: what is measured.
        kept: the weights before the step.
        gradients: copies of the gradients that the optimizer used, by index of the slot, where they were kept.
        scale: factor of a loss scaler that the gradients still have in them.

    Attributes:
        stepped: whether each slot's tensor had a gradient: without one an optimizer leaves it alone.
    """

    def __init__(self, plan: Plan, kept: Kept, gradients: Mapping[int, Tensor], scale: Tensor | None) -> None:
        self.plan, self.kept, self.gradients, self.scale = plan, kept, gradients, scale
        self.stepped = [slot.parameter.grad is not None for slot in plan.slots]

    def tensors(self, index: int, optimizer: Optimizer) -> StepTensors:
        """A slot's tensor around the step."""
        slot = self.plan.slots[index]
        state = optimizer.state.get(slot.parameter, {})
        group = optimizer.param_groups[slot.param_group]
        after = slot.parameter.detach()
        return StepTensors(state, group, after, lambda: self.kept.whole(index), lambda: self._gradient(index))

    def pieces(self, index: int, optimizer: Optimizer) -> Iterator[tuple[slice, StepTensors]]:
        """A slot's tensor around the step, piece by piece, with the piece's segments in the ring's order.

        For functions that are element-wise: what has the parameter's shape is cut (all else in the state is handed on
        as it is), so that temporary memory is that of a piece.
        """
        slot, whole = self.plan.slots[index], self.tensors(index, optimizer)
        shape = slot.parameter.shape
        matrices = {
            name: slot.as_rows((value.to_dense() if value.is_sparse else value).expand(shape))
            for name, value in whole.state.items()
            if isinstance(value, Tensor) and value.dim() and _fits(value.shape, shape)
        }
        after = slot.as_rows(whole.after)
        for piece, rows, bucket in self.plan.segments_of_slot[index]:
            yield (
                rows,
                StepTensors(
                    {**whole.state, **{name: piece.of(matrix) for name, matrix in matrices.items()}},
                    whole.group,
                    piece.of(after),
                    partial(self.kept.piece, index, piece, rows, bucket),
                    partial(_piece_of_gradient, whole, slot, piece),
                ),
            )

    def _gradient(self, index: int) -> Tensor:
        gradient = self.gradients.get(index)
        if gradient is None:
            raise LookupError("a Direction's function reads the gradient; its reads_gradient must name the function")
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        if self.scale is None:
            return gradient
        wide = torch.promote_types(gradient.dtype, self.scale.dtype)  # in float16 a usual scale is infinite
        return gradient.to(wide) / self.scale.to(gradient.device, wide)


def _piece_of_gradient(whole: StepTensors, slot: Slot, piece: Piece) -> Tensor:
    return piece.of(slot.as_rows(whole.gradient))


def _fits(shape: torch.Size, whole: torch.Size) -> bool:
    """Whether a state's tensor has the parameter's shape, or one number for several of its entries."""
    return len(shape) == len(whole) and all(size in (1, full) for size, full in zip(shape, whole, strict=True))
