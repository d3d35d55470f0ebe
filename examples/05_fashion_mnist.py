"""Train a residual network on Fashion-MNIST under a schedule and see what the layers make of it.

    python examples/05_fashion_mnist.py                     # AdamW
    python examples/05_fashion_mnist.py --optimizer sgd

One to three minutes on two CPU cores. The learning rate rises for a tenth of the steps and then falls as a cosine, to a
hundredth. TensorBoard draws it as `lr-AdamW` (or `lr-SGD`), and as `sphere/effective_lr` what becomes of it. The second
is no multiple of the first. With SGD the norms grow while the steps are large: within ninety steps the ratio of both
falls from 3.0 to 1.8, in the first block to 1.0, and stays at 3 in the shortcuts. With AdamW it falls by a third, and
comes back as the second moments shrink. Each layer ends up with a schedule of its own.
"""

from __future__ import annotations

import argparse
import gzip
import runpy
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_sphere import SphereMonitor

DATA = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` puts the files."""
LEARNING_RATES = {"sgd": 0.1, "adamw": 4e-3}
"""At the top of the schedule."""

ResidualBlock = runpy.run_path(str(Path(__file__).with_name("01_digits_resnet.py")))["ResidualBlock"]
"""The first example's: two 3x3 convolutions with BatchNorm and a shortcut."""


class FashionResNet(LightningModule):
    """A residual network of thirteen convolutions for 28x28 images in ten classes."""

    def __init__(self, optimizer: str = "adamw") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.block1 = ResidualBlock(16, 16, stride=1)
        self.block2 = ResidualBlock(16, 32, stride=2)
        self.block3 = ResidualBlock(32, 32, stride=1)
        self.block4 = ResidualBlock(32, 64, stride=2)
        self.block5 = ResidualBlock(64, 64, stride=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.stem(x))))
        x = self.block5(self.block4(x))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def test_step(self, batch: list[Tensor], index: int) -> None:
        accuracy = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("test_accuracy", accuracy)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        name = str(self.hparams["optimizer"])
        lr = LEARNING_RATES[name]
        optimizer: torch.optim.Optimizer
        if name == "sgd":
            optimizer = torch.optim.SGD(self.parameters(), lr, momentum=0.9, weight_decay=5e-4)
        else:
            optimizer = torch.optim.AdamW(self.parameters(), lr, weight_decay=0.05)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, lr, steps, pct_start=0.1, cycle_momentum=False, final_div_factor=4
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def read_idx(path: Path) -> Tensor:
    """The bytes of an idx file: two of zero, the type (8: bytes), the number of axes, their lengths, and the values."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of bytes")
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, offset=4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())


def fashion(folder: Path) -> tuple[TensorDataset, TensorDataset]:
    """60000 images to train on, and 2000 of the 10000 to test on."""
    datasets = []
    for part, count in (("train", 60000), ("t10k", 2000)):
        images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")[:count]
        labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")[:count]
        datasets.append(TensorDataset((images.float().unsqueeze(1) / 255 - 0.286) / 0.353, labels.long()))
    return datasets[0], datasets[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", choices=sorted(LEARNING_RATES), default="adamw")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the four files of Fashion-MNIST")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for TensorBoard's event files")
    arguments = parser.parse_args()
    try:
        train, test = fashion(arguments.data)
    except FileNotFoundError as error:
        parser.error(
            f"no {error.filename}: install Debian's package with `apt install dataset-fashion-mnist`, or name with "
            "--data the folder of the four .gz files from github.com/zalandoresearch/fashion-mnist"
        )

    seed_everything(0)
    trainer = Trainer(
        max_steps=arguments.steps,
        accelerator="cpu",
        logger=TensorBoardLogger(arguments.runs, name=f"fashion_{arguments.optimizer}"),
        callbacks=[SphereMonitor(), LearningRateMonitor("step")],
        log_every_n_steps=10,
    )
    model = FashionResNet(arguments.optimizer)
    trainer.fit(model, DataLoader(train, batch_size=128, shuffle=True, drop_last=True))
    (metrics,) = trainer.test(model, DataLoader(test, batch_size=500), verbose=False)
    print(f"test accuracy: {metrics['test_accuracy']:.1%}")


if __name__ == "__main__":
    main()
