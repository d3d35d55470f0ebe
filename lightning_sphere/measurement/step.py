"""What is measured of one step: before and after the optimizer's arithmetic, into the ring."""

from __future__ import annotations

import time
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_sphere.directions.direction import Direction, StepTensors, count_of, number
from lightning_sphere.measurement import sums
from lightning_sphere.measurement.around import Around
from lightning_sphere.measurement.asked import asked
from lightning_sphere.measurement.plan import Plan
from lightning_sphere.measurement.reference import ReferenceWeights
from lightning_sphere.measurement.ring import COLUMNS, DIVISOR, NUMERATOR, HostRow, Ring, capacity

REFERENCE_ALL = 100
"""So many recorded steps at the beginning, where most happens, are all compared with the reference, if that is near."""

REFERENCE_EVERY = 10
"""Later, each so many are; and the last one before each flush."""

ASKED_EVERY = 50
"""Each so many recorded steps what happened is compared with the optimizer's formula, beginning with the first."""


class StepMeter:
    """Measures the steps of one optimizer, as one plan says, into a ring on the device.

    Args:
        plan: what to measure.
        optimizer: whose steps.
        direction: of the optimizer.
        wanted: which sums (see :data:`lightning_sphere.quantities.Sum`) the recorded quantities need.
        reference: the weights that drift is measured from; used if ``"reference"`` is wanted.
        rows: how many steps the ring should hold if the budget allows.
        budget_mb: memory of the ring on the device at most, in MiB.
    """

    def __init__(
        self,
        plan: Plan,
        optimizer: Optimizer,
        direction: Direction,
        *,
        wanted: frozenset[str],
        reference: ReferenceWeights,
        rows: int,
        budget_mb: float,
    ) -> None:
        self.plan, self._optimizer, self._direction, self._reference = plan, optimizer, direction, reference
        self._divisor = direction.has_second_moment and "bb" in wanted
        self._numerator = direction.known and not direction.inferred and "aa" in wanted
        self._drift = "reference" in wanted
        self._asked = "asked" in wanted and direction.known and direction.complete
        columns = COLUMNS + DIVISOR * self._divisor + NUMERATOR * self._numerator
        dtype = sums.accumulation_dtype(plan.device)
        fitting = capacity(budget_mb, len(columns), plan.segments, rows, dtype)
        self.ring = Ring(fitting, columns, plan.segments, plan.device, dtype)
        self._scratch = sums.Scratch(plan, 3 if self._numerator else 2)
        self._recorded = 0
        self._pending: HostRow | None = None
        self._around: Around | None = None
        self._fresh = False  # whether the weights are still those after the ring's last step
        if self._drift:
            reference.prepare(plan)

    @property
    def pending(self) -> bool:
        """Whether a step is under way."""
        return self._pending is not None

    @torch.no_grad()
    def before(self, position: int) -> None:
        """Read weights and gradients: gradients are final, weights are old.

        Args:
            position: of the step on the user's x axis.
        """
        row = self.ring.next_row()
        copies = sums.before_step(self.plan, row, self._scratch)
        scale = getattr(self._optimizer, "grad_scale", None)
        if not isinstance(scale, Tensor):
            scale = None
        else:  # a fused optimizer unscales inside its kernel; a loss scaler says so here
            sums.unscale(row, scale)
        self._around = Around(self.plan, copies, self._kept_gradients(), scale)
        hyperparameters = [
            {name: number(value) for name, value in self._direction.hyperparameters(group).items()}
            for group in self._optimizer.param_groups
        ]
        self._pending = HostRow(position, time.time(), hyperparameters)

    @torch.no_grad()
    def after(self) -> None:
        """Read the new weights and the optimizer's state, if a step is under way."""
        pending, around = self._pending, self._around
        self.abandon()
        self._fresh = False
        if pending is None or around is None:
            return
        row, direction = self.ring.next_row(), self._direction
        sums.after_step(self.plan, row, self._scratch, around.copies)
        if self._divisor or self._numerator:
            tensors = [around.tensors(index, self._optimizer) for index in range(len(self.plan.slots))]
            if self._divisor:
                groups = self._optimizer.param_groups
                known = [
                    at if moved or not direction.reads("second_moment", groups[slot.param_group]) else None
                    for slot, at, moved in zip(self.plan.slots, tensors, around.stepped, strict=True)
                ]
                moments = _each(direction.second_moment, known, stateful=True)
                sums.second_moment(self.plan, row, self._scratch, moments)
            if self._numerator:
                stepped = [at if moved else None for at, moved in zip(tensors, around.stepped, strict=True)]
                directions = _each(direction.numerator, stepped, stateful=direction.has_second_moment)
                sums.numerator(self.plan, row, self._scratch, around.copies, directions)
        if direction.known:
            pending.optimizer_step = self._counts()
        if self._drift and (
            self._recorded % REFERENCE_EVERY == 0 or (self._recorded < REFERENCE_ALL and self._reference.near)
        ):
            pending.reference = self._compared_with_reference()
        if self._asked and self._recorded % ASKED_EVERY == 0:
            pending.asked = asked(around, self._optimizer, direction, row[COLUMNS.index("xx")])
        found_inf = getattr(self._optimizer, "found_inf", None)
        if isinstance(found_inf, Tensor):  # a fused optimizer skips the step inside its kernel
            for measured in (row, pending.reference, pending.asked):
                if measured is not None:
                    sums.forget_if(measured, found_inf)
        self.ring.commit(pending)
        self._recorded += 1
        self._fresh = True

    def skip(self, position: int) -> None:
        """Record that a step was due and had no arithmetic."""
        self.ring.next_row().fill_(torch.nan)
        self.ring.commit(HostRow(position, time.time(), skipped=True))

    @torch.no_grad()
    def drain(self) -> tuple[Tensor, list[HostRow]]:
        """Empty the ring (see :meth:`Ring.drain`); its last step gets its drift, if that can still be known."""
        last = self.ring.host[-1]
        same_device = all(slot.parameter.device == self.plan.device for slot in self.plan.slots)
        if self._drift and self._fresh and same_device and not last.skipped and last.reference is None:
            row = dict(zip(self.ring.columns, self.ring.data[len(self.ring) - 1], strict=True))
            found = self._compared_with_reference()
            now = found[0] + 2.0 * found[1] + found[2]
            then = row["xx"] + 2.0 * row["xd"] + row["dd"]
            # Somebody may have exchanged the weights since, as averages of them are for validation.
            exchanged = ((now - then).abs() > now * torch.finfo(now.dtype).eps ** 0.6).any()
            last.reference = found.masked_fill_(exchanged, torch.nan)
        return self.ring.drain()

    def abandon(self) -> None:
        """Forget a step under way."""
        self._pending, self._around = None, None

    def _kept_gradients(self) -> dict[int, Tensor]:
        """Copies of the gradients that will be read after the step: some optimizers write into them."""
        direction, groups = self._direction, self._optimizer.param_groups
        asking = self._asked and self._recorded % ASKED_EVERY == 0
        wanted = {"numerator": asking or self._numerator, "second_moment": asking or self._divisor}
        if not direction.reads_gradient or not any(wanted.values()):
            return {}
        reads = [any(wanted[name] and direction.reads(name, group) for name in wanted) for group in groups]
        kept = ((index, slot) for index, slot in enumerate(self.plan.slots) if reads[slot.param_group])
        return {index: p.grad.detach().clone() for index, slot in kept if (p := slot.parameter).grad is not None}

    def _counts(self) -> Tensor | None:
        """The optimizer's count of updates per tensor, float32 ``[slots]``, NaN for one not yet updated.

        ``None`` where it does not count.
        """
        optimizer = self._optimizer
        counts = [
            count_of(optimizer.state.get(slot.parameter, {}), optimizer.param_groups[slot.param_group])
            for slot in self.plan.slots
        ]
        if all(count is None for count in counts):
            return None
        # Adam keeps its counts on the host, capturable and fused variants on the device: they are only copied here.
        device = next((count.device for count in counts if isinstance(count, Tensor)), torch.device("cpu"))

        def tensor(count: Any) -> Tensor:
            if isinstance(count, Tensor) and count.numel() == 1:
                return count.reshape(()).to(device, torch.float32)
            return torch.full((), float(count) if isinstance(count, Real) else torch.nan, device=device)

        if not any(isinstance(count, Tensor) for count in counts):
            known = [float(count) if isinstance(count, Real) else torch.nan for count in counts]
            return torch.tensor(known, dtype=torch.float32, device=device)
        return torch.stack([tensor(count) for count in counts])

    def _compared_with_reference(self) -> Tensor:
        found = torch.full((3, self.plan.segments), torch.nan, dtype=self.ring.data.dtype, device=self.plan.device)
        self._reference.write(self.plan, found, slice(0, 3), self._scratch)
        return found


def _each(read: Any, tensors: Sequence[StepTensors | None], *, stateful: bool) -> list[Tensor | None]:
    """What a direction's function gives of each tensor; ``None`` where the optimizer has made no step, or no state."""
    return [None if at is None or (stateful and not at.state) else read(at) for at in tensors]
