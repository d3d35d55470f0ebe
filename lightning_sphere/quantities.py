"""The table of quantities: what each number is called, what it means, which sums it needs.

Every other module takes names, units and equations from here. It imports nothing heavy, because TensorBoard and the
command line read it too.

Symbols: ``x`` a group's weights before the optimizer step, ``D`` their displacement by it, ``g`` the gradient that the
optimizer used, ``r = |x|``, ``u = x/r``, ``lr`` the configured learning rate, ``b`` the element-wise divisor of the
optimizer's update (1 for SGD, ``sqrt(v_hat) + eps`` for Adam), ``d`` the number of entries of the group. ``a_perp`` is
the part of ``a`` orthogonal to ``x``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sum = Literal["xx", "xd", "dd", "gx", "gg", "bb"]
"""Inner products recorded per group and step: ``xd`` is ``<x, D>``, ``bb`` is ``|b|^2``, and so on."""

STATS: tuple[str, ...] = ("p10", "median", "p90", "rms")
"""Statistics over the groups (filters) of one layer, in the order of the recorded table."""


@dataclass(frozen=True)
class Quantity:
    """One recorded number per group and step."""

    name: str
    """Identifier in tags, tables and ``record[name]``."""
    title: str
    """Short heading for people."""
    symbol: str
    """How the literature writes it."""
    unit: str
    """Unit of the recorded value; empty for a pure number."""
    equation: str
    """Definition, in the symbols of this module's docstring."""
    meaning: str
    """What a person should read from it."""
    sums: frozenset[Sum]
    """The inner products it is computed from."""


def _quantity(
    name: str, title: str, symbol: str, unit: str, equation: str, meaning: str, sums: tuple[Sum, ...]
) -> Quantity:
    return Quantity(name, title, symbol, unit, equation, meaning, frozenset(sums))


CORE: tuple[Quantity, ...] = (
    _quantity(
        "norm",
        "weight norm",
        "r",
        "",
        "|x|",
        "Length of the weight before the step. It does not change what a normalized layer computes, but it sets how "
        "fast the layer turns: twice the norm, a quarter of SGD's effective learning rate.",
        ("xx",),
    ),
    _quantity(
        "angular_step",
        "angular step",
        "theta",
        "rad",
        "atan2(|D_perp|, r + <D,u>)",
        "How far the step turned the weight: the true size of the update of a normalized layer. "
        "Under weight decay, layers that are in equilibrium turn at similar speeds.",
        ("xx", "xd", "dd"),
    ),
    _quantity(
        "effective_lr",
        "effective lr",
        "eta_e",
        "",
        "lr / (r nu) / (1 + <x,D>/r^2)",
        "The learning rate of the equivalent optimization on the sphere: what remains of the configured lr once the "
        "weight's norm, the optimizer's state and the decay are taken into account. It multiplies gradients on the "
        "sphere, so compare it over time and between layers, not with lr and not between optimizers.",
        ("xx", "xd", "gg", "bb"),
    ),
    _quantity(
        "spherical_lr",
        "spherical lr",
        "tan(theta)/|grad|",
        "",
        "tan(theta) / (r |g_perp|)",
        "Rotation per unit of gradient on the sphere; asks nothing of the optimizer. Equals the effective lr for SGD, "
        "and differs from it where momentum or adaptivity change the step.",
        ("xx", "xd", "dd", "gx", "gg"),
    ),
    _quantity(
        "gradient_norm",
        "gradient norm on the sphere",
        "|grad L(u)|",
        "loss/rad",
        "r |g_perp|",
        "Slope of the loss per radian of rotation. Unlike the raw gradient's, it does not depend on the weight's norm.",
        ("xx", "gx", "gg"),
    ),
    _quantity(
        "radial_fraction",
        "radial fraction of the step",
        "<c,u>/|c|",
        "",
        "-<x,D> / (r |D|)",
        "Share of the step that only shrinks (+) or stretches (-) the weight. Near 0 for plain SGD; momentum of past "
        "gradients and weight decay move it.",
        ("xx", "xd", "dd"),
    ),
    _quantity(
        "radius_growth",
        "growth of the norm",
        "log(r'/r)",
        "",
        "log(|x + D| / |x|)",
        "Relative change of the norm by this step. Growth lowers the effective lr by itself; it settles around 0 when "
        "decay and gradients are in equilibrium.",
        ("xx", "xd", "dd"),
    ),
    _quantity(
        "invariance_residual",
        "invariance residual",
        "|cos(g,x)|",
        "",
        "|<g,x>| / (|g| |x|)",
        "The run-time check of scale invariance: 0 (rounding) where the claim holds. Values above 1e-2 say that the "
        "norm's eps, or something else, breaks it.",
        ("xx", "gx", "gg"),
    ),
    _quantity(
        "second_moment",
        "second moment scale",
        "nu",
        "",
        "r |b| / sqrt(d)",
        "What the optimizer divides the step by, times the norm (`nu` in effective_lr); equals the norm for SGD. With "
        "Adam it shrinks as gradients do, which raises the effective lr.",
        ("xx", "bb"),
    ),
)

QUANTITIES: dict[str, Quantity] = {quantity.name: quantity for quantity in CORE}
"""All quantities by name, in recorded order."""


def markdown_table() -> str:
    """The table of quantities as the README shows it (a test holds them equal)."""
    rows = ["| quantity | unit | definition | what it tells |", "|---|---|---|---|"]
    for quantity in CORE:
        equation = quantity.equation.replace("|", "\\|")
        rows.append(f"| `{quantity.name}` | {quantity.unit or '-'} | `{equation}` | {quantity.meaning} |")
    return "\n".join(rows)
