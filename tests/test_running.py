"""What is followed from flush to flush, layers together, against slow computations of each layer and group."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sphere.balance import GroupSteps, LayerSteps, condense
from lightning_sphere.equilibrium import Prediction
from lightning_sphere.groups import GroupPart, ScaleGroup
from lightning_sphere.running import FADE, _faded, _follow
from lightning_sphere.statistics import LayerGroups

STEPS = 7


def one_by_one(steps: dict[str, Any], lost: Any, own: slice, claimed: Any) -> LayerSteps | None:
    """One layer, group by group and step by step."""
    mine = {name: values[:, own].tolist() for name, values in steps.items()}
    taken = [step for step in range(STEPS) if not all(map(math.isnan, mine["square"][step]))]
    groups = [group for group, member in enumerate(claimed[own].tolist()) if member]
    if not taken or not groups:
        return None
    alive = {(step, group) for step in taken for group in groups if mine["gradient_square"][step][group] > 0}
    living = [group for group in groups if any((step, group) in alive for step in taken)]

    def mean(numbers: list[float]) -> float:
        known = [number for number in numbers if not math.isnan(number)]
        return sum(known) / len(known) if known else math.nan

    def at_last(name: str) -> list[float]:
        return [mine[name][taken[-1]][group] for group in living]

    growth = [mean([mine["growth"][step][group] for group in groups if (step, group) in alive]) for step in taken]
    times = sorted(time for time in at_last("time") if not math.isnan(time))
    return LayerSteps(
        steps=len(taken),
        growth=sum(each for each in growth if not math.isnan(each)),
        angle_square=mean([mine["angle"][step][group] ** 2 for step, group in alive]),
        predicted_square=mean([mine["predicted"][step][group] ** 2 for step, group in alive]),
        norm=math.exp(mean([0.5 * math.log(square) for square in at_last("square")])),
        predicted_norm=math.exp(mean([math.log(norm) for norm in at_last("norm")])),
        time_constant=times[(len(times) - 1) // 2] if times else math.nan,
        lost=mean([lost[-1, own][group] for group in living]) if len(lost) else None,
        groups=len(groups),
        idle=len(groups) - len(living),
    )


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 2), st.integers(0, 2**31))
def test_layers_are_condensed_together_as_they_are_one_by_one(sizes: list[int], measured: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    members = [tuple(np.flatnonzero(random.random(size) < 0.7).tolist()) or None for size in sizes]
    kinds = ["none" if random.random() < 0.2 else "row" for _ in sizes]
    layers: list[Any] = [
        ScaleGroup(f"layer {i}", (GroupPart("w"),), size, kind, members=own)  # type: ignore[arg-type]
        for i, (size, kind, own) in enumerate(zip(sizes, kinds, members, strict=True))
    ]
    places, total = LayerGroups(layers), sum(sizes)
    claimed = places.counting & places.per_group(np.array([layer.invariant for layer in layers]))
    names = ("angle", "predicted", "norm", "time", "square", "growth", "gradient_square")
    steps = {name: random.random((STEPS, total)) + 0.1 for name in names}
    for values in steps.values():
        values[random.random(values.shape) < 0.2] = np.nan
    steps["gradient_square"][:, random.random(total) < 0.3] = 0.0  # dead filters
    skipped = places.per_group(random.random((STEPS, len(sizes))) < random.choice([0.0, 0.4]))
    for name in ("square", "angle", "growth", "gradient_square"):
        steps[name][skipped] = np.nan
    lost = random.random((measured, total))
    predicted = Prediction(*(torch.from_numpy(steps[name]) for name in ("predicted", "norm", "time")))
    given = GroupSteps(steps["angle"], predicted, steps["square"], steps["growth"], steps["gradient_square"], lost)
    with np.errstate(all="ignore"):
        found = {index: (last, state) for index, last, state in condense(given, places, claimed)}
    for index in range(len(layers)):
        expected = one_by_one(steps, lost, places.of(index), claimed)
        assert (expected is None) == (index not in found)
        if expected is not None:
            last, state = found[index]
            assert not np.isnan(steps["square"][last, places.of(index)]).all()
            assert np.isnan(steps["square"][last + 1 :, places.of(index)]).all()
            for field in fields(state):
                one, other = getattr(state, field.name), getattr(expected, field.name)
                assert one == (pytest.approx(other, rel=1e-9, nan_ok=True) if isinstance(other, float) else other)


def test_the_mean_square_fades_and_leaves_out_what_is_unknown() -> None:
    random = np.random.default_rng(0)
    values = random.random((40, 5))
    values[random.random(values.shape) < 0.3] = np.nan
    values[3, 2] = np.inf
    values[:, 4] = np.nan
    first, total, weight = _faded(np.zeros(5), np.zeros(5), values[:15])
    second, *_ = _faded(total, weight, values[15:])
    found = np.concatenate([first, second])
    for group in range(5):
        for step in range(40):
            known = [(FADE ** (step - s), v) for s, v in enumerate(values[: step + 1, group]) if np.isfinite(v)]
            expected = sum(w * v for w, v in known) / sum(w for w, _ in known) if known else math.nan
            assert found[step, group] == pytest.approx(expected, nan_ok=True)


def test_the_norm_to_the_fourth_follows_from_the_gradients() -> None:
    random = np.random.default_rng(0)
    before, after, slope = random.random((3, 30, 4)) + 0.5
    slope[random.random(slope.shape) < 0.2] = np.nan  # no gradient, no step
    before[:3, 1] = np.nan  # not known at first
    keep, rate = 1.0 - 0.1 * random.random((30, 4)), random.random((30, 4))
    rate[10:12, 2] = np.nan
    anew = np.zeros(30, dtype=bool)
    anew[[5, 20]] = True  # steps before these are missing
    for some in (slice(0, 4), slice(0, 1)):  # of each group, and the same for all
        first, fourth = _follow(
            np.full(4, np.nan), before[:9], after[:9], keep[:9, some], rate[:9, some], slope[:9], anew[:9]
        )
        second, fourth = _follow(fourth, before[9:], after[9:], keep[9:, some], rate[9:, some], slope[9:], anew[9:])
        found = np.concatenate([first, second])
        for group in range(4):
            expected, of = math.nan, group if some.stop == 4 else 0
            for step in range(30):
                if math.isnan(expected) or anew[step]:
                    expected = before[step, group] ** 2
                if not math.isnan(slope[step, group]):
                    turn = rate[step, of] * slope[step, group]
                    expected = keep[step, of] ** 4 * expected + 2.0 * keep[step, of] ** 2 * turn**2
                ratio = after[step, group] ** 2 / expected
                assert found[step, group] == pytest.approx(ratio, rel=1e-12, nan_ok=True)
            assert fourth[group] == pytest.approx(expected, nan_ok=True)
