"""Which of the recorded steps something is shown at that would be too much at each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class Stride:
    """Picks each n-th recorded step, or the next one at which there is something to show.

    Args:
        every: n.
    """

    def __init__(self, every: int) -> None:
        self._every, self._seen, self._next = every, 0, 0

    def take(self, known: npt.NDArray[np.bool_]) -> list[int]:
        """Go on by some recorded steps.

        Args:
            known: at which of them there is something to show, ``[steps]``.

        Returns:
            The rows to show, ascending.
        """
        rows = []
        for row in np.flatnonzero(known).tolist():
            position = self._seen + row
            if position >= self._next:
                rows.append(row)
                self._next = (position // self._every + 1) * self._every
        self._seen += len(known)
        return rows
