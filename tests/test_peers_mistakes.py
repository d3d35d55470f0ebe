"""Mistakes that other tools make with the same numbers: each has a test here that would have caught it.

Most are covered in more depth elsewhere, which is said at each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn, optim
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from lightning_sphere import GroupPart, ScaleGroup, SphereMonitor, SphereTracker, read_run
from lightning_sphere.directions import asked_displacement
from lightning_sphere.measurement.plan import CHUNK_ELEMENTS
from lit import LitNet, loader, quiet_trainer
from nets import batches
from optimizer_watch import DIRECTIONS
from optimizer_zoo import KNOWN, MUONS, net, train
from test_no_synchronization import guard_hooks


class Vectors(nn.Module):
    """Vectors ``v0``, ``v1``, ... that are said to be invariant, whose gradients the test makes up."""

    def __init__(self, *vectors: Sequence[float]) -> None:
        super().__init__()
        for index, values in enumerate(vectors):
            self.register_parameter(f"v{index}", nn.Parameter(torch.tensor([values])))

    @property
    def groups(self) -> list[ScaleGroup]:
        return [ScaleGroup(name, (GroupPart(name, axis=0),), p.shape[0], "row") for name, p in self.named_parameters()]


def one_step(folder: Path, model: Vectors, optimizer: Optimizer, *gradients: Sequence[float] | None) -> Any:
    with SphereTracker(model, optimizer, folder, groups=model.groups, strict=True, quantities="full"):
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = None if gradient is None else torch.tensor([gradient], dtype=torch.float32)
        optimizer.step()
    return read_run(folder)


DECAYING: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, weight_decay=0.2),
    "sgd maximize": lambda p: optim.SGD(p, lr=0.1, weight_decay=0.2, maximize=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.1, weight_decay=0.2),
    "adamw maximize": lambda p: optim.AdamW(p, lr=0.1, weight_decay=0.2, maximize=True),
    "nadam": lambda p: optim.NAdam(p, lr=0.1, weight_decay=0.2, decoupled_weight_decay=True),
    "radam": lambda p: optim.RAdam(p, lr=0.1, weight_decay=0.2, decoupled_weight_decay=True),
    "adafactor": lambda p: optim.Adafactor(p, lr=0.1, weight_decay=0.2),
}


@pytest.mark.parametrize("name", DECAYING)
def test_weight_decay_shrinks(name: str, tmp_path: Path) -> None:
    """Not: an update norm to which weight decay is added with the wrong sign. (Every optimizer: test_optimizers.)"""
    model = Vectors([3.0, 4.0])
    optimizer = DECAYING[name](model.parameters())
    before = model.v0.detach().clone()
    record = one_step(tmp_path, model, optimizer, [0.0, 0.0])
    assert record["norm"].item() == 5.0
    assert record["radius_growth"].item() == pytest.approx(np.log(1 - 0.1 * 0.2), rel=1e-5)
    assert record["radial_fraction"].item() == pytest.approx(1.0)
    assert record["angular_step"].item() == pytest.approx(0.0, abs=1e-6)
    asked = asked_displacement(optimizer, model.v0, before, torch.zeros(1, 2))
    assert asked is not None
    torch.testing.assert_close(asked, -0.02 * before.double(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("factory", [optim.SGD, optim.AdamW, optim.RMSprop, optim.Adagrad, optim.NAdam])
def test_a_rate_is_that_of_the_weights_own_param_group(factory: Callable[..., Optimizer], tmp_path: Path) -> None:
    """Not: ``param_groups[0]`` for all. (Schedules, layer-wise rates, groups added later: test_param_groups.)"""
    model = Vectors([1.0, 0.0], [1.0, 0.0])
    optimizer = factory([{"params": [model.v0], "lr": 1e-4}, {"params": [model.v1], "lr": 1e-2}])
    record = one_step(tmp_path, model, optimizer, [0.0, 1.0], [0.0, 1.0])
    slow, fast = record["effective_lr"][0]
    assert fast / slow == pytest.approx(100.0, rel=1e-3)  # but for the decay of AdamW
    assert record["angular_step"][0, 1] / record["angular_step"][0, 0] == pytest.approx(100.0, rel=1e-2)


@pytest.mark.parametrize("angle", [1e-2, 3e-4, 1e-4, 1e-5, 1e-6, 1e-7])
def test_small_angles_are_not_lost(angle: float, tmp_path: Path) -> None:
    """Not: arccos of a cosine in float32, in which 3e-4 is often 0. (To 1 % of the oracle: test_against_oracle.)"""
    cosine = torch.tensor(np.cos(angle), dtype=torch.float32)
    model = Vectors([1.0, 0.0])
    record = one_step(tmp_path, model, optim.SGD(model.parameters(), lr=1.0), [0.0, float(-np.tan(angle))])
    assert record["angular_step"].item() == pytest.approx(angle, rel=1e-5)
    assert record["drift"].item() == pytest.approx(angle, rel=1e-2)
    assert record["path_length"].item() == pytest.approx(angle, rel=1e-5)
    assert angle > 1e-3 or abs(float(torch.arccos(cosine)) / angle - 1) > 0.05  # what they would have read


def test_frozen_weights_and_weights_without_gradient_do_no_harm(tmp_path: Path) -> None:
    """Not: a crash on ``grad is None``. (Unfreezing: test_hard_loops, test_param_groups.)"""
    model = Vectors([1.0, 0.0], [3.0, 4.0], [5.0, 12.0])
    model.v1.requires_grad_(False)
    optimizer = optim.AdamW(model.parameters(), lr=0.1)
    record = one_step(tmp_path, model, optimizer, [0.0, 1.0], None, None)
    assert not np.isnan(record["effective_lr"][0, record.layers.index("v0")])
    for idle, norm in (("v1", 5.0), ("v2", 13.0)):
        at = record.layers.index(idle)
        assert record["norm"][0, at] in (norm, np.nan)
        assert record["angular_step"][0, at] == 0.0
        for name in ("effective_lr", "gradient_norm", "invariance_residual", "spherical_lr", "deformation_angle"):
            assert np.isnan(record[name][0, at]), name


@pytest.mark.parametrize("factory", [optim.SGD, optim.Adam])
def test_a_total_is_the_norm_of_all_and_no_sum_of_norms(factory: Callable[..., Optimizer], tmp_path: Path) -> None:
    """Of a group of several tensors. (Discovered joint sets: test_joint_groups.)"""
    torch.manual_seed(0)
    model = nn.ParameterDict({"w": nn.Parameter(torch.randn(3, 4)), "v": nn.Parameter(torch.randn(3, 2))})
    w, v = (model[name].detach().double().numpy().copy() for name in "wv")
    together = ScaleGroup("together", (GroupPart("w", axis=0), GroupPart("v", axis=0)), 1, "whole")
    optimizer = factory(model.parameters(), lr=0.1)
    with SphereTracker(model, optimizer, tmp_path, groups=[together], strict=True, quantities="full"):
        for p in model.values():
            p.grad = torch.randn_like(p)
        optimizer.step()
    record = read_run(tmp_path)
    x = np.concatenate([w.ravel(), v.ravel()])
    after = np.concatenate([model[name].detach().double().numpy().ravel() for name in "wv"])
    g = np.concatenate([model[name].grad.double().numpy().ravel() for name in "wv"])
    u, turned = x / np.linalg.norm(x), after / np.linalg.norm(after)
    at = record.layers.index("together")
    angle = np.arctan2(np.linalg.norm(turned - (turned @ u) * u), turned @ u)
    tangential = g - (g @ u) * u
    wanted = {
        "norm": np.linalg.norm(x),
        "angular_step": angle,
        "drift": angle,
        "path_length": angle,
        "gradient_norm": np.linalg.norm(x) * np.linalg.norm(tangential),
    }
    for name, value in wanted.items():
        assert record[name][0, at] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_those_without_the_loss_scalers_factor(fused: bool, tmp_path: Path) -> None:
    """(In depth: test_hard_optimizers.)"""
    norms = []
    for scale in (1.0, 2.0**16):
        model = net()
        optimizer = optim.SGD(model.parameters(), lr=0.05, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        folder = tmp_path / str(scale)
        with SphereTracker(model, optimizer, folder, strict=True, quantities="full"):
            for images, classes in batches(3):
                optimizer.zero_grad()
                scaler.scale(cross_entropy(model(images), classes)).backward()
                scaler.step(optimizer)
                scaler.update()
        norms.append(read_run(folder))
    for name in ("gradient_norm", "spherical_lr", "adam_equivalence", "momentum_radial_fraction", "lost_update"):
        np.testing.assert_allclose(norms[1][name], norms[0][name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_accumulated_gradients_are_measured_when_they_are_complete(tmp_path: Path) -> None:
    """Not: those of the last micro-batch. With BatchNorm in evaluation mode, pieces give the gradient of the whole."""
    records = []
    for pieces in (1, 4):
        model = net().eval()
        optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        with SphereTracker(model, optimizer, tmp_path / str(pieces), strict=True, quantities="full"):
            for images, classes in batches(3, size=32):
                optimizer.zero_grad()
                for x, y in zip(images.chunk(pieces), classes.chunk(pieces), strict=True):
                    (cross_entropy(model(x), y) / pieces).backward()
                optimizer.step()
        records.append(read_run(tmp_path / str(pieces)))
    assert records[1].steps.tolist() == [0, 1, 2]
    for name in ("gradient_norm", "spherical_lr", "angular_step", "momentum_radial_fraction", "lost_update"):
        np.testing.assert_allclose(records[1][name], records[0][name], rtol=1e-4, atol=1e-6, err_msg=name)


class Counting(LitNet):
    """Remembers how long the complete gradient of the last layer was at each optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        weight = self.net[9].weight
        x, g = weight.detach().double(), weight.grad.double()
        u = x / x.norm(dim=1, keepdim=True)
        on_sphere = x.norm(dim=1) * (g - (g * u).sum(1, keepdim=True) * u).norm(dim=1)
        self.seen.append(float(on_sphere.quantile(0.5)))


def test_the_trainers_accumulated_gradients_are_complete_too(tmp_path: Path) -> None:
    module = Counting()
    logger = TensorBoardLogger(tmp_path)
    quiet_trainer(tmp_path, logger=logger, accumulate_grad_batches=4, callbacks=[SphereMonitor(strict=True)]).fit(
        module, loader(count=16 * 12)
    )
    record = read_run(logger.log_dir)
    assert len(module.seen) == 3
    np.testing.assert_allclose(record["gradient_norm"][:, record.layers.index("net.9")], module.seen, rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["sgd momentum", "adamw", "radam L2", "adafactor clipping", "rmsprop all", "lion decay"]
)
def test_the_sums_of_pieces_add_up(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not: norms of local pieces. Inner products of shards are summed before any root is drawn."""
    records = []
    for limit in (None, 5):
        if limit is not None:
            monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", limit)
        model = net()
        folder = tmp_path / str(limit)
        train(model, [KNOWN[name](model.parameters())], 4, log_dir=folder, quantities="full")
        records.append(read_run(folder))
    assert records[0].quantities == records[1].quantities
    for quantity in records[0].quantities:
        rounding = 1e-7 if quantity in DIRECTIONS else 1e-12
        np.testing.assert_allclose(
            records[1][quantity], records[0][quantity], rtol=1e-6, atol=rounding, err_msg=quantity
        )


def test_the_progress_bar_and_the_charts_are_not_cluttered(tmp_path: Path) -> None:
    """(In depth: test_trainer_logging.) Few tags, none of a layer's, and none in the user's own metrics."""
    logger = TensorBoardLogger(tmp_path)
    trainer = quiet_trainer(tmp_path, logger=logger, callbacks=[SphereMonitor(strict=True, quantities="full")])
    trainer.fit(LitNet(), loader(count=64))
    assert not any("sphere" in name for name in trainer.progress_bar_metrics)
    assert {name for name in trainer.callback_metrics if not name.startswith("sphere_epoch/")} == {"train_loss"}
    tags = EventAccumulator(logger.log_dir).Reload().Tags()["scalars"]
    ours = [tag for tag in tags if tag.startswith("sphere")]
    assert {tag.partition("/")[0] for tag in ours} <= {"sphere", "sphere_bands", "sphere_epoch"}
    assert sum(tag.startswith("sphere/") for tag in ours) <= 17
    assert not any("net." in tag for tag in ours)


@pytest.mark.parametrize(("log_every", "accumulate", "every"), [(50, 1, 1), (7, 4, 1), (50, 4, 3), (4, 3, 2)])
def test_intervals_that_never_coincide_leave_nothing_out(
    log_every: int, accumulate: int, every: int, tmp_path: Path
) -> None:
    """Not: recorded only where the step is a multiple of two intervals at once."""
    logger = TensorBoardLogger(tmp_path)
    callback = SphereMonitor(strict=True, every_n_steps=every)
    quiet_trainer(
        tmp_path, logger=logger, log_every_n_steps=log_every, accumulate_grad_batches=accumulate, callbacks=[callback]
    ).fit(LitNet(), loader(count=16 * 12))
    record = read_run(logger.log_dir)
    assert record.steps.tolist() == list(range(0, 12 // accumulate, every))
    assert not np.isnan(record["angular_step"]).any()


class Two(LitNet):
    """Two optimizers by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], _: int) -> None:  # type: ignore[override]
        optimizers = self.optimizers()
        loss = cross_entropy(self(batch[0]), batch[1])
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> list[Optimizer]:  # type: ignore[override]
        first = optim.SGD([*self.net[0].parameters(), *self.net[1].parameters()], lr=0.1)
        return [first, optim.AdamW([p for i in (3, 4, 9) for p in self.net[i].parameters()], lr=1e-3)]


def test_every_optimizer_is_tracked_not_only_the_last(tmp_path: Path) -> None:
    """(By their own rates: test_trainers, test_param_groups.)"""
    module: LightningModule = Two()
    logger = TensorBoardLogger(tmp_path)
    quiet_trainer(tmp_path, logger=logger, callbacks=[SphereMonitor(strict=True)]).fit(module, loader(count=64))
    record = read_run(logger.log_dir)
    assert record.layers == ("net.0", "net.3", "net.9")
    for name in ("norm", "angular_step", "effective_lr", "path_length"):
        assert not np.isnan(record[name]).any(), name
    assert (record["angular_step"] > 0).all()


@pytest.mark.parametrize("name", [*KNOWN, *MUONS])
def test_no_step_waits_for_the_device(name: str) -> None:
    """Not: one ``.item()`` per tensor and step. (What the guard catches: test_no_synchronization.)"""
    model = net()
    matrices = [p for p in model.parameters() if p.dim() == 2 or name not in MUONS]
    optimizer = (KNOWN | MUONS)[name](matrices)
    with SphereTracker(model, optimizer, strict=True, quantities="full"):
        for step, (images, classes) in enumerate(batches(6)):
            if step == 1:
                guard_hooks(optimizer)
            model.zero_grad()
            cross_entropy(model(images), classes).backward()
            optimizer.step()


def test_nothing_is_written_into_gradients_or_state(tmp_path: Path) -> None:
    """Not: an optimizer step that is another one because it is watched. (In depth: test_never_harms.)"""
    for name in KNOWN:
        ends = []
        for watched in (False, True):
            model = net()
            optimizer = KNOWN[name](model.parameters())
            tracker = SphereTracker(model, optimizer, strict=True, quantities="full")
            if watched:
                tracker.start()
            for images, classes in batches(3):
                model.zero_grad()
                cross_entropy(model(images), classes).backward()
                optimizer.step()
            tracker.close()
            state = [value for p in model.parameters() for value in optimizer.state[p].values()]
            tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
            ends.append([*tensors, *(value for value in state if isinstance(value, Tensor))])
        for with_us, without_us in zip(*ends, strict=True):
            assert with_us is not None
            assert torch.equal(with_us, without_us), name
