"""A slow float64 oracle of one step of every optimizer, from their formulas and the history of gradients alone.

Nothing is read from an optimizer's state and nothing is shared with the package. Every generator takes the moments of
one parameter (its weights and gradient before each step, and what its param group said then) and yields for each of
them what the formula asks for::

    x' = x - rate * a / b - shrink * x          (element by element; rate and shrink are numbers)

``a`` is the direction (coupled L2 inside), ``b`` its divisor (1 where there is none), ``rate`` the learning rate that
the optimizer used, ``shrink`` the share that decoupled weight decay takes away.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moment:
    """One parameter right before one optimizer step: weights, gradient used, its param group's values."""

    x: Array
    g: Array
    h: Mapping[str, Any]
    resolution: float
    """Of the parameter's dtype: the gap between 1 and the next larger number."""

    @property
    def ascent_free(self) -> Array:
        """The gradient of what is minimized."""
        return -self.g if self.h.get("maximize", False) else self.g

    @property
    def with_l2(self) -> Array:
        """The same, with the gradient of ``weight_decay / 2 |x|^2``."""
        return self.ascent_free + self.h["weight_decay"] * self.x


@dataclass(frozen=True)
class Update:
    """What a formula asks for, see this module's docstring."""

    a: Array
    b: Array
    rate: float
    shrink: float = 0.0

    def displacement(self, x: Array) -> Array:
        return -self.rate * self.a / self.b - self.shrink * x


Oracle = Callable[[Sequence[Moment]], Iterator[Update]]


def sgd(moments: Sequence[Moment]) -> Iterator[Update]:
    buffer = None
    for moment in moments:
        h, a = moment.h, moment.with_l2
        if h["momentum"]:
            buffer = a if buffer is None else h["momentum"] * buffer + (1 - h["dampening"]) * a
            a = a + h["momentum"] * buffer if h["nesterov"] else buffer
        yield Update(a, np.ones_like(a), h["lr"])


def decayed(moment: Moment) -> tuple[Array, float]:
    """Gradient and shrinkage of optimizers that have weight decay of both kinds."""
    if moment.h["decoupled_weight_decay"]:
        return moment.ascent_free, moment.h["lr"] * moment.h["weight_decay"]
    return moment.with_l2, 0.0


def adam(moments: Sequence[Moment]) -> Iterator[Update]:
    m = v = largest = np.zeros(1)
    for t, moment in enumerate(moments, start=1):
        h = moment.h
        (beta1, beta2), (g, shrink) = h["betas"], decayed(moment)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        largest = np.maximum(largest, v)
        v_hat = (largest if h["amsgrad"] else v) / (1 - beta2**t)
        yield Update(m / (1 - beta1**t), np.sqrt(v_hat) + h["eps"], h["lr"], shrink)


def nadam(moments: Sequence[Moment]) -> Iterator[Update]:
    m = v = np.zeros(1)
    product = 1.0
    for t, moment in enumerate(moments, start=1):
        h = moment.h
        (beta1, beta2), (g, shrink) = h["betas"], decayed(moment)
        mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (s * h["momentum_decay"])) for s in (t, t + 1))
        product *= mu
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        a = mu_next * m / (1 - product * mu_next) + (1 - mu) * g / (1 - product)
        yield Update(a, np.sqrt(v / (1 - beta2**t)) + h["eps"], h["lr"], shrink)


def radam(moments: Sequence[Moment]) -> Iterator[Update]:
    m = v = np.zeros(1)
    for t, moment in enumerate(moments, start=1):
        h = moment.h
        (beta1, beta2), (g, shrink) = h["betas"], decayed(moment)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        a, b, rate = m / (1 - beta1**t), np.ones_like(g), h["lr"]
        longest = 2 / (1 - beta2) - 1
        rho = longest - 2 * t * beta2**t / (1 - beta2**t)
        if rho > 5:
            rate = rate * np.sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho))
            b = (np.sqrt(v) + h["eps"]) / np.sqrt(1 - beta2**t)
        yield Update(a, b, rate, shrink)


def adagrad(moments: Sequence[Moment]) -> Iterator[Update]:
    total = np.full(1, float(moments[0].h["initial_accumulator_value"]))
    for t, moment in enumerate(moments, start=1):
        h, g = moment.h, moment.with_l2
        total = total + g**2
        yield Update(g, np.sqrt(total) + h["eps"], h["lr"] / (1 + (t - 1) * h["lr_decay"]))


def rmsprop(moments: Sequence[Moment]) -> Iterator[Update]:
    v = mean = buffer = np.zeros(1)
    for moment in moments:
        h, g = moment.h, moment.with_l2
        v = h["alpha"] * v + (1 - h["alpha"]) * g**2
        mean = h["alpha"] * mean + (1 - h["alpha"]) * g
        b = np.sqrt(v - mean**2 if h["centered"] else v) + h["eps"]
        buffer = h["momentum"] * buffer + g / b
        yield Update(b * buffer, b, h["lr"])


def adamax(moments: Sequence[Moment]) -> Iterator[Update]:
    m = largest = np.zeros(1)
    for t, moment in enumerate(moments, start=1):
        h, g = moment.h, moment.with_l2
        beta1, beta2 = h["betas"]
        m = beta1 * m + (1 - beta1) * g
        largest = np.maximum(beta2 * largest, np.abs(g) + h["eps"])
        yield Update(m / (1 - beta1**t), largest, h["lr"])


def rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))


def adafactor(moments: Sequence[Moment]) -> Iterator[Update]:
    v = rows = columns = np.zeros(1)
    for t, moment in enumerate(moments, start=1):
        h, x, g = moment.h, moment.x, moment.ascent_free
        eps1, eps2 = h["eps"]
        eps1 = moment.resolution if eps1 is None else eps1
        new = float(t) ** h["beta2_decay"]
        if g.ndim > 1:
            rows = (1 - new) * rows + new * (g**2).mean(axis=-1, keepdims=True)
            columns = (1 - new) * columns + new * (g**2).mean(axis=-2, keepdims=True)
            variance = rows * columns / np.maximum(rows.mean(axis=-2, keepdims=True), eps1)
        else:
            v = variance = (1 - new) * v + new * g**2
        b = np.sqrt(np.maximum(variance, eps1**2))
        clipped = max(1.0, rms(g / b) / h["d"])
        rate = min(h["lr"], 1 / np.sqrt(t)) * max(eps2, rms(x))
        yield Update(g, clipped * b, float(rate), h["lr"] * h["weight_decay"])


def muon(moments: Sequence[Moment]) -> Iterator[Update]:
    """The polynomial is applied to the singular values. torch's bfloat16 is good to a few percent."""
    buffer = np.zeros(1)
    for moment in moments:
        h, (height, width) = moment.h, moment.x.shape
        buffer = h["momentum"] * buffer + (1 - h["momentum"]) * moment.g
        a = (1 - h["momentum"]) * moment.g + h["momentum"] * buffer if h["nesterov"] else buffer
        left, values, right = np.linalg.svd(a, full_matrices=False)
        values = values / max(np.linalg.norm(values), h["eps"])
        first, third, fifth = h["ns_coefficients"]
        for _ in range(h["ns_steps"]):
            values = first * values + third * values**3 + fifth * values**5
        if h["adjust_lr_fn"] == "match_rms_adamw":
            adjusted = 0.2 * np.sqrt(max(height, width))
        else:
            adjusted = np.sqrt(max(1.0, height / width))
        yield Update(
            left * values @ right, np.ones_like(moment.x), float(h["lr"] * adjusted), h["lr"] * h["weight_decay"]
        )


def lion(moments: Sequence[Moment]) -> Iterator[Update]:
    m = np.zeros(1)
    for moment in moments:
        h, (beta1, beta2) = moment.h, moment.h["betas"]
        a = np.sign(beta1 * m + (1 - beta1) * moment.g)
        m = beta2 * m + (1 - beta2) * moment.g
        yield Update(a, np.ones_like(a), h["lr"], h["lr"] * h["weight_decay"])


ORACLES: dict[str, Oracle] = {
    "SGD": sgd,
    "Adam": adam,
    "AdamW": adam,
    "NAdam": nadam,
    "RAdam": radam,
    "Adagrad": adagrad,
    "RMSprop": rmsprop,
    "Adamax": adamax,
    "Adafactor": adafactor,
    "Muon": muon,
    "Lion": lion,
}
"""By the name of the optimizer's class."""


def predicted_angle(kind: str, h: Mapping[str, Any], d: int, mean_square: float) -> float:
    """RMS angle per step in rotational equilibrium, theory section 6; NaN where there is no decay or no formula.

    ``d`` is the number of the group's entries, ``mean_square`` that of ``r |g|`` so far.
    """
    lr, decay = h["lr"], h.get("weight_decay", 0.0)
    if not decay or not lr:
        return float("nan")
    if kind == "SGD":
        b = h["momentum"]
        kept = 1 + 2 * b - 2 * b**3 if h["nesterov"] else 1 - h["dampening"] * bool(b)  # Nesterov's: derived here
        return float(np.sqrt(2 * lr * decay * kept / (1 + b)))
    if kind in ("Adam", "AdamW"):
        beta1, _ = h["betas"]
        memory = (1 - beta1) / (1 + beta1)
        if h["decoupled_weight_decay"]:
            return float(np.sqrt(2 * lr * decay * memory))
        s = np.sqrt(mean_square / d)
        return float(np.sqrt(memory) * lr * np.sqrt(d) / (lr * d * s / (2 * decay)) ** (1 / 3))
    if kind == "Lion":
        beta1, beta2 = h["betas"]
        s = (1 - beta1) ** 2 + beta1**2 * (1 - beta2) / (1 + beta2)
        return float(np.sqrt(np.pi * lr * decay * s))
    return float("nan")


def predicted_norm(kind: str, h: Mapping[str, Any], d: int, mean_square: float) -> float:
    """Norm in rotational equilibrium, theory section 6, as :func:`predicted_angle`."""
    lr, decay = h["lr"], h.get("weight_decay", 0.0)
    if not decay or not lr:
        return float("nan")
    if kind == "SGD":
        b = h["momentum"]
        kept = 1 - h["dampening"] * bool(b)
        return float((lr * kept * mean_square / (2 * decay * (1 - b))) ** 0.25)
    if kind in ("Adam", "AdamW"):
        if h["decoupled_weight_decay"]:
            return float(np.sqrt(lr * d / (2 * decay)))
        return float((lr * d * np.sqrt(mean_square / d) / (2 * decay)) ** (1 / 3))
    if kind == "Lion":
        beta1, beta2 = h["betas"]
        s = (1 - beta1) ** 2 + beta1**2 * (1 - beta2) / (1 + beta2)
        return float(np.sqrt(lr * d / (np.pi * decay * s)))
    return float("nan")
