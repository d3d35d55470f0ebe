"""Training loops on which tools of this kind go wrong: partly frozen losses, accumulation, autocast, errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BaseFinetuning
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_sphere import SphereMonitor, SphereTracker, read_run
from nets import FIRST, LAST, SECOND, batches, conv_net, digits
from oracle import Watch, assert_recorded, layer_index

pytestmark = pytest.mark.usefixtures("copies")

ALL = (FIRST, SECOND, LAST)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    watch: Watch,
    steps: int = 5,
    before_step: Callable[[int], None] | None = None,
) -> None:
    """A plain loop under watch."""
    for step, (images, classes) in enumerate(batches(steps)):
        optimizer.zero_grad()
        cross_entropy(model(images), classes).backward()
        if before_step is not None:
            before_step(step)
        watch.before()
        optimizer.step()
        watch.after()


def fit(module: LightningModule, folder: Path, *callbacks: Any, epochs: int = 1, **arguments: Any) -> Any:
    images, classes = digits()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="", version=""),
        callbacks=[SphereMonitor(strict=True, print_summary=False), *callbacks],
        log_every_n_steps=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **arguments,
    )
    trainer.fit(module, DataLoader(TensorDataset(images[:160], classes[:160]), batch_size=32))
    return read_run(folder)


class Adversaries(LightningModule):
    """Two networks trained in turn; ``toggle_optimizer`` freezes the other one, as Lightning's GAN example does."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.one, self.two = conv_net(4, seed=1), conv_net(5, seed=2)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, classes = batch
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            self.toggle_optimizer(optimizer)
            loss = cross_entropy(self.one(images) + self.two(images), classes)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> list[Optimizer]:
        return [SGD(self.one.parameters(), lr=0.1), AdamW(self.two.parameters(), lr=1e-2)]


def test_networks_that_are_frozen_in_turn_are_both_measured(tmp_path: Path) -> None:
    record = fit(Adversaries(), tmp_path)
    for parameter in ("one.0.weight", "one.3.weight", "two.0.weight", "two.3.weight"):
        layer = layer_index(record, parameter)
        assert record.invariant[layer], parameter
        known = record["angular_step"][:, layer]
        assert (known[~np.isnan(known)] > 0).sum() == 5, parameter
    assert len(set(record.steps.tolist())) == len(record.steps), "one row per position on the axis"


def test_losses_that_see_different_frozen_parts_unite() -> None:
    model = conv_net()
    tracker = SphereTracker(model, SGD(model.parameters(), lr=0.1), strict=True)
    images, classes = digits()
    for frozen in (0, 3):
        model[frozen].weight.requires_grad_(False)
        found = tracker.discover(cross_entropy(model(images[:32]), classes[:32]))
        model[frozen].weight.requires_grad_(True)
    assert found is not None
    assert {row["parameter"] for row in found.table() if row["kind"] == "row"} == {FIRST, SECOND}


class Unfreeze(BaseFinetuning):
    """Lightning's own way to train the head first and everything later."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=1e-2)


class Plain(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = conv_net()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Optimizer:
        return SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


def test_finetuning_shows_weights_from_the_moment_they_are_unfrozen(tmp_path: Path) -> None:
    record = fit(Plain(), tmp_path, Unfreeze(), epochs=2)
    np.testing.assert_array_equal(record.steps, np.arange(10))
    assert (record["angular_step"][:, layer_index(record, "net.3.weight")] > 0).all()
    late = record["angular_step"][:, layer_index(record, "net.0.weight")]
    assert not (late[:5] > 0).any()
    assert (late[5:] > 0).all()


class Watched(Plain):
    """Sees the gradients that the Trainer leaves for the optimizer: accumulated, then clipped."""

    def configure_optimizers(self) -> Optimizer:
        optimizer = AdamW(self.parameters(), lr=1e-2)
        self.watch = Watch(self, optimizer)
        return optimizer

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        super().configure_gradient_clipping(*args, **kwargs)
        self.watch.before()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.watch.after()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainer_accumulates_and_clips_before_the_measurement(accumulate: int, tmp_path: Path) -> None:
    module = Watched()
    arguments = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.05}
    record = fit(module, tmp_path, epochs=2, **arguments)
    assert len(module.watch.steps) == {1: 10, 2: 6}[accumulate]
    assert_recorded(record, module.watch, [f"net.{name}" for name in ALL], adam=True)


def test_another_default_device_does_not_matter(tmp_path: Path) -> None:
    """``torch.set_default_device("cuda")`` is common; every tensor that names no device is then created there."""
    model = conv_net()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    watch = Watch(model, optimizer)
    with SphereTracker(model, optimizer, log_dir=tmp_path, strict=True) as tracker:
        train(model, optimizer, watch)
        with torch.device("meta"):
            tracker.flush()
    assert_recorded(read_run(tmp_path), watch, ALL, adam=True)


def test_another_default_dtype_does_not_matter(tmp_path: Path) -> None:
    model = conv_net()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    images, classes = next(batches(1))
    watch = Watch(model, optimizer)
    torch.set_default_dtype(torch.float16)
    try:
        with SphereTracker(model, optimizer, log_dir=tmp_path, strict=True):
            for _ in range(3):
                optimizer.zero_grad()
                cross_entropy(model(images), classes).backward()
                watch.before()
                optimizer.step()
                watch.after()
    finally:
        torch.set_default_dtype(torch.float32)
    assert_recorded(read_run(tmp_path), watch, ALL, adam=True)


def test_a_step_under_autocast_is_measured_in_full_precision(tmp_path: Path) -> None:
    model = conv_net()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    watch = Watch(model, optimizer)
    with SphereTracker(model, optimizer, log_dir=tmp_path, strict=True), torch.autocast("cpu", torch.bfloat16):
        train(model, optimizer, watch)
    assert_recorded(read_run(tmp_path), watch, ALL, adam=True)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_in_the_loop_passes_through_and_loses_no_step(error: type[BaseException], tmp_path: Path) -> None:
    model = conv_net()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    watch = Watch(model, optimizer)

    def fail(step: int) -> None:
        if step == 4:
            raise error("the user's own")

    def tracked() -> None:
        with SphereTracker(model, optimizer, log_dir=tmp_path, strict=True):
            train(model, optimizer, watch, before_step=fail)

    with pytest.raises(error, match="the user's own"):
        tracked()
    assert len(watch.steps) == 4
    assert_recorded(read_run(tmp_path), watch, ALL, adam=True)


def test_a_step_that_raises_is_not_recorded_and_the_next_one_is_right(tmp_path: Path) -> None:
    model = conv_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    images, classes = next(batches(1))
    watch = Watch(model, optimizer)

    def failing() -> float:
        raise OSError("no data")

    with SphereTracker(model, optimizer, log_dir=tmp_path, strict=True):
        for step in range(4):
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            if step == 2:
                with pytest.raises(OSError, match="no data"):
                    optimizer.step(failing)
            watch.before()
            optimizer.step()
            watch.after()
    assert_recorded(read_run(tmp_path), watch, ALL, adam=False)


def test_a_hook_of_the_user_that_changes_gradients_comes_first(tmp_path: Path) -> None:
    """Clipping in a step pre-hook, registered before the tracker: what the optimizer uses is clipped."""
    model = conv_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    watch = Watch(model, optimizer)
    optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(model.parameters(), 0.01) and None)
    optimizer.register_step_pre_hook(lambda *_: watch.before())
    with SphereTracker(model, optimizer, log_dir=tmp_path, strict=True):
        for images, classes in batches(3):
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            optimizer.step()
            watch.after()
    assert_recorded(read_run(tmp_path), watch, ALL, adam=False)


def test_a_weight_put_in_place_of_another_is_the_one_measured_from_then_on(tmp_path: Path) -> None:
    """Pruning and growing replace parameters; the numbers of parameters stay the same."""
    model = conv_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    watch = Watch(model, optimizer)
    with SphereTracker(model, optimizer, log_dir=tmp_path, strict=True):
        for step, (images, classes) in enumerate(batches(4)):
            if step == 2:
                model[3].weight = nn.Parameter(100.0 * model[3].weight.detach())
                optimizer.param_groups[0]["params"] = list(model.parameters())
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            watch.before()
            optimizer.step()
            watch.after()
    assert_recorded(read_run(tmp_path), watch, ALL, adam=False)
