"""The Adam family: momentum divided by the root of a second moment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Adamax, AdamW, NAdam, RAdam

from lightning_sphere import equilibrium
from lightning_sphere.directions.direction import Direction, Group, Numbers, Scalars, StepTensors, Terms
from lightning_sphere.directions.registry import register


def _hyperparameters(group: Group, *, decoupled: bool) -> dict[str, Any]:
    beta1, beta2 = group["betas"]
    return {
        "lr": group["lr"],
        "weight_decay": group["weight_decay"],
        "decoupled": group.get("decoupled_weight_decay", decoupled),
        "beta1": beta1,
        "beta2": beta2,
        "eps": group["eps"],
        "amsgrad": group.get("amsgrad", False),
    }


def _adam_hyperparameters(group: Group) -> dict[str, Any]:
    return _hyperparameters(group, decoupled=False)


def _adamw_hyperparameters(group: Group) -> dict[str, Any]:
    return _hyperparameters(group, decoupled=True)


def _shrink(n: Numbers) -> Tensor:
    return n["lr"] * n["weight_decay"] * n["decoupled"]


def _root(n: Numbers) -> Tensor:
    """``1 / sqrt(1 - beta2^t)``: what bias correction makes of ``sqrt(v)``."""
    return (1.0 - n["beta2"] ** n["step"]).rsqrt()


def _adam_scalars(n: Numbers) -> Scalars:
    """``a = m / (1 - beta1^t)``, ``b = sqrt(v / (1 - beta2^t)) + eps``."""
    unbiased = 1.0 / (1.0 - n["beta1"] ** n["step"])
    return Scalars(rate=n["lr"], shrink=_shrink(n), numerator=unbiased, root=_root(n), offset=n["eps"])


def _momentum(at: StepTensors) -> Tensor:
    return torch.as_tensor(at.state["exp_avg"])


def _adam_second_moment(at: StepTensors) -> Tensor:
    return torch.as_tensor(at.state["max_exp_avg_sq" if at.group.get("amsgrad") else "exp_avg_sq"])


def _adam_terms(group: Group) -> Terms:
    return Terms("exp_avg", "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq")


def _adam_equilibrium(n: Numbers, size: Tensor, gradient_square: Tensor) -> equilibrium.Prediction:
    """Decoupled or coupled decay; with ``amsgrad``, whose second moment never shrinks, none is known."""
    decay = torch.where(n["amsgrad"] > 0, torch.nan, n["weight_decay"])
    decoupled = equilibrium.adamw(n["lr"], decay, n["beta1"], size)
    coupled = equilibrium.adam_l2(n["lr"], decay, n["beta1"], size, gradient_square)
    which = n["decoupled"] > 0
    return equilibrium.Prediction(
        torch.where(which, decoupled.angle, coupled.angle),
        torch.where(which, decoupled.norm, coupled.norm),
        torch.where(which, decoupled.time_constant, coupled.time_constant),
    )


for _class, _read in ((Adam, _adam_hyperparameters), (AdamW, _adamw_hyperparameters)):
    register(
        _class,
        Direction(
            hyperparameters=_read,
            scalars=_adam_scalars,
            numerator=_momentum,
            second_moment=_adam_second_moment,
            elementwise=True,
            terms=_adam_terms,
            equilibrium=_adam_equilibrium,
        ),
    )


# -------------------------------------------------------------- NAdam


def _nadam_numerator(at: StepTensors) -> Tensor:
    """``mu' m / (1 - prod mu') + (1 - mu) g / (1 - prod mu)``: the momentum of the next step already."""
    (beta1, _), decay, count = at.group["betas"], at.group["momentum_decay"], at.count
    mu = beta1 * (1.0 - 0.5 * 0.96 ** (count * decay))
    mu_next = beta1 * (1.0 - 0.5 * 0.96 ** ((count + 1) * decay))
    product = at.state["mu_product"]
    gradient = at.ascent
    if at.group["weight_decay"] and not at.group.get("decoupled_weight_decay"):
        gradient = gradient + at.group["weight_decay"] * at.weight
    ahead, now = mu_next / (1.0 - product * mu_next), (1.0 - mu) / (1.0 - product)
    return torch.as_tensor(at.state["exp_avg"] * ahead + gradient * now)


register(
    NAdam,
    Direction(
        hyperparameters=_adam_hyperparameters,
        scalars=lambda n: Scalars(rate=n["lr"], shrink=_shrink(n), root=_root(n), offset=n["eps"]),
        numerator=_nadam_numerator,
        second_moment=_adam_second_moment,
        reads_gradient=("numerator",),
        elementwise=True,
    ),
)


# -------------------------------------------------------------- RAdam


def _radam_scalars(n: Numbers) -> Scalars:
    """``b = (sqrt(v) + eps) / sqrt(1 - beta2^t)``; ``b = 1`` while the variance is not trusted.

    The rectification that follows is a warm-up of the rate. Liu et al., arXiv 1908.03265, algorithm 2, with ``eps``
    where torch adds it.
    """
    adam, limit = _adam_scalars(n), 2.0 / (1.0 - n["beta2"]) - 1.0
    power = n["beta2"] ** n["step"]
    length = limit - 2.0 * n["step"] * power / (1.0 - power)
    rectification = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
    trusted = length > 5.0
    return Scalars(
        rate=adam.rate * torch.where(trusted, rectification.clamp_min(0.0).sqrt(), 1.0),
        shrink=adam.shrink,
        numerator=adam.numerator,
        root=torch.where(trusted, adam.root, 0.0),
        offset=torch.where(trusted, adam.root * n["eps"], 1.0),
    )


register(
    RAdam,
    Direction(
        hyperparameters=_adam_hyperparameters,
        scalars=_radam_scalars,
        numerator=_momentum,
        second_moment=_adam_second_moment,
        elementwise=True,
        terms=_adam_terms,
    ),
)


# ------------------------------------------------------------- Adamax


def _adamax_scalars(n: Numbers) -> Scalars:
    """``b`` is the running maximum itself, which holds ``eps`` already."""
    return Scalars(rate=n["lr"], numerator=1.0 / (1.0 - n["beta1"] ** n["step"]))


register(
    Adamax,
    Direction(
        hyperparameters=_adam_hyperparameters,
        scalars=_adamax_scalars,
        numerator=_momentum,
        second_moment=lambda at: at.state["exp_inf"].float().square(),
        elementwise=True,
    ),
)
