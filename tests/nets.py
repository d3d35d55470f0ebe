"""Small seeded networks and the digits that the tests train them on."""

from collections.abc import Iterator
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


def conv_net(width: int = 8, *, dropout: float = 0.0, seed: int = 0) -> nn.Sequential:
    """conv-BN-relu-conv-BN-relu-pool-linear: two layers that a normalization follows, one that none does."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width + 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(width + 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(width + 3, 10),
    )


FIRST, SECOND, LAST = "0.weight", "3.weight", "9.weight"
"""Names of the weights of :func:`conv_net`: before a BatchNorm, before a BatchNorm, free."""


@cache
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 8x8 digits as images ``[n, 1, 8, 8]`` around 0, and their classes."""
    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8.0 - 1.0
    return images, torch.tensor(classes)


def batches(count: int, size: int = 32, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches of digits, always the same ones for the same seed."""
    images, classes = digits()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        chosen = torch.randint(len(images), (size,), generator=generator)
        yield images[chosen], classes[chosen]
