"""A failure inside the tool must never harm the run that it watches."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_log = logging.getLogger("lightning_sphere")


class SphereWarning(UserWarning):
    """Warnings of this package."""


def warn(message: str) -> None:
    """Warn without ever raising, even where the user turned warnings into errors."""
    try:
        warnings.warn(message, SphereWarning, stacklevel=3)
    except SphereWarning:
        _log.warning(message)


class Guard:
    """Contains failures: the first one warns with its cause and switches the tool off.

    Args:
        strict: raise instead.
        switch_off: called once, after the first failure.
    """

    def __init__(self, *, strict: bool, switch_off: Callable[[], None] = lambda: None) -> None:
        self._strict = strict
        self._switch_off = switch_off
        self.failure: str | None = None
        """What went wrong, in one line; ``None`` while all is well."""

    @contextmanager
    def watching(self, doing: str) -> Iterator[None]:
        """Run a block of the tool's own work.

        Args:
            doing: what the block does, for the message: "measuring an optimizer step".
        """
        try:
            yield
        except Exception as error:
            if self._strict:
                raise
            if self.failure is None:
                self.failure = f"{type(error).__name__} while {doing}: {error}"
                _log.debug("the failure that switched lightning_sphere off", exc_info=True)
                warn(
                    f"lightning_sphere switched itself off; training goes on. {self.failure} "
                    "(strict=True raises it; the log at level DEBUG has the traceback)"
                )
                self._switch_off()
