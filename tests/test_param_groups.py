"""Every step is measured with the values that the optimizer used: of the right param group, optimizer and moment."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from lightning_sphere import SphereTracker, read_run
from nets import batches
from optimizer_watch import BALANCE, DIRECTIONS, NEAR_ZERO, SPARSE, Watch, assert_all_recorded, expected
from optimizer_zoo import ALL, FORMULA, FROM_STATE, KNOWN, Factory, Lion, net, train
from oracle import layer_index

pytestmark = pytest.mark.usefixtures("copies")


def test_a_schedule_is_followed_step_by_step(tmp_path: Path) -> None:
    """Warm-up and decay of the rate, and of a momentum that cycles along."""
    model = net()
    optimizer = optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.03, total_steps=13, cycle_momentum=True)
    watch = train(model, [optimizer], scheduler=schedule, log_dir=tmp_path, quantities="full")
    rates = {step["0.weight"].moment.h["lr"] for step in watch.steps}
    momenta = {step["0.weight"].moment.h["betas"][0] for step in watch.steps}
    assert len(rates) == 12
    assert len(momenta) > 5
    assert_all_recorded(read_run(tmp_path), watch, ALL, loose=FROM_STATE | FORMULA)


@pytest.mark.parametrize("factory", [optim.SGD, optim.AdamW, optim.RMSprop, optim.Adafactor])
def test_every_layer_has_the_rate_of_its_own_param_group(factory: Callable[..., Optimizer], tmp_path: Path) -> None:
    """Layer-wise decay of the rate: the first group's would be wrong a hundredfold for the last."""
    model = net()
    layers = [model[0], model[3], model[7], model[10]]
    rates = [1e-3, 3e-3, 1e-2, 1e-1]
    groups = [
        {"params": list(layer.parameters()), "lr": rate, "weight_decay": decay}
        for layer, rate, decay in zip(layers, rates, [0.0, 0.1, 0.0, 0.01], strict=True)
    ]
    watch = train(model, [factory(groups, lr=7.0)], log_dir=tmp_path, quantities="full")
    assert_all_recorded(
        read_run(tmp_path),
        watch,
        ALL,
        loose=FROM_STATE | FORMULA,
        without=BALANCE if factory in (optim.RMSprop, optim.Adafactor) else (),
    )


def test_several_optimizers_have_their_own_formulas_and_rates(tmp_path: Path) -> None:
    model = net()
    optimizers = [
        optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2),
        optim.AdamW(model[3].parameters(), lr=1e-3),
        Lion(model[7].parameters(), lr=1e-3, weight_decay=0.1),
        optim.Adagrad(model[10].parameters(), lr=1e-2, lr_decay=0.1),
    ]
    watch = train(model, optimizers, log_dir=tmp_path, quantities="full")
    assert_all_recorded(read_run(tmp_path), watch, ALL, loose=FROM_STATE | FORMULA)


@pytest.mark.parametrize("factory", [partial(optim.SGD, lr=0.1, momentum=0.9), partial(optim.AdamW, lr=1e-2)])
def test_a_param_group_added_in_mid_run_is_measured_by_its_own_values(factory: Factory, tmp_path: Path) -> None:
    """As unfreezing callbacks do. What adds up over steps starts when the weight first moves."""
    model = net()
    model[3].requires_grad_(False)
    optimizer = factory([p for p in model.parameters() if p.requires_grad])

    def unfreeze(step: int) -> None:
        if step == 4:
            model[3].requires_grad_(True)
            optimizer.add_param_group({"params": list(model[3].parameters()), "lr": 1e-4, "weight_decay": 0.5})

    watch = train(model, [optimizer], between=unfreeze, log_dir=tmp_path, quantities="full")
    record = read_run(tmp_path)
    assert np.isnan(record["norm"][:4, layer_index(record, "3.weight")]).all()
    assert_all_recorded(record, watch, ["0.weight", "7.weight", "10.weight"], loose=FROM_STATE | FORMULA)
    late = expected(record, watch, "3.weight")
    for column, name in enumerate(record.quantities):
        if name not in SPARSE:
            actual = record.values[:, layer_index(record, "3.weight"), column]
            np.testing.assert_allclose(actual, late[:, column], rtol=1e-4, atol=1e-6, err_msg=name)


STATEFUL = [
    "sgd momentum",
    "adamw",
    "nadam decoupled",
    "radam L2",
    "adagrad lr decay",
    "adamax L2",
    "adafactor",
    "lion",
]


@pytest.mark.parametrize("name", STATEFUL)
def test_a_tracker_that_comes_late_finds_the_state_as_it_is(name: str, tmp_path: Path) -> None:
    """As after a resumed checkpoint: the optimizer counts its own steps."""
    model = net()
    optimizer = KNOWN[name](model.parameters())
    watch = Watch(model, optimizer)
    steps(model, optimizer, watch, 7)
    watch.forget()
    with SphereTracker(model, optimizer, tmp_path, strict=True, quantities="full"):
        steps(model, optimizer, watch, 5)
    off = () if name.startswith(("sgd", "adamw", "lion")) else BALANCE
    assert_all_recorded(read_run(tmp_path), watch, ALL, loose=FROM_STATE | FORMULA, without=off)


def steps(model: nn.Module, optimizer: Optimizer, watch: Watch, count: int, seldom: nn.Module | None = None) -> None:
    for step, (images, classes) in enumerate(batches(count)):
        model.zero_grad()
        cross_entropy(model(images), classes).backward()
        if seldom is not None and step % 3:
            for p in seldom.parameters():
                p.grad = None
        watch.before()
        optimizer.step()
        watch.after()


@pytest.mark.parametrize("name", STATEFUL)
def test_a_weight_that_is_seldom_updated_has_a_count_of_its_own(name: str, tmp_path: Path) -> None:
    """Bias corrections go by the updates of each tensor. Between them there is no rate."""
    model = net()
    optimizer = KNOWN[name](model.parameters())
    watch = Watch(model, optimizer)
    with SphereTracker(model, optimizer, tmp_path, strict=True, quantities="full"):
        steps(model, optimizer, watch, 10, seldom=model[3])
    record = read_run(tmp_path)
    off = () if name.startswith(("sgd", "adamw", "lion")) else BALANCE
    others = ["0.weight", "7.weight", "10.weight"]
    assert_all_recorded(record, watch, others, loose=FROM_STATE | FORMULA, of_direction=5e-5, without=off)
    layer, updated = layer_index(record, "3.weight"), np.arange(10) % 3 == 0
    wanted = expected(record, watch, "3.weight")
    for column, quantity in enumerate(record.quantities):
        if quantity not in (*SPARSE, *off, "equilibrium_norm"):  # the gradients' mean fades while there are none
            np.testing.assert_allclose(
                record.values[updated, layer, column],
                wanted[updated, column],
                rtol=1e-4,
                atol=5e-5 if quantity in (*NEAR_ZERO, *DIRECTIONS) else 0.0,
                err_msg=quantity,
            )
    for quantity in ("effective_lr", "gradient_norm", "spherical_lr", "invariance_residual", "deformation_angle"):
        assert np.isnan(record[quantity][~updated, layer]).all(), quantity
    assert (record["angular_step"][~updated, layer] == 0).all()


@pytest.mark.parametrize("name", ["sgd momentum", "adamw", "nadam decoupled", "adafactor", "lion decay"])
def test_a_warm_up_from_zero_starts_with_a_rate_of_zero(name: str, tmp_path: Path) -> None:
    """Nothing moves: that is a rate and an angle of 0, known; what the step would lose, or where it points, is not."""
    model = net()
    optimizer = KNOWN[name](model.parameters())
    schedule = optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 4)
    train(model, [optimizer], 3, scheduler=schedule, log_dir=tmp_path, quantities="full")
    record = read_run(tmp_path)
    assert (record["angular_step"][0] == 0).all()
    assert (record["effective_lr"][0] == 0).all()
    assert (record["effective_lr"][1:] > 0).all()
    for quantity in {"lost_update", *BALANCE, "radial_fraction", "straightness"} & {*record.quantities}:
        assert np.isnan(record[quantity][0]).all(), quantity


CLOSURES = ["sgd nesterov", "adam L2", "nadam L2", "adagrad lr decay", "adafactor clipping", "lion decay"]


@pytest.mark.parametrize("name", CLOSURES)
def test_a_closure_that_clips_is_measured_with_what_it_leaves(name: str, tmp_path: Path) -> None:
    """As Lightning calls every optimizer: forward, backward and clipping happen inside the step."""
    model = net()
    optimizer = KNOWN[name](model.parameters())
    watch = Watch(model, optimizer)
    with SphereTracker(model, optimizer, tmp_path, strict=True, quantities="full"):
        for images, classes in batches(8):

            def closure(images: Tensor = images, classes: Tensor = classes) -> Tensor:
                optimizer.zero_grad()
                loss = cross_entropy(model(images), classes)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                watch.before()
                return loss

            optimizer.step(closure)  # type: ignore[arg-type]
            watch.after()
    off = () if name.startswith(("sgd", "adam ", "lion")) else BALANCE
    assert_all_recorded(read_run(tmp_path), watch, ALL, loose=FROM_STATE | FORMULA, without=off)


@pytest.mark.parametrize(
    "factory",
    [
        partial(optim.SGD, lr=0.1),
        partial(optim.SGD, lr=0.1, momentum=0.9),  # whose buffer is sparse too
        partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
        partial(optim.Adagrad, lr=1e-2, lr_decay=0.1),
    ],
)
def test_sparse_gradients_are_those_that_they_stand_for(factory: Factory, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 6, sparse=True), nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5))
    optimizer = factory(model.parameters())
    watch = Watch(model, optimizer)
    with SphereTracker(model, optimizer, tmp_path, strict=True, quantities="full"):
        for step in range(6):
            generator = torch.Generator().manual_seed(step)
            words = torch.randint(20, (16,), generator=generator)
            optimizer.zero_grad()
            cross_entropy(model(words), words % 5).backward()
            watch.before()
            optimizer.step()
            watch.after()
    off = () if factory.func is optim.SGD else BALANCE  # type: ignore[attr-defined]
    both = ["0.weight", "1.weight"]
    assert_all_recorded(read_run(tmp_path), watch, both, loose=FROM_STATE | FORMULA, without=off)


def test_a_weight_that_moves_to_the_next_group_takes_its_rate(tmp_path: Path) -> None:
    """The order of all parameters stays, the borders between groups do not."""
    model = net()
    given = list(model.parameters())
    optimizer = optim.SGD([{"params": given[:8]}, {"params": given[8:], "lr": 1e-3}], lr=0.1)

    def move(step: int) -> None:
        if step == 3:
            one, other = optimizer.param_groups
            other["params"].insert(0, one["params"].pop())

    assert given[7] is model.get_parameter("7.weight")
    watch = train(model, [optimizer], 6, between=move, log_dir=tmp_path)
    assert_all_recorded(read_run(tmp_path), watch, ALL, loose=FROM_STATE, without=["equilibrium_ratio"])
