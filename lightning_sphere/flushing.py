"""From the rings to the sinks, beside the training: what is recorded is handed over, evaluated and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lightning_sphere.background import Background
from lightning_sphere.evaluation import Batch, Evaluation
from lightning_sphere.guard import Guard
from lightning_sphere.measurement.tap import OptimizerTap
from lightning_sphere.recording import Recording, Sink
from lightning_sphere.sinks import History
from lightning_sphere.tensorboard.writer import TensorBoardSink

_FLUSHING = "evaluating and writing recorded steps"


@dataclass(frozen=True)
class _Done:
    """What one flush has found."""

    batches: Sequence[Batch]
    recording: Recording | None
    news: bool


class Flusher:
    """Evaluates and writes in a thread of its own, one flush at a time.

    While one is under way, steps go on being recorded; there is no queue that could grow.

    Args:
        evaluation: what happens at a flush. Only one thread uses it at a time: whoever asks it anything calls
            :meth:`settle` before.
        sinks: where recordings go.
        guard: contains failures.
        claims: gives what is taken to be invariant; another object where that has changed.
        adapt: called where a flush has changed it.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        sinks: Sequence[Sink],
        guard: Guard,
        claims: Callable[[], object],
        adapt: Callable[[], None],
    ) -> None:
        self.sinks = list(sinks)
        self._evaluation, self._guard, self._claims, self._adapt = evaluation, guard, claims, adapt
        self._background: Background[_Done] = Background()

    def flush(self, taps: Sequence[OptimizerTap], unmatched: Mapping[str, str], *, wait: bool) -> None:
        """Hand over what is recorded.

        Args:
            taps: all of them.
            unmatched: why a parameter has no reference to measure drift from, by name.
            wait: until it is written. Otherwise nothing happens while an earlier flush is under way.
        """
        with self._guard.watching(_FLUSHING):
            if not (wait or self._background.idle):
                return
            self._take_over()
            batches = self._evaluation.gather(taps)
            if not batches:
                return
            claims, beside = self._claims(), [sink for sink in self.sinks if _runs_beside(sink)]

            def job() -> _Done:
                try:
                    recording = self._evaluation.evaluate(batches, unmatched)
                finally:
                    for batch in batches:
                        batch.drained.release()
                if recording is not None:
                    for sink in beside:
                        sink.write(recording)
                return _Done(batches, recording, self._claims() is not claims)

            self._background.start(job)
            if wait:
                self._take_over()

    def poll(self) -> None:
        """Take over what a flush has found, if one is done."""
        if self._background.done:
            self.settle()

    def settle(self) -> None:
        """Wait for a flush under way: what it finds out is asked for next."""
        with self._guard.watching(_FLUSHING):
            self._take_over()

    def close(self, keep: Sequence[Sink]) -> None:
        """Close all sinks and let the thread end.

        Args:
            keep: sinks to go on with afterwards.
        """
        self._background.close()
        for sink in self.sinks:
            with self._guard.watching("closing the log"):
                sink.close()
        self.sinks = list(keep)

    def _take_over(self) -> None:
        """Tell the training's side what the last flush has found, waiting for it."""
        done = self._background.take()
        if done is None:
            return
        for batch in done.batches:
            batch.tap.trust(batch.formula_error)
        if done.recording is not None:
            for sink in self.sinks:
                if not _runs_beside(sink):
                    sink.write(done.recording)
        if done.news:  # gradients told something
            self._adapt()


def _runs_beside(sink: Sink) -> bool:
    """Whether a sink may be written to from another thread: those of users, and loggers, may not expect it."""
    return isinstance(sink, (History, TensorBoardSink))
