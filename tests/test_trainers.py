"""The callback in real Trainers: both packages, several fits, several optimizers, skipped steps."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch
import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from lightning_sphere import SphereMonitor, SphereTracker, read_run
from lightning_sphere.guard import SphereWarning
from lit import LitNet, loader, quiet_trainer
from nets import conv_net, digits
from oracle import KNOWN


class OtherLitNet(lightning.pytorch.LightningModule):
    """The same network as a module of the other package."""

    def __init__(self) -> None:
        super().__init__()
        self.net = conv_net()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def test_both_lightnings_record_the_same(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger as OtherTensorBoardLogger

    logger = TensorBoardLogger(tmp_path / "one")
    quiet_trainer(tmp_path, logger=logger, callbacks=[SphereMonitor(strict=True)]).fit(LitNet(), loader(count=64))
    other_logger = OtherTensorBoardLogger(tmp_path / "other")
    lightning.pytorch.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=1,
        logger=other_logger,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=SphereMonitor(strict=True),  # alone, not in a list: the Trainer must know it as a Callback
    ).fit(OtherLitNet(), loader(count=64))
    np.testing.assert_array_equal(read_run(logger.log_dir).values, read_run(other_logger.log_dir).values)


def test_a_second_fit_continues_the_curves(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    net = LitNet()
    trainer = quiet_trainer(tmp_path, logger=logger, callbacks=[SphereMonitor(strict=True)])
    trainer.fit(net, loader(count=64))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(net, loader(count=64))
    record = read_run(logger.log_dir)
    assert record.steps.tolist() == list(range(8))
    assert not net.trainer.optimizers[0]._optimizer_step_pre_hooks
    assert not net.trainer.optimizers[0]._optimizer_step_post_hooks


def test_fast_dev_run_and_testing_alone_work(tmp_path: Path) -> None:
    quiet_trainer(tmp_path, fast_dev_run=2, callbacks=[SphereMonitor(strict=True)]).fit(LitNet(), loader(), loader())
    quiet_trainer(tmp_path, callbacks=[SphereMonitor(strict=True)]).validate(LitNet(), loader(), verbose=False)


def test_a_step_that_the_loss_scaler_skips_is_marked_and_not_zero(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)

    class Overflow(LitNet):
        def training_step(self, batch: list[Tensor], number: int) -> Tensor:
            loss = super().training_step(batch, number)
            return loss * torch.inf if number == 3 else loss

    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
    quiet_trainer(tmp_path, logger=logger, plugins=[precision], callbacks=[SphereMonitor(strict=True)]).fit(
        Overflow(), loader(count=16 * 6)
    )
    record = read_run(logger.log_dir)
    assert record.steps.tolist() == list(range(6))
    assert np.isnan(record.values[3]).all()
    known = [record.quantities.index(name) for name in KNOWN]
    assert not np.isnan(np.delete(record.values[:, :, known], 3, axis=0)).any()
    # unscaled: 2^10 times larger gradients would show here
    assert 1e-3 < np.median(np.delete(record["gradient_norm"], 3, axis=0)) < 10


class Pair(LightningModule):
    """Two networks with an optimizer each, stepped by hand; the second one every other batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second = conv_net(seed=1), conv_net(seed=2)

    def training_step(self, batch: list[Tensor], number: int) -> None:
        networks = [self.first, self.second] if number % 2 == 0 else [self.first]
        for network, optimizer in zip(networks, self.optimizers(), strict=False):
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(network(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.first.parameters(), 0.1), torch.optim.AdamW(self.second.parameters(), 1e-5)]


def test_two_optimizers_by_hand_are_each_measured_by_their_own_rate(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    quiet_trainer(tmp_path, logger=logger, callbacks=[SphereMonitor(strict=True)]).fit(Pair(), loader(count=16 * 6))
    record = read_run(logger.log_dir)
    assert record.layers == ("first.0", "first.3", "first.9", "second.0", "second.3", "second.9")
    assert record.invariant == (True, True, False) * 2
    assert record.steps.tolist() == list(range(6))
    assert not np.isnan(record["norm"][:, :3]).any()
    assert np.isnan(record["norm"][1::2, 3:]).all()
    assert not np.isnan(record["norm"][::2, 3:]).any()
    ratio = record["effective_lr"] * record["norm"] ** 2  # SGD: the configured lr, median against median
    np.testing.assert_allclose(ratio[:, :2], 0.1, rtol=0.2)
    assert (ratio[::2, 3:5] < 0.01).all()  # a wrong optimizer's lr would be ten thousand times larger


class Recurrent(LightningModule):
    """A network that no normalization follows anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 10)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self.head(self.lstm(batch[0][:, 0])[0][:, -1]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


def test_where_nothing_is_invariant_everything_is_still_measured(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    quiet_trainer(tmp_path, logger=logger, callbacks=[SphereMonitor(strict=True)]).fit(Recurrent(), loader(count=64))
    record = read_run(logger.log_dir)
    assert record.layers == ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "head")
    assert {group["kind"] for group in record.groups} == {"none"}
    assert np.isfinite(record["angular_step"]).all()


def test_a_plain_writer_of_the_users_own_is_enough(tmp_path: Path) -> None:
    net, (images, classes) = conv_net(), digits()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with SummaryWriter(str(tmp_path)) as writer:
        with SphereTracker(net, optimizer, writer=writer, strict=True):
            for step in range(3):
                optimizer.zero_grad()
                loss = F.cross_entropy(net(images[:32]), classes[:32])
                loss.backward()
                optimizer.step()
                writer.add_scalar("loss", loss.item(), step)
        writer.add_scalar("still", 1.0, 3)  # the user's writer stays open
    assert len(list(tmp_path.glob("*tfevents*"))) == 1
    assert read_run(tmp_path).steps.tolist() == [0, 1, 2]


def test_a_loss_given_by_hand_is_used_where_forward_is_not_called(tmp_path: Path) -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = conv_net()

    model, (images, classes) = Parts(), digits()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def train(tracker: Any, by_hand: bool) -> None:
        loss = F.cross_entropy(model.net(images[:32]), classes[:32])
        if by_hand:
            tracker.discover(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for by_hand, kinds in ((False, {"none"}), (True, {"row", "none"})):
        folder = tmp_path / str(by_hand)
        expectation = nullcontext() if by_hand else pytest.warns(SphereWarning, match="call discover")
        with expectation, SphereTracker(model, optimizer, folder, strict=True) as tracker:
            train(tracker, by_hand)
        groups = read_run(folder).groups
        assert {group["kind"] for group in groups} == kinds
        assert by_hand or "no loss was seen" in groups[0]["reason"]
