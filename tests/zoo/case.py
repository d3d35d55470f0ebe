"""What a case of the zoo is: a model, and a loss with a fresh batch for each number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[int], Tensor]
Case = tuple[nn.Module, Loss]

CLASSES = 5


def seeded(number: int) -> torch.Generator:
    """Random numbers of one batch."""
    return torch.Generator().manual_seed(1000 + number)


def normal(number: int, *shape: int) -> Tensor:
    """Data of one batch."""
    return torch.randn(shape, generator=seeded(number), dtype=torch.float64)


def labels(number: int, *shape: int, classes: int = CLASSES) -> Tensor:
    """Labels of one batch."""
    return torch.randint(0, classes, shape, generator=seeded(number + 500))


def weighted(number: int, *outputs: Tensor) -> Tensor:
    """A loss that distinguishes all elements of all outputs, and in which none of them can be scaled."""
    total = torch.zeros((), dtype=torch.float64)
    for index, output in enumerate(outputs):
        target = normal(number * 17 + index + 900, *output.shape)
        total = total + F.mse_loss(torch.sigmoid(output), target)
    return total


def classifier(model: nn.Module, *shape: int, batch: int = 6, per_pixel: bool = False) -> Case:
    """Cross entropy of a model that maps images (or ``shape``) to logits."""
    shape = shape or (3, 16, 16)

    def loss(number: int) -> Tensor:
        outputs: Any = model(normal(number, batch, *shape))
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        total = torch.zeros((), dtype=torch.float64)
        for weight, logits in zip((1.0, 0.3, 0.2, 0.1), outputs, strict=False):
            size = (batch, *logits.shape[2:]) if per_pixel else (batch,)
            total = total + weight * F.cross_entropy(logits, labels(number, *size))
        return total

    return model, loss


def generator_case(model: nn.Module, *shape: int, batch: int = 4) -> Case:
    """A model from data to images or vectors."""

    def loss(number: int) -> Tensor:
        outputs: Any = model(normal(number, batch, *shape))
        return weighted(number, *(outputs if isinstance(outputs, (tuple, list)) else (outputs,)))

    return model, loss


class Head(nn.Sequential):
    """Global average pooling and a linear layer."""

    def __init__(self, width: int, classes: int = CLASSES) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class ConvNorm(nn.Sequential):
    """Convolution, BatchNorm, and an activation: the block that most vision networks are made of."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        act: Callable[[], nn.Module] | None = nn.ReLU,
        dilation: int = 1,
    ) -> None:
        padding = (kernel - 1) // 2 * dilation
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), act() if act is not None else nn.Identity())
