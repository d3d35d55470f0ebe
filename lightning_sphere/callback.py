"""The Lightning callback: a thin shell over :class:`lightning_sphere.tracker.SphereTracker`.

The one module that imports Lightning.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_sphere.about import teller
from lightning_sphere.checkpoints import Source, load_reference, match
from lightning_sphere.claims import given_groups
from lightning_sphere.epoch import EpochMetrics
from lightning_sphere.given import Groups
from lightning_sphere.guard import Guard, warn
from lightning_sphere.layers import known_names
from lightning_sphere.options import Options, check_flag
from lightning_sphere.recording import Sink
from lightning_sphere.settling import LayerEquilibrium
from lightning_sphere.sinks import ScalarSink
from lightning_sphere.tensorboard.writer import TensorBoardSink, file_writer_of
from lightning_sphere.tracker import SphereTracker
from lightning_sphere.verdict import Verdict

_log = logging.getLogger("lightning_sphere")

UNLOGGED_ROWS = 1000
"""Steps kept on the device where the Trainer's ``log_every_n_steps`` is 0."""


def _callback_bases() -> tuple[type, ...]:
    """The ``Callback`` classes of every installed Lightning: a Trainer of either package then knows ours as one."""
    names = [name for name in ("pytorch_lightning", "lightning") if importlib.util.find_spec(name) is not None]
    modules = {"pytorch_lightning": "pytorch_lightning", "lightning": "lightning.pytorch"}
    bases = [importlib.import_module(modules[name]).Callback for name in names]
    if not bases:
        raise ImportError("SphereMonitor needs Lightning: pip install pytorch-lightning (SphereTracker works without)")
    return tuple(dict.fromkeys(bases))


if TYPE_CHECKING:
    from pytorch_lightning import Callback as _Base
else:
    _Base = type("_Base", _callback_bases(), {})


class SphereMonitor(_Base):
    """Shows what training really does to normalized weights: norm, angular step and effective learning rate.

    At every optimizer step it measures, on the device, each weight's norm, how far the step turned it, and the
    effective learning rate of the equivalent optimization on the sphere (Roburin et al., arXiv 2006.13382). Results go
    to the Trainer's TensorBoard logger every ``trainer.log_every_n_steps`` steps, one value for every step; other
    loggers get the summary curves. Weights, gradients, optimizer state and random numbers stay bit for bit the same.

    Args:
        every_n_steps: measure each n-th optimizer step.
        include: names of modules or parameters, or patterns (``"layer1.*"``), to measure. ``None`` measures all.
        exclude: the same, to leave out. ``None`` leaves out nothing.
        groups: what is invariant, in place of discovery: a sequence of :class:`~lightning_sphere.ScaleGroup`, or a
            function that maps the module to one. All other weights are measured as not invariant.
        quantities: what to record: ``"core"``, ``"full"`` (also Adam's deformation and radial terms, which costs some
            more per step), or names of quantities.
        drift_from: the weights that ``drift`` is measured from: a checkpoint's path, a mapping of names to tensors, or
            a module. ``None`` takes those at the start of fit.
        per_layer_scalars: also write one scalar per layer and quantity (many charts): ``True`` at each recorded step,
            ``n`` at each n-th.
        histograms: also write how norms, angular steps and effective learning rates are spread over the groups
            (filters) of each invariant layer, as TensorBoard's histograms: ``True`` at each hundredth recorded step,
            ``n`` at each n-th.
        custom_scalars: also add charts with bands to the run's layout for TensorBoard's Custom Scalars tab; one of
            your own stays.
        device_budget_mb: memory on the device for what waits to be written, in MiB; where it is full before
            earlier steps are evaluated, fewer are recorded, with a warning.
        file_budget_mb: MiB of the event file up to which every recorded step is written; then one of each two, from
            twice as many steps on one of each four, and so on.
        print_summary: print a table of all layers at the end of fit.
        strict: raise failures of the callback instead of warning once and switching it off.

    Raises:
        TypeError, ValueError: for a wrong argument, naming it, what it takes and what it got; at the start of fit, for
            a name in ``include``, ``exclude`` or ``groups`` that the model does not have, and for a ``drift_from`` that
            does not fit it.

    Example::

        from lightning_sphere import SphereMonitor

        trainer = Trainer(callbacks=[SphereMonitor()])
    """

    def __init__(
        self,
        *,
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
        print_summary: bool = True,
        strict: bool = False,
    ) -> None:
        check_flag("print_summary", print_summary)
        self._arguments: dict[str, Any] = {
            "every_n_steps": every_n_steps,
            "include": include,
            "exclude": exclude,
            "groups": groups,
            "quantities": quantities,
            "drift_from": drift_from,
            "per_layer_scalars": per_layer_scalars,
            "histograms": histograms,
            "custom_scalars": custom_scalars,
            "device_budget_mb": device_budget_mb,
            "file_budget_mb": file_budget_mb,
            "strict": strict,
        }
        self._options = Options(**self._arguments)
        self._print_summary = print_summary
        self._log_dir: str | None = None
        self._start: dict[str, Tensor] | None = None
        self._epoch = EpochMetrics()
        self.tracker: SphereTracker | None = None
        """Measures the fit under way, or the last one; ``None`` before, in copies, and on ranks other than 0."""

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """What the gradients say of each claim of invariance, by name of the layer; empty before a fit.

        See ``SphereTracker.verdicts``.
        """
        return {} if self.tracker is None else self.tracker.verdicts

    @property
    def equilibrium(self) -> dict[str, LayerEquilibrium]:
        """How far each invariant layer is from rotational equilibrium, by name; empty before a fit.

        See ``SphereTracker.equilibrium``.
        """
        return {} if self.tracker is None else self.tracker.equilibrium

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget an epoch that an exception ended, before a checkpoint is read."""
        self._epoch.clear()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check what only model and Trainer can confirm."""
        self._options.check_names(known_names(pl_module))
        given_groups(self._options.groups, pl_module)
        if self._options.drift_from is not None and trainer.is_global_zero:
            self._start = load_reference(self._options.drift_from)
            match(self._start, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the optimizers; with several processes the first one measures, since all hold the same weights."""
        self.tracker = None
        self._epoch.begin(trainer.current_epoch, measures=trainer.is_global_zero)
        if not trainer.is_global_zero or not trainer.optimizers:
            return
        steps = trainer.log_every_n_steps or UNLOGGED_ROWS
        start, self._start = self._start, None
        with Guard(strict=self._options.strict).watching("starting"):
            tracker = SphereTracker(
                pl_module,
                trainer.optimizers,
                flush_every_n_steps=max(1, steps // self._options.every_n_steps),
                sinks=[*self._sinks(trainer), self._epoch],
                total_steps=_total_steps(trainer),
                position=lambda _: logging_step(trainer),
                **{**self._arguments, "drift_from": start},
            )
            tracker.start()
            self.tracker = tracker

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Read the graph of the first losses: which weights does a normalization follow?"""
        if self.tracker is not None and self.tracker.wants_loss:
            self.tracker.discover(loss)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """A step is due; a loss scaler may still skip it."""
        if self.tracker is not None:
            self.tracker.expect_step(optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Settle skipped steps, and write when Lightning logs."""
        if self.tracker is None:
            return
        with self.tracker.guard.watching("writing recorded steps"):
            self.tracker.settle_step()
            if trainer.log_every_n_steps and (logging_step(trainer) + 1) % trainer.log_every_n_steps == 0:
                self.tracker.flush(wait=False)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Write what is recorded: whoever looks at validation metrics sees the steps before."""
        if self.tracker is not None and not trainer.sanity_checking:
            self.tracker.flush()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Count from here, unless a checkpoint resumes this epoch."""
        self._epoch.begin(trainer.current_epoch, measures=trainer.is_global_zero)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the epoch's means under ``sphere_epoch/``, for loggers and for callbacks that monitor.

        Every process takes part, whatever happened in the one that measures: the others would wait for it.
        """
        if self.tracker is not None:
            self.tracker.flush()
        with self._guard().watching("logging the epoch's means"):
            means = self._epoch.results(pl_module.device)
            if not getattr(trainer, "barebones", False):
                for name, value in means.items():
                    pl_module.log(name, value, batch_size=1, sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        """What an epoch under way has counted, so that it goes on where a checkpoint is resumed."""
        if self.tracker is not None:
            self.tracker.flush()
        counted: dict[str, Any] = {}
        with self._guard().watching("saving the epoch's means"):
            counted = self._epoch.state_dict()
        return {"epoch": counted} if counted else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        try:
            self._epoch.load_state_dict(state_dict.get("epoch", {}))
        except Exception as error:
            if self._options.strict:
                raise
            warn(f"the means of the epoch that is resumed miss the steps before: cannot read the checkpoint: {error}")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the rest."""
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Write the rest: an error, Ctrl-C or SIGTERM ends the fit."""
        self._close()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Print the summary."""
        if self.tracker is not None and self._print_summary:
            with self.tracker.guard.watching("printing the summary"):
                _end_live_display(trainer, pl_module)
                self.tracker.summary().print(log_dir=self._log_dir)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Make sure that nothing stays attached, whatever way the fit ended."""
        self._close()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles (for processes to be spawned) start afresh."""
        return {**self.__dict__, "tracker": None, "_epoch": EpochMetrics()}

    def _guard(self) -> Guard:
        return self.tracker.guard if self.tracker is not None else Guard(strict=self._options.strict)

    def _close(self) -> None:
        if self.tracker is not None:
            self.tracker.close()

    def _sinks(self, trainer: Any) -> list[Sink]:
        """The full table for loggers that write TensorBoard events, the curves for all others."""
        sinks: list[Sink] = []
        self._log_dir = None
        for logger in trainer.loggers:
            file_writer = file_writer_of(getattr(logger, "experiment", None))
            if file_writer is not None:
                sink = TensorBoardSink(
                    file_writer,
                    budget_mb=self._options.file_budget_mb,
                    about=teller(self._arguments, trainer.optimizers),
                    custom_scalars=self._options.custom_scalars,
                )
                sinks.append(sink)
                self._log_dir = self._log_dir or getattr(logger, "log_dir", None)
            else:
                _log.info(
                    "%s gets the summary curves; only TensorBoard can hold the table of all layers",
                    type(logger).__name__,
                )
                sinks.append(ScalarSink(logger.log_metrics))
        if not sinks:
            _log.info("the Trainer has no logger: lightning_sphere shows its summary at the end and writes nothing")
        return sinks


def _total_steps(trainer: Any) -> int | None:
    """Optimizer steps of this fit that are still to come; ``None`` if they cannot be known."""
    if len(trainer.optimizers) != 1 or not trainer.lightning_module.automatic_optimization:
        return None
    try:
        total = trainer.estimated_stepping_batches
    except Exception:  # accumulation by a schedule, a loader without length: then it is not known
        return None
    return int(total) - trainer.global_step if 0 < total - trainer.global_step < float("inf") else None


def _end_live_display(trainer: Any, pl_module: Any) -> None:
    """Let Lightning's rich progress bar end now rather than a moment later: what is printed under it gets lost."""
    bar: Any = getattr(trainer, "progress_bar_callback", None)
    if any(base.__name__ == "RichProgressBar" for base in type(bar).__mro__):
        bar.teardown(trainer, pl_module, "fit")


def logging_step(trainer: Any) -> int:
    """The x axis of metrics that the user logs in ``training_step``: batches after which an optimizer stepped.

    Lightning keeps it under a private name, from which its own LearningRateMonitor reads it too; ``global_step`` counts
    the same for one optimizer under automatic optimization.
    """
    loop = getattr(trainer.fit_loop, "epoch_loop", None)
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step))
