"""What is recorded of the package's own optimizers, against oracles that know gradients and formulas only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from lightning_sphere import SphereTracker, read_run
from lightning_sphere.optim import AdamGStar, AdamS, AdamSRT
from nets import FIRST, LAST, SECOND, batches
from optim_cases import arrays, invariant_net
from optim_oracle import Array, SlowAdam, layout_of
from optimizer_watch import Group, of_one_step

NAMES = (FIRST, SECOND, LAST)
LR, DECAY = 1e-2, 0.1


class SlowGStar:
    """AdamG* by the paper's recursion, ``u' ~ u - alpha grad L(u) / sqrt(v)``, written as ``x - lr a / b``."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.beta = (1 - LR * DECAY) ** 4
        self.square = {n: (x.reshape(len(x), -1) ** 2).sum(1) for n, x in weights.items() if n in (FIRST, SECOND)}
        self.v = {n: square**2 / (2 * LR**2 * np.sqrt(self.beta)) for n, square in self.square.items()}

    def of(self, name: str, x: Array, g: Array) -> tuple[Array, Array]:
        """Direction and divisor of a tensor."""
        if name not in self.v:  # SGD with L2
            return g + DECAY * x, np.ones_like(x)
        square, v = self.square[name], self.v[name]
        b = LR * np.sqrt(v) * np.sqrt(2 * self.beta) / square
        self.v[name] = self.beta * v + square * (g.reshape(len(g), -1) ** 2).sum(1)
        return g, np.broadcast_to(b.reshape(-1, *[1] * (g.ndim - 1)), g.shape)


def expected(
    kind: type[Optimizer], model: nn.Module, discovery: Any, optimizer: Optimizer
) -> Iterator[dict[str, list[dict[str, float]]]]:
    """Steps the optimizer, and gives every quantity of every row of every layer."""
    start = {name: value for name, value in arrays(dict(model.named_parameters())).items() if name in NAMES}
    layers = [([(part.parameter, part.axis) for part in g.parts], g.blocks, g.members) for g in discovery.groups]
    shapes = {name: value.shape for name, value in start.items()}
    slow = SlowAdam(start, layout_of(shapes, layers), lr=LR, weight_decay=DECAY, transport=kind is AdamSRT)
    mirrored = SlowGStar(start)
    for images, classes in batches(8):
        optimizer.zero_grad()
        cross_entropy(model(images.double()), classes).backward()
        parameters = {name: model.get_parameter(name) for name in NAMES}
        x = arrays(dict(parameters))
        g = arrays({name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None})
        optimizer.step()
        after = arrays(dict(parameters))
        if kind is not AdamGStar:
            before = {name: value.copy() for name, value in slow.weights.items()}
            slow.step(g)
        rows: dict[str, list[dict[str, float]]] = {}
        for name in NAMES:
            if kind is AdamGStar:
                a, b = mirrored.of(name, x[name], g[name])
            else:
                b = slow.b[name]
                a = (before[name] - slow.weights[name]) * b / LR
            parts = [part.reshape(len(part), -1) for part in (x[name], after[name], g[name], a, b)]
            rows[name] = [
                of_one_step(Group(x_i, after_i, g_i, "", {}, a_i, b_i, LR, None))
                for x_i, after_i, g_i, a_i, b_i in zip(*parts, strict=True)
            ]
        yield rows


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("kind", [AdamS, AdamSRT, AdamGStar])
def test_every_quantity_equals_the_oracle(
    kind: Any, grouped: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, discovery = invariant_net()
    if not grouped:
        if kind is AdamGStar:
            pytest.skip("without groups it is SGD")
        discovery = type(discovery)()
    optimizer = kind(model.named_parameters(), lr=LR, weight_decay=DECAY, groups=discovery.groups or None)
    with SphereTracker(model, optimizer, tmp_path, quantities="full", strict=True):
        steps = list(expected(kind, model, discovery, optimizer))
    record = read_run(tmp_path)
    for layer, name in enumerate(NAMES):
        for quantity in ("second_moment", "effective_lr", "deformation_angle", "momentum_radial_fraction"):
            medians = [np.median([row[quantity] for row in step[name]]) for step in steps]
            np.testing.assert_allclose(
                record[quantity][:, layer], medians, rtol=1e-6, atol=2e-7, err_msg=f"{quantity} of {name}"
            )
    assert not caplog.messages
