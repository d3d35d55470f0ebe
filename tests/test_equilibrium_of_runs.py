"""What a tracker says of each layer's equilibrium, against slow float64 sums over the whole run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from lightning_sphere import SphereTracker
from lightning_sphere.balance import Balance, LayerSteps
from lightning_sphere.recording import Recording
from lightning_sphere.settling import LayerEquilibrium, settle
from nets import batches
from optimizer_watch import Watch, angle_between, cut_out
from optimizer_zoo import NORMALIZED, net

Change = Callable[[int, Optimizer], None]


def run(
    factory: Callable[..., Optimizer], steps: int, change: Change = lambda step, optimizer: None, **arguments: Any
) -> tuple[dict[str, LayerEquilibrium], Watch]:
    model = net()
    optimizer = factory(model.parameters())
    watch = Watch(model, optimizer)
    with SphereTracker(model, optimizer, strict=True, **{"flush_every_n_steps": 10, **arguments}) as tracker:
        for step, (images, classes) in enumerate(batches(steps)):
            change(step, optimizer)
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            watch.before()
            optimizer.step()
            watch.after()
    return tracker.equilibrium, watch


def turned(watch: Watch, parameter: str, steps: Sequence[int]) -> tuple[float, float, float]:
    """Of some steps of a layer: RMS angle, mean of the last norm's log, and how much that grew over all of them."""
    squares, logs = [], []
    for step in steps:
        seen = watch.steps[step][parameter]
        assert seen.after is not None
        cut = {"axis": 0, "blocks": len(seen.after)}
        rows = [(cut_out(seen.moment.x, cut, row), cut_out(seen.after, cut, row)) for row in range(len(seen.after))]
        squares.append(np.mean([angle_between(x, after) ** 2 for x, after in rows]))
        logs.append([np.mean([np.log(np.linalg.norm(w[i])) for w in rows]) for i in (0, 1)])
    return float(np.sqrt(np.mean(squares))), float(logs[-1][0]), float(logs[-1][1] - logs[0][0])


@pytest.mark.parametrize(
    ("lr", "decay", "every", "first", "steps"),
    [(0.1, 0.5, 1, 10, 60), (0.1, 1e-2, 1, 0, 60), (0.1, 1e-2, 2, 0, 60), (0.02, 0.2, 1, 0, 60), (1.0, 1e-3, 1, 0, 1)],
    ids=["the last 50 steps", "all steps", "each second step", "one time constant", "one step"],
)
def test_each_layer_is_judged_by_its_latest_steps(lr: float, decay: float, every: int, first: int, steps: int) -> None:
    """As many as make a time constant, but at least 50."""
    states, watch = run(
        lambda p: optim.SGD(p, lr=lr, weight_decay=decay), steps, every_n_steps=every, total_steps=steps + 30
    )
    assert set(states) == {name.removesuffix(".weight") for name in NORMALIZED}
    for parameter in NORMALIZED:
        state = states[parameter.removesuffix(".weight")]
        angle, norm, growth = turned(watch, parameter, range(first, steps, every))
        trend = growth / (steps - first)
        predicted, time = math.sqrt(2 * lr * decay), 1 / (4 * lr * decay)
        assert state.predicted_norm > 0
        expected = settle(predicted, state.predicted_norm, time, angle, math.exp(norm), trend, 30, span=steps - first)
        assert state.state == expected.state
        for name in ("ratio", "measured_angle", "measured_norm", "time_constant", "steps_to_go"):
            assert getattr(state, name) == pytest.approx(getattr(expected, name), rel=1e-3), name
        assert state.remaining == 30


def test_a_long_run_remembers_where_it_began() -> None:
    """Old flushes are thinned out, not cut off: the mean square angle is still that of all steps."""
    states, watch = run(lambda p: optim.SGD(p, lr=0.1, weight_decay=1e-4), 230, flush_every_n_steps=1)
    for parameter in NORMALIZED:
        angle, *_ = turned(watch, parameter, range(230))
        last, *_ = turned(watch, parameter, range(170, 230))
        assert abs(last / angle - 1.0) > 0.15
        assert states[parameter.removesuffix(".weight")].measured_angle == pytest.approx(angle, rel=0.1)


def test_under_a_schedule_only_steps_of_about_the_present_rate_count() -> None:
    def slower(step: int, optimizer: Optimizer) -> None:
        optimizer.param_groups[0]["lr"] = 0.1 if step < 100 else 0.01

    states, watch = run(lambda p: optim.SGD(p, lr=0.1, weight_decay=1e-4), 200, slower)
    for parameter in NORMALIZED:
        angle, *_ = turned(watch, parameter, range(100, 200))
        assert states[parameter.removesuffix(".weight")].measured_angle == pytest.approx(angle, rel=1e-3)


def test_a_decay_that_comes_late_is_judged_from_then_on() -> None:
    """Before, there was no equilibrium; that does not make it unknown afterwards."""

    def decaying(step: int, optimizer: Optimizer) -> None:
        optimizer.param_groups[0]["weight_decay"] = 0.0 if step < 40 else 0.3

    states, watch = run(lambda p: optim.AdamW(p, lr=1e-2), 60, decaying)
    for parameter in NORMALIZED:
        state = states[parameter.removesuffix(".weight")]
        angle, *_ = turned(watch, parameter, range(40, 60))
        assert state.state != "unknown"
        assert state.predicted_angle == pytest.approx(math.sqrt(2 * 1e-2 * 0.3 * 0.1 / 1.9))
        assert state.measured_angle == pytest.approx(angle, rel=1e-3)


def test_dead_filters_say_nothing() -> None:
    """Decay alone shrinks them for ever, straight inwards."""

    def silence(step: int, optimizer: Optimizer) -> None:
        gain: nn.Parameter = optimizer.param_groups[0]["params"][1]
        gain.data[:3] = 0.0

    states, watch = run(lambda p: optim.SGD(p, lr=0.1, weight_decay=0.1), 20, silence)
    squares = []
    for seen in (step["0.weight"] for step in watch.steps):
        assert seen.after is not None
        assert not seen.moment.g[:3].any()
        squares += [angle_between(seen.moment.x[row].ravel(), seen.after[row].ravel()) ** 2 for row in (3, 4, 5)]
    state = states["0"]
    assert state.measured_angle == pytest.approx(float(np.sqrt(np.mean(squares))), rel=1e-3)
    living = [float(np.linalg.norm(watch.steps[-1]["0.weight"].moment.x[row])) for row in (3, 4, 5)]
    assert state.measured_norm == pytest.approx(float(np.exp(np.mean(np.log(living)))), rel=1e-3)
    assert (state.idle, state.groups) == (3, 6)
    assert state.describe().endswith("; 3 of 6 groups had no gradient")


def test_a_layer_of_which_all_filters_are_dead_is_unknown() -> None:
    def silence(step: int, optimizer: Optimizer) -> None:
        gain: nn.Parameter = optimizer.param_groups[0]["params"][1]
        gain.data[:] = 0.0

    states, _ = run(lambda p: optim.Adam(p, lr=0.1, weight_decay=0.1), 20, silence)
    assert states["0"].describe() == "unknown: none of its groups had a gradient"


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        (lambda p: optim.SGD(p, lr=0.1), "no weight decay"),
        (lambda p: optim.SGD(p, lr=0.0, weight_decay=0.1), "no learning rate"),
        (lambda p: optim.AdamW(p, amsgrad=True), "no prediction is known with amsgrad"),
        (lambda p: optim.Adam(p, weight_decay=0.1, amsgrad=True), "no prediction is known with amsgrad"),
        (lambda p: optim.RMSprop(p), "no prediction is known for RMSprop"),
        (lambda p: optim.Rprop(p), "no prediction is known for Rprop"),
    ],
)
def test_what_keeps_it_from_being_known_is_said(factory: Callable[..., Optimizer], reason: str) -> None:
    states, _ = run(factory, 3)
    assert {(state.state, state.reason) for state in states.values()} == {("unknown", reason)}
    assert all(math.isnan(state.ratio) for state in states.values())


def test_tensors_with_different_rates_have_none() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.LayerNorm(20), nn.Linear(20, 10))
    linear: Any = model[1]
    rest = [p for p in model.parameters() if p is not linear.bias]
    different: dict[str, dict[str, float]] = {"learning rates": {"lr": 0.5}, "weight decay": {"weight_decay": 0.0}}
    for what, options in different.items():
        groups = [{"params": rest}, {"params": [linear.bias], **options}]
        optimizer = optim.SGD(groups, lr=0.1, weight_decay=0.1)
        with SphereTracker(model, optimizer, strict=True) as tracker:
            for images, classes in batches(3):
                optimizer.zero_grad()
                cross_entropy(model(images), classes).backward()
                optimizer.step()
        assert tracker.equilibrium["1"].reason == f"its tensors have different {what}"


def test_what_was_measured_a_while_ago_is_nearer_by_now() -> None:
    fresh, old, older = (settle(0.01, 1.0, 1000.0, 0.03, 1.0, 1e-3, span=span) for span in (0.0, 200.0, 2e6))
    assert fresh.steps_to_go == pytest.approx(old.steps_to_go + 100.0)
    assert (older.state, older.steps_to_go) == ("transient", 1.0)


def test_a_norm_that_stands_still_for_a_moment_beside_the_prediction_has_not_settled() -> None:
    assert settle(0.01, 1.0, 1000.0, 0.004, 1.0, 0.0, span=400).state == "transient"
    assert settle(0.01, 1.0, 1000.0, 0.004, 1.0, 0.0, span=500).state == "settled"
    assert settle(0.01, 1.0, 1000.0, 0.0095, 1.0, 0.0, span=50).state == "settled"


def test_where_rounding_discards_the_updates_no_equilibrium_is_told() -> None:
    model = net().to(torch.bfloat16)
    optimizer = optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1)
    with SphereTracker(model, optimizer, strict=True) as tracker:
        for images, classes in batches(12):
            optimizer.zero_grad()
            cross_entropy(model(images.bfloat16()).float(), classes).backward()
            optimizer.step()
    for state in tracker.equilibrium.values():
        assert state.state == "unknown"
        assert state.reason.startswith("rounding discards ")


@pytest.mark.usefixtures("at_once")
def test_what_is_told_of_the_layers_is_of_now() -> None:
    """States swing with the decay; each recording tells those of its own last step."""
    told: list[tuple[list[str | None], list[str | None]]] = []

    class Keep:
        def write(self, recording: Recording) -> None:
            rows = [row for row in recording.schema.groups if row["equilibrium"] is not None]
            told.append(([row["equilibrium"] for row in rows], [row["equilibrium_state"] for row in rows]))

        def close(self) -> None: ...

    def swing(step: int, optimizer: Optimizer) -> None:
        optimizer.param_groups[0]["weight_decay"] = 0.0 if step % 4 < 2 else 0.3

    run(lambda p: optim.AdamW(p, lr=1e-2), 40, swing, flush_every_n_steps=2, sinks=[Keep()])
    states = [found for _, found in told]
    assert [set(found) == {"unknown"} for found in states] == [True, False] * 10
    for words, found in told:
        for word, state in zip(words, found, strict=True):
            assert (state == "unknown") == word.startswith("unknown"), (word, state)


@pytest.mark.parametrize(("later", "state"), [(-0.0008, "transient"), (0.0, "settled")])
def test_a_norm_that_rises_and_falls_again_does_not_stand_still(later: float, state: str) -> None:
    """Over the whole window it is where it was, and turns by the predicted angle on average."""
    balance = Balance(every_n_steps=1)
    for growth, turn in ((-later, 1.3), (later, 0.5)):
        for _ in range(14):
            steps = LayerSteps(10, 10 * growth, (turn * 0.01) ** 2, 0.01**2, 1.0, 1.0, 300.0, None, 8, 0)
            balance.take(steps, "")
    judged = balance.judge(None)
    assert judged is not None
    assert judged.ratio == pytest.approx(math.sqrt((1.3**2 + 0.5**2) / 2))
    assert judged.state == state
