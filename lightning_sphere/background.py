"""One thread beside the training, for work that must not hold it up."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from threadpoolctl import threadpool_limits

Result = TypeVar("Result")


class Background(Generic[Result]):
    """Does one job at a time in a thread of its own, which lives while there is work and is joined at the end.

    PyTorch's operations stay within that thread: a team of its own would compete with the training for the cores.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._job: Future[Result] | None = None

    @property
    def idle(self) -> bool:
        """Whether no job is under way; one may have ended whose result was not taken yet."""
        return self._job is None or self._job.done()

    @property
    def done(self) -> bool:
        """Whether there is a result to take."""
        return self._job is not None and self._job.done()

    def start(self, job: Callable[[], Result]) -> None:
        """Begin a job, once the result of the one before is taken."""
        assert self._job is None
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="lightning_sphere", initializer=_stay_alone)
        try:
            self._job = self._pool.submit(job)
        except RuntimeError:  # no thread can be had, as when the interpreter is shutting down
            self._job = Future()
            self._job.set_result(job())

    def take(self) -> Result | None:
        """What the last job gave, waiting for it; ``None`` if there is none.

        Raises:
            Exception: what the job raised.
        """
        if self._job is None:
            return None
        job, self._job = self._job, None
        return job.result()

    def close(self) -> None:
        """Let the thread end, after its job."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None


def _stay_alone() -> None:
    torch.get_num_threads()  # a thread's first call sets its number of threads
    threadpool_limits(limits=1, user_api="openmp")
