"""Hooks that show what a model returns to somebody, and that leave no trace in copies of the model."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class WeakHook:
    """Hands its arguments to a bound method whose object is held weakly.

    A copy of the model (an average of its weights, a checkpoint of the whole module) gets a hook that does nothing in
    its place. What is compiled, is compiled as if there were no hook.

    Args:
        receive: bound method that takes the arguments.
    """

    def __init__(self, receive: Callable[..., None]) -> None:
        self._receive = weakref.WeakMethod(receive)

    def __call__(self, *args: Any) -> None:
        """Be the hook."""
        if not torch.compiler.is_compiling():
            receive = self._receive()
            if receive is not None:
                receive(*args)

    def __deepcopy__(self, _: Any) -> Callable[..., None]:
        return ignore

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _inert, ()


class OutputsHook(WeakHook):
    """Calls a bound method with each training-mode output of a module."""

    def __call__(self, module: nn.Module, _: Any, outputs: Any) -> None:
        """Be the forward hook."""
        if module.training:
            super().__call__(outputs)


def ignore(*_: Any) -> None:
    """Do nothing."""


def _inert() -> Callable[..., None]:
    return ignore
