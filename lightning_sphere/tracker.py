"""Puts discovery, measurement and sinks together for any training loop; Lightning is not needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from lightning_sphere.about import teller
from lightning_sphere.calls import CompiledCalls
from lightning_sphere.checkpoints import Source
from lightning_sphere.claims import given_groups
from lightning_sphere.directions import direction_of, unknown_optimizer
from lightning_sphere.discovery import Discovery
from lightning_sphere.discovery.graph import tensors_in
from lightning_sphere.drift import reference_weights
from lightning_sphere.evaluation import Evaluation
from lightning_sphere.flushing import Flusher
from lightning_sphere.given import Groups
from lightning_sphere.guard import Guard
from lightning_sphere.layers import KnownLayers, known_names
from lightning_sphere.measurement.plan import Plan
from lightning_sphere.measurement.reference import ReferenceWeights
from lightning_sphere.measurement.tap import OptimizerTap
from lightning_sphere.options import Options, applicable, check_count, check_outlets, optimizers_in
from lightning_sphere.outputs import OutputsHook
from lightning_sphere.quantities import sums_of
from lightning_sphere.recording import Sink
from lightning_sphere.running import Running
from lightning_sphere.settling import LayerEquilibrium
from lightning_sphere.signals import exit_on_sigterm
from lightning_sphere.sinks import History
from lightning_sphere.summary import RunSummary, summarize
from lightning_sphere.tensorboard.writer import file_writer_of, open_sink
from lightning_sphere.verdict import Verdict

_log = logging.getLogger("lightning_sphere")


class SphereTracker:
    """Records norm, angular step and effective learning rate of every weight, at every optimizer step.

    Use it as a context manager around a plain training loop; with a Lightning ``Trainer`` use ``SphereMonitor``.
    Hooks of yours that change gradients inside ``optimizer.step()`` must be registered before.
    Weights, gradients, optimizer state and random numbers are left exactly as they are. Within the block a SIGTERM that
    nobody handles ends the program by ``SystemExit(143)``, so that what is recorded is written.

    Args:
        model: the network. What its ``forward`` returns in training shows which weights a normalization follows.
        optimizer: the optimizer, or several.
        log_dir: folder of TensorBoard events to write. ``None`` writes none.
        writer: a ``torch.utils.tensorboard.SummaryWriter`` of yours to write into, in place of ``log_dir``. Use it
            where you have one: a second event file in its folder makes TensorBoard lose metrics.
        flush_every_n_steps: how many recorded steps are kept on the device before they are evaluated and written.
        every_n_steps: measure each n-th optimizer step.
        include: names of modules or parameters, or patterns (``"layer1.*"``), to measure. ``None`` measures all.
        exclude: the same, to leave out. ``None`` leaves out nothing.
        groups: what is invariant, in place of discovery: a sequence of :class:`~lightning_sphere.ScaleGroup`, or a
            function that maps the model to one. All other weights are measured as not invariant.
        quantities: what to record: ``"core"``, ``"full"`` (also Adam's deformation and radial terms, which costs some
            more per step), or names of quantities.
        drift_from: the weights that ``drift`` is measured from: a checkpoint's path, a mapping of names to tensors, or
            a module. ``None`` takes those before the first measured step.
        per_layer_scalars: also write one scalar per layer and quantity: ``True`` at each recorded step, ``n`` at each
            n-th.
        histograms: also write how norms, angular steps and effective learning rates are spread over the groups
            (filters) of each invariant layer, as TensorBoard's histograms: ``True`` at each hundredth recorded step,
            ``n`` at each n-th.
        custom_scalars: also add charts with bands to the run's layout for TensorBoard's Custom Scalars tab.
        device_budget_mb: memory on the device for what waits to be written, in MiB; where it is full before
            earlier steps are evaluated, fewer are recorded, with a warning.
        file_budget_mb: MiB of the event file up to which every recorded step is written; then one of each two, from
            twice as many steps on one of each four, and so on.
        strict: raise failures of the tracker instead of warning and switching it off.
        sinks: further places to put recordings: objects with ``write(recording)`` and ``close()``.
        total_steps: how many steps the run will have, if that is known; it tells which layers will not reach their
            equilibrium.
        position: maps the number of steps that an optimizer has taken to its place on the x axis. The default counts
            the steps of the optimizer that has taken most, from 0: the others join the row of its latest step.

    Raises:
        TypeError, ValueError: for a wrong argument, naming it, what it takes and what it got; also for a name in
            ``include``, ``exclude`` or ``groups`` that the model does not have.

    Example::

        with SphereTracker(model, optimizer, log_dir="runs/plain") as tracker:
            for inputs, targets in batches:
                optimizer.zero_grad()
                loss_function(model(inputs), targets).backward()
                optimizer.step()
        tracker.print_summary()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        log_dir: str | PathLike[str] | None = None,
        *,
        writer: Any = None,
        flush_every_n_steps: int = 50,
        every_n_steps: int = 1,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        groups: Groups | None = None,
        quantities: str | Sequence[str] = "core",
        drift_from: Source | None = None,
        per_layer_scalars: bool | int = False,
        histograms: bool | int = False,
        custom_scalars: bool = False,
        device_budget_mb: float = 64.0,
        file_budget_mb: float = 64.0,
        strict: bool = False,
        sinks: Sequence[Sink] = (),
        total_steps: int | None = None,
        position: Callable[[int], int] | None = None,
    ) -> None:
        self.options = Options(
            every_n_steps=every_n_steps,
            include=include,  # type: ignore[arg-type]  # Options turns a single name into a tuple
            exclude=exclude,  # type: ignore[arg-type]
            groups=groups,
            quantities=quantities,  # type: ignore[arg-type]  # Options turns the word into names
            drift_from=drift_from,
            per_layer_scalars=per_layer_scalars,
            histograms=histograms,
            custom_scalars=custom_scalars,
            device_budget_mb=device_budget_mb,
            file_budget_mb=file_budget_mb,
            strict=strict,
        )
        check_count("flush_every_n_steps", flush_every_n_steps)
        if total_steps is not None:
            check_count("total_steps", total_steps)
        optimizers = optimizers_in(optimizer)
        check_outlets(log_dir, writer, sinks, position)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model takes a torch.nn.Module, got {model!r}")
        if writer is not None and file_writer_of(writer) is None:
            raise TypeError(f"writer takes a torch.utils.tensorboard.SummaryWriter, got {writer!r}")
        self.options.check_names(known_names(model))
        self.model = model
        self.history = History(window=flush_every_n_steps)
        self._log_dir, self._writer = log_dir, writer
        self._arguments = {**vars(self.options), "quantities": quantities}
        self.guard = Guard(strict=strict, switch_off=self._release)
        """Contains failures of this tracker and of those who drive it."""
        given = given_groups(self.options.groups, model)
        self._layers = KnownLayers(model, self.options, given, optimizers)
        self._reference: ReferenceWeights | None
        self._reference, self._unmatched = reference_weights(drift_from, model)
        names = self.options.quantities
        self._evaluation = Evaluation(
            model,
            self._layers,
            names=applicable(names, optimizers) if isinstance(quantities, str) else names,
            start=lambda: Running(every_n_steps=every_n_steps, from_start=drift_from is None),
            per_layer_scalars=self.options.per_layer_every,
            histograms=self.options.histograms_every,
            total_steps=total_steps,
        )
        self._flusher = Flusher(
            self._evaluation, [self.history, *sinks], self.guard, lambda: self._layers.claims, self._adapt
        )
        self._expected: list[Optimizer] = []
        self._at: int | None = None
        self._entered = False
        self._forward_hook: RemovableHandle | None = None
        self._calls: CompiledCalls | None = None
        self._restore_signal: Callable[[], None] = lambda: None
        self._taps = [
            OptimizerTap(
                item,
                make_plan=self._plan,
                position=self._latest if position is None else (lambda tap: position(tap.steps_seen)),
                flush=self.flush,
                before=self._before_step,
                after=self._after_step,
                guard=self.guard,
                wanted=sums_of(self.options.quantities),
                reference=lambda: self._reference or ReferenceWeights(),
                every_n_steps=every_n_steps,
                rows=flush_every_n_steps,
                budget_mb=self.options.device_budget_mb,
            )
            for item in optimizers
        ]

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Self:
        """Start measuring."""
        if self._entered:
            return self
        self._entered = True
        self.start()
        self._restore_signal = exit_on_sigterm()
        if self._calls is not None and getattr(self.model, "_compiled_call_impl", None) is not None:
            self._calls.show = self._discover_from_outputs  # a hook would be compiled along
        else:
            self._forward_hook = self.model.register_forward_hook(OutputsHook(self._discover_from_outputs))
        return self

    def __exit__(self, *_: object) -> None:
        """Write what is recorded and stop measuring, also when the loop failed."""
        self.close()
        self._restore_signal()
        self._entered = False

    def start(self) -> None:
        """Attach to the optimizers."""
        with self.guard.watching("opening the log"):
            if self._reference is None:  # started again: a new path, from where the weights are now
                self._reference, self._unmatched = reference_weights(self.options.drift_from, self.model)
                self._evaluation.start_anew()
            if self._writer is not None or self._log_dir is not None:
                sink = open_sink(
                    self._writer,
                    self._log_dir,
                    budget_mb=self.options.file_budget_mb,
                    about=teller(self._arguments, [tap.optimizer for tap in self._taps]),
                    custom_scalars=self.options.custom_scalars,
                )
                self._flusher.sinks.append(sink)
        with self.guard.watching("looking for compiled modules"):
            self._calls = CompiledCalls(self.model, lambda: self.wants_loss)
        for tap in self._taps:
            tap.attach()
        unknown = [tap.optimizer for tap in self._taps if direction_of(tap.optimizer) is None]
        for message in dict.fromkeys(map(unknown_optimizer, unknown)):
            _log.warning("%s", message)

    def close(self) -> None:
        """Write what is recorded and detach. May be called again."""
        if self._forward_hook is not None:
            self._forward_hook.remove()
            self._forward_hook = None
        if self._calls is not None:
            self._calls.detach()
        for tap in self._taps:
            tap.detach()
        try:
            self.flush()
        finally:  # where a sink of the user's raises, too
            for tap in self._taps:
                tap.release()
            self._reference = None
            self._flusher.close(keep=[self.history])

    # ------------------------------------------------------------- discovery

    def discover(self, loss: Tensor | Sequence[Tensor]) -> Discovery | None:
        """Find the scale-invariant weights from a loss that still has its graph.

        Several losses before an optimizer's first step add up: what one of them shows to vary is not invariant.

        Args:
            loss: scalar loss before ``backward``; or outputs that the loss reads, whatever it does with them.

        Returns:
            What is known now; ``None`` if it could not be found out.

        Raises:
            ValueError: with ``strict=True``, for a loss without a graph; else the tracker warns and switches off.
        """
        self._read(loss, given=True)
        return self.discovery

    @property
    def discovery(self) -> Discovery | None:
        """Which weights are known to be scale-invariant by now, and why; ``None`` before the first loss."""
        self._flusher.settle()
        return self._layers.known

    def _read(self, loss: Any, *, given: bool) -> None:
        self._flusher.settle()
        with self.guard.watching("reading the loss's graph"):
            self._layers.read(loss, given=given, standins=self._calls.standins if self._calls is not None else None)
            self._adapt()

    def _plan(self, optimizer: Optimizer) -> Plan:
        self._flusher.settle()
        return self._layers.plan(optimizer)

    def _adapt(self) -> None:
        """Have what is known now measured from the next step on."""
        for tap in self._taps:
            if tap.plan is not None and list(tap.plan.layers) != self._layers.of(tap.optimizer):
                tap.replan()

    @property
    def wants_loss(self) -> bool:
        """Whether a loss may tell something: an optimizer is about to step for the first time, or has new weights."""
        if self.guard.failure is not None or not self._layers.worth_reading:
            return False
        return any(tap.stale or self._layers.incomplete(tap.plan) for tap in self._taps)

    def _discover_from_outputs(self, outputs: Any) -> None:
        """Outputs in training stand for the loss that will read them, where no loss is given."""
        if not self._layers.loss_given and self.wants_loss:
            with self.guard.watching("looking at the model's outputs"):
                if any(tensor.requires_grad for tensor in tensors_in(outputs)):
                    self._read(outputs, given=False)

    # ----------------------------------------------------------------- steps

    @contextmanager
    def measuring(self, optimizer: Optimizer) -> Iterator[None]:
        """Measure what a block does as one step of an optimizer, where ``optimizer.step()`` does not run.

        A CUDA graph that holds the step runs no hooks::

            with tracker.measuring(optimizer):
                graph.replay()

        Gradients are read after the block, so that they must still be there, as the optimizer used them.

        Args:
            optimizer: one of the tracker's.

        Raises:
            ValueError: for another optimizer.
        """
        tap = next((tap for tap in self._taps if tap.optimizer is optimizer), None)
        if tap is None:
            raise ValueError(f"optimizer takes one of the tracker's optimizers, got {type(optimizer).__name__}")
        with tap.around():
            yield

    def expect_step(self, optimizer: Optimizer) -> None:
        """Say that gradients are ready for a step; :meth:`settle_step` then knows whether it happened."""
        under_way = any(tap.under_way for tap in self._taps if tap.optimizer is optimizer)
        if not (under_way and optimizer in self._expected):  # a line search runs its closure again within one step
            self._expected.append(optimizer)

    def settle_step(self) -> None:
        """Record an expected step that had no arithmetic (a loss scaler skipped it) as skipped."""
        expected, self._expected = self._expected, []
        if self.guard.failure is not None:
            return
        for optimizer in expected:
            for tap in self._taps:
                if tap.optimizer is optimizer:
                    tap.skip()

    def _latest(self, tap: OptimizerTap) -> int:
        return max(tap.steps_seen, *(other.steps_seen - 1 for other in self._taps))

    def _before_step(self, position: int) -> None:
        if position != self._at:  # all optimizers' steps at the position before are recorded
            self._at = position
            if self._calls is not None:
                self._calls.clear()
            self._flusher.poll()
            if any(tap.due for tap in self._taps):
                self.flush(wait=False)

    def _after_step(self, tap: OptimizerTap) -> None:
        if tap.optimizer in self._expected:
            self._expected.remove(tap.optimizer)

    # ----------------------------------------------------------------- flush

    def flush(self, *, wait: bool = True) -> None:
        """Evaluate what is recorded and give it to the sinks, in a thread of the tracker's own.

        Args:
            wait: until that is done. Otherwise this only hands over, and does nothing while an earlier flush is under
                way.
        """
        self._flusher.flush(self._taps, self._unmatched, wait=wait)

    def _release(self) -> None:
        """Let go of what a switched-off tracker no longer needs."""
        for tap in self._taps:
            tap.abandon()

    # --------------------------------------------------------------- results

    def summary(self) -> RunSummary:
        """One row per layer: the state at the end of what was recorded so far (call it after a flush)."""
        self._flusher.settle()
        measured = list(self._evaluation.measured.values())
        summary = summarize(self.history, measured, self.verdicts, self.equilibrium)
        return replace(summary, failed=self.guard.failure is not None)

    @property
    def measured_by(self) -> str:
        """What makes the sums: a kernel or PyTorch operations; empty before the first measured step."""
        return ", ".join(sorted({tap.path for tap in self._taps if tap.path}))

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """What the gradients say of each claim of invariance, by name of the layer, as of the last flush.

        Layers of which nothing is claimed have no verdict; before the first flush there is none.
        """
        self._flusher.settle()
        return self._evaluation.verdicts

    @property
    def equilibrium(self) -> dict[str, LayerEquilibrium]:
        """How far each invariant layer is from rotational equilibrium, by name, as of the last flush.

        The prediction is that of the present learning rate and weight decay (Kosson et al., arXiv 2305.17212).
        """
        self._flusher.settle()
        return self._evaluation.equilibrium

    def print_summary(self) -> None:
        """Print :meth:`summary` as a table, and how to open TensorBoard."""
        self.summary().print(log_dir=self._log_dir or getattr(self._writer, "log_dir", None))
