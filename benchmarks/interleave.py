"""Lets all variants of a training take turns, so that a slow minute of the machine slows all of them down."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.worker import COUNT, STOP, TURN, Job, work

FULL_TURNS = 1
"""Turns on batches of full size that are not timed either."""


class Worker:
    """A process that trains one variant, seen from the parent."""

    def __init__(self, context: Any, job: Job) -> None:
        self.job = job
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process ends our waiting
        self._answer()

    def run(self, order: str) -> dict[str, Any]:
        """Have a turn run, and wait for what it took."""
        self._connection.send(order)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._connection.recv()
        except EOFError:
            raise RuntimeError(f"the process of {self.job} ended: out of memory?") from None
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def stop(self) -> None:
        """End the training."""
        self.run(STOP)
        self._process.join()


def take_turns(jobs: Sequence[Job], rounds: int, progress: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Run all jobs for some rounds, each round in another order.

    Returns:
        By variant: ``ms`` and ``flush_ms`` per step, one of each per round, and what was counted afterwards.
    """
    context = _context()
    workers: list[Worker] = []
    for job in jobs:  # one by one: starting computes too
        progress(f"warming up {job.variant}")
        worker = Worker(context, job)
        workers.append(worker)
        for _ in range(job.early_turns + FULL_TURNS):
            worker.run(TURN)
    results: dict[str, dict[str, Any]] = {job.variant: {**asdict(job), "ms": [], "flush_ms": []} for job in jobs}
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        for place in range(len(workers)):
            worker = workers[(place + number) % len(workers)]
            answer = worker.run(TURN)
            for name in ("ms", "flush_ms"):
                results[worker.job.variant][name].append(answer[name])
            results[worker.job.variant]["peak_memory"] = answer["peak_memory"]
    for worker in workers:
        progress(f"counting {worker.job.variant}")
        counted = worker.run(COUNT)
        counted.pop("peak_memory")  # counting takes some itself
        results[worker.job.variant].update(counted)
    for worker in workers:
        worker.stop()
    return results


def _context() -> Any:
    """Processes that begin as copies of one that has imported everything, where the system can do that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.worker"])
    return context
