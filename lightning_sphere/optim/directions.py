"""What the reference optimizers' steps are made of, for those who measure them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_sphere.directions import Direction, Numbers, Scalars, StepTensors, register
from lightning_sphere.optim.adamg import AdamGStar
from lightning_sphere.optim.adams import AdamS, AdamSRT


def _hyperparameters(group: Any) -> dict[str, Any]:
    return {"lr": group["lr"], "beta1": group["betas"][0]}


def _correction(at: StepTensors, moment: int) -> Tensor:
    """``1 - beta^t``; the count is a float32 tensor, whose powers would lose digits here."""
    beta: float = at.group["betas"][moment]
    return 1.0 - beta ** torch.as_tensor(at.count).double()


def _divisor(at: StepTensors) -> Tensor:
    """One number per group, or Adam's element by element; float64 in the parameter's shape."""
    if "divisor" in at.state:
        return torch.as_tensor(at.state["divisor"]).double().expand_as(at.after)
    unbiased: Tensor = at.state["exp_avg_sq"].double() / _correction(at, 1)
    eps: float = at.group["eps"]
    return unbiased.sqrt() + eps


def _unbiased(n: Numbers) -> Tensor:
    return 1.0 / (1.0 - n["beta1"] ** n["step"])


def _transported_numerator(at: StepTensors) -> Tensor:
    """The momentum of a group has been transported since: its step tells what it was."""
    if "divisor" not in at.state:
        return torch.as_tensor(at.state["exp_avg"].double() / _correction(at, 0))
    moved = at.weight.double() - at.after.double()
    return moved * _divisor(at) / torch.as_tensor(at.group["lr"])


register(
    AdamS,
    Direction(
        hyperparameters=_hyperparameters,
        scalars=lambda n: Scalars(rate=n["lr"], numerator=_unbiased(n)),
        numerator=lambda at: at.state["exp_avg"],
        second_moment=lambda at: _divisor(at).square(),
    ),
)
register(
    AdamSRT,
    Direction(
        hyperparameters=_hyperparameters,
        scalars=lambda n: Scalars(rate=n["lr"]),
        numerator=_transported_numerator,
        second_moment=lambda at: _divisor(at).square(),
        complete=False,
    ),
)


def _mirrored_divisor_square(at: StepTensors) -> Tensor:
    if "divisor" not in at.state:
        return torch.ones_like(at.after)
    return torch.as_tensor(at.state["divisor"]).double().square().expand_as(at.after)


def _mirrored_numerator(at: StepTensors) -> Tensor:
    """The gradient; of tensors in no group with the L2 penalty, which a fixed radius leaves nothing of."""
    decay = 0.0 if "divisor" in at.state else at.group["weight_decay"]
    return at.ascent + decay * at.weight


register(
    AdamGStar,
    Direction(
        scalars=lambda n: Scalars(rate=n["lr"]),
        numerator=_mirrored_numerator,
        second_moment=_mirrored_divisor_square,
        reads_gradient=("numerator",),
        complete=False,
    ),
)
