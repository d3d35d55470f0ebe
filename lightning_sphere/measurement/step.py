"""What is measured of one step: before and after the optimizer's arithmetic, into the ring."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_sphere.directions.direction import Direction, StepTensors, count_of, number
from lightning_sphere.measurement.around import Around
from lightning_sphere.measurement.asked import ASKED, asked
from lightning_sphere.measurement.factors import Formula, Formulas
from lightning_sphere.measurement.kernel_sums import KernelSums
from lightning_sphere.measurement.paths import sums_of_plan
from lightning_sphere.measurement.plan import Plan
from lightning_sphere.measurement.reference import ReferenceWeights
from lightning_sphere.measurement.ring import COLUMNS, DIVISOR, NUMERATOR, Drained, HostRow, Ring, capacity
from lightning_sphere.measurement.sums import accumulation_dtype, forget_if, unscale
from lightning_sphere.measurement.trust import Trust

REFERENCE_ALL = 100
"""So many recorded steps at the beginning, where most happens, are all compared with the reference, if that is near."""

REFERENCE_EVERY = 10
"""Later, each so many are; and the last one before each flush."""

ASKED_EVERY = 47
"""Each so many recorded steps what happened is compared with the optimizer's formula, beginning with the first. What an
optimizer does at each second, fifth or tenth step only is not missed: it is prime."""


_HOST_ROWS, _DEVICE_ROWS = 512, 128
"""So many rows are made room for, at least, if the budget allows: the host may be slow to evaluate the ones before."""


State: TypeAlias = Mapping[str, Any]
"""What an optimizer keeps of one tensor."""


@dataclass
class _Step:
    """A step under way."""

    notes: HostRow
    gradients: list[tuple[Tensor | None, int]]
    """Each slot's gradient before the step, and its version: a counter of the writes to it."""
    versions: list[int]
    """Those of the weights."""
    around: Around | None = None
    """What is kept over the step; ``None`` where nothing is."""
    asking: bool = False
    """Whether it is compared with the optimizer's formula."""
    late: bool = False
    """Whether the gradients are only known after it."""


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
        columns = COLUMNS + DIVISOR * self._divisor + NUMERATOR * self._numerator
        self.sums = sums_of_plan(plan, columns)
        self._formulas = Formulas(plan, optimizer, direction)
        self._trust = Trust(direction.complete and isinstance(self.sums, KernelSums) and self._formulas.known)
        self._asked = direction.known and direction.complete and ("asked" in wanted or self._trust.possible)
        dtype = accumulation_dtype(plan.device)
        rows = max(rows, _HOST_ROWS if plan.device.type == "cpu" else _DEVICE_ROWS)
        fitting = capacity(budget_mb / 2, len(columns), plan.segments, rows, dtype)
        self.ring = Ring(fitting, columns, plan.segments, plan.device, dtype)
        self._recorded = 0
        self._step: _Step | None = None
        self._fresh = False  # whether the weights are still those after the ring's last step
        self._rounded = False
        if self._drift:
            reference.prepare(plan)

    @property
    def pending(self) -> bool:
        """Whether a step is under way."""
        return self._step is not None

    def trust(self, error: float) -> None:
        """Say how far steps were from the optimizer's formula, see :func:`~lightning_sphere.measurement.asked.error`.

        While they agree, no copy of the weights is kept over the steps between those that are compared.
        """
        self._trust.judge(error)
        if self._trust.now:
            self.sums.forget()

    @torch.no_grad()
    def before(self, position: int, apart: int, *, late: bool = False) -> None:
        """Read weights and gradients: gradients are final, weights are old.

        Args:
            position: of the step on the user's x axis.
            apart: how many optimizer steps after the recorded one before it.
            late: whether the gradients will only be there after the step, as where one CUDA graph makes both.
        """
        row, scale = self.ring.next_row(), getattr(self._optimizer, "grad_scale", None)
        hyperparameters = self._hyperparameters()
        notes = HostRow(position, time.time(), hyperparameters, apart=apart)
        rates = [rate for group in hyperparameters if isinstance(rate := group.get("lr"), float)]
        parts = [value != 0.0 for group in hyperparameters for value in group.values() if isinstance(value, float)]
        asking = self._asked and (self._trust.due(rates, parts) or self._recorded % ASKED_EVERY == 0)
        if asking:
            self._trust.compared_at(rates, parts)
        scale = scale if isinstance(scale, Tensor) else None
        if self._trust.now and not asking and scale is None and self._formulas.known:
            self._step = _Step(notes, self._gradients(), self._versions(), late=late)
            return
        kept = self.sums.before(row)
        if scale is not None:  # a fused optimizer unscales inside its kernel; a loss scaler says so here
            unscale(row, scale)
        around = Around(self.plan, kept, {} if late else self._kept_gradients(asking), scale)
        self._step = _Step(notes, self._gradients(), self._versions(), around, asking, late)

    @torch.no_grad()
    def after(self) -> bool:
        """Read the new weights and the optimizer's state, if a step is under way; whether it is recorded."""
        step = self._step
        self.abandon()
        self._fresh = False
        if step is None:
            return False
        row, notes = self.ring.next_row(), step.notes
        states = [self._optimizer.state.get(slot.parameter, {}) for slot in self.plan.slots]
        if self._direction.known:
            notes.optimizer_step = self._counts(states)
        if step.late:
            self._catch_up(row, step)
        untouched = step.late or all(
            old is new and version == number
            for (old, version), (new, number) in zip(step.gradients, self._gradients(), strict=True)
        )
        if not untouched:  # what is in the gradients is no longer what the step was made of
            self._trust.lose()
        stepped = [slot.parameter.grad is not None for slot in self.plan.slots]
        writes = [now - then for now, then in zip(self._versions(), step.versions, strict=True)]
        if step.around is not None:
            self._by_difference(row, notes, states, step.around, step.asking)
            self._trust.learn(writes, stepped)
        elif untouched and self._trust.usual(writes, stepped) and _same(notes.hyperparameters, self._hyperparameters()):
            self._at_once(row, notes, states)
        else:  # something else than the formula was at work: what it did is not known
            row.fill_(torch.nan)
            self._trust.lose()
        self._rounded = step.around is None or row.dtype != torch.float64 or row.device.type != "cpu"
        if self._drift and (
            self._recorded % REFERENCE_EVERY == 0 or (self._recorded < REFERENCE_ALL and self._reference.near)
        ):
            notes.reference = self._compared_with_reference()
        found_inf = getattr(self._optimizer, "found_inf", None)
        if isinstance(found_inf, Tensor):  # a fused optimizer skips the step inside its kernel
            for measured in (row, notes.reference, notes.asked):
                if measured is not None:
                    forget_if(measured, found_inf)
        if self._trust.now:
            self.sums.forget()
        self.ring.commit(notes)
        self._recorded += 1
        self._fresh = True
        return True

    def _catch_up(self, row: Tensor, step: _Step) -> None:
        """Read the gradients of a step that made them itself."""
        if step.around is not None:
            self.sums.late_gradients(row, step.around.kept)
            gradients = self._kept_gradients(step.asking)
            step.around = Around(self.plan, step.around.kept, gradients, None)

    def _at_once(self, row: Tensor, notes: HostRow, states: Sequence[State]) -> None:
        """All sums from what is there after the step."""
        assert isinstance(self.sums, KernelSums)
        formula = self._read_formula(notes, states)
        self.sums.at_once(row, formula.momenta, formula.moments, formula.factors)

    def _by_difference(
        self, row: Tensor, notes: HostRow, states: Sequence[State], around: Around, asking: bool
    ) -> None:
        """The sums that are known after the step, with the weights that were kept over it."""
        direction, plan = self._direction, self.plan
        moments = directions = None
        if self._divisor or self._numerator:
            tensors = [around.tensors(index, self._optimizer) for index in range(len(plan.slots))]
            if self._divisor:
                groups = self._optimizer.param_groups
                known = [
                    at if moved or not direction.reads("second_moment", groups[slot.param_group]) else None
                    for slot, at, moved in zip(plan.slots, tensors, around.stepped, strict=True)
                ]
                moments = _each(direction.second_moment, known, stateful=True)
            if self._numerator:
                stepped = [at if moved else None for at, moved in zip(tensors, around.stepped, strict=True)]
                directions = _each(direction.numerator, stepped, stateful=direction.has_second_moment)
        self.sums.after(row, around.kept, moments, directions)
        if asking and self._trust.possible and around.scale is None and isinstance(self.sums, KernelSums):
            formula = self._read_formula(notes, states)
            gradients = [around.gradients.get(index) for index in range(len(plan.slots))]
            notes.asked = torch.empty(len(ASKED), plan.segments, dtype=row.dtype, device=row.device)
            self.sums.asked(notes.asked, around.kept, gradients, formula.momenta, formula.moments, formula.factors)
        elif asking:
            notes.asked = asked(around, self._optimizer, direction, row[COLUMNS.index("xx")])

    def _read_formula(self, notes: HostRow, states: Sequence[State]) -> Formula:
        stepped = [slot.parameter.grad is not None for slot in self.plan.slots]
        return self._formulas.read(states, notes.hyperparameters, notes.optimizer_step, stepped)

    def _gradients(self) -> list[tuple[Tensor | None, int]]:
        gradients = [slot.parameter.grad for slot in self.plan.slots]
        return [(gradient, 0 if gradient is None else _version(gradient)) for gradient in gradients]

    def _versions(self) -> list[int]:
        return [_version(slot.parameter) for slot in self.plan.slots]

    def _hyperparameters(self) -> list[dict[str, Any]]:
        return [
            {name: number(value) for name, value in self._direction.hyperparameters(group).items()}
            for group in self._optimizer.param_groups
        ]

    def skip(self, position: int, apart: int) -> None:
        """Record that a step was due and had no arithmetic."""
        self.ring.next_row().fill_(torch.nan)
        self.ring.commit(HostRow(position, time.time(), skipped=True, apart=apart))

    @torch.no_grad()
    def drain(self) -> Drained | None:
        """Hand over the ring (see :meth:`Ring.drain`); its last step gets its drift, if that can still be known."""
        if not len(self.ring) or not self.ring.spare:
            return None
        last = self.ring.host[-1]
        same_device = all(slot.parameter.device == self.plan.device for slot in self.plan.slots)
        if self._drift and self._fresh and same_device and not last.skipped and last.reference is None:
            row = dict(zip(self.ring.columns, self.ring.data[len(self.ring) - 1], strict=True))
            found = self._compared_with_reference()
            now = found[0] + 2.0 * found[1] + found[2]
            then = row["xx"] + 2.0 * row["xd"] + row["dd"]
            # Somebody may have exchanged the weights since, as averages of them are for validation.
            exchanged = ((now - then).abs() > now * (1e-6 if self._rounded else 4e-10)).any()
            last.reference = found.masked_fill_(exchanged, torch.nan)
        return self.ring.drain()

    def abandon(self) -> None:
        """Forget a step under way."""
        self._step = None

    def _kept_gradients(self, asking: bool) -> dict[int, Tensor]:
        """Copies of the gradients that will be read after the step: some optimizers write into them."""
        direction, groups = self._direction, self._optimizer.param_groups
        wanted = {"numerator": asking or self._numerator, "second_moment": asking or self._divisor}
        if not direction.reads_gradient or not any(wanted.values()):
            return {}
        reads = [any(wanted[name] and direction.reads(name, group) for name in wanted) for group in groups]
        kept = ((index, slot) for index, slot in enumerate(self.plan.slots) if reads[slot.param_group])
        return {index: p.grad.detach().clone() for index, slot in kept if (p := slot.parameter).grad is not None}

    def _counts(self, states: Sequence[State]) -> Tensor | None:
        """The optimizer's count of updates per tensor, float32 ``[slots]``, NaN for one not yet updated.

        ``None`` where it does not count.
        """
        groups = self._optimizer.param_groups
        counts = [
            count_of(state, groups[slot.param_group]) for slot, state in zip(self.plan.slots, states, strict=True)
        ]
        if all(count is None for count in counts):
            return None
        first = counts[0]
        if isinstance(first, Tensor) and not first.dim() and all(_alike(first, count) for count in counts):
            return torch.stack(counts)
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
        self._reference.write(self.sums, found)
        return found


def _each(read: Any, tensors: Sequence[StepTensors | None], *, stateful: bool) -> list[Tensor | None]:
    """What a direction's function gives of each tensor; ``None`` where the optimizer has made no step, or no state."""
    return [None if at is None or (stateful and not at.state) else read(at) for at in tensors]


def _alike(one: Tensor, other: Any) -> bool:
    """Whether two tensors can be stacked as they are."""
    return isinstance(other, Tensor) and (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; 0 where nobody counts."""
    return 0 if tensor.is_inference() else tensor._version


def _same(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> bool:
    """Whether numbers have not changed; those in tensors are not looked at, which would wait for the device."""
    return len(before) == len(after) and all(
        isinstance(value, Tensor) or value == now.get(name) or value != value
        for then, now in zip(before, after, strict=True)
        for name, value in then.items()
    )
