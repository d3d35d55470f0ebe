"""Whether the optimizer's formula may stand for what a step does, so that no copy of the weights is needed."""

from __future__ import annotations

from collections.abc import Sequence

FAITHFUL = 1e-4
"""The formula stands for what happens while the numbers of groups that it gives agree to about this share. Rounding
exceeds it where a step turns float32 weights by less than some 1e-5 rad; of bfloat16 ones it always does."""

WRONG = 1e-2
"""Further off than this the formula is not the optimizer's, even if it agrees at other steps."""

SLOWER = 0.5
"""A learning rate below this share of the one at the last comparison makes another one due: small steps are rounded
more."""


class Trust:
    """Follows one optimizer. Trust is given by comparisons, and lost for good by anything out of the ordinary.

    Args:
        possible: whether a step can be measured without a copy at all.

    Attributes:
        possible: whether it still can.
        now: whether the next step may be.
    """

    def __init__(self, possible: bool) -> None:
        self.possible, self.now = possible, False
        self._rates: list[float] = []
        self._parts: list[bool] | None = None
        self._writes: list[int | None] = []

    def judge(self, error: float) -> None:
        """Take the outcome of comparisons, see :func:`lightning_sphere.measurement.asked.error`."""
        self.possible = self.possible and error <= WRONG
        self.now = self.possible and error <= FAITHFUL

    def lose(self) -> None:
        """Have all steps copied from now on."""
        self.possible = self.now = False

    def due(self, rates: Sequence[float], parts: Sequence[bool]) -> bool:
        """Whether the last comparison does not hold for the next step, so that another is due.

        Args:
            rates: learning rates of the param groups.
            parts: which numbers of the formula are not 0: a weight decay that begins, momentum that ends.
        """
        fallen = any(rate < SLOWER * then for rate, then in zip(rates, self._rates, strict=False))
        other = self._parts is not None and list(parts) != self._parts
        self.now = self.now and not fallen and not other
        return (fallen or other) and self.possible

    def compared_at(self, rates: Sequence[float], parts: Sequence[bool]) -> None:
        """A comparison is made at these numbers, see :meth:`due`; other parts may write more often."""
        self._rates = list(rates)
        if self._parts != list(parts):
            self._parts, self._writes = list(parts), []

    def learn(self, writes: Sequence[int], stepped: Sequence[bool]) -> None:
        """How often a copied step has written to each tensor; only of those that were stepped is it known."""
        before = self._writes or [None] * len(writes)
        known = zip(writes, stepped, before, strict=True)
        self._writes = [count if moved else then for count, moved, then in known]

    def usual(self, writes: Sequence[int], stepped: Sequence[bool]) -> bool:
        """Whether a step has written to each tensor as often as copied ones do: else it did something besides."""
        known = zip(writes, stepped, self._writes or [None] * len(writes), strict=True)
        return all(count == (then if moved and then is not None else count) for count, moved, then in known)
