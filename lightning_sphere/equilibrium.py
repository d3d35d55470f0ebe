"""Rotational equilibrium: how far an optimizer turns a scale-invariant group once decay and gradients balance.

Gradients of a scale-invariant group are tangent, so each step lengthens the weight; weight decay shortens it. The norm
settles where both cancel, and with it the angle per step (Kosson, Messmer, Jaggi, *Rotational Equilibrium*, ICML 2024,
arXiv 2305.17212). Each prediction follows from two numbers of the optimizer's filter, which turns gradients ``g_j`` of
the past into the update ``sum_j w_j g_{k-j}``:

======================  ==============================================================================
``eta``, ``lambda``     configured learning rate (``lr``) and weight decay (``decay``), in torch's convention
``C``                   elements per group (``size``)
``r = |x|``             norm of the group
``g~ = r g``            gradient on the unit sphere; ``G = E|g~|^2`` (``gradient_square``), ``s = sqrt(G / C)``
``gain``                ``sum_j w_j``: how far one gradient moves the weight in the long run
``energy``              ``sum_j w_j^2``: mean square of one update, for gradients of mean square 1
======================  ==============================================================================

The model, and what it asks for: gradients of different steps are independent, their mean square on the sphere is
steady, and the norm changes slowly against the optimizer's memory (its momentum and second moments). Then one step adds
``eta^2 gain^2 E|g|^2`` to ``r^2`` and decay takes ``2 eta lambda gain r^2`` from it, while a single step turns the
weight by ``eta sqrt(energy E|g|^2) / r``. Adam's second moments are taken as settled, with ``beta2`` near 1 and a small
``eps``. All functions are element-wise over float64 tensors that broadcast.

Without a positive ``lr`` and ``decay`` there is no equilibrium: everything is NaN, never 0 or infinite. What depends on
a number that is NaN is NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float64
from torch import Tensor

Numbers: TypeAlias = Float64[Tensor, "*shape"]
"""float64 of any shape that broadcasts with the others, such as ``[steps, groups]`` and ``[groups]``."""


@dataclass(frozen=True)
class Prediction:
    """What a group settles to; float64 tensors of the shape that the arguments broadcast to, NaN where unknown."""

    angle: Tensor
    """Root mean square of the angle per optimizer step, in radians."""
    norm: Tensor
    """Norm of the group."""
    time_constant: Tensor
    """Optimizer steps in which the distance of ``angle^-2`` from its equilibrium falls to ``1/e``."""


def _known(balanced: Tensor, angle: Tensor, norm: Tensor, time: Tensor) -> Prediction:
    """The prediction, NaN where ``balanced`` does not hold: comparisons with NaN do not."""
    shape = (angle + norm + time + balanced).shape
    return Prediction(
        *(
            torch.where(balanced & (field > 0) & (field < math.inf), field, torch.nan).expand(shape)
            for field in (angle, norm, time)
        )
    )


def _balanced(lr: Tensor, decay: Tensor, size: Tensor, *betas: Tensor) -> Tensor:
    """Where the settings admit an equilibrium."""
    positive = (lr > 0) & (decay > 0) & (size > 0)
    for beta in betas:
        positive = positive & (beta >= 0) & (beta < 1)
    return positive


def sgd(
    lr: Numbers,
    decay: Numbers,
    momentum: Numbers,
    dampening: Numbers,
    nesterov: Numbers,
    size: Numbers,
    gradient_square: Numbers,
) -> Prediction:
    """``torch.optim.SGD``: L2 decay that passes through the momentum buffer.

    ``r^2`` gains ``(eta gain)^2 G / r^2`` per step and loses ``2 eta lambda gain r^2``, so that ``r^4`` relaxes
    exponentially::

        norm           (eta gain G / (2 lambda))^(1/4)
        angle          eta sqrt(energy G) / norm^2 = sqrt(2 eta lambda energy / gain)
        time constant  1 / (4 eta lambda gain)

    With momentum ``b`` and dampening ``d`` the update's weights are ``w_j = (1-d) b^j``; Nesterov's are
    ``1 + b (1-d)`` for ``j = 0`` and ``(1-d) b^(j+1)`` for the past. For ``d = 0`` both have ``gain = 1/(1-b)``, and
    the angle of plain momentum is ``sqrt(2 eta lambda / (1+b))`` (Kosson et al.). Dampening acts as a rate
    ``eta (1-d)``; torch ignores it without momentum. Norm and time are derived here.

    Args:
        lr: learning rate.
        decay: ``weight_decay``.
        momentum: ``b``, in [0, 1).
        dampening: ``d``, below 1.
        nesterov: 1 for Nesterov's momentum, else 0.
        size: elements per group; SGD's equilibrium does not depend on it, but on their gradients' sum of squares.
        gradient_square: ``G``. Where it is NaN the norm alone is unknown; where it is 0 nothing balances the decay, and
            all is NaN.

    Returns:
        The prediction, of the shape that all arguments broadcast to.
    """
    kept = torch.where(momentum == 0, 1.0, 1.0 - dampening)
    past = kept * momentum**2 / (1.0 - momentum)  # the sum of Nesterov's weights for j > 0
    gain = torch.where(nesterov > 0, 1.0 + kept * momentum + past, kept / (1.0 - momentum))
    energy = torch.where(
        nesterov > 0,
        (1.0 + kept * momentum) ** 2 + past**2 * (1.0 - momentum) / (1.0 + momentum),
        kept**2 / (1.0 - momentum**2),
    )
    return _known(
        _balanced(lr, decay, size, momentum) & (gradient_square != 0) & ~nesterov.isnan(),
        angle=(2.0 * lr * decay * energy / gain).sqrt(),
        norm=(lr * gain * gradient_square / (2.0 * decay)) ** 0.25,
        time=0.25 / (lr * decay * gain),
    )


def adamw(lr: Numbers, decay: Numbers, beta1: Numbers, size: Numbers) -> Prediction:
    """``torch.optim.AdamW``, and any Adam with decoupled decay.

    Each element of the update has mean square ``energy = (1-beta1)/(1+beta1)`` and ``gain = 1``. ``r^2`` gains
    ``eta^2 C`` per step and loses ``2 eta lambda r^2``, so that ``r^2`` relaxes exponentially::

        norm           sqrt(eta C / (2 lambda))
        angle          eta sqrt(energy C) / norm = sqrt(2 eta lambda (1-beta1)/(1+beta1))      (Kosson et al.)
        time constant  1 / (2 eta lambda)

    Args:
        lr: learning rate.
        decay: ``weight_decay``, multiplied by ``lr`` in the step.
        beta1: decay of the first moment, in [0, 1).
        size: elements per group.

    Returns:
        The prediction, of the shape that all arguments broadcast to.
    """
    return _known(
        _balanced(lr, decay, size, beta1),
        angle=(2.0 * lr * decay * (1.0 - beta1) / (1.0 + beta1)).sqrt(),
        norm=(lr * size / (2.0 * decay)).sqrt(),
        time=0.5 / (lr * decay),
    )


def lion(lr: Numbers, decay: Numbers, beta1: Numbers, beta2: Numbers, size: Numbers) -> Prediction:
    """Lion, with decoupled decay: the update is the sign of ``beta1 m + (1-beta1) g``.

    That mixture has ``gain = 1`` and variance ``S = (1-beta1)^2 + beta1^2 (1-beta2)/(1+beta2)`` per unit of the
    gradient's. The sign's part along it is ``sqrt(2/(pi S))`` times the mixture (normal gradients), so that ``r^2``
    gains ``2 eta^2 C / (pi S)`` per step and loses ``2 eta lambda r^2``, while every single update has length
    ``eta sqrt(C)``::

        norm           sqrt(eta C / (pi lambda S))
        angle          eta sqrt(C) / norm = sqrt(pi eta lambda S)                              (Kosson et al.)
        time constant  1 / (2 eta lambda)

    That is right for ``S`` far below 1. By the arcsine law the angle is 0.7 % less for betas (0.9, 0.99) and 3 % less
    for (0.95, 0.98).

    Args:
        lr: learning rate.
        decay: ``weight_decay``, multiplied by ``lr`` in the step.
        beta1: weight of the momentum in the update, in [0, 1).
        beta2: decay of the momentum, in [0, 1).
        size: elements per group.

    Returns:
        The prediction, of the shape that all arguments broadcast to.
    """
    variance = (1.0 - beta1) ** 2 + beta1**2 * (1.0 - beta2) / (1.0 + beta2)
    return _known(
        _balanced(lr, decay, size, beta1, beta2),
        angle=(math.pi * lr * decay * variance).sqrt(),
        norm=(lr * size / (math.pi * decay * variance)).sqrt(),
        time=0.5 / (lr * decay),
    )


def adam_l2(lr: Numbers, decay: Numbers, beta1: Numbers, size: Numbers, gradient_square: Numbers) -> Prediction:
    """``torch.optim.Adam`` with ``weight_decay``: the decay is divided by ``sqrt(v) = s/r`` as the gradient is.

    ``r^2`` gains ``eta^2 C`` per step and loses ``2 eta lambda r^3 / s``. Derived here, for gradients that are alike in
    all elements and far larger than the decay's part::

        norm           (eta C s / (2 lambda))^(1/3)
        angle          eta sqrt(C (1-beta1)/(1+beta1)) / norm
        time constant  s / (3 eta lambda norm)                                     (close to equilibrium)

    Args:
        lr: learning rate.
        decay: ``weight_decay``, added to the gradient.
        beta1: decay of the first moment, in [0, 1).
        size: elements per group.
        gradient_square: ``G``; where it is NaN or 0 all is NaN.

    Returns:
        The prediction, of the shape that all arguments broadcast to.
    """
    scale = (gradient_square / size).sqrt()
    norm = (lr * size * scale / (2.0 * decay)) ** (1.0 / 3.0)
    return _known(
        _balanced(lr, decay, size, beta1) & (gradient_square > 0),
        angle=lr * (size * (1.0 - beta1) / (1.0 + beta1)).sqrt() / norm,
        norm=norm,
        time=scale / (3.0 * lr * decay * norm),
    )
