"""What is added to the training: nothing, other tools, or SphereMonitor."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import grad_norm
from torch import nn
from torch.optim import Optimizer

from lightning_sphere import SphereMonitor


class GradNorms(Callback):
    """What Lightning's documentation tells users to do in ``on_before_optimizer_step``."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log the gradients' norms, one per tensor."""
        pl_module.log_dict(grad_norm(pl_module, norm_type=2))


@dataclass(frozen=True)
class Variant:
    """One way to watch a training."""

    title: str
    callbacks: Callable[[], list[Callback]] = list
    loggers: Callable[[Path, nn.Module, int], list[Logger]] = lambda *_: []
    """Loggers beside TensorBoard's, by folder, network and steps between two writings."""
    every_step: bool = False
    """The Trainer logs at every step, rather than once per turn."""
    needs: str | None = None
    """A package without which it cannot run."""

    @property
    def available(self) -> bool:
        """Whether what it needs is installed."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None

    def all_loggers(self, folder: Path, network: nn.Module, turn: int) -> list[Logger]:
        """TensorBoard's, which every variant has, and others."""
        return [TensorBoardLogger(folder, name="log"), *self.loggers(folder, network, turn)]


def watched_by_wandb(folder: Path, network: nn.Module, turn: int) -> list[Logger]:
    """An offline run that gets histograms of all gradients once per turn."""
    logger: Any = WandbLogger(save_dir=folder, offline=True, project="benchmark")
    logger.watch(network, log="gradients", log_freq=turn)
    return [logger]


BARE = "bare"
AGAIN = "bare_again"
GRAD_NORM = "grad_norm"
CORE = "sphere_core"
FULL = "sphere_full"

VARIANTS: dict[str, Variant] = {
    BARE: Variant("bare training"),
    AGAIN: Variant("bare training, again"),
    "lr_monitor": Variant("LearningRateMonitor", lambda: [LearningRateMonitor("step")]),
    GRAD_NORM: Variant("grad_norm + log_dict", lambda: [GradNorms()], every_step=True),
    "wandb": Variant("wandb.watch, offline", loggers=watched_by_wandb, needs="wandb"),
    CORE: Variant("SphereMonitor, core", lambda: [SphereMonitor(print_summary=False, strict=True)]),
    FULL: Variant("SphereMonitor, full", lambda: [SphereMonitor(print_summary=False, strict=True, quantities="full")]),
}
"""Bare training runs twice, in two processes: their difference is the error of the measurement."""
