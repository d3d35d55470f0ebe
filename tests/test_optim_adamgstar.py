"""AdamG*: the recursion of the paper, and that it follows SGD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lightning_sphere.optim import AdamGStar
from nets import conv_net
from optim_cases import (
    LAYOUTS,
    SHAPES,
    Layer,
    arrays,
    bits,
    both_ways,
    cosines,
    invariant_net,
    put_gradients,
    rows,
    same,
    scale_groups,
    stepped,
    tensors,
    train,
)
from optim_oracle import Gradient, adam_g_star, angles, layout_of, sgd_on_the_sphere


def test_without_groups_adamgstar_is_sgd_bit_by_bit() -> None:
    def trained(optimizer_of: Callable[..., Optimizer]) -> list[Tensor]:
        model = conv_net()
        train(model, optimizer_of(model.parameters(), lr=0.1, weight_decay=0.01), 5)
        return bits(model.parameters())

    assert same(trained(AdamGStar), trained(SGD))


SIZE, RADIUS = 50, 1.7


def followed(lrs: Sequence[float], decay: float, foreach: bool = False, **changes: Any) -> tuple[Any, Any, Any]:
    """AdamG* on a quadratic on the sphere: its points, its optimizer, its weight."""
    gradient = Gradient(SIZE)
    start = np.random.default_rng(1).normal(size=SIZE)
    weight = nn.Parameter(torch.tensor(start / np.linalg.norm(start) * RADIUS))
    optimizer = AdamGStar([{"params": [weight], "invariant": "whole"}], lrs[0], decay, foreach=foreach, **changes)
    points = [weight.detach().numpy() / RADIUS]
    for lr in lrs:
        x = weight.detach().numpy()
        r = np.linalg.norm(x)
        weight.grad = torch.tensor(gradient(x / r) / r)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        points.append(weight.detach().numpy() / RADIUS)
    return np.array(points), optimizer, weight


def start_point() -> Any:
    start = np.random.default_rng(1).normal(size=SIZE)
    return start / np.linalg.norm(start)


@pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_adamgstar_is_the_recursion_of_the_paper(decay: float, foreach: bool) -> None:
    lr, steps = 0.2, 60
    points, optimizer, weight = followed([lr] * steps, decay, foreach)
    expected, v = adam_g_star(start_point(), RADIUS, lr, decay, Gradient(SIZE), steps)
    assert angles(points, expected).max() < 1e-13
    state, beta = optimizer.state[weight], (1 - lr * decay) ** 4
    assert float(state["radius"]) == pytest.approx(RADIUS, rel=1e-14)
    r = RADIUS * float(state["growth"]) ** 0.25
    assert r**4 / (2 * lr**2 * np.sqrt(beta)) == pytest.approx(v, rel=1e-12)
    assert weight.detach().norm() == pytest.approx(RADIUS, rel=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_adamgstar_follows_sgd_and_the_order_shows(decay: float) -> None:
    """What is neglected of the radius is lr^4 per step: over the same length, lr^3; over as many steps, lr^5."""

    def error(lr: float, steps: int) -> float:
        points, optimizer, weight = followed([lr] * steps, decay)
        sgd, radii = sgd_on_the_sphere(RADIUS * start_point(), [lr] * steps, decay, Gradient(SIZE))
        grown = float(optimizer.state[weight]["growth"])
        assert (radii[-1] / RADIUS) ** 4 == pytest.approx(grown, rel=lr**3)
        return float(angles(points, sgd).max())

    coarse, fine = error(0.1, 100), error(0.05, 200)
    assert coarse / fine == pytest.approx(8, rel=0.1)
    assert error(0.01, 100) / error(0.005, 100) == pytest.approx(32, rel=0.1)
    assert coarse < 1e-5


def test_adamgstar_follows_sgd_under_a_schedule_with_warmup() -> None:
    lrs = [0.1 * min(step / 20, 1.0) * 0.5 * (1 + np.cos(np.pi * step / 150)) for step in range(150)]
    assert lrs[0] == 0.0
    points, _, _ = followed(lrs, 0.05)
    sgd, _ = sgd_on_the_sphere(RADIUS * start_point(), lrs, 0.05, Gradient(SIZE))
    assert angles(points, sgd).max() < 1e-5
    constant, _ = sgd_on_the_sphere(RADIUS * start_point(), [0.1] * 150, 0.05, Gradient(SIZE))
    assert angles(points, constant).max() > 0.1


@pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
def test_adamgstar_trains_a_network_as_sgd_does_at_fixed_radii(foreach: bool) -> None:
    (model, discovery), (mirrored, _) = invariant_net(), invariant_net()
    options = {"lr": 0.02, "weight_decay": 0.1}
    optimizer = AdamGStar(model.named_parameters(), groups=discovery, foreach=foreach, **options)
    sgd = SGD(mirrored.parameters(), **options)
    radii = rows(model[3].weight).norm(dim=1)
    for _ in zip(stepped(model, optimizer, 30), stepped(mirrored, sgd, 30), strict=True):
        torch.testing.assert_close(rows(model[3].weight).norm(dim=1), radii, rtol=1e-14, atol=0)
    turned = (1 - cosines(mirrored[3].weight, invariant_net()[0][3].weight)).max()
    assert turned > 1e-3
    assert (1 - cosines(model[3].weight, mirrored[3].weight)).max() < 1e-4 * turned
    torch.testing.assert_close(model[9].weight, mirrored[9].weight, rtol=1e-3, atol=1e-5)
    grown = optimizer.state[model[3].weight]["growth"].flatten()
    torch.testing.assert_close((rows(mirrored[3].weight).norm(dim=1) / radii) ** 4, grown, rtol=1e-3, atol=0)


@pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
def test_adamgstar_cuts_tensors_as_adams_does(foreach: bool) -> None:
    layers = [*LAYOUTS["some blocks with bias"], ([("free", 0), ("scale", 0)], 1, None)]
    parameters = tensors()
    optimizer = AdamGStar(parameters.items(), 0.1, 0.2, groups=scale_groups(layers), foreach=foreach)
    x = arrays(parameters)
    layout = layout_of(SHAPES, layers)
    q = [1.0] * len(layout)
    radii = [np.sqrt(sum((x[name].ravel()[i] ** 2).sum() for name, i in group)) for group in layout]
    for step in range(4):
        put_gradients(parameters, step)
        g = arrays({name: parameter.grad for name, parameter in parameters.items()})  # type: ignore[misc]
        optimizer.step()
        new = {name: np.array(value - 0.1 * (g[name] + 0.2 * value)) for name, value in x.items()}  # SGD elsewhere
        for number, group in enumerate(layout):
            vector = np.concatenate([x[name].ravel()[i] for name, i in group])
            slope = np.concatenate([g[name].ravel()[i] for name, i in group])
            moved = vector - 0.1 * slope / (0.98 * np.sqrt(q[number]))
            moved *= radii[number] / np.linalg.norm(moved)
            q[number] = 0.98**4 * q[number] + 2 * 0.1**2 * 0.98**2 * (slope @ slope) / radii[number] ** 2
            for (name, i), piece in zip(
                group, np.split(moved, np.cumsum([len(i) for _, i in group])[:-1]), strict=True
            ):
                new[name].ravel()[i] = piece
        x = new
        for name, parameter in parameters.items():
            np.testing.assert_allclose(parameter.detach().numpy(), x[name], rtol=1e-12, atol=1e-13, err_msg=name)


@both_ways
def test_the_radius_is_that_before_a_groups_own_first_step(foreach: bool) -> None:
    parameters = tensors(torch.bfloat16)
    layers: list[Layer] = [([("conv", 0)], 6, None), ([("free", 0)], 1, None)]
    optimizer = AdamGStar(parameters.items(), 0.1, groups=scale_groups(layers), foreach=foreach)
    radii = []
    for step in range(4):
        put_gradients(parameters, step)
        if step < 2:
            parameters["free"].grad = None
        optimizer.step()
        radii.append(optimizer.state[parameters["conv"]]["radius"].clone())
    expected = rows(tensors(torch.bfloat16)["conv"].float()).norm(dim=1)
    torch.testing.assert_close(radii[0].flatten(), expected)
    assert all(torch.equal(radius, radii[0]) for radius in radii)  # in bfloat16, the weights' norms err by more
    assert not torch.equal(rows(parameters["conv"].float()).norm(dim=1), expected)
    torch.testing.assert_close(
        optimizer.state[parameters["free"]]["radius"].item(), tensors(torch.bfloat16)["free"].float().norm().item()
    )
