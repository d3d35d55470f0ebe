"""Quantities that add up over a run: path, drift, straightness, SGD followed as Adam; and updates lost to rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.nn.functional import cross_entropy

from lightning_sphere import GroupPart, ScaleGroup, SphereMonitor, SphereTracker, read_run
from lit import LitNet, loader, quiet_trainer
from nets import batches
from optimizer_watch import assert_all_recorded, expected
from optimizer_zoo import ALL, KNOWN, NORMALIZED, Factory, net, train
from oracle import layer_index

pytestmark = pytest.mark.usefixtures("copies")

ADDED_UP = ("path_length", "drift", "straightness", "adam_equivalence")


class Vector(nn.Module):
    """One vector, said to be invariant, whose gradients the test makes up."""

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([values]))


GROUPS = [ScaleGroup("vector", (GroupPart("weight", axis=0),), 1, "row")]


def walk(folder: Path, start: Sequence[float], moves: Sequence[Sequence[float]], **arguments: Any) -> Any:
    """Steps of SGD with lr = 1 by the given displacements."""
    model = Vector(start)
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    with SphereTracker(model, optimizer, folder, groups=GROUPS, strict=True, **arguments):
        for move in moves:
            model.weight.grad = -torch.tensor([move])
            optimizer.step()
    return read_run(folder)


def turns(angles: Sequence[float]) -> list[list[float]]:
    """Moves on the unit circle from (1, 0) by these angles, one after the other."""
    at = np.cumsum([0.0, *angles])
    points = np.stack([np.cos(at), np.sin(at)], axis=1)
    moves: list[list[float]] = np.diff(points, axis=0).tolist()
    return moves


def known(record: Any, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """At which steps a quantity of the only layer is known, and what it is."""
    values = record[name][:, 0]
    at = np.flatnonzero(~np.isnan(values))
    return at, values[at]


def test_a_walk_straight_on_is_straight(tmp_path: Path) -> None:
    record = walk(tmp_path, [1.0, 0.0], turns([0.02] * 60))
    np.testing.assert_allclose(record["angular_step"][:, 0], 0.02, rtol=1e-4)
    np.testing.assert_allclose(record["path_length"][:, 0], 0.02 * np.arange(1, 61), rtol=1e-4)
    at, drift = known(record, "drift")
    assert at[0] == 0
    assert len(at) >= 3
    np.testing.assert_allclose(drift, 0.02 * (at + 1), rtol=1e-4)
    straight_at, straightness = known(record, "straightness")
    np.testing.assert_array_equal(straight_at, at)
    np.testing.assert_allclose(straightness, 1.0, rtol=1e-4)


def test_a_walk_back_and_forth_is_long_and_leads_nowhere(tmp_path: Path) -> None:
    record = walk(tmp_path, [1.0, 0.0], turns([0.1, -0.1] * 40))
    np.testing.assert_allclose(record["path_length"][:, 0], 0.1 * np.arange(1, 81), rtol=1e-4)
    at, drift = known(record, "drift")
    np.testing.assert_allclose(drift, np.where(at % 2 == 0, 0.1, 0.0), rtol=1e-4, atol=1e-6)
    _, straightness = known(record, "straightness")
    np.testing.assert_allclose(straightness, drift / (0.1 * (at + 1)), rtol=1e-4, atol=1e-6)


def test_a_drift_of_more_than_a_right_angle_is_known(tmp_path: Path) -> None:
    record = walk(tmp_path, [1.0, 0.0], turns([0.5] * 6), every_n_steps=1)
    at, drift = known(record, "drift")
    np.testing.assert_allclose(drift, 0.5 * (at + 1), rtol=1e-4)


def test_the_path_does_not_start_anew_at_a_flush(tmp_path: Path) -> None:
    record = walk(tmp_path, [1.0, 0.0], turns([0.01] * 20), flush_every_n_steps=3)
    np.testing.assert_allclose(record["path_length"][:, 0], 0.01 * np.arange(1, 21), rtol=1e-4)


def test_drift_does_not_depend_on_the_norm(tmp_path: Path) -> None:
    """Stretched tenfold on the way, a weight has not turned."""
    record = walk(tmp_path, [1.0, 0.0], [[1.0, 0.0]] * 9)
    for name in ("path_length", "drift"):
        np.testing.assert_allclose(known(record, name)[1], 0.0, atol=1e-7)


@pytest.mark.parametrize("given", ["mapping", "state dict", "checkpoint"])
def test_drift_is_counted_from_the_weights_given(given: str, tmp_path: Path) -> None:
    start = {"weight": torch.tensor([[0.0, 3.0]])}
    source: Any = start
    if given != "mapping":
        source = tmp_path / "start.ckpt"
        torch.save(start if given == "state dict" else {"state_dict": start, "epoch": 3}, source)
    record = walk(tmp_path / "run", [1.0, 0.0], turns([0.1] * 3), drift_from=source)
    at, drift = known(record, "drift")
    np.testing.assert_allclose(drift, math.pi / 2 - 0.1 * (at + 1), rtol=1e-4)
    assert np.isnan(record["straightness"]).all()  # the path from there is not known


@pytest.mark.parametrize(
    "wrong", [3, "no/such/file.ckpt", {"weight": torch.zeros(7)}, {"weight": "a word"}, ["weight"]], ids=str
)
def test_a_wrong_drift_from_is_refused_at_construction(wrong: Any) -> None:
    model = Vector([1.0, 0.0])
    with pytest.raises((TypeError, ValueError, OSError), match="drift_from"):
        SphereTracker(model, optim.SGD(model.parameters(), lr=1.0), drift_from=wrong)


def test_drift_from_reaches_the_trainers_callback(tmp_path: Path) -> None:
    module = LitNet()
    start = {name: torch.randn_like(value) for name, value in module.state_dict().items() if value.is_floating_point()}
    trainer = quiet_trainer(tmp_path, logger=True, callbacks=[SphereMonitor(strict=True, drift_from=start)])
    trainer.fit(module, loader(count=64))
    record = read_run(trainer.logger.log_dir)  # type: ignore[union-attr]
    assert (record["drift"][0] > 0.5).all()


def test_many_steps_of_a_real_run_add_up(tmp_path: Path) -> None:
    model = net()
    start = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    watch = train(model, [optimizer], 110, log_dir=tmp_path, drift_from=start, flush_every_n_steps=7)
    record = read_run(tmp_path)
    assert_all_recorded(record, watch, ALL, relative=2e-6, start=start)
    for name in ("drift", "lost_update"):
        assert 2 <= (~np.isnan(record[name][:, 0])).sum() <= 110, name


def test_a_measured_step_stands_for_those_left_out_since(tmp_path: Path) -> None:
    """A straight walk is as long and as straight as if all its steps were measured; r^4 cannot be followed so."""
    record = walk(tmp_path, [1.0, 0.0], turns([0.02] * 30), every_n_steps=3)
    assert record.steps.tolist() == list(range(0, 30, 3))
    np.testing.assert_allclose(record["path_length"][:, 0], 0.02 * (record.steps + 1), rtol=1e-4)
    at, straightness = known(record, "straightness")
    assert at[0] == 0
    np.testing.assert_allclose(straightness, 1.0, rtol=1e-4)
    assert np.isnan(record["adam_equivalence"]).all()


def test_a_skipped_step_is_no_part_of_the_path_and_does_not_end_it(tmp_path: Path) -> None:
    model = Vector([1.0, 0.0])
    optimizer = optim.SGD(model.parameters(), lr=1.0, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(()))  # which makes its state
    with SphereTracker(model, optimizer, tmp_path, groups=GROUPS, strict=True):
        for step, move in enumerate(turns([0.1, 0.1, 0.1, 0.1])):
            for skipped in (False, True) if step == 2 else (False,):
                model.weight.grad = -torch.tensor([move]) * scaler.get_scale()
                if skipped:
                    model.weight.grad.fill_(torch.inf)
                scaler.step(optimizer)
                scaler.update()
    path = read_run(tmp_path)["path_length"][:, 0]
    np.testing.assert_allclose(path, [0.1, 0.2, 0.3, np.nan, 0.4], rtol=1e-4)


@pytest.mark.parametrize("name", ["sgd momentum", "adam L2", "adamw", "nadam decoupled", "adafactor", "lion decay"])
def test_no_number_depends_on_when_it_is_written(name: str, tmp_path: Path) -> None:
    records = []
    for every in (1, 4, 50):
        model = net()
        folder = tmp_path / str(every)
        train(
            model, [KNOWN[name](model.parameters())], 12, log_dir=folder, quantities="full", flush_every_n_steps=every
        )
        records.append(read_run(folder))
    for record in records[1:]:
        assert record.quantities == records[0].quantities
        for quantity in record.quantities:
            np.testing.assert_allclose(record[quantity], records[0][quantity], rtol=1e-6, err_msg=quantity)


# ------------------------------------------------------------------- SGD as Adam


def exact_net() -> nn.Sequential:
    """In float64, with an eps that is nothing: exactly invariant."""
    model = net().double()
    for module in model:
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.eps = 1e-30
    return model


def equivalence(folder: Path, factory: Factory, steps: int = 40) -> tuple[Any, np.ndarray[Any, Any]]:
    model = exact_net()
    watch = train(model, [factory(model.parameters())], steps, log_dir=folder)
    record = read_run(folder)
    assert_all_recorded(record, watch, ALL, relative=1e-5, absolute=1e-10)
    layers = [layer_index(record, parameter) for parameter in NORMALIZED]
    return record, record["adam_equivalence"][:, layers]


def test_the_radius_of_plain_sgd_is_the_second_moment_that_its_gradients_give(tmp_path: Path) -> None:
    """Up to terms of fourth order: with half the rate, a sixteenth of the difference per step is left."""
    off = []
    for lr in (0.1, 0.05):
        _, ratio = equivalence(tmp_path / str(lr), partial(optim.SGD, lr=lr, weight_decay=0.1), steps=5)
        off.append(np.abs(ratio.astype(np.float64) - 1.0))
        assert off[-1].max() < 2e-2
    assert (off[1][2:] < off[0][2:] / 6 + 3e-7).all()


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_the_radius_of_sgd_with_momentum_follows_to_leading_order(dampening: float, tmp_path: Path) -> None:
    """Its rate is lr (1-p) / (1-b): with any other the ratio would leave 1 at once."""
    factory = partial(optim.SGD, lr=1e-3, momentum=0.9, dampening=dampening, weight_decay=1.0)
    _, ratio = equivalence(tmp_path, factory, steps=100)
    assert abs(ratio[-1] - 1.0).max() < 0.15


def test_no_other_optimizer_and_no_other_layer_is_followed_so(tmp_path: Path) -> None:
    model = net()
    train(model, [optim.AdamW(model.parameters(), lr=1e-3)], 4, log_dir=tmp_path / "adamw")
    record = read_run(tmp_path / "adamw")
    assert "adam_equivalence" not in record.quantities or np.isnan(record["adam_equivalence"]).all()
    record, _ = equivalence(tmp_path / "sgd", partial(optim.SGD, lr=0.01), steps=4)
    assert np.isnan(record["adam_equivalence"][:, layer_index(record, "10.weight")]).all()


def test_a_changing_rate_is_followed(tmp_path: Path) -> None:
    model = exact_net()
    optimizer = optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    schedule = optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    watch = train(model, [optimizer], 8, scheduler=schedule, log_dir=tmp_path)
    record = read_run(tmp_path)
    assert_all_recorded(record, watch, ALL, relative=1e-5, absolute=1e-10)


# ------------------------------------------------------- updates lost to low precision


@pytest.mark.parametrize(
    ("factory", "lowest", "highest"),
    [
        (partial(optim.SGD, lr=1e-7), 0.95, 1.0),
        (partial(optim.SGD, lr=1.0), 0.0, 0.2),
        (partial(optim.AdamW, lr=1e-6, weight_decay=0.0), 0.95, 1.0),
        (partial(optim.AdamW, lr=1e-2), 0.0, 0.1),
        (partial(optim.SGD, lr=3e-3), 0.05, 0.95),
    ],
)
def test_what_bfloat16_weights_lose_is_told(
    factory: Callable[..., Any], lowest: float, highest: float, tmp_path: Path
) -> None:
    model = net().bfloat16()
    watch = train(model, [factory(model.parameters())], 3, log_dir=tmp_path)
    record = read_run(tmp_path)
    share = record["lost_update"][0, [layer_index(record, parameter) for parameter in ALL]]
    assert (share >= lowest).all()
    assert (share <= highest).all()
    if isinstance(watch.optimizers[0], optim.SGD):  # whose formula reads no state, so that nothing is rounded
        column = record.quantities.index("lost_update")
        for parameter in ALL:
            wanted = expected(record, watch, parameter)[0, column]
            np.testing.assert_allclose(record.values[0, layer_index(record, parameter), column], wanted, rtol=1e-5)


def test_float32_loses_nothing_but_where_the_rate_is_tiny(tmp_path: Path) -> None:
    for lr, lost in ((1e-2, 0.0), (1e-12, 1.0)):
        model = net()
        train(model, [optim.SGD(model.parameters(), lr=lr)], 2, log_dir=tmp_path / str(lr))
        np.testing.assert_allclose(read_run(tmp_path / str(lr))["lost_update"][0], lost, atol=1e-3)


def test_losses_are_looked_for_at_the_first_step_and_now_and_then(tmp_path: Path) -> None:
    model = net()
    train(model, [optim.AdamW(model.parameters(), lr=1e-3)], 104, log_dir=tmp_path, flush_every_n_steps=13)
    lost = read_run(tmp_path)["lost_update"]
    assert np.flatnonzero(~np.isnan(lost).all(axis=1)).tolist() == [0, 47, 94]


# --------------------------------------------------------------------- the choice


def test_the_default_is_core_and_a_tuple_picks(tmp_path: Path) -> None:
    recorded = {}
    for name, quantities in {"default": {}, "core": {"quantities": "core"}, "full": {"quantities": "full"}}.items():
        model = net()
        train(model, [optim.AdamW(model.parameters())], 2, log_dir=tmp_path / name, **quantities)
        recorded[name] = read_run(tmp_path / name)
    assert recorded["default"].quantities == recorded["core"].quantities
    assert set(recorded["full"].quantities) - set(recorded["core"].quantities) == {
        "deformation_angle",
        "momentum_radial_fraction",
    }
    model = net()
    train(
        model, [optim.AdamW(model.parameters())], 2, log_dir=tmp_path / "two", quantities=("deformation_angle", "norm")
    )
    few = read_run(tmp_path / "two")
    assert set(few.quantities) == {"norm", "deformation_angle"}
    for name in few.quantities:
        np.testing.assert_array_equal(few[name], recorded["full"][name])


@pytest.mark.parametrize("wrong", ["most", ("norm", "speed"), (), 3, None], ids=str)
def test_wrong_quantities_are_refused_at_construction(wrong: Any) -> None:
    model = net()
    with pytest.raises((TypeError, ValueError), match="quantities"):
        SphereTracker(model, optim.SGD(model.parameters(), lr=0.1), quantities=wrong)


def test_a_tracker_that_starts_again_starts_a_new_path(tmp_path: Path) -> None:
    model = net()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    tracker = SphereTracker(model, optimizer, tmp_path, strict=True)
    for _ in range(2):
        with tracker:
            for images, classes in batches(3):
                optimizer.zero_grad()
                cross_entropy(model(images), classes).backward()
                optimizer.step()
    record = read_run(tmp_path)
    path, turned = record["path_length"], record["angular_step"]
    np.testing.assert_allclose(path[[0, 3]], turned[[0, 3]], rtol=1e-6)
    assert (path[3] < path[2]).all()


def test_the_equivalence_is_recorded_where_one_of_several_optimizers_is_sgd(tmp_path: Path) -> None:
    model = net()
    given = list(model.parameters())
    train(model, [optim.SGD(given[:1], lr=0.1), optim.AdamW(given[1:])], 3, log_dir=tmp_path)
    equivalence = read_run(tmp_path)["adam_equivalence"]
    np.testing.assert_allclose(equivalence[:, 0], 1.0, atol=1e-3)
    assert np.isnan(equivalence[:, 1:]).all()
