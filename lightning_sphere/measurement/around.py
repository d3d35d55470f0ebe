"""What is kept of the tensors over one optimizer step, and handed to the functions of a :class:`Direction`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_sphere.directions import StepTensors
from lightning_sphere.measurement.plan import Plan


class Around:
    """The tensors of a plan around one step.

    Args:
        plan: what is measured.
        copies: the weights before the step, one matrix per bucket.
        gradients: copies of the gradients that the optimizer used, one per slot; ``None`` where there was none, and
            empty if none were kept.
        scale: factor of a loss scaler that the gradients still have in them.
    """

    def __init__(
        self, plan: Plan, copies: Sequence[Tensor], gradients: Sequence[Tensor | None], scale: Tensor | None
    ) -> None:
        self.plan, self.copies, self.gradients, self._scale = plan, copies, gradients, scale

    def tensors(self, index: int, optimizer: Optimizer) -> StepTensors | None:
        """A slot's tensor around the step; ``None`` where the optimizer did not update it."""
        slot = self.plan.slots[index]
        state = optimizer.state.get(slot.parameter, {})
        if self.gradients and self.gradients[index] is None:
            return None
        group = optimizer.param_groups[slot.param_group]
        after = slot.parameter.detach()
        return StepTensors(state, group, after, lambda: self.weight(index), lambda: self._gradient(index))

    def weight(self, index: int) -> Tensor:
        """The weights of a slot before the step, in the parameter's shape and dtype."""
        slot = self.plan.slots[index]
        matrix = torch.empty(slot.blocks, slot.length, dtype=slot.parameter.dtype, device=slot.parameter.device)
        for piece, rows, bucket in self.plan.segments_of_slot[index]:
            piece.of(matrix).copy_(self.before(rows, bucket))
        shape = slot.parameter.movedim(slot.axis, 0).shape if slot.axis else slot.parameter.shape
        return matrix.reshape(shape).movedim(0, slot.axis) if slot.axis else matrix.reshape(shape)

    def before(self, rows: slice, bucket: int) -> Tensor:
        """Some segments' weights before the step, as a view of the kept copy."""
        start = self.plan.buckets[bucket].start
        return self.copies[bucket][rows.start - start : rows.stop - start]

    def _gradient(self, index: int) -> Tensor:
        gradient = self.gradients[index] if self.gradients else None
        if gradient is None:
            raise LookupError("a Direction's function reads the gradient; its reads_gradient must name the function")
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        if self._scale is None:
            return gradient
        wide = torch.promote_types(gradient.dtype, self._scale.dtype)  # in float16 a usual scale is infinite
        return gradient.to(wide) / self._scale.to(gradient.device, wide)


def kept_gradients(plan: Plan) -> list[Tensor | None]:
    """Copies of the gradients: some optimizers write into ``p.grad`` during the step."""
    gradients = [slot.parameter.grad for slot in plan.slots]
    return [None if gradient is None else gradient.detach().clone() for gradient in gradients]
