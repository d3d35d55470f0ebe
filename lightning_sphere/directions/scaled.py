"""Gradients divided by the root of their mean square: Adagrad, RMSprop, Adafactor."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adagrad, RMSprop

from lightning_sphere.directions.direction import Direction, Group, Numbers, Scalars, StepTensors, Terms
from lightning_sphere.directions.momentum import coupled
from lightning_sphere.directions.registry import register


def _coupled_terms(group: Group, second_moment: str) -> Terms | None:
    """The gradient with coupled decay; ``None`` for a decay that is a tensor."""
    decay = group.get("weight_decay", 0.0)
    if isinstance(decay, Tensor):
        return None
    return Terms(None, second_moment, of_gradient=-1.0 if group.get("maximize") else 1.0, of_weight=decay)


register(
    Adagrad,
    Direction(
        hyperparameters=lambda group: {name: group[name] for name in ("lr", "lr_decay", "eps")},
        scalars=lambda n: Scalars(rate=n["lr"] / (1.0 + (n["step"] - 1.0) * n["lr_decay"]), offset=n["eps"]),
        numerator=coupled,
        second_moment=lambda at: at.state["sum"],
        reads_gradient=("numerator",),
        elementwise=True,
        terms=lambda group: _coupled_terms(group, "sum"),
    ),
)


# ------------------------------------------------------------ RMSprop


def _rmsprop_second_moment(at: StepTensors) -> Tensor:
    """The mean square, less the square of the mean where it is centered."""
    square = torch.as_tensor(at.state["square_avg"])
    if not at.group["centered"]:
        return square
    mean = at.state["grad_avg"]
    return torch.addcmul(square, mean, mean, value=-1)  # rounded as the optimizer does: it may nearly cancel


def _rmsprop_numerator(at: StepTensors) -> Tensor:
    """Momentum is taken of the divided gradients: ``a`` is the buffer times today's divisor."""
    if not at.group["momentum"] > 0:
        return coupled(at)
    divisor = _rmsprop_second_moment(at).to(torch.float64 if at.weight.device.type != "mps" else torch.float32).sqrt()
    return torch.as_tensor(at.state["momentum_buffer"] * (divisor + at.group["eps"]))


def _rmsprop_terms(group: Group) -> Terms | None:
    plain = not group["momentum"] > 0 and not group["centered"]
    return _coupled_terms(group, "square_avg") if plain else None


register(
    RMSprop,
    Direction(
        hyperparameters=lambda group: {"lr": group["lr"], "eps": group["eps"]},
        scalars=lambda n: Scalars(rate=n["lr"], offset=n["eps"]),
        numerator=_rmsprop_numerator,
        second_moment=_rmsprop_second_moment,
        reads_gradient=lambda group: () if group["momentum"] > 0 else ("numerator",),
        elementwise=True,
        terms=_rmsprop_terms,
    ),
)


# ---------------------------------------------------------- Adafactor


def _adafactor_hyperparameters(group: Group) -> dict[str, Any]:
    return {"lr": group["lr"], "weight_decay": group["weight_decay"], "smallest": group["eps"][1]}


def _adafactor_scalars(n: Numbers) -> Scalars:
    """The rate is relative to the tensor: ``max(eps2, RMS(x)) min(lr, 1/sqrt(t))``; decay is not."""
    relative = torch.minimum(n["lr"], n["step"].rsqrt())
    return Scalars(rate=torch.maximum(n["smallest"], n["rms"]) * relative, shrink=n["lr"] * n["weight_decay"])


def _adafactor_second_moment(at: StepTensors) -> Tensor:
    """The estimate from rows and columns, and the clipping of the update, which scales the divisor as a whole."""
    smallest, clip = at.group["eps"][0], at.group["d"]
    if "row_var" in at.state:
        rows, columns = at.state["row_var"], at.state["col_var"]
        smallest = torch.finfo(rows.dtype).eps if smallest is None else smallest
        estimate = (rows @ columns).div_(rows.mean(dim=-2, keepdim=True).clamp_(min=smallest))
    else:
        smallest = torch.finfo(at.state["variance"].dtype).eps if smallest is None else smallest
        estimate = at.state["variance"].clone()
    estimate.clamp_(min=smallest * smallest)
    size = torch.linalg.vector_norm(at.gradient / estimate.sqrt()) / (math.sqrt(estimate.numel()) * clip)
    return torch.as_tensor(estimate * size.clamp_min(1.0).square())


if hasattr(torch.optim, "Adafactor"):
    register(
        torch.optim.Adafactor,
        Direction(
            hyperparameters=_adafactor_hyperparameters,
            scalars=_adafactor_scalars,
            numerator=lambda at: at.ascent,
            second_moment=_adafactor_second_moment,
            reads_gradient=("numerator", "second_moment"),
        ),
    )
