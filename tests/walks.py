"""Random walks of scale-invariant groups, taken by torch's own optimizers.

A walk's gradients are tangent to the weights, normal, independent from step to step, and of a steady size on the
sphere: what the formulas of the equilibrium assume, and nothing that they compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_sphere import equilibrium
from lightning_sphere.equilibrium import Prediction

ELEMENTS, SIZE, SQUARE = 4000, 40, 4.0
"""Elements of all groups together and of each; mean square of a group's gradient on the sphere."""


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


class Lion(Optimizer):
    """Chen et al., arXiv 2302.06675, algorithm 2."""

    def __init__(self, parameters: list[Tensor], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                update = (beta1 * m + (1 - beta1) * p.grad).sign()
                p.sub_(group["lr"] * (update + group["weight_decay"] * p))
                m.mul_(beta2).add_(p.grad, alpha=1 - beta2)


@dataclass(frozen=True)
class Case:
    """An optimizer, what is predicted for it, and how long to walk, in time constants."""

    prediction: Prediction
    optimizer: Callable[[list[Tensor]], Optimizer]
    length: float = 4.0
    size: int = SIZE


def sgd(momentum: float, dampening: float = 0.0, nesterov: bool = False, rate: float = 1e-3) -> Case:
    """``rate`` is the weight's relative decay per step in the long run."""
    gain = (1 - dampening) / (1 - momentum) if momentum else 1.0
    lr, decay = 0.1, rate / 0.1 / gain
    arguments = [lr, decay, momentum, dampening, float(nesterov), SIZE, SQUARE]
    prediction = equilibrium.sgd(*(number(value) for value in arguments))
    return Case(prediction, lambda p: SGD(p, lr, momentum, dampening, decay, nesterov), length=8.0)


def adamw(beta1: float, rate: float = 1e-3) -> Case:
    prediction = equilibrium.adamw(number(1e-3), number(rate / 1e-3), number(beta1), number(SIZE))
    return Case(prediction, lambda p: AdamW(p, 1e-3, (beta1, 0.995), 1e-12, rate / 1e-3))


def lion() -> Case:
    """In larger groups: the sign's tangential part deviates by 1/size."""
    prediction = equilibrium.lion(*(number(value) for value in (1e-3, 0.1, 0.9, 0.99, 8 * SIZE)))
    return Case(prediction, lambda p: Lion(p, 1e-3, (0.9, 0.99), 0.1), size=8 * SIZE)


def adam_l2(decay: float = 0.2) -> Case:
    prediction = equilibrium.adam_l2(*(number(value) for value in (1e-3, decay, 0.9, SIZE, SQUARE)))
    return Case(prediction, lambda p: Adam(p, 1e-3, (0.9, 0.99), 1e-12, decay))


CASES: dict[str, Case] = {
    "sgd": sgd(0.0),
    "sgd, dampening without momentum": sgd(0.0, 0.5),
    "sgd, momentum 0.5": sgd(0.5),
    "sgd, momentum 0.9": sgd(0.9),
    "sgd, momentum 0.9, dampening 0.5": sgd(0.9, 0.5),
    "sgd, nesterov 0.5": sgd(0.5, nesterov=True),
    "sgd, nesterov 0.9": sgd(0.9, nesterov=True),
    "adamw, beta1 0": adamw(0.0),
    "adamw": adamw(0.9),
    "lion": lion(),
    "adam with L2": adam_l2(),
}


@dataclass(frozen=True)
class Walk:
    """Angle per step and norm before it; both ``[steps, groups]``."""

    angle: Tensor
    norm: Tensor


def walk(case: Case, steps: int, start: float, seed: int = 0) -> Walk:
    """Step from ``start`` times the predicted norm."""
    generator = torch.Generator().manual_seed(seed)
    shape = (ELEMENTS // case.size, case.size)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    x *= start * case.prediction.norm / x.norm(dim=1, keepdim=True)
    optimizer = case.optimizer([x.requires_grad_()])
    angles, norms = [], []
    with torch.no_grad():
        for _ in range(steps):
            r = x.norm(dim=1, keepdim=True)
            u = x / r
            g = torch.randn(shape, dtype=torch.float64, generator=generator) * math.sqrt(SQUARE / (case.size - 1))
            x.grad = (g - (g * u).sum(1, keepdim=True) * u) / r
            optimizer.step()
            along = (x * u).sum(1)
            angles.append(torch.atan2((x - along[:, None] * u).norm(dim=1), along))
            norms.append(r[:, 0])
    return Walk(torch.stack(angles), torch.stack(norms))


@cache
def walk_of(name: str, start: float) -> Walk:
    case = CASES[name]
    return walk(case, round(case.length * float(case.prediction.time_constant)), start, seed=int(start > 1))


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
