"""Ending a plain loop by an exception when the system asks it to stop, so that what is recorded is written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType


def exit_on_sigterm() -> Callable[[], None]:
    """Let SIGTERM raise ``SystemExit(143)``, unless somebody handles it already or this is not the main thread.

    An exception is used because writing from inside a signal handler could wait for a lock that the interrupted code
    holds.

    Returns:
        Restores what was before.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return lambda: None

    def handler(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, handler)

    def restore() -> None:
        if signal.getsignal(signal.SIGTERM) is handler:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    return restore
