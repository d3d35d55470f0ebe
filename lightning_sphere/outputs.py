"""A forward hook that shows a model's outputs to somebody, and that leaves no trace in copies of the model."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class OutputsHook:
    """Calls a bound method with each training-mode output of a module.

    The method's object is held weakly. A copy of the model (an average of its weights, a checkpoint of the whole
    module) gets a hook that does nothing in its place, and a compiled model is compiled as if there were none.

    Args:
        receive: bound method that takes the outputs.
    """

    def __init__(self, receive: Callable[[Any], None]) -> None:
        self._receive = weakref.WeakMethod(receive)

    def __call__(self, module: nn.Module, _: Any, outputs: Any) -> None:
        """Be the forward hook."""
        if torch.compiler.is_compiling():
            return
        receive = self._receive()
        if receive is not None and module.training:
            receive(outputs)

    def __deepcopy__(self, _: Any) -> Callable[..., None]:
        return ignore

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _inert, ()


def ignore(*_: Any) -> None:
    """Do nothing."""


def _inert() -> Callable[..., None]:
    return ignore
