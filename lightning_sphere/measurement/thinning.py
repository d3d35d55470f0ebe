"""Back-pressure: fewer steps are recorded where more come than can be evaluated."""

from __future__ import annotations

import logging

from lightning_sphere.guard import warn

_log = logging.getLogger("lightning_sphere")

MOST = 1024
"""Steps are not thinned out further than to one in so many."""


class Thinning:
    """Which share of the steps is recorded: half as many each time that the ring was full."""

    def __init__(self) -> None:
        self.factor = 1
        """Of the steps that would be recorded, one in so many is."""
        self._overflowed = False

    def overflow(self, step: int, every_n_steps: int, optimizer: str) -> None:
        """There was no room for a step.

        Args:
            step: its number.
            every_n_steps: steps that the user wants recorded are so many apart.
            optimizer: whose step, for people.
        """
        if not self._overflowed and self.factor < MOST:  # all that come during one evaluation count once
            self.factor *= 2
            tell = warn if self.factor == 2 else _log.info
            tell(
                f"steps are recorded faster than they can be evaluated and written: from step {step} of {optimizer} "
                f"on, one in {every_n_steps * self.factor} is recorded. every_n_steps, include and quantities choose "
                "what to record"
            )
        self._overflowed = True

    def room(self) -> None:
        """There is room again."""
        self._overflowed = False
