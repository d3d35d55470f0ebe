"""Models and optimizers on which tools of this kind go wrong: right numbers, or a plain "unknown", never a crash."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ExponentialLR

from lightning_sphere import SphereTracker, read_run
from nets import FIRST, LAST, SECOND, batches, conv_net
from oracle import Watch, assert_recorded, layer_index

pytestmark = pytest.mark.usefixtures("copies")

ALL = (FIRST, SECOND, LAST)


def run(
    folder: Path,
    model: nn.Module,
    *optimizers: Optimizer,
    steps: int = 8,
    before_step: Callable[[int], None] = lambda _: None,
    after_step: Callable[[int], None] = lambda _: None,
    **arguments: Any,
) -> tuple[Any, Watch]:
    """Train in a plain loop, all optimizers once per batch; return what was recorded and what the test saw."""
    watch = Watch(model, *optimizers)
    dtype = next(model.parameters()).dtype
    arguments = {"log_dir": folder, "strict": True, **arguments}
    with SphereTracker(model, optimizers if len(optimizers) > 1 else optimizers[0], **arguments):
        for step, (images, classes) in enumerate(batches(steps)):
            for optimizer in optimizers:
                optimizer.zero_grad()
            cross_entropy(model(images.to(dtype)).float(), classes).backward()
            before_step(step)
            watch.before()
            for optimizer in optimizers:
                optimizer.step()
            watch.after()
            after_step(step)
    return read_run(folder), watch


def of(record: Any, quantity: str, parameter: str) -> np.ndarray[Any, Any]:
    """``[steps, 4]``: all statistics of one quantity of one layer."""
    return record.values[:, layer_index(record, parameter), record.quantities.index(quantity)]


@pytest.mark.parametrize("optimized", [True, False], ids=["in the optimizer", "not in the optimizer"])
def test_frozen_weights_do_not_disturb_the_others(optimized: bool, tmp_path: Path) -> None:
    model = conv_net()
    model[0].weight.requires_grad_(False)
    parameters = [p for p in model.parameters() if optimized or p.requires_grad]
    record, watch = run(tmp_path, model, AdamW(parameters, lr=1e-2))
    assert_recorded(record, watch, [SECOND, LAST], adam=True)
    if "0" in record.layers:  # whether a frozen weight is listed is free; what is said of it is not
        assert (of(record, "angular_step", FIRST) == 0).all()
        assert np.isnan(of(record, "effective_lr", FIRST)).all()


def test_weights_frozen_at_first_are_measured_once_they_join_the_optimizer(tmp_path: Path) -> None:
    model = conv_net()
    model[0].weight.requires_grad_(False)
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def unfreeze(step: int) -> None:
        if step == 3:
            model[0].weight.requires_grad_(True)
            optimizer.add_param_group({"params": [model[0].weight], "lr": 0.01})

    record, watch = run(tmp_path, model, optimizer, after_step=unfreeze)
    assert_recorded(record, watch, [SECOND, LAST], adam=False)
    assert_recorded(record, watch, [FIRST], adam=False)  # the first four steps are NaN, then the lr is 0.01


@pytest.mark.parametrize("factory", [partial(SGD, lr=0.1, momentum=0.9), partial(AdamW, lr=1e-2)], ids=["sgd", "adamw"])
@pytest.mark.parametrize("missing", [{0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 5}], ids=["always", "sometimes"])
def test_a_weight_without_gradient_keeps_its_norm_and_does_not_turn(
    factory: Callable[[Iterable[nn.Parameter]], Optimizer], missing: set[int], tmp_path: Path
) -> None:
    model = conv_net()

    def drop(step: int) -> None:
        if step in missing:
            model[3].weight.grad = None

    record, watch = run(tmp_path, model, factory(model.parameters()), before_step=drop)
    rows = sorted(missing)
    assert (of(record, "norm", SECOND)[rows] > 0).all()
    assert (of(record, "angular_step", SECOND)[rows] == 0).all()
    assert (of(record, "radius_growth", SECOND)[rows] == 0).all()
    for quantity in ("effective_lr", "spherical_lr", "gradient_norm", "invariance_residual", "radial_fraction"):
        assert np.isnan(of(record, quantity, SECOND)[rows]).all(), quantity
    assert_recorded(record, watch, ALL, adam=factory.func is AdamW)


def test_tied_weights_are_measured_once_and_right(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
    second.weight = first.weight
    model = nn.Sequential(
        nn.Flatten(), first, nn.BatchNorm1d(64), nn.ReLU(), second, nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)
    )
    record, watch = run(tmp_path, model, AdamW(model.parameters(), lr=1e-2))
    assert len(record.layers) == 2
    assert_recorded(record, watch, ["1.weight", "7.weight"], adam=True)


@pytest.mark.parametrize("factory", [SGD, AdamW])
def test_each_layer_uses_the_lr_of_its_own_param_group(factory: type[Optimizer], tmp_path: Path) -> None:
    model = conv_net()
    fast = [model[3].weight]
    slow = [p for p in model.parameters() if p is not model[3].weight]
    optimizer = factory([{"params": slow, "lr": 1e-3}, {"params": fast, "lr": 1e-1}], lr=1.0)  # type: ignore[call-arg]
    record, watch = run(tmp_path, model, optimizer)
    assert_recorded(record, watch, ALL, adam=factory is AdamW)


def test_eps_and_beta2_come_from_the_weights_own_param_group(tmp_path: Path) -> None:
    model = conv_net()
    special = {"params": [model[3].weight], "eps": 1e-2, "betas": (0.8, 0.9), "amsgrad": True}
    rest = {"params": [p for p in model.parameters() if p is not model[3].weight]}
    record, watch = run(tmp_path, model, AdamW([rest, special], lr=1e-2))
    assert_recorded(record, watch, ALL, adam=True)


@pytest.mark.parametrize("factory", [SGD, AdamW])
def test_a_scheduled_lr_is_the_one_in_force_at_each_step(factory: type[Optimizer], tmp_path: Path) -> None:
    model = conv_net()
    optimizer = factory(model.parameters(), lr=1e-1)  # type: ignore[call-arg]
    scheduler = ExponentialLR(optimizer, gamma=0.5)
    record, watch = run(tmp_path, model, optimizer, after_step=lambda _: scheduler.step())
    assert watch.steps[-1][FIRST].lr == pytest.approx(1e-1 * 0.5**7)
    assert_recorded(record, watch, ALL, adam=factory is AdamW)


@pytest.mark.parametrize("flush_every", [1, 2, 50])
def test_every_third_step_keeps_its_true_number(flush_every: int, tmp_path: Path) -> None:
    model = conv_net()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    record, watch = run(tmp_path, model, optimizer, steps=11, every_n_steps=3, flush_every_n_steps=flush_every)
    assert_recorded(record, watch, ALL, adam=True, steps=[0, 3, 6, 9])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"include": "3"}, {SECOND}),
        ({"include": [FIRST, "9"]}, {FIRST, LAST}),
        ({"exclude": ["0*"]}, {SECOND, LAST}),
        ({"include": ["*.weight"], "exclude": "9"}, {FIRST, SECOND}),
    ],
)
def test_include_and_exclude_choose_the_layers(arguments: dict[str, Any], expected: set[str], tmp_path: Path) -> None:
    model = conv_net()
    record, watch = run(tmp_path, model, AdamW(model.parameters(), lr=1e-2), **arguments)
    assert len(record.layers) == len(expected)
    assert_recorded(record, watch, sorted(expected), adam=True)


def test_an_unknown_name_is_an_error_that_names_close_ones() -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"'encodr'.*'encoder'"):
        SphereTracker(model, SGD(model.parameters(), lr=0.1), include=["encodr"])


@pytest.mark.usefixtures("at_once")
def test_a_tiny_device_budget_flushes_earlier_and_loses_nothing(tmp_path: Path) -> None:
    model = conv_net()
    record, watch = run(tmp_path, model, AdamW(model.parameters(), lr=1e-2), device_budget_mb=1e-3)
    assert_recorded(record, watch, ALL, adam=True)


def test_channels_last_weights_are_cut_into_filters_not_memory(tmp_path: Path) -> None:
    model = conv_net().to(memory_format=torch.channels_last)
    assert not model[3].weight.is_contiguous()
    record, watch = run(tmp_path, model, AdamW(model.parameters(), lr=1e-2))
    assert_recorded(record, watch, ALL, adam=True)


def test_transposed_convolutions_are_cut_along_their_output_axis(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(1, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(500, 10)
    )
    record, watch = run(tmp_path, model, AdamW(model.parameters(), lr=1e-2))
    (row,) = (row for row in record.groups if row["parameter"] == "0.weight")
    assert (row["kind"], row["axis"], row["blocks"]) == ("row", 1, 5)
    assert_recorded(record, watch, ["0.weight", "4.weight"], adam=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("factory", [partial(SGD, lr=0.1, momentum=0.9), partial(AdamW, lr=1e-2)], ids=["sgd", "adamw"])
def test_other_precisions(
    factory: Callable[[Iterable[nn.Parameter]], Optimizer], dtype: torch.dtype, tmp_path: Path
) -> None:
    """Of bf16 weights the step that really happened is measured, lost updates and all."""
    model = conv_net().to(dtype)
    record, watch = run(tmp_path, model, factory(model.parameters()))
    assert_recorded(record, watch, ALL, adam=factory.func is AdamW)


def test_bf16_weights_that_swallow_an_update_do_not_turn(tmp_path: Path) -> None:
    model = conv_net().to(torch.bfloat16)
    record, watch = run(tmp_path, model, SGD(model.parameters(), lr=1e-9))
    assert (record["angular_step"] == 0).all()
    assert (record["gradient_norm"] > 0).all()
    assert_recorded(record, watch, ALL, adam=False)


def joint_net() -> nn.Sequential:
    """A weight that is invariant only together with its bias, then one that is not invariant."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 10))
    assert isinstance(model[1], nn.Linear)
    nn.init.normal_(model[1].bias)
    return model


@pytest.mark.parametrize("factory", [SGD, AdamW])
def test_a_weight_and_its_bias_before_a_layernorm_are_one_vector(factory: type[Optimizer], tmp_path: Path) -> None:
    model = joint_net()
    record, watch = run(tmp_path, model, factory(model.parameters(), lr=1e-2))  # type: ignore[call-arg]
    (row,) = (row for row in record.groups if row["parameter"] == "1.weight")
    assert (row["kind"], row["blocks"], row["joint_with"]) == ("whole", 1, ("1.bias",))
    assert_recorded(record, watch, ["1.weight", "4.weight"], adam=factory is AdamW)
    assert record["invariance_residual"][:, layer_index(record, "1.weight")].max() < 1e-4


@pytest.mark.parametrize("bias_lr", [1e-2, 1e-3])
def test_a_joint_vector_over_two_param_groups_has_an_effective_rate_only_if_they_share_their_lr(
    bias_lr: float, tmp_path: Path
) -> None:
    model = joint_net()
    biases = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": biases, "lr": bias_lr, "weight_decay": 0.0},
    ]
    record, watch = run(tmp_path, model, AdamW(groups, lr=1e-2))
    unknown = np.isnan(of(record, "effective_lr", "1.weight"))
    assert unknown.all() if bias_lr != 1e-2 else not unknown.any()
    assert (of(record, "angular_step", "1.weight") > 0).all()
    assert_recorded(record, watch, ["1.weight", "4.weight"], adam=True)


def test_groups_of_one_entry_neither_turn_nor_crash(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Linear(1, 10))
    record, watch = run(tmp_path, model, SGD(model.parameters(), lr=0.1))
    assert (of(record, "angular_step", "2.weight") < 1e-7).all()
    assert_recorded(record, watch, ["1.weight"], adam=False)


def test_sparse_gradients_are_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(30, 4, sparse=True), nn.Flatten(), nn.Linear(12, 2))
    optimizer = SGD(model.parameters(), lr=0.1)
    watch = Watch(model, optimizer)
    with SphereTracker(model, optimizer, log_dir=tmp_path, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randint(30, (8, 3))).square().sum().backward()
            watch.before()
            optimizer.step()
            watch.after()
    record = read_run(tmp_path)
    assert_recorded(record, watch, ["2.weight"], adam=False)
    norms: list[Tensor] = [seen["0.weight"].before.double().norm() for seen in watch.steps]
    np.testing.assert_allclose(of(record, "norm", "0.weight")[:, 1], torch.stack(norms).numpy(), rtol=1e-6)
