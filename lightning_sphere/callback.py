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

from lightning_sphere.claims import given_groups
from lightning_sphere.given import Groups
from lightning_sphere.guard import Guard
from lightning_sphere.layers import known_names
from lightning_sphere.options import Options, check_flag
from lightning_sphere.recording import Sink
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
        per_layer_scalars: also write one scalar per layer and quantity (many charts).
        device_budget_mb: memory on the device for what waits to be written, in MiB; a full buffer is written earlier.
        print_summary: print a table of all layers at the end of fit.
        strict: raise failures of the callback instead of warning once and switching it off.

    Raises:
        TypeError, ValueError: for a wrong argument, naming it, what it takes and what it got; at the start of fit, for
            a name in ``include``, ``exclude`` or ``groups`` that the model does not have, and for a second
            ``SphereMonitor`` among the Trainer's callbacks.

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
        per_layer_scalars: bool = False,
        device_budget_mb: float = 64.0,
        print_summary: bool = True,
        strict: bool = False,
    ) -> None:
        check_flag("print_summary", print_summary)
        self._arguments: dict[str, Any] = {
            "every_n_steps": every_n_steps,
            "include": include,
            "exclude": exclude,
            "groups": groups,
            "per_layer_scalars": per_layer_scalars,
            "device_budget_mb": device_budget_mb,
            "strict": strict,
        }
        self._options = Options(**self._arguments)
        self._print_summary = print_summary
        self._log_dir: str | None = None
        self.tracker: SphereTracker | None = None
        """Measures the fit under way, or the last one; ``None`` before, in copies, and on ranks other than 0."""

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """What the gradients say of each claim of invariance, by name of the layer; empty before a fit.

        See ``SphereTracker.verdicts``.
        """
        return {} if self.tracker is None else self.tracker.verdicts

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check what only model and Trainer can confirm."""
        self._options.check_names(known_names(pl_module))
        given_groups(self._options.groups, pl_module)
        if sum(isinstance(callback, SphereMonitor) for callback in trainer.callbacks) > 1:
            raise ValueError("the Trainer's callbacks hold several SphereMonitors, which would write the same curves")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the optimizers; with several processes the first one measures, since all hold the same weights."""
        self.tracker = None
        if not trainer.is_global_zero or not trainer.optimizers:
            return
        steps = trainer.log_every_n_steps or UNLOGGED_ROWS
        with Guard(strict=self._options.strict).watching("starting"):
            tracker = SphereTracker(
                pl_module,
                trainer.optimizers,
                flush_every_n_steps=max(1, steps // self._options.every_n_steps),
                sinks=self._sinks(trainer),
                position=lambda _: logging_step(trainer),
                **self._arguments,
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
                self.tracker.flush()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Write what is recorded: whoever looks at validation metrics sees the steps before."""
        if self.tracker is not None and not trainer.sanity_checking:
            self.tracker.flush()

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
        return {**self.__dict__, "tracker": None}

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
                sinks.append(TensorBoardSink(file_writer))
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
