"""Predicted equilibria against random walks that torch's own optimizers take, and the rules for what is unknown."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sphere import equilibrium
from lightning_sphere.equilibrium import Prediction
from walks import CASES, number, rms, walk_of

STARTS = (0.85, 1.15)
SETTINGS = settings(deadline=None, max_examples=200, derandomize=True)


@pytest.mark.parametrize("name", CASES)
def test_a_walk_settles_to_the_predicted_angle_and_norm(name: str) -> None:
    """From either side, averaged over the last half time constant; one that had not moved would be 15 % off or more."""
    prediction = CASES[name].prediction
    last = round(0.5 * float(prediction.time_constant))
    walks = [walk_of(name, start) for start in STARTS]
    angle = sum(rms(one.angle[-last:]) for one in walks) / 2
    norm = sum(rms(one.norm[-last:]) for one in walks) / 2
    assert angle == pytest.approx(float(prediction.angle), rel=0.02)
    assert norm == pytest.approx(float(prediction.norm), rel=0.02)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("start", STARTS)
def test_a_walk_relaxes_in_the_predicted_time(name: str, start: float) -> None:
    """``y`` is averaged over short blocks; a line through ``log|y - 1|`` has the slope ``-1/time constant``."""
    prediction = CASES[name].prediction
    time = float(prediction.time_constant)
    block = max(1, round(time / 20))
    angles = walk_of(name, start).angle[: 30 * block].view(30, -1)
    y = prediction.angle**2 / angles.square().mean(1)
    log = (y - 1.0).abs().log()[3:]  # the momentum has filled
    steps = torch.arange(len(log), dtype=torch.float64) * block
    steps, log = steps - steps.mean(), log - log.mean()
    slope = float((steps * log).sum() / steps.square().sum())
    assert -1.0 / slope == pytest.approx(time, rel=0.15)


Arguments = dict[str, float]
DEFAULTS: dict[str, tuple[Callable[..., Prediction], Arguments]] = {
    "sgd": (
        equilibrium.sgd,
        {
            "lr": 0.1,
            "decay": 1e-3,
            "momentum": 0.9,
            "dampening": 0.0,
            "nesterov": 0.0,
            "size": 27.0,
            "gradient_square": 2.0,
        },
    ),
    "adamw": (equilibrium.adamw, {"lr": 1e-3, "decay": 0.1, "beta1": 0.9, "size": 27.0}),
    "lion": (equilibrium.lion, {"lr": 1e-4, "decay": 1.0, "beta1": 0.9, "beta2": 0.99, "size": 27.0}),
    "adam_l2": (
        equilibrium.adam_l2,
        {"lr": 1e-3, "decay": 0.1, "beta1": 0.9, "size": 27.0, "gradient_square": 2.0},
    ),
}


def predicted(name: str, **changed: float) -> tuple[float, float, float]:
    """Angle, norm, time constant."""
    formula, arguments = DEFAULTS[name]
    result = formula(**{key: number(value) for key, value in {**arguments, **changed}.items()})
    assert result.angle.dtype == result.norm.dtype == result.time_constant.dtype == torch.float64
    return float(result.angle), float(result.norm), float(result.time_constant)


def nothing(numbers: tuple[float, ...]) -> bool:
    return all(math.isnan(value) for value in numbers)


def test_the_published_angles() -> None:
    """Kosson et al., table 1, in numbers worked out by hand."""
    assert predicted("sgd")[0] == pytest.approx(math.sqrt(2 * 0.1 * 1e-3 / 1.9), rel=1e-12)
    assert predicted("adamw")[0] == pytest.approx(math.sqrt(2e-4 * 0.1 / 1.9), rel=1e-12)
    assert predicted("lion")[0] == pytest.approx(math.sqrt(math.pi * 1e-4 * (0.01 + 0.81 * 0.01 / 1.99)), rel=1e-12)


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("argument", ["lr", "decay"])
@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf])
def test_no_equilibrium_is_nan(name: str, argument: str, value: float) -> None:
    assert nothing(predicted(name, **{argument: value}))


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("sgd", {"momentum": 1.0}),
        ("sgd", {"momentum": -0.1}),
        ("sgd", {"momentum": math.nan}),
        ("sgd", {"dampening": 1.0}),
        ("sgd", {"dampening": math.nan}),
        ("sgd", {"nesterov": math.nan}),
        ("sgd", {"size": math.nan}),
        ("sgd", {"size": 0.0}),
        ("sgd", {"gradient_square": 0.0}),
        ("adamw", {"beta1": 1.0}),
        ("adamw", {"beta1": math.nan}),
        ("adamw", {"size": math.nan}),
        ("lion", {"beta1": math.nan}),
        ("lion", {"beta2": 1.0}),
        ("lion", {"beta2": math.nan}),
        ("lion", {"size": math.nan}),
        ("adam_l2", {"beta1": 1.0}),
        ("adam_l2", {"size": math.nan}),
        ("adam_l2", {"gradient_square": 0.0}),
        ("adam_l2", {"gradient_square": math.nan}),
    ],
)
def test_what_is_unknown_is_nan(name: str, changed: Arguments) -> None:
    assert nothing(predicted(name, **changed))


def test_sgd_turns_alike_whatever_its_gradients_are() -> None:
    angle, norm, time = predicted("sgd", gradient_square=math.nan)
    assert (angle, time) == (predicted("sgd")[0], predicted("sgd")[2])
    assert math.isnan(norm)


def test_dampening_is_ignored_without_momentum() -> None:
    assert predicted("sgd", momentum=0.0, dampening=1.0) == predicted("sgd", momentum=0.0)


def test_arguments_broadcast() -> None:
    lr = torch.tensor([[0.1], [0.0], [0.2]], dtype=torch.float64)
    gradient = torch.tensor([1.0, 2.0, math.nan, 0.0], dtype=torch.float64)
    for name, (formula, arguments) in DEFAULTS.items():
        numbers = {key: number(value) for key, value in arguments.items()} | {"lr": lr}
        numbers["gradient_square" if "gradient_square" in numbers else "size"] = gradient
        table = formula(**numbers)
        for field in (table.angle, table.norm, table.time_constant):
            assert field.shape == (3, 4)
        for row, column in itertools.product(range(3), range(4)):
            one = formula(**{key: value.expand(3, 4)[row, column] for key, value in numbers.items()})
            for field in ("angle", "norm", "time_constant"):
                cell = getattr(table, field)[row, column]
                torch.testing.assert_close(cell, getattr(one, field), equal_nan=True, msg=f"{name} {field}")


rates, betas = st.floats(1e-6, 1.0), st.floats(0.0, 0.99)


@SETTINGS
@given(lr=rates, decay=rates, beta=betas, size=st.integers(1, 10**6), scale=st.floats(1e-3, 1e3))
@pytest.mark.parametrize("name", DEFAULTS)
def test_how_predictions_scale(name: str, lr: float, decay: float, beta: float, size: int, scale: float) -> None:
    """For every setting the weight gains in one step what decay takes; scaling the rates scales the rest."""
    first = "momentum" if name == "sgd" else "beta1"
    changed = {"lr": lr, "decay": decay, first: beta, "size": float(size)}
    angle, norm, time = predicted(name, **changed)
    assert min(angle, norm, time) > 0
    assert math.isfinite(angle + norm + time)
    if name == "adam_l2":  # gradients of another size change the angle, for Adam divides them but not the decay
        square = predicted(name, **changed, gradient_square=2.0 * scale**2)
        assert square == pytest.approx((angle / scale ** (1 / 3), norm * scale ** (1 / 3), time * scale ** (2 / 3)))
        return
    assert predicted(name, **changed | {"lr": lr * scale, "decay": decay / scale}) == pytest.approx(
        (angle, norm * scale ** (0.5 if name == "sgd" else 1.0), time)
    )
    assert predicted(name, **changed | {"decay": decay * scale}) == pytest.approx(
        (angle * scale**0.5, norm * scale ** (-0.25 if name == "sgd" else -0.5), time / scale)
    )


@SETTINGS
@given(momentum=betas, lr=rates, decay=rates)
def test_momentum_turns_less_per_step_and_nesterov_between(momentum: float, lr: float, decay: float) -> None:
    """Per step in the long run: lr / (1 - momentum) is what counts for norm and time, whatever the momentum is."""
    plain = predicted("sgd", lr=lr * (1 - momentum), decay=decay, momentum=momentum)
    nesterov = predicted("sgd", lr=lr * (1 - momentum), decay=decay, momentum=momentum, nesterov=1.0)
    without = predicted("sgd", lr=lr, decay=decay, momentum=0.0)
    assert plain[1:] == pytest.approx(without[1:])
    assert nesterov[1:] == pytest.approx(without[1:])
    assert plain[0] <= nesterov[0] * (1 + 1e-12)
    assert nesterov[0] <= without[0] * (1 + 1e-12)
