"""How the small nets are written: modules by name, and a function that joins them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-30
Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """Modules and parameters by name, and a function that joins them."""

    def __init__(self, forward: Forward, shape: tuple[int, ...], parts: dict[str, Any]) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function, self.shape = forward, shape

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)

    def loss(self, number: int) -> Tensor:
        """Loss of a fresh batch: no scaling of the output leaves it alone."""
        generator = torch.Generator().manual_seed(number)
        kind = next(self.parameters()).dtype
        y = self(torch.randn(self.shape, generator=generator, dtype=kind))
        weights = torch.randn(y.shape[1:], generator=generator, dtype=kind)
        return (F.gelu(y) * weights).flatten(1).sum(1).logsumexp(0)


CASES: dict[str, Callable[[], Net]] = {}


def case(shape: tuple[int, ...], **parts: Callable[[], Any]) -> Callable[[Forward], Forward]:
    """Register a net under its function's name."""

    def register(function: Forward) -> Forward:
        CASES[function.__name__] = lambda: Net(function, shape, {name: make() for name, make in parts.items()})
        return function

    return register


def matrix(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.randn(shape))


def linear(inputs: int, outputs: int, bias: bool = False) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inputs, outputs, bias=bias)


def conv(inputs: int, outputs: int, size: int = 3, bias: bool = False, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=bias, **options)


def batch(channels: int) -> Callable[[], nn.Module]:
    return lambda: nn.BatchNorm2d(channels)


def layer(channels: int) -> Callable[[], nn.Module]:
    return lambda: nn.LayerNorm(channels)


def columns(channels: int) -> Callable[[], nn.Module]:
    return lambda: nn.BatchNorm1d(channels)


IMAGE, ROWS, SEQUENCE = (4, 3, 6, 6), (5, 6), (3, 4, 6)
