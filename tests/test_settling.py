"""States of a layer: against simulated relaxations, and the rules and words for each."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sphere.settling import STILL, TOLERANCE, LayerEquilibrium, in_steps, settle, significant, told_of_all
from walks import CASES, Case, rms, walk

SETTINGS = settings(deadline=None, max_examples=300, derandomize=True)


def layer(
    ratio: float = 1.0,
    trend: float = 0.0,
    time_constant: float = 1000.0,
    remaining: int | None = None,
    reason: str = "",
    predicted_angle: float = math.radians(0.2),
) -> LayerEquilibrium:
    measured = ratio * predicted_angle
    return settle(predicted_angle, 2.0, time_constant, measured, 1.5, trend, remaining, reason)


def judged(case: Case, start: float, length: float) -> list[tuple[float, LayerEquilibrium]]:
    """A walk's layer as seen at ends of windows of a fifth of its time constant; the first fills the memory."""
    prediction = case.prediction
    time = float(prediction.time_constant)
    window = round(time / 5)
    path = walk(case, round(length * time), start)
    log = path.norm.log().mean(1)
    return [
        (
            end - window / 2,
            settle(
                float(prediction.angle),
                float(prediction.norm),
                time,
                rms(path.angle[end - window : end]),
                float(path.norm[end - window : end].median()),
                float(log[end - 1] - log[end - window]) / (window - 1),
            ),
        )
        for end in range(2 * window, len(log) + 1, window // 4)
    ]


@pytest.mark.parametrize("name", ["sgd", "sgd, momentum 0.9", "sgd, nesterov 0.9", "adamw, beta1 0", "adamw"])
@pytest.mark.parametrize("start", [0.5, 2.0])
def test_steps_to_go_are_those_that_a_walk_takes(name: str, start: float) -> None:
    states = judged(CASES[name], start, length=6.0)
    first_time, first = states[0]
    assert first.state == "transient"
    arrival = next(time for time, state in states if abs(state.ratio - 1.0) <= TOLERANCE)
    assert first.steps_to_go == pytest.approx(arrival - first_time, rel=0.2)
    _, last = states[-1]
    assert last.state == "settled"
    assert last.agrees
    assert last.steps_to_go == 0


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("start", [0.5, 2.0])
def test_a_walk_is_never_settled_before_its_angle_is(name: str, start: float) -> None:
    for _, state in judged(CASES[name], start, length=6.0):
        assert state.state == "transient" or abs(state.ratio - 1.0) < 0.2


def test_a_layer_that_passes_the_predicted_angle_is_not_settled() -> None:
    """Its ratio is 1, but its norm is still far from where it stays."""
    passing = layer(ratio=1.0, trend=-5e-4)
    assert passing.state == "transient"
    assert passing.steps_to_go == pytest.approx(1000 * math.log(0.5 / STILL))


def test_a_layer_may_stand_still_beside_the_prediction() -> None:
    assert layer(ratio=1.4, trend=1e-5).state == "settled"
    assert not layer(ratio=1.4, trend=1e-5).agrees
    assert layer(ratio=1.4, trend=1e-4).state == "transient"
    assert layer(ratio=1.1, trend=1e-4).state == "settled"


def test_steps_to_go_by_hand() -> None:
    """y = 1/4 relaxes to 1/1.15^2, and y = 4 to 1/0.85^2."""
    assert layer(2.0, 1e-3).steps_to_go == pytest.approx(1000 * math.log(0.75 / (1 - 1 / 1.15**2)))
    assert layer(0.5, -1e-3).steps_to_go == pytest.approx(1000 * math.log(3 / (1 / 0.85**2 - 1)))


def test_only_a_known_end_is_too_early() -> None:
    assert layer(2.0, 1e-3, remaining=None).state == "transient"
    assert layer(2.0, 1e-3, remaining=2000).state == "transient"
    assert layer(2.0, 1e-3, remaining=1000).state == "out of reach"
    assert layer(2.0, 1e-3, remaining=0).state == "out of reach"
    assert layer(1.0, 0.0, remaining=0).state == "settled"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"reason": "no weight decay"}, "no weight decay"),
        ({"predicted_angle": math.nan}, "no prediction"),
        ({"time_constant": math.nan}, "no prediction"),
        ({"time_constant": math.inf}, "no prediction"),
        ({"ratio": math.nan}, "not measured"),
        ({"ratio": math.inf}, "not measured"),
        ({"trend": math.nan}, "not measured"),
        ({"ratio": 0.0}, "the weights do not turn"),
    ],
)
def test_what_is_unknown_has_a_reason(changed: dict[str, float], reason: str) -> None:
    unknown = layer(**changed)  # type: ignore[arg-type]
    assert unknown.state == "unknown"
    assert unknown.reason == reason
    assert math.isnan(unknown.ratio)
    assert math.isnan(unknown.steps_to_go)
    assert unknown.describe() == f"unknown: {reason}"


def test_a_norm_that_nobody_predicts_leaves_the_state_known() -> None:
    assert settle(1e-3, math.nan, 100.0, 1e-3, math.nan, 0.0).state == "settled"


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (layer(1.03), "settled: turned by 0.21 deg per step (RMS), 1.03 x the equilibrium's 0.20"),
        (layer(1.4), "settled, at 1.40 x the prediction: turned by 0.28 deg per step (RMS), predicted 0.20"),
        (
            layer(3.1, 1e-3, 3100.0),
            "reaches equilibrium in about 4,000 steps: turned by 0.62 deg per step (RMS), 3.1 x the equilibrium's 0.20",
        ),
        (
            layer(0.05, -1e-3, 10000.0, remaining=5000),
            "will not reach equilibrium within this run: it takes about 69,000 steps, 5,000 are left; "
            "turned by 0.010 deg per step (RMS), 0.050 x the equilibrium's 0.20",
        ),
        (
            layer(1.0, 1e-3, 165.0),
            "about to settle: turned by 0.20 deg per step (RMS), 1.00 x the equilibrium's 0.20",
        ),
        (
            layer(1.0, 1e-3, 167.0),
            "reaches equilibrium in about 18 steps: turned by 0.20 deg per step (RMS), 1.00 x the equilibrium's 0.20, "
            "but its norm still moves",
        ),
        (
            layer(0.5, -1e-9, 1e12, remaining=10),
            "will not reach equilibrium within this run: it takes over 10,000,000 steps, 10 are left; "
            "turned by 0.10 deg per step (RMS), 0.50 x the equilibrium's 0.20",
        ),
    ],
)
def test_one_line_for_people(state: LayerEquilibrium, text: str) -> None:
    assert state.describe() == text


@pytest.mark.parametrize(
    ("states", "text"),
    [
        ([], ""),
        (
            [layer(reason="no weight decay")] * 2,
            "no equilibrium of gradients and decay is predicted: no weight decay",
        ),
        (
            [layer(1.03), layer(reason="other")],
            "1 of 1 layer is in equilibrium (gradients against weight decay), turning 1.03 x as far per step as "
            "predicted",
        ),
        (
            [layer(0.95), layer(1.4), layer(2.0, 1e-3), layer(3.1, 1e-3)],
            "2 of 4 layers are in equilibrium (gradients against weight decay), turning 0.95 to 1.40 x as far per step "
            "as predicted; the others need about 1,100 to 1,300 steps more at the present learning rate, and turn 2.0 "
            "to 3.1 x as far as they will then",
        ),
        (
            [layer(2.0, 1e-3)],
            "none of 1 layer is in equilibrium (gradients against weight decay); it needs about 1,100 steps more at "
            "the present learning rate, and turns 2.0 x as far as it will then",
        ),
    ],
)
def test_one_sentence_for_all_layers(states: list[LayerEquilibrium], text: str) -> None:
    assert told_of_all(states) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1e-7, "1.0e-07"),
        (0.000123, "0.00012"),
        (0.0996, "0.10"),
        (0.999, "1.0"),
        (9.96, "10"),
        (43.0, "43"),
        (1249.0, "1,200"),
        (999_999.0, "1.0e+06"),
        (3.2e7, "3.2e+07"),
    ],
)
def test_two_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        (0.2, "1 step"),
        (1.4, "1 step"),
        (2.0, "2 steps"),
        (43.4, "43 steps"),
        (437.0, "440 steps"),
        (12_345.0, "12,000 steps"),
        (4_100_000.0, "4,100,000 steps"),
        (3e12, "over 10,000,000 steps"),
    ],
)
def test_counts_of_steps(steps: float, text: str) -> None:
    assert in_steps(steps) == text


positive = st.floats(1e-6, 1e6)


@SETTINGS
@given(ratio=positive, trend=st.floats(-1.0, 1.0), time=positive, remaining=st.none() | st.integers(0, 10**6))
def test_every_state_is_consistent(ratio: float, trend: float, time: float, remaining: int | None) -> None:
    state = layer(ratio, trend, time, remaining)
    assert state.ratio == pytest.approx(ratio)
    assert 0.0 <= state.steps_to_go < math.inf
    assert (state.steps_to_go == 0.0) >= (state.state == "settled")
    assert (state.state == "out of reach") == (remaining is not None and state.steps_to_go > remaining)
    assert "nan" not in state.describe()


@SETTINGS
@given(ratio=st.floats(1.2, 100.0), factor=st.floats(1.01, 2.0), time=st.floats(1.0, 1e6))
def test_farther_takes_longer(ratio: float, factor: float, time: float) -> None:
    assert layer(ratio * factor, 1.0, time).steps_to_go > layer(ratio, 1.0, time).steps_to_go
    assert layer(1 / ratio / factor, 1.0, time).steps_to_go > layer(1 / ratio, 1.0, time).steps_to_go
