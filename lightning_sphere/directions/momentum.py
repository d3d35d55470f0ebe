"""Optimizers that divide by nothing, ``b = 1``: SGD, Muon, Lion."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from lightning_sphere import equilibrium
from lightning_sphere.directions.direction import Direction, Group, Numbers, Scalars, StepTensors, Terms
from lightning_sphere.directions.registry import register

# ---------------------------------------------------------------- SGD


def _sgd_hyperparameters(group: Group) -> dict[str, Any]:
    return {name: group.get(name, 0.0) for name in ("lr", "weight_decay", "momentum", "dampening", "nesterov")}


def _sgd_numerator(at: StepTensors) -> Tensor:
    """The momentum buffer, or the gradient with coupled decay; with Nesterov's momentum their sum."""
    momentum = at.group.get("momentum", 0.0)
    buffer = at.state.get("momentum_buffer") if momentum else None
    if buffer is not None and not at.group.get("nesterov"):
        return torch.as_tensor(buffer).to_dense()  # that of sparse gradients is sparse
    gradient = coupled(at)
    return gradient if buffer is None else gradient + momentum * buffer


def _sgd_terms(group: Group) -> Terms | None:
    """The same, told rather than done; ``None`` for a decay that is a tensor."""
    momentum, decay = group.get("momentum", 0.0), group.get("weight_decay", 0.0)
    if isinstance(decay, Tensor):
        return None
    if momentum and not group.get("nesterov"):
        return Terms(momentum="momentum_buffer")
    name = "momentum_buffer" if momentum else None
    return Terms(name, of_momentum=momentum, of_gradient=-1.0 if group.get("maximize") else 1.0, of_weight=decay)


def _sgd_radius(n: Numbers) -> tuple[Tensor, Tensor]:
    """A gradient enters the weight ``1 + momentum + momentum^2 + ...`` times, once without momentum."""
    return n["lr"] * _undamped(n) / (1.0 - n["momentum"]), n["weight_decay"]


def _undamped(n: Numbers) -> Tensor:
    """What dampening leaves of a gradient; torch ignores it where there is no momentum."""
    return torch.where(n["momentum"] > 0, 1.0 - n["dampening"], 1.0)


def _sgd_equilibrium(n: Numbers, size: Tensor, gradient_square: Tensor) -> equilibrium.Prediction:
    dampening = 1.0 - _undamped(n)
    return equilibrium.sgd(n["lr"], n["weight_decay"], n["momentum"], dampening, n["nesterov"], size, gradient_square)


def coupled(at: StepTensors) -> Tensor:
    """The gradient of what is minimized, L2 penalty included: ``g + weight_decay x``."""
    decay = at.group.get("weight_decay", 0.0)
    gradient = at.ascent
    return gradient + decay * at.weight if isinstance(decay, Tensor) or decay else gradient


register(
    SGD,
    Direction(
        hyperparameters=_sgd_hyperparameters,
        scalars=lambda n: Scalars(rate=n["lr"]),
        numerator=_sgd_numerator,
        reads_gradient=lambda group: () if group.get("momentum") and not group.get("nesterov") else ("numerator",),
        elementwise=True,
        terms=_sgd_terms,
        equilibrium=_sgd_equilibrium,
        radius=_sgd_radius,
    ),
)


# --------------------------------------------------------------- Muon


def _muon_hyperparameters(group: Group) -> dict[str, Any]:
    adjust = group.get("adjust_lr_fn")
    return {
        "lr": group["lr"],
        "weight_decay": group["weight_decay"],
        "by_shape": adjust in (None, "original"),
        "by_size": adjust == "match_rms_adamw",
    }


def _muon_scalars(n: Numbers) -> Scalars:
    """The rate is adjusted to the matrix's shape, decay is not."""
    by_shape = (n["rows"] / n["columns"]).clamp_min(1.0).sqrt()
    by_size = 0.2 * torch.maximum(n["rows"], n["columns"]).sqrt()
    ratio = torch.where(n["by_shape"] > 0, by_shape, torch.where(n["by_size"] > 0, by_size, 1.0))
    return Scalars(rate=n["lr"] * ratio, shrink=n["lr"] * n["weight_decay"])


def _muon_numerator(at: StepTensors) -> Tensor:
    """The orthogonalized momentum, by the Newton-Schulz iteration in bfloat16 that the optimizer itself runs."""
    group, momentum = at.group, at.state["momentum_buffer"]
    matrix = at.gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
    linear, cubic, quintic = group["ns_coefficients"]
    wide = matrix.shape[0] <= matrix.shape[1]
    y = matrix.bfloat16() if wide else matrix.bfloat16().T
    y = y / y.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = y @ y.T
        y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic), y, beta=linear)
    return y if wide else y.T


_MUON = Direction(
    hyperparameters=_muon_hyperparameters,
    scalars=_muon_scalars,
    numerator=_muon_numerator,
    reads_gradient=lambda group: ("numerator",) if group["nesterov"] else (),
    inferred=True,
)
if hasattr(torch.optim, "Muon"):
    register(torch.optim.Muon, _MUON)


# --------------------------------------------------------------- Lion


def _lion_hyperparameters(group: Group) -> dict[str, Any]:
    beta1, beta2 = group["betas"]
    return {"lr": group["lr"], "weight_decay": group.get("weight_decay", 0.0), "beta1": beta1, "beta2": beta2}


def _lion_numerator(at: StepTensors) -> Tensor:
    """The sign of ``beta1 m + (1 - beta1) g`` with ``m`` before the step, which the state holds no longer."""
    beta1, beta2 = at.group["betas"]
    gradient = at.gradient
    before = (at.state["exp_avg"] - (1.0 - beta2) * gradient) / beta2
    return torch.sign(beta1 * before + (1.0 - beta1) * gradient)


register(
    "Lion",  # torch has none; several packages do, under this name and with this state
    Direction(
        hyperparameters=_lion_hyperparameters,
        scalars=lambda n: Scalars(rate=n["lr"], shrink=n["lr"] * n["weight_decay"]),
        numerator=_lion_numerator,
        reads_gradient=("numerator",),
        elementwise=True,
        inferred=True,
        equilibrium=lambda n, size, _: equilibrium.lion(n["lr"], n["weight_decay"], n["beta1"], n["beta2"], size),
    ),
)
