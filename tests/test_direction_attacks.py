"""Optimizers, selections and loops that once made a wrong number, or an end of the measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from lightning_sphere import SphereTracker, equilibrium, read_run
from lightning_sphere.directions import Direction, Scalars, StepTensors, register
from lightning_sphere.directions.direction import count_of
from lightning_sphere.quantities import QUANTITIES
from lightning_sphere.recording import Recording
from lit import LitNet, loader, quiet_trainer
from nets import FIRST, batches, conv_net
from optimizer_watch import BALANCE, angle_between, assert_all_recorded, cut_out, double, histories, of_one_step
from optimizer_zoo import ALL, Lion, net, train

# ------------------------------------------------------------------ steps


def test_a_layer_that_is_not_invariant_has_a_path_of_all_its_steps(tmp_path: Path) -> None:
    """Each measured step but the first counts for those left out before it, at every flush."""
    model = net()
    watch = train(model, [optim.SGD(model.parameters(), lr=0.1)], 24, every_n_steps=3, log_dir=tmp_path)
    record = read_run(tmp_path)
    assert len(record.steps) == 8  # two flushes
    for parameter in ALL:
        rows = len(double(dict(model.named_parameters())[parameter]))
        cut = {"axis": 0, "blocks": rows}
        expected = np.zeros(rows)
        for index, seen in enumerate(watch.steps[::3]):
            x, after = seen[parameter].moment.x, seen[parameter].after
            assert after is not None
            turns = [angle_between(cut_out(x, cut, row), cut_out(after, cut, row)) for row in range(rows)]
            expected += np.array(turns) * (3 if index else 1)
        layer = record.layers.index(parameter.removesuffix(".weight"))
        np.testing.assert_allclose(record["path_length"][-1, layer], np.median(expected), rtol=1e-6)


@pytest.mark.parametrize("optimizer", [Lion, optim.AdamW], ids=["inferred", "read"])
def test_without_a_gradient_there_is_no_direction(optimizer: Any, tmp_path: Path) -> None:
    """The weights stand still: with decay, that is not a momentum straight outwards."""
    model = conv_net()
    steps = optimizer(model.parameters(), lr=1e-3, weight_decay=0.5)
    with SphereTracker(model, steps, tmp_path, quantities="full", strict=True):
        for step, (images, classes) in enumerate(batches(4)):
            steps.zero_grad()
            cross_entropy(model(images), classes).backward()
            if step % 2:
                model.get_parameter(FIRST).grad = None
            steps.step()
    fractions = read_run(tmp_path)["momentum_radial_fraction"][:, 0]
    assert np.isnan(fractions).tolist() == [False, True, False, True]


def test_a_joint_rate_that_is_unknown_makes_no_equivalence(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.LayerNorm(20), nn.ReLU(), nn.Linear(20, 10))
    linear: Any = model[1]
    rest = [p for p in model.parameters() if p is not linear.bias]
    for name, bias in (("same", 0.1), ("different", 0.5)):
        optimizer = optim.SGD([{"params": rest}, {"params": [linear.bias], "lr": bias}], lr=0.1)
        train(model, [optimizer], log_dir=tmp_path / name)
    np.testing.assert_allclose(read_run(tmp_path / "same")["adam_equivalence"][:, 0], 1.0, atol=1e-3)
    assert np.isnan(read_run(tmp_path / "different")["adam_equivalence"]).all()


def test_a_float16_gradient_is_unscaled_by_a_usual_scale() -> None:
    """65536, with which every loss scaler begins, is infinite in float16."""
    model = conv_net().half()
    optimizer = optim.SGD(model.parameters(), lr=1e-2, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    kept = Kept()
    with SphereTracker(model, optimizer, sinks=[kept], quantities=("momentum_radial_fraction",), strict=True):
        for images, classes in batches(3):
            optimizer.zero_grad()
            scaler.scale(1e-3 * cross_entropy(model(images.half()).float(), classes)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert (np.abs(kept.recordings[0].table[:, -1, 0, 1]) > 1e-3).all()  # the last layer's; else 0/0


def test_a_line_search_in_the_trainer_takes_one_step_a_batch(tmp_path: Path) -> None:
    """Its closure says several times that a step is due."""

    class Searching(LitNet):
        def configure_optimizers(self) -> Optimizer:
            return optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    from lightning_sphere import SphereMonitor

    for every, expected in ((1, 8), (2, 4)):
        monitor = SphereMonitor(every_n_steps=every, print_summary=False, strict=True)
        quiet_trainer(tmp_path, callbacks=[monitor]).fit(Searching(), loader(128))
        assert monitor.tracker is not None
        assert monitor.tracker.history.steps == expected


def test_a_rate_that_a_scheduler_writes_into_a_tensor_is_that_of_its_step(tmp_path: Path) -> None:
    model = net()
    optimizer = optim.SGD(model.parameters(), lr=torch.tensor(0.1, dtype=torch.float64), foreach=False)
    schedule = optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    watch = train(model, [optimizer], 4, scheduler=schedule, log_dir=tmp_path)
    assert_all_recorded(read_run(tmp_path), watch, ALL, without=BALANCE)


def test_dampening_without_momentum_is_ignored_as_torch_ignores_it() -> None:
    def recorded(dampening: float) -> Recording:
        model, kept = net(), Kept()
        train(model, [optim.SGD(model.parameters(), 0.1, 0.0, dampening, weight_decay=0.1)], 4, sinks=[kept])
        return kept.recordings[0]

    np.testing.assert_array_equal(recorded(0.5).table, recorded(0.0).table)


def test_a_momentum_that_is_switched_off_leaves_its_buffer_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The state still holds it; the gradient alone is the direction, orthogonal to normalized weights."""
    model = net()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def switch(step: int) -> None:
        optimizer.param_groups[0]["momentum"] = 0.9 if step < 40 else 0.0

    train(model, [optimizer], 54, between=switch, log_dir=tmp_path, quantities="full")
    fractions = np.abs(read_run(tmp_path)["momentum_radial_fraction"][:, :3])
    assert (fractions[30:40] > 1e-2).all()
    assert (fractions[40:] < 1e-3).all()
    assert not caplog.messages  # the formula is compared with the 51st step


# -------------------------------------------------------------- directions


class Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.recordings: list[Recording] = []

    def write(self, recording: Recording) -> None:
        self.recordings.append(recording)

    def close(self) -> None:
        pass


class Named(Optimizer):
    """Gradient descent whose rate and decay have names of their own, and which leaves nothing of the gradient."""

    def __init__(self, params: Any, eta: float, shrinking: float) -> None:
        super().__init__(params, {"eta": eta, "shrinking": shrinking})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["eta"] * (p.grad + group["shrinking"] * p))
                p.grad.zero_()


def _named_gradient(at: StepTensors) -> Tensor:
    return at.gradient + at.group["shrinking"] * at.weight


def test_a_registered_optimizer_may_call_its_numbers_what_it_likes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nothing = torch.zeros((), dtype=torch.float64)
    register(
        Named,
        Direction(
            hyperparameters=lambda group: {"eta": group["eta"], "shrinking": group["shrinking"]},
            scalars=lambda n: Scalars(rate=n["eta"]),
            numerator=_named_gradient,
            reads_gradient=("numerator",),
            equilibrium=lambda n, size, square: equilibrium.sgd(
                n["eta"], n["shrinking"], nothing, nothing, nothing, size, square
            ),
        ),
    )
    records = []
    for name in ("named", "sgd"):
        model = net()
        optimizer: Optimizer = Named(model.parameters(), eta=0.1, shrinking=0.1)
        if name == "sgd":
            optimizer = optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        with SphereTracker(model, optimizer, tmp_path / name, quantities="full", strict=True) as tracker:
            for images, classes in batches(8):
                optimizer.zero_grad()
                cross_entropy(model(images), classes).backward()
                optimizer.step()
        assert {state.reason for state in tracker.equilibrium.values()} == {""}
        records.append(read_run(tmp_path / name))
    for quantity in set(QUANTITIES) - {"adam_equivalence", "lr"}:  # its rate has another name
        np.testing.assert_allclose(records[0][quantity], records[1][quantity], rtol=1e-3, atol=1e-5, err_msg=quantity)
    assert not caplog.messages


class KeepsOther(optim.AdamW):
    """A subclass with arithmetic and a state of its own, of which nothing is known."""

    own = True

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        if not self.own:
            super().step()
            return
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"sign": p.grad.sign()}
                p.sub_(group["lr"] * self.state[p]["sign"])


def test_an_optimizer_without_its_familys_state_is_measured_as_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the user reads of it is exact, or was told of."""
    model = net()
    watch = train(model, [KeepsOther(model.parameters(), lr=1e-3)], 8, log_dir=tmp_path, quantities="full")
    assert len(caplog.messages) == 1
    assert "what lightning_sphere knows of KeepsOther reads 'exp_avg_sq'" in caplog.messages[0]
    record = read_run(tmp_path)
    assert record.steps.tolist() == list(range(1, 8))  # all but the step at which it was noticed
    turns = [of_one_step(group)["angular_step"] for group in histories(record, watch, "7.weight")[0] if group][1:]
    assert np.all(record.stat("angular_step", "p10")[:, 2] <= turns)
    assert np.all(record.stat("angular_step", "p90")[:, 2] >= turns)
    np.testing.assert_allclose(record["second_moment"], record["norm"], rtol=1e-6)  # b = 1
    assert np.isnan(record["deformation_angle"]).all()


def test_what_was_measured_before_the_state_was_lost_stays(tmp_path: Path) -> None:
    for name, last in (("adamw", 9), ("other", 3)):
        model = net()
        optimizer = KeepsOther(model.parameters(), lr=1e-3)

        def change(step: int, optimizer: KeepsOther = optimizer, last: int = last) -> None:
            optimizer.own = step > last

        train(model, [optimizer], 8, between=change, log_dir=tmp_path / name, flush_every_n_steps=20)
    one, other = read_run(tmp_path / "adamw"), read_run(tmp_path / "other")
    assert other.steps.tolist() == [0, 1, 2, 3, 5, 6, 7]
    np.testing.assert_array_equal(one["effective_lr"][:4], other["effective_lr"][:4])


def test_updates_are_counted_by_the_state_or_by_the_group() -> None:
    """Schedule-free optimizers and their like count once for all tensors."""
    assert count_of({"step": 3}, {"step": 5}) == 3
    assert count_of({}, {"step": 5}) == 5
    assert count_of({}, {}) is None


# ---------------------------------------------------------------- selection


@pytest.mark.parametrize(
    "factory",
    [
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
        lambda p: optim.Adam(p, lr=1e-2, weight_decay=1e-2),
    ],
    ids=["sgd", "adam"],
)
def test_each_quantity_alone_is_what_it_is_among_all(factory: Any) -> None:
    def recorded(quantities: Any) -> Recording:
        model, kept = conv_net(), Kept()
        optimizer = factory(model.parameters())
        with SphereTracker(model, optimizer, sinks=[kept], quantities=quantities, strict=True):
            for images, classes in batches(6):
                optimizer.zero_grad()
                cross_entropy(model(images), classes).backward()
                optimizer.step()
        return kept.recordings[0]

    together = recorded(tuple(QUANTITIES))
    for column, name in enumerate(QUANTITIES):
        np.testing.assert_array_equal(recorded((name,)).table[:, :, 0], together.table[:, :, column], err_msg=name)
    assert recorded(("drift", "norm")).schema.quantities == ("norm", "drift")  # in recorded order
