"""The measuring point: right before and right after one optimizer's arithmetic.

A pre-hook of ``optimizer.step`` sees the weights too early where a closure is given, as Lightning does: forward,
backward, unscaling and clipping still run inside the step. The hook therefore returns a wrapped closure, and the moment
after its first call is the measuring point: gradients are final, weights are old. The post-hook sees the new weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_sphere.directions import UNKNOWN, Direction, direction_of
from lightning_sphere.guard import Guard, warn
from lightning_sphere.measurement.circumstances import calls_of_step, capturing
from lightning_sphere.measurement.kernel_sums import KernelError, MovedError
from lightning_sphere.measurement.paths import give_up
from lightning_sphere.measurement.plan import Plan
from lightning_sphere.measurement.reference import ReferenceWeights
from lightning_sphere.measurement.ring import Drained
from lightning_sphere.measurement.step import StepMeter
from lightning_sphere.measurement.thinning import Thinning

_log = logging.getLogger("lightning_sphere")

SLACK = 8
"""Rows of the ring beyond those wanted, see :attr:`OptimizerTap.due`."""

_MEASURING = "measuring an optimizer step"


class OptimizerTap:
    """Measures every step of one optimizer into a ring on the device.

    Args:
        optimizer: whose steps to measure; nothing in it is changed but its lists of hooks.
        make_plan: called before the first measured step, and again when the optimizer's param groups have changed.
        position: gives the place of this tap's next step on the user's x axis.
        flush: called before the plan changes; must :meth:`drain` this tap.
        before: called with the position of each measured step before it is.
        after: called with this tap after each step, measured or not.
        guard: contains failures.
        wanted: which sums the recorded quantities need.
        reference: gives the weights that drift is measured from.
        every_n_steps: measure each ``n``-th step.
        rows: how many steps are recorded between flushes, if the budget allows.
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
        wanted: frozenset[str],
        reference: Callable[[], ReferenceWeights],
        every_n_steps: int,
        rows: int,
        budget_mb: float,
    ) -> None:
        self.optimizer = optimizer
        self.direction: Direction = direction_of(optimizer) or UNKNOWN
        self.steps_seen = 0
        self._meter: StepMeter | None = None
        self._make_plan, self._position, self._flush = make_plan, position, flush
        self._before, self._after = before, after
        self._guard, self._wanted, self._reference = guard, wanted, reference
        self._every_n_steps = every_n_steps
        self._rows, self._budget_mb = rows, budget_mb
        self._signature: list[list[tuple[int, bool]]] | None = None
        self._handles: list[RemovableHandle] = []
        self._open, self._inner = False, 0
        self._thinning, self._last = Thinning(), -1
        self._told_of_graph = False

    def attach(self) -> None:
        """Register the two hooks."""
        if not self._handles:
            # Within a compiled step the hooks run as they are: traced, they would be compiled anew at each step.
            before, after = map(torch.compiler.disable, (self._pre_hook, self._post_hook))
            self._handles = [
                self.optimizer.register_step_pre_hook(before),
                self.optimizer.register_step_post_hook(after),
            ]

    def detach(self) -> None:
        """Remove the hooks; what is in the ring stays until drained."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.abandon()

    def drain(self) -> Drained | None:
        """Hand over what was recorded since the last call (see :meth:`Ring.drain`), or ``None`` if nothing was."""
        drained = None if self._meter is None else self._meter.drain()
        if drained is not None:
            self._thinning.room()
        return drained

    def trust(self, error: float | None) -> None:
        """Say how far recorded steps were from the optimizer's formula, if any was compared."""
        if error is not None and self._meter is not None:
            self._meter.trust(error)

    @property
    def path(self) -> str:
        """What makes the sums, for people; empty before the first measured step."""
        return "" if self._meter is None else self._meter.sums.name

    @property
    def plan(self) -> Plan | None:
        """What is measured; ``None`` before the first measured step."""
        return None if self._meter is None else self._meter.plan

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the sums that :meth:`drain` gives."""
        return () if self._meter is None else self._meter.ring.columns

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
    def under_way(self) -> bool:
        """Whether the optimizer is within its step."""
        return self._open

    @property
    def due(self) -> bool:
        """Whether it is time for a flush; room is left for other optimizers' steps at the same position."""
        if self._meter is None:
            return False
        ring = self._meter.ring
        return len(ring) >= max(1, min(self._rows, ring.data.shape[0] - SLACK))

    def release(self) -> None:
        """Give the memory of the measurement back."""
        self._meter = self._signature = None

    def skip(self) -> None:
        """Record that a step was due and had no arithmetic, as when a loss scaler found infinite gradients."""
        if self._due():
            with self._guard.watching("recording a skipped step"):
                position = self._position(self)
                self._before(position)
                meter = self._prepare()
                if meter is not None:
                    meter.skip(position, self._apart)
                    self._last = self.steps_seen
        self.steps_seen += 1

    @contextmanager
    def around(self) -> Iterator[None]:
        """Measure what the block does to the weights as one step: one that runs no hooks, such as a CUDA graph's."""
        with self._guard.watching(_MEASURING):
            self.abandon()
            if self._guard.failure is None:
                self.before_step(late=True)
        yield
        self._finish_step()

    def _pre_hook(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if self._guard.failure is not None:  # removing hooks while torch iterates over them would break the step
            return None
        if capturing():
            self._tell_of_graph()
            return None
        if self._open and calls_of_step(self.optimizer) > 1:
            self._inner += 1
            return None
        self._open, self._inner = True, 0
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
            if (self._meter is None or not self._meter.pending) and self._guard.failure is None:
                with self._guard.watching(_MEASURING):
                    self.before_step()
            return result

        return measured_closure

    def _tell_of_graph(self) -> None:
        """Say once that the steps of a CUDA graph run no hooks."""
        if not self._told_of_graph:
            self._told_of_graph = True
            warn(
                f"the step of {type(self.optimizer).__name__} is captured into a CUDA graph, whose replays run no "
                "hooks: they are measured where they are wrapped in `with tracker.measuring(optimizer):`"
            )

    def _post_hook(self, *_: Any) -> None:
        if capturing():
            return
        if self._inner:
            self._inner -= 1
            return
        self._open = False
        self._finish_step()

    def _finish_step(self) -> None:
        if self._guard.failure is None:
            with self._guard.watching(_MEASURING):
                self.after_step()
                self._after(self)

    def _due(self) -> bool:
        return self.steps_seen % (self._every_n_steps * self._thinning.factor) == 0

    @property
    def _apart(self) -> int:
        """Steps since the last recorded one."""
        return self.steps_seen - self._last

    def before_step(self, *, late: bool = False) -> None:
        """Measure the weights and gradients, if this step is to be measured; ``late`` gradients only after it."""
        if self._due():
            position = self._position(self)
            self._before(position)
            meter = self._prepare()
            if meter is not None:
                self._read(lambda: meter.before(position, self._apart, late=late))

    def after_step(self) -> None:
        """Measure the new weights and the optimizer's state, and count the step."""
        self.steps_seen += 1
        if self._meter is not None:
            self._read(self._finish)

    def _finish(self) -> None:
        assert self._meter is not None
        if self._meter.after():
            self._last = self.steps_seen - 1

    def _read(self, measure: Callable[[], None]) -> None:
        """Measure; an optimizer that does not keep what its family keeps is measured as an unknown one from then on."""
        try:
            measure()
        except MovedError:  # measured again from the next step on, as it is then
            self.abandon()
            self.replan()
        except KernelError as error:
            self.abandon()
            give_up(self._meter.plan.device if self._meter is not None else torch.device("cuda"), str(error))
            self.replan()
        except KeyError as missing:
            if self.direction is UNKNOWN:
                raise
            self.abandon()
            self._flush()  # what was read before holds
            self.direction = UNKNOWN
            self.replan()
            _log.warning(
                "what lightning_sphere knows of %s reads %s, which its state and param groups do not hold: it is "
                "measured as an unknown optimizer from now on, effective_lr and second_moment take its step for lr * a",
                type(self.optimizer).__name__,
                missing,
            )

    def _prepare(self) -> StepMeter | None:
        """A meter with room for a step, after a new plan where one is due; ``None`` if there is no room.

        That is so while the steps before are still being evaluated. Waiting for that would hold up the training, so
        that from then on fewer steps are recorded.
        """
        if self.stale or self._meter is None:
            if self._meter is not None:
                self._flush()
            plan, self._signature = self._make_plan(self.optimizer), self._parameters()
            self._meter = StepMeter(
                plan,
                self.optimizer,
                self.direction,
                wanted=self._wanted,
                reference=self._reference(),
                rows=self._rows + SLACK,
                budget_mb=self._budget_mb,
            )
        if self._meter.ring.full:
            self._thinning.overflow(self.steps_seen, self._every_n_steps, type(self.optimizer).__name__)
            return None
        return self._meter

    def abandon(self) -> None:
        """Forget a step under way."""
        if self._meter is not None:
            self._meter.abandon()
