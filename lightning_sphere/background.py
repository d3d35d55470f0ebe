"""One thread beside the training, for work that must not hold it up."""

from __future__ import annotations

import os
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
        self._process = os.getpid()

    def _notice_fork(self) -> None:
        """A forked process has no thread of its parent's: what that one does is the parent's business."""
        if self._process != os.getpid():
            self._process, self._pool, self._job = os.getpid(), None, None

    @property
    def idle(self) -> bool:
        """Whether no job is under way; one may have ended whose result was not taken yet."""
        self._notice_fork()
        return self._job is None or self._job.done()

    @property
    def done(self) -> bool:
        """Whether there is a result to take."""
        return self._job is not None and self._job.done()

    def start(self, job: Callable[[], Result]) -> None:
        """Begin a job, once the result of the one before is taken."""
        self._notice_fork()
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
        self._notice_fork()
        job = self._job
        if job is None:
            return None
        try:
            return job.result()
        finally:
            if job.done():  # else Ctrl-C has ended the wait: whoever comes next waits for it
                self._job = None

    def close(self) -> None:
        """Let the thread end, after its job."""
        self._notice_fork()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None


def _stay_alone() -> None:
    torch.get_num_threads()  # a thread's first call sets its number of threads
    threadpool_limits(limits=1, user_api="openmp")
