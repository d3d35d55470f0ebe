"""One variant of one training, in a process of its own, which runs for one turn whenever it is told to.

A process for each variant rather than a thread: all threads of one process that compute would have their own team of
OpenMP threads, which then put each other to sleep (a step of the digits net took three times as long). Processes have
the allocator, the garbage collector and the threads that a training has in reality; only one of them runs at a time.
"""

from __future__ import annotations

import logging
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.cases import CASES, OPTIMIZERS, Batch, Case
from benchmarks.counts import Counter, bytes_below, counting, host_state, peak_memory
from benchmarks.variants import VARIANTS
from lightning_sphere import SphereMonitor

BATCHES = 4
"""Different batches that the training goes around."""

TURN, COUNT, STOP = "turn", "count", "stop"
"""What a worker is told: run a turn and time it; run one and count; end."""


@dataclass(frozen=True)
class Job:
    """What a worker has to train, and with what."""

    case: str
    variant: str
    optimizer: str
    device: str
    turn: int
    early_turns: int
    """On small batches."""


class Training(LightningModule):
    """The network with its loss, which it logs."""

    def __init__(self, case: Case, optimizer: str) -> None:
        super().__init__()
        self.network = case.seeded_network()
        self._optimizer = optimizer

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Cross-entropy of the logits."""
        loss = F.cross_entropy(self.network(batch[0]).flatten(0, -2), batch[1].flatten())
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The one that was asked for."""
        return OPTIMIZERS[self._optimizer](self)


class Batches(IterableDataset[Batch]):
    """Prepared batches on the device without end; small ones for the first steps."""

    def __init__(self, case: Case, device: torch.device, small_steps: int) -> None:
        self._small = case.batch(min(4, case.batch_size), device)
        self._batches = [case.batch(case.batch_size, device, number) for number in range(BATCHES)]
        self._small_steps = small_steps

    def __iter__(self) -> Iterator[Batch]:
        """One batch after the other."""
        for _ in range(self._small_steps):
            yield self._small
        while True:
            yield from self._batches


class Turnstile(Callback):
    """Lets the training run for one turn at a time, and times or counts it.

    A turn ends where the next one's first batch starts, after Lightning has logged, with everything written that is
    waiting. Its first step warms up caches that other processes have used and is not timed; the writing is, in full.

    Args:
        connection: to the parent.
        turn: steps of a turn.
        folder: where the loggers write.
    """

    def __init__(self, connection: Connection, turn: int, folder: Path) -> None:
        self._connection, self._turn, self._folder = connection, turn, folder
        self._order = TURN
        self._clock = 0.0
        self._flush_seconds = 0.0
        self._counting = ExitStack()
        self._counter: Counter | None = None
        self._bytes = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The border between two steps."""
        place = batch_idx % self._turn
        if place == 0:
            if batch_idx:
                self._connection.send(self._end(trainer, pl_module))
            else:
                self._watch_flush(trainer)
                self._connection.send({})
            self._order = self._connection.recv()
            self._begin(trainer)
        if place == 1:
            synchronize(pl_module.device)
            self._flush_seconds = 0.0
            self._clock = time.perf_counter()

    def _begin(self, trainer: Trainer) -> None:
        if self._order == STOP:
            trainer.should_stop = True
        elif self._order == COUNT:
            self._bytes = bytes_below(self._folder)
            self._counter = self._counting.enter_context(counting(host_state(trainer.optimizers)))

    def _end(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """Wait until all is written, and say what the turn took."""
        tracker = tracker_of(trainer)
        if tracker is not None:
            tracker.flush()
        for logger in trainer.loggers:
            flush = getattr(getattr(logger, "experiment", None), "flush", None)
            if callable(flush):
                flush()
        synchronize(module.device)
        steps = self._turn - 1
        result: dict[str, Any] = {
            "ms": (time.perf_counter() - self._clock) / steps * 1e3,
            "flush_ms": self._flush_seconds / steps * 1e3,
        }
        if self._order == COUNT:
            self._counting.close()
            assert self._counter is not None
            result = {
                "operations": self._counter.operations / self._turn,
                "synchronizations": self._counter.reads / self._turn,
                "bytes": (bytes_below(self._folder) - self._bytes) / self._turn,
                **described(module, tracker),
            }
        result["peak_memory"] = peak_memory(module.device)
        return result

    def _watch_flush(self, trainer: Trainer) -> None:
        """Time the writing of SphereMonitor where it holds up the training."""
        tracker = tracker_of(trainer)
        if tracker is None:
            return
        flush = tracker.flush

        def timed(*args: Any, **kwargs: Any) -> None:
            start = time.perf_counter()
            flush(*args, **kwargs)
            self._flush_seconds += time.perf_counter() - start

        tracker.flush = timed


def tracker_of(trainer: Trainer) -> Any:
    """The tracker of the Trainer's SphereMonitor, if it has one."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((item.tracker for item in callbacks if isinstance(item, SphereMonitor)), None)


def described(module: LightningModule, tracker: Any) -> dict[str, Any]:
    """How large the model is, and what of it is measured, and how."""
    parameters = list(module.parameters())
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in parameters), "tensors": len(parameters)}
    if tracker is not None:
        found["measured_steps"] = tracker.history.steps
        found["groups"] = sum(group.blocks for group in tracker.discovery.groups) if tracker.discovery else 0
        found["measured_by"] = tracker.measured_by
    return found


def synchronize(device: torch.device) -> None:
    """Wait for the GPU, if it is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def work(connection: Connection, job: Job) -> None:
    """Train until told to stop; a failure goes to the parent."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            _train(connection, job, Path(folder))
        connection.send({"stopped": True})
    except (EOFError, BrokenPipeError):  # the parent is gone, it has said why
        return
    except Exception:
        connection.send({"error": f"{asdict(job)}\n{traceback.format_exc()}"})


def _train(connection: Connection, job: Job, folder: Path) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    case, variant, device = CASES[job.case], VARIANTS[job.variant], torch.device(job.device)
    module = Training(case, job.optimizer)
    batches = DataLoader(Batches(case, device, job.early_turns * job.turn), batch_size=None)
    trainer = Trainer(
        max_epochs=1,
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=1,
        precision=case.precision,  # type: ignore[arg-type]
        logger=variant.all_loggers(folder, module, job.turn),
        callbacks=[Turnstile(connection, job.turn, folder), *variant.callbacks()],
        log_every_n_steps=1 if variant.every_step else job.turn,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, batches)
