"""The measuring point: right before and right after one optimizer's arithmetic.

A pre-hook of ``optimizer.step`` sees the weights too early where a closure is given, as Lightning does: forward,
backward, unscaling and clipping still run inside the step. The hook therefore returns a wrapped closure, and the moment
after its first call is the measuring point: gradients are final, weights are old. The post-hook sees the new weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_sphere.directions import PLAIN, Direction, direction_of, hyperparameters
from lightning_sphere.guard import Guard
from lightning_sphere.measurement import sums
from lightning_sphere.measurement.plan import Plan
from lightning_sphere.measurement.ring import COLUMNS, HostRow, Ring, capacity

SLACK = 8
"""Rows of the ring beyond those wanted, see :attr:`OptimizerTap.due`."""

_MEASURING = "measuring an optimizer step"


class OptimizerTap:
    """Measures every step of one optimizer into a ring on the device.

    Args:
        optimizer: whose steps to measure; nothing in it is changed but its lists of hooks.
        make_plan: called before the first measured step, and again when the optimizer's param groups have changed.
        position: gives the place of this tap's next step on the user's x axis.
        flush: called when the ring is full, or before the plan changes; must :meth:`drain` this tap.
        before: called with the position of each measured step before it is.
        after: called with this tap after each step, measured or not.
        guard: contains failures.
        every_n_steps: measure each ``n``-th step.
        rows: how many steps the ring should hold if the budget allows.
        budget_mb: memory of the ring on the device at most, in MiB.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        make_plan: Callable[[Optimizer], Plan],
        position: Callable[[OptimizerTap], int],
        flush: Callable[[], None],
        before: Callable[[int], None],
        after: Callable[[OptimizerTap], None],
        guard: Guard,
        every_n_steps: int,
        rows: int,
        budget_mb: float,
    ) -> None:
        self.optimizer = optimizer
        self.direction: Direction = direction_of(optimizer) or PLAIN
        self.steps_seen = 0
        self.plan: Plan | None = None
        self._make_plan, self._position, self._flush = make_plan, position, flush
        self._before, self._after = before, after
        self._guard = guard
        self._every_n_steps = every_n_steps
        self._rows, self._budget_mb = rows, budget_mb
        self._ring: Ring | None = None
        self._scratch: sums.Scratch | None = None
        self._signature: list[list[tuple[int, bool]]] | None = None
        self._copies: list[Tensor] = []
        self._pending: HostRow | None = None
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Register the two hooks."""
        if not self._handles:
            self._handles = [
                self.optimizer.register_step_pre_hook(self._pre_hook),
                self.optimizer.register_step_post_hook(self._post_hook),
            ]

    def detach(self) -> None:
        """Remove the hooks; what is in the ring stays until drained."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.abandon()

    def drain(self) -> tuple[Tensor, list[HostRow]] | None:
        """What was recorded since the last call (see :meth:`Ring.drain`), or ``None`` if nothing was."""
        return self._ring.drain() if self._ring else None

    def replan(self) -> None:
        """Make a new plan before the next measured step: what is known of the layers has changed."""
        self._signature = None

    @property
    def stale(self) -> bool:
        """Whether there is no plan yet, or the optimizer's parameters are no longer those of the plan."""
        return self._signature is None or self._signature != self._parameters()

    def _parameters(self) -> list[list[tuple[int, bool]]]:
        return [[(id(p), p.requires_grad) for p in group["params"]] for group in self.optimizer.param_groups]

    @property
    def due(self) -> bool:
        """Whether it is time for a flush; room is left for other optimizers' steps at the same position."""
        if self._ring is None:
            return False
        return len(self._ring) >= max(1, min(self._rows, self._ring.data.shape[0] - SLACK))

    def release(self) -> None:
        """Give the memory of the measurement back."""
        self.plan = self._ring = self._scratch = self._signature = None

    def skip(self) -> None:
        """Record that a step was due and had no arithmetic, as when a loss scaler found infinite gradients."""
        if self._due():
            with self._guard.watching("recording a skipped step"):
                position = self._position(self)
                self._before(position)
                self._prepare().fill_(torch.nan)
                assert self._ring is not None
                self._ring.commit(HostRow(position, time.time(), skipped=True))
        self.steps_seen += 1

    def _pre_hook(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if self._guard.failure is not None:  # removing hooks while torch iterates over them would break the step
            return None
        replaced: tuple[Any, Any] | None = None
        with self._guard.watching(_MEASURING):
            self.abandon()
            closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
            if not callable(closure):
                self.before_step()
            elif "closure" in kwargs:
                replaced = args, {**kwargs, "closure": self._measured(closure)}
            else:
                replaced = (args[0], self._measured(closure), *args[2:]), kwargs
        return replaced

    def _measured(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The user's closure, and the measurement right after its first call."""

        def measured_closure() -> Any:
            result = closure()
            # A line search calls again, with weights that are no longer those at the start.
            if self._pending is None and self._guard.failure is None:
                with self._guard.watching(_MEASURING):
                    self.before_step()
            return result

        return measured_closure

    def _post_hook(self, *_: Any) -> None:
        if self._guard.failure is None:
            with self._guard.watching(_MEASURING):
                self.after_step()
                self._after(self)

    def _due(self) -> bool:
        return self.steps_seen % self._every_n_steps == 0

    @torch.no_grad()
    def before_step(self) -> None:
        """Read weights and gradients: gradients are final, weights are old."""
        if not self._due():
            return
        position = self._position(self)
        self._before(position)
        row = self._prepare()
        assert self.plan is not None
        assert self._scratch is not None
        self._copies = sums.before_step(self.plan, row, self._scratch)
        scale = getattr(self.optimizer, "grad_scale", None)
        if isinstance(scale, Tensor):  # a fused optimizer unscales inside its kernel; a loss scaler says so here
            sums.unscale(row, scale)
        self._pending = HostRow(
            position,
            time.time(),
            [hyperparameters(group, self.direction) for group in self.optimizer.param_groups],
        )

    @torch.no_grad()
    def after_step(self) -> None:
        """Read the new weights and the optimizer's state, and count the step."""
        pending, copies = self._pending, self._copies
        self.abandon()
        self.steps_seen += 1
        if pending is None:
            return
        assert self.plan is not None
        assert self._ring is not None
        assert self._scratch is not None
        row = self._ring.next_row()
        sums.after_step(self.plan, row, self._scratch, copies)
        if self.direction.second_moment is not None:
            pending.optimizer_step = self._second_moments(row, self._scratch, self.direction.second_moment)
        found_inf = getattr(self.optimizer, "found_inf", None)
        if isinstance(found_inf, Tensor):  # ... and skips the step inside it
            sums.forget_if(row, found_inf)
        self._ring.commit(pending)

    def _second_moments(self, row: Tensor, scratch: sums.Scratch, key: Callable[[dict[str, Any]], str]) -> Tensor:
        """Write the sums of the second moments; return the count of updates per tensor, NaN for one not yet updated."""
        assert self.plan is not None
        groups, state = self.optimizer.param_groups, self.optimizer.state
        states = [state.get(slot.parameter, {}) for slot in self.plan.slots]
        moments = [s.get(key(groups[slot.param_group])) for slot, s in zip(self.plan.slots, states, strict=True)]
        sums.second_moment(self.plan, row, scratch, moments)
        counts = [s.get("step") for s in states]
        # Adam keeps its counts on the host, capturable and fused variants on the device: they are only copied here.
        known = [count for count in counts if isinstance(count, Tensor)]
        if not known:
            return torch.full((len(counts),), torch.nan, device="cpu")
        unknown = torch.full((), torch.nan, device=known[0].device)
        return torch.stack([(count if isinstance(count, Tensor) else unknown).to(torch.float32) for count in counts])

    def _prepare(self) -> Tensor:
        """The ring's next row, after a new plan or a flush where one is due."""
        if self.stale:
            if self.plan is not None:
                self._flush()
            self.plan, self._signature = self._make_plan(self.optimizer), self._parameters()
            columns = len(COLUMNS) if self.direction.has_second_moment else len(COLUMNS) - 2
            dtype = sums.accumulation_dtype(self.plan.device)
            rows = capacity(self._budget_mb, columns, self.plan.segments, self._rows + SLACK, dtype)
            self._ring = Ring(rows, columns, self.plan.segments, self.plan.device, dtype)
            self._scratch = sums.Scratch(self.plan)
        assert self._ring is not None
        if self._ring.full:
            self._flush()
        return self._ring.next_row()

    def abandon(self) -> None:
        """Forget a step under way."""
        self._pending, self._copies = None, []
