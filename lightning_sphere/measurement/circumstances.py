"""What is under way while an optimizer's hook runs."""

from __future__ import annotations

import sys
from types import FrameType

import torch
from torch.optim import Optimizer


def calls_of_step(optimizer: Optimizer) -> int:
    """How many calls of an optimizer's ``step`` are under way.

    A subclass whose ``step`` calls its base class's runs the hooks twice, once there has been an optimizer of the base
    class: torch wraps ``step`` class by class. A step that raised leaves no trace in the hooks, but none on the stack.
    """
    frame: FrameType | None = sys._getframe()
    count = 0
    while frame is not None:
        if frame.f_code.co_name == "wrapper" and frame.f_globals.get("__name__") == "torch.optim.optimizer":
            count += frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return count


def capturing() -> bool:
    """Whether what is queued now becomes part of a CUDA graph, rather than being done."""
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return bool(started and torch.cuda.is_current_stream_capturing())
