"""Train a small residual network on real handwritten digits and watch what the optimizer does to its weights.

    python examples/01_digits_resnet.py                     # AdamW
    python examples/01_digits_resnet.py --optimizer sgd

Half a minute on two CPU cores. Everything that concerns lightning_sphere is one import and one line.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_sphere import SphereMonitor

LEARNING_RATES = {"sgd": 0.1, "adam": 3e-3, "adamw": 3e-3}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))
        return out


class DigitsResNet(LightningModule):
    """A residual network of nine convolutions for 8x8 images in ten classes."""

    def __init__(self, optimizer: str = "adamw") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.block1 = ResidualBlock(16, 16, stride=1)
        self.block2 = ResidualBlock(16, 32, stride=2)
        self.block3 = ResidualBlock(32, 64, stride=2)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.stem(x))))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        images = shifted(batch[0])
        loss = F.cross_entropy(self(images), batch[1], label_smoothing=0.1)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        accuracy = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("val_accuracy", accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        name = str(self.hparams["optimizer"])
        lr = LEARNING_RATES[name]
        if name == "sgd":
            return torch.optim.SGD(self.parameters(), lr, momentum=0.9, weight_decay=5e-4)
        if name == "adam":
            return torch.optim.Adam(self.parameters(), lr)
        return torch.optim.AdamW(self.parameters(), lr, weight_decay=0.05)


def shifted(images: Tensor) -> Tensor:
    """Move each image by up to one pixel in each direction, so that 1437 digits do not become known by heart."""
    padded = F.pad(images, (1, 1, 1, 1))
    rows, columns = torch.randint(3, (2, len(images), 1, 1))
    pixels = torch.arange(8)
    number = torch.arange(len(images)).view(-1, 1, 1)
    return padded[number, 0, rows + pixels.view(1, 8, 1), columns + pixels.view(1, 1, 8)].unsqueeze(1)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """The 1797 digits that scikit-learn ships: four fifths to train on, one fifth to validate."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16.0, dtype=torch.float32).view(-1, 1, 8, 8)
    y = torch.tensor(labels)
    train, validation = train_test_split(range(len(y)), test_size=0.2, random_state=0, stratify=labels)
    return TensorDataset(x[train], y[train]), TensorDataset(x[validation], y[validation])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", choices=sorted(LEARNING_RATES), default="adamw")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for TensorBoard's event files")
    arguments = parser.parse_args()

    seed_everything(0)
    train, validation = digits()
    trainer = Trainer(
        max_epochs=arguments.epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(arguments.runs, name=f"digits_{arguments.optimizer}"),
        callbacks=[SphereMonitor()],
        log_every_n_steps=10,
    )
    trainer.fit(
        DigitsResNet(arguments.optimizer),
        DataLoader(train, batch_size=64, shuffle=True, drop_last=True),
        DataLoader(validation, batch_size=256),
    )
    print(f"validation accuracy: {float(trainer.callback_metrics['val_accuracy']):.1%}")


if __name__ == "__main__":
    main()
