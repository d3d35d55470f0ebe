"""Optimizers in every variant that changes their arithmetic, and the network that they are tried on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from inspect import signature
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from lightning_sphere import SphereTracker
from nets import batches
from optimizer_watch import Watch

Factory = Callable[[Iterable[nn.Parameter]], Optimizer]


class Lion(Optimizer):
    """A third-party optimizer, as everybody's is: Chen et al., Symbolic Discovery of Optimization Algorithms."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(average.lerp(p.grad, 1 - beta1).sign_(), alpha=-group["lr"])
                average.lerp_(p.grad, 1 - beta2)
        return loss


SGDS: dict[str, Factory] = {
    "sgd": partial(optim.SGD, lr=0.1),
    "sgd L2": partial(optim.SGD, lr=0.1, weight_decay=1e-2),
    "sgd momentum": partial(optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "sgd dampening": partial(optim.SGD, lr=0.1, momentum=0.8, dampening=0.3, weight_decay=1e-2),
    "sgd nesterov": partial(optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "sgd maximize": partial(optim.SGD, lr=0.02, momentum=0.9, weight_decay=1e-2, maximize=True),
    "sgd single tensor": partial(optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-2, foreach=False),
    "sgd foreach": partial(optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-2, foreach=True),
    "sgd fused": partial(optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True, fused=True),
}
ADAMS: dict[str, Factory] = {
    "adam": partial(optim.Adam, lr=1e-2),
    "adam L2": partial(optim.Adam, lr=1e-2, weight_decay=1e-2),
    "adam large eps": partial(optim.Adam, lr=1e-2, eps=1e-3),
    "adam maximize": partial(optim.Adam, lr=1e-2, weight_decay=1e-2, maximize=True),
    "adam amsgrad": partial(optim.Adam, lr=1e-2, amsgrad=True, betas=(0.9, 0.7)),
    "adam fused": partial(optim.Adam, lr=1e-2, weight_decay=1e-2, fused=True),
    "adamw": partial(optim.AdamW, lr=1e-2, weight_decay=0.1),
    "adamw amsgrad": partial(optim.AdamW, lr=1e-2, weight_decay=0.1, amsgrad=True, betas=(0.9, 0.7)),
    "adamw maximize": partial(optim.AdamW, lr=1e-2, weight_decay=0.1, maximize=True),
    "adamw single tensor": partial(optim.AdamW, lr=1e-2, weight_decay=0.1, foreach=False),
    "adamw foreach": partial(optim.AdamW, lr=1e-2, weight_decay=0.1, foreach=True),
    "adamw fused": partial(optim.AdamW, lr=1e-2, weight_decay=0.1, fused=True),
    "adamw fused amsgrad": partial(optim.AdamW, lr=1e-2, weight_decay=0.1, fused=True, amsgrad=True, betas=(0.9, 0.7)),
    "adamw tensor lr": partial(optim.AdamW, lr=torch.tensor(1e-2, dtype=torch.float64), foreach=False),
    "adamw fused tensor lr": partial(optim.AdamW, lr=torch.tensor(1e-2, dtype=torch.float64), fused=True),
}
if "decoupled_weight_decay" in signature(optim.Adam).parameters:  # since torch 2.7
    ADAMS["adam decoupled"] = partial(optim.Adam, lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True)
OTHERS: dict[str, Factory] = {
    "nadam": partial(optim.NAdam, lr=1e-2),
    "nadam L2": partial(optim.NAdam, lr=1e-2, weight_decay=1e-2, momentum_decay=0.1),
    "nadam decoupled": partial(optim.NAdam, lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True),
    "nadam maximize": partial(optim.NAdam, lr=1e-2, weight_decay=0.1, maximize=True, foreach=True),
    "radam": partial(optim.RAdam, lr=1e-2),
    "radam L2": partial(optim.RAdam, lr=1e-2, weight_decay=1e-2, eps=1e-3),
    "radam decoupled": partial(optim.RAdam, lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True),
    "radam maximize": partial(optim.RAdam, lr=1e-2, weight_decay=0.1, maximize=True, foreach=True),
    "adagrad": partial(optim.Adagrad, lr=1e-2),
    "adagrad lr decay": partial(optim.Adagrad, lr=1e-2, lr_decay=0.2, weight_decay=1e-2),
    "adagrad start": partial(optim.Adagrad, lr=1e-2, initial_accumulator_value=1e-3, eps=1e-3, maximize=True),
    "adagrad fused": partial(optim.Adagrad, lr=1e-2, lr_decay=0.2, weight_decay=1e-2, fused=True),
    "rmsprop": partial(optim.RMSprop, lr=1e-3),
    "rmsprop L2": partial(optim.RMSprop, lr=1e-3, alpha=0.9, weight_decay=1e-2, eps=1e-3),
    "rmsprop centered": partial(optim.RMSprop, lr=1e-3, centered=True),
    "rmsprop momentum": partial(optim.RMSprop, lr=1e-3, momentum=0.9, foreach=True),
    "rmsprop all": partial(
        optim.RMSprop, lr=1e-3, alpha=0.9, momentum=0.5, centered=True, weight_decay=1e-2, maximize=True
    ),
    "adamax": partial(optim.Adamax, lr=1e-2),
    "adamax L2": partial(optim.Adamax, lr=1e-2, weight_decay=1e-2, betas=(0.8, 0.7), maximize=True, foreach=True),
    "adafactor": partial(optim.Adafactor, lr=1e-2),
    "adafactor clipping": partial(optim.Adafactor, lr=0.4, weight_decay=0.1, beta2_decay=-0.3, eps=(1e-7, 0.1)),
    "adafactor maximize": partial(optim.Adafactor, lr=0.02, beta2_decay=-0.5, maximize=True, foreach=True),
    "lion": partial(Lion, lr=1e-3),
    "lion decay": partial(Lion, lr=1e-3, weight_decay=0.5, betas=(0.8, 0.9)),
}
KNOWN: dict[str, Factory] = SGDS | ADAMS | OTHERS
MUONS: dict[str, Factory] = {}
if hasattr(optim, "Muon"):
    MUONS = {
        "muon": partial(optim.Muon, lr=0.02),
        "muon plain": partial(optim.Muon, lr=0.02, weight_decay=0.0, nesterov=False, momentum=0.8),
        "muon rms": partial(optim.Muon, lr=0.02, weight_decay=0.5, adjust_lr_fn="match_rms_adamw"),
    }
needs_muon = pytest.mark.skipif(not MUONS, reason="this torch has no Muon")


def net(seed: int = 0) -> nn.Sequential:
    """Two convolutions and two linear layers, all but the last before a BatchNorm."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 12, bias=False),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Linear(12, 10),
    )


NORMALIZED = ("0.weight", "3.weight", "7.weight")
ALL = (*NORMALIZED, "10.weight")


def train(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    steps: int = 12,
    *,
    scheduler: Any = None,
    between: Callable[[int], None] = lambda step: None,
    **arguments: Any,
) -> Watch:
    """A plain loop under a tracker, with the watch looking on."""
    watch = Watch(model, *optimizers)
    with SphereTracker(model, list(optimizers), strict=True, **{"flush_every_n_steps": 5, **arguments}):
        for step, (images, classes) in enumerate(batches(steps)):
            between(step)
            model.zero_grad()
            cross_entropy(model(images.to(next(model.parameters()).dtype)), classes).backward()
            watch.before()
            for optimizer in optimizers:
                optimizer.step()
            watch.after()
            if scheduler is not None:
                scheduler.step()
    return watch


FROM_STATE = dict.fromkeys(("effective_lr", "second_moment"), 2e-6)
"""Optimizers keep their moments in float32."""
FORMULA = dict.fromkeys(("deformation_angle", "momentum_radial_fraction", "lost_update"), 1e-4)
