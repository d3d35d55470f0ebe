"""A small LightningModule and a Trainer that is quiet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from nets import conv_net, digits


class LitNet(LightningModule):
    """A BatchNorm network that logs its loss as users do."""

    def __init__(self, optimizer: str = "sgd", lr: float = 0.05) -> None:
        super().__init__()
        self.net = conv_net()
        self.optimizer_name, self.lr = optimizer, lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer_name == "sgd":
            return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)
        return torch.optim.AdamW(self.parameters(), self.lr)


def loader(count: int = 256, batch_size: int = 16) -> DataLoader[Any]:
    """The first digits, always in the same order."""
    images, classes = digits()
    return DataLoader(TensorDataset(images[:count], classes[:count]), batch_size=batch_size)


def quiet_trainer(root: Path, **arguments: Any) -> Trainer:
    """A Trainer on the CPU without bars, checkpoints and summaries."""
    defaults: dict[str, Any] = {
        "default_root_dir": root,
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**defaults, **arguments})
