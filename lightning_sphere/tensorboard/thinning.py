"""Which recorded steps go into the file, so that it stays small however long the run is.

All of them until the file has grown to a budget. From there on one of each two, from twice as many steps on one of each
four, and so on: of ``T`` steps ``F + F/2 log2(T/F)`` are written, ``F`` of them at full rate.
"""

from __future__ import annotations

from typing import Generic, TypeVar

LEAST = 100
"""Steps that are written at full rate, at least, whatever room a step takes."""

Item = TypeVar("Item")


class Thinning(Generic[Item]):
    """Chooses one step of each block of steps; blocks grow as the run does.

    Of a block it is the one of which most is known, the first of several: quantities that are measured now and then are
    not lost by chance. The last step of all is kept as well.

    Args:
        budget: bytes of steps at full rate.
    """

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self._taken = 0
        self._block = 0, 0
        self._best: tuple[int, Item] | None = None
        self._last: Item | None = None

    def stride(self, size: int) -> int:
        """Of how many steps one is written, at present.

        Args:
            size: bytes that a step takes.
        """
        return stride(self._taken, max(LEAST, int(self._budget // max(1, size))))

    def take(self, item: Item, known: int, size: int) -> list[Item]:
        """Take the next step.

        Args:
            item: the step.
            known: how many of its numbers are known.
            size: bytes that it takes.

        Returns:
            Those to be written now, in order: earlier ones, or itself.
        """
        apart = self.stride(size)
        block = apart, self._taken // apart
        self._taken += 1
        if apart == 1:
            return [item]
        finished = [self._best[1]] if self._best is not None and block != self._block else []
        if self._best is None or block != self._block or known > self._best[0]:
            self._best = known, item
        self._block, self._last = block, item
        return finished

    def rest(self) -> list[Item]:
        """What is still to be written at the end."""
        best, last, self._best, self._last = self._best, self._last, None, None
        if best is None or last is None:
            return []
        return [best[1]] if best[1] is last else [best[1], last]


def stride(step: int, full: int) -> int:
    """Of how many steps one is written: 1 up to ``full``, 2 up to twice that, 4 up to four times, and so on."""
    return 1 << (step // full).bit_length()
