"""What the tests of the reference optimizers share: tensors and how they are cut, and a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from lightning_sphere import GroupPart, ScaleGroup, discover
from lightning_sphere.optim import AdamGStar, AdamS, AdamSRT
from nets import batches, conv_net, digits

Layer = tuple[Sequence[tuple[str, int]], int, Sequence[int] | None]
"""Parts (name and axis), blocks, members: what the oracle and the optimizers are both told."""

SHAPES = {"conv": (6, 2, 3), "bias": (6,), "turned": (3, 4), "free": (2, 5), "scale": ()}

LAYOUTS: dict[str, list[Layer]] = {
    "rows": [([("conv", 0)], 6, None)],
    "other axis": [([("conv", 2), ], 3, None), ([("turned", 1)], 4, None)],
    "blocks": [([("conv", 0)], 2, None), ([("turned", 1)], 2, None)],
    "whole": [([("conv", 0)], 1, None), ([("scale", 0)], 1, None)],
    "rows with bias": [([("conv", 0), ("bias", 0)], 6, None)],
    "blocks with bias": [([("conv", 0), ("bias", 0)], 3, None)],
    "whole with bias": [([("conv", 0), ("bias", 0)], 1, None)],
    "joint set": [([("conv", 0), ("turned", 0), ("free", 0), ("scale", 0)], 1, None)],
    "some rows": [([("conv", 0)], 6, (0, 2, 5))],
    "some blocks with bias": [([("conv", 0), ("bias", 0)], 3, (1,)), ([("turned", 1)], 2, (0,))],
}  # fmt: skip


def scale_groups(layers: Sequence[Layer]) -> list[ScaleGroup]:
    return [
        ScaleGroup(
            f"layer {number}",
            tuple(GroupPart(name, axis) for name, axis in parts),
            blocks,
            "whole" if blocks == 1 else "group",
            members=None if members is None else tuple(members),
        )
        for number, (parts, blocks, members) in enumerate(layers)
    ]


def tensors(dtype: torch.dtype = torch.float64, seed: int = 0, shapes: Any = None) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype))
        for name, shape in (shapes or SHAPES).items()
    }


def put_gradients(parameters: dict[str, nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for parameter in parameters.values():
        noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        parameter.grad = noise.to(parameter.dtype)


def arrays(values: dict[str, Tensor]) -> dict[str, Any]:
    return {name: value.detach().to(torch.float64).numpy().copy() for name, value in values.items()}


def bits(parameters: Any) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


KINDS = [AdamS, AdamSRT, AdamGStar]
every_kind = pytest.mark.parametrize("kind", KINDS)
both_ways = pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
EVERYTHING = [*LAYOUTS["some blocks with bias"], ([("free", 0)], 2, None)]


def train(model: nn.Module, optimizer: Optimizer, steps: int, *, size: int = 32, seed: int = 0) -> float:
    loss = torch.tensor(0.0)
    for inputs, classes in batches(steps, size, seed):
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), classes)
        loss.backward()
        optimizer.step()
    return loss.item()


def invariant_net() -> tuple[nn.Sequential, Any]:
    """In float64 and with next to no eps: its filters are invariant up to rounding."""
    model = conv_net().double()
    model[1].eps = model[4].eps = 1e-30  # type: ignore[assignment]
    images, classes = digits()
    return model, discover(cross_entropy(model(images[:32].double()), classes[:32]), model)


def stepped(model: nn.Module, optimizer: Optimizer, steps: int) -> Iterator[list[Tensor]]:
    """The weights before each step, which has been made."""
    for inputs, classes in batches(steps):
        optimizer.zero_grad()
        cross_entropy(model(inputs.double()), classes).backward()
        before = bits(model.parameters())
        optimizer.step()
        yield before


def rows(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten(1)


def cosines(one: Tensor, other: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(rows(one), rows(other))
