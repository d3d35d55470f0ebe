"""The table of quantities: what each number is called, what it means, which sums it needs.

Every other module takes names, units and equations from here. It imports nothing heavy, because TensorBoard and the
command line read it too.

Symbols: ``x`` a group's weights before the optimizer step, ``D`` their displacement by it, ``g`` the gradient that the
optimizer used, ``r = |x|``, ``u = x/r``, ``lr`` the learning rate that it used, ``a`` its direction before the
element-wise division by ``b`` (``b = 1`` for SGD, ``sqrt(v_hat) + eps`` for Adam), ``P = -lr a/b - decay`` the
displacement that its formula asks for, ``wd`` the weight decay, ``d`` the number of entries of the group, ``x0`` its
weights at the start. ``a_perp`` is the part of ``a`` orthogonal to ``x``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Sum = Literal["xx", "xd", "dd", "gx", "gg", "bb", "aa", "reference", "asked"]
"""What is summed over each group.

At every recorded step the inner products: ``xd`` is ``<x, D>``, ``bb`` is ``|b|^2``, and so on; ``aa`` stands for those
of the direction before the division, ``<a, a>``, ``<a, x>`` and ``<a, D>``. Now and then: ``reference``, the inner
products with the weights at the start, and ``asked``, sums over what the optimizer's formula asks for.
"""

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
    range: str
    """Values that it can take."""
    equation: str
    """Definition, in the symbols of this module's docstring."""
    meaning: str
    """What a person should read from it."""
    sums: frozenset[Sum]
    """The sums it is computed from."""
    rare: bool = False
    """Whether it is measured now and then only, and NaN at the steps between."""
    context: bool = False
    """Whether it only says what other quantities are to be compared with; it has no curve of its own then."""
    prediction: str | None = None
    """Name of the quantity that says what it comes to in equilibrium, if one does."""
    reference: float | None = None
    """The number that it is compared with, if there is one."""
    of_invariant: bool = False
    """Whether it says nothing of a weight that is not scale-invariant, though it can be computed."""


def _quantity(
    name: str,
    title: str,
    symbol: str,
    unit: str,
    range: str,
    equation: str,
    meaning: str,
    sums: tuple[Sum, ...],
    **further: Any,
) -> Quantity:
    return Quantity(name, title, symbol, unit, range, equation, meaning, frozenset(sums), **further)


CORE: tuple[Quantity, ...] = (
    _quantity(
        "norm",
        "weight norm",
        "r",
        "",
        "> 0",
        "|x|",
        "Length of the weight before the step. It does not change what a normalized layer computes, but it sets how "
        "fast the layer turns: twice the norm, a quarter of SGD's effective learning rate.",
        ("xx",),
        prediction="equilibrium_norm",
    ),
    _quantity(
        "angular_step",
        "angular step",
        "theta",
        "rad",
        "0 to pi",
        "atan2(|D_perp|, r + <D,u>)",
        "How far the step turned the weight: the true size of the update of a normalized layer. "
        "Under weight decay, layers that are in equilibrium turn at similar speeds.",
        ("xx", "xd", "dd"),
        prediction="equilibrium_angle",
    ),
    _quantity(
        "effective_lr",
        "effective lr",
        "eta_e",
        "",
        "> 0",
        "lr / (r nu) / (1 + <x,D>/r^2)",
        "The learning rate of the equivalent optimization on the sphere: what remains of the configured lr once the "
        "weight's norm, the optimizer's state and the decay are taken into account. It multiplies gradients on the "
        "sphere, so compare it over time and between layers, not with lr and not between optimizers.",
        ("xx", "xd", "gg", "bb"),
        of_invariant=True,
    ),
    _quantity(
        "spherical_lr",
        "spherical lr",
        "tan(theta)/|grad|",
        "",
        ">= 0",
        "tan(theta) / (r |g_perp|)",
        "Rotation per unit of gradient on the sphere; asks nothing of the optimizer. Equals the effective lr for SGD, "
        "and differs from it where momentum or adaptivity change the step.",
        ("xx", "xd", "dd", "gx", "gg"),
        of_invariant=True,
    ),
    _quantity(
        "gradient_norm",
        "gradient norm on the sphere",
        "|grad L(u)|",
        "loss/rad",
        ">= 0",
        "r |g_perp|",
        "Slope of the loss per radian of rotation. Unlike the raw gradient's, it does not depend on the weight's norm.",
        ("xx", "gx", "gg"),
    ),
    _quantity(
        "radial_fraction",
        "radial fraction of the step",
        "<c,u>/|c|",
        "",
        "-1 to 1",
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
        "any",
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
        "0 to 1",
        "|<g,x>| / (|g| |x|)",
        "The run-time check of scale invariance: 0 (rounding) where the claim holds. Values above 1e-2 say that the "
        "norm's eps, or something else, breaks it.",
        ("xx", "gx", "gg"),
        of_invariant=True,
    ),
    _quantity(
        "second_moment",
        "second moment scale",
        "nu",
        "",
        "> 0",
        "r |b| / sqrt(d)",
        "What the optimizer divides the step by, times the norm (`nu` in effective_lr); equals the norm for SGD. With "
        "Adam it shrinks as gradients do, which raises the effective lr.",
        ("xx", "bb"),
    ),
    _quantity(
        "equilibrium_ratio",
        "turning against equilibrium",
        "theta/theta_eq",
        "",
        ">= 0",
        "theta / predicted RMS angle",
        "How far the step turns the weight, against what it will turn by once gradients and weight decay balance "
        "(Kosson et al., arXiv 2305.17212): 1 in equilibrium, above while the norm has still to grow, below while it "
        "has still to shrink. Known for SGD, Adam, AdamW and Lion with weight decay; it follows the current lr.",
        ("xx", "xd", "dd", "gg"),
        reference=1.0,
    ),
    _quantity(
        "adam_equivalence",
        "SGD as Adam on the sphere",
        "r^4/R",
        "",
        "> 0",
        "r'^4 / R, R <- (1 - lr wd)^4 R + 2 lr^2 (1 - lr wd)^2 |grad L(u)|^2",
        "SGD on a normalized weight is Adam on the sphere: the norm to the fourth plays the second moment. R is "
        "followed from the gradients alone; 1 says that it holds. With momentum (lr then stands for "
        "lr / (1 - momentum)) it holds on average: above 1, successive gradients agree. Recorded for SGD; unknown "
        "where every_n_steps leaves out gradients.",
        ("xx", "xd", "dd", "gx", "gg"),
        reference=1.0,
    ),
    _quantity(
        "path_length",
        "path length",
        "sum theta",
        "rad",
        ">= 0",
        "theta summed over the steps so far",
        "How far the weight has turned in all, back and forth. (With every_n_steps = n, each measured step counts n "
        "times.)",
        ("xx", "xd", "dd"),
    ),
    _quantity(
        "drift",
        "drift from the start",
        "angle(x0, x')",
        "rad",
        "0 to pi",
        "atan2(|E_perp|, |x0| + <E,x0>/|x0|), E = x' - x0",
        "Angle between the weights at the start (or those of drift_from) and those after this step: how much of a "
        "pretrained direction is left. 1.57 is orthogonal: nothing.",
        ("reference",),
        rare=True,
    ),
    _quantity(
        "straightness",
        "straightness",
        "drift/path",
        "",
        "0 to 1",
        "drift / path_length",
        "1: every step went the same way; near 0: the weight turned to and fro. It falls when the learning rate is too "
        "high for the layer, or training has converged. Unknown where drift is measured from elsewhere (drift_from).",
        ("xx", "xd", "dd", "reference"),
        rare=True,
    ),
    _quantity(
        "lost_update",
        "share of the update lost",
        "sum |P_i|, D_i = 0",
        "",
        "0 to 1",
        "sum of |P_i| where D_i = 0 / sum of |P_i|",
        "Of all the movement that the optimizer asked for, the share asked of entries that did not move at all: "
        "rounding discarded it. Near 0 in float32; towards 1 with bfloat16 weights and a small lr, where training "
        "stands still. Unknown for optimizers that are not known.",
        ("asked",),
        rare=True,
    ),
)
"""Recorded by default; no other inner products are needed than those of the first nine."""

PHENOMENA: tuple[Quantity, ...] = (
    _quantity(
        "deformation_angle",
        "deformation by the division",
        "angle(a, a/b)",
        "rad",
        "0 to pi",
        "angle between a_perp and (a/b)_perp",
        "How far Adam's element-wise division turns the direction of the step away from that of its momentum; 0 for "
        "SGD and AdamS. (The paper's first phenomenon.) It is that of the step as it happened: rounding adds to it "
        "where steps are tiny or weights have low precision.",
        ("xx", "xd", "dd", "aa"),
    ),
    _quantity(
        "momentum_radial_fraction",
        "radial fraction of the momentum",
        "<a,u>/|a|",
        "",
        "-1 to 1",
        "<a,x> / (r |a|)",
        "Share of the direction, before the division, that does not turn the weight: past gradients were tangent "
        "elsewhere, and coupled weight decay is radial. 0 for AdamSRT. (The second phenomenon; the third is "
        "radius_growth.)",
        ("xx", "xd", "dd", "aa"),
    ),
)
"""Recorded besides with ``quantities="full"``: what Adam does that SGD does not."""

CONTEXT: tuple[Quantity, ...] = (
    _quantity(
        "lr",
        "learning rate",
        "lr",
        "",
        ">= 0",
        "lr of the parameter group",
        "The nominal learning rate, as the optimizer's config and the schedule set it.",
        ("xx",),
        context=True,
    ),
    _quantity(
        "equilibrium_angle",
        "angular step in equilibrium",
        "theta_eq",
        "rad",
        "0 to pi",
        "predicted RMS angle, e.g. sqrt(2 lr wd (1 - beta1)/(1 + beta1)) for AdamW",
        "What angular_step comes to once gradients and weight decay balance, at the present learning rate and decay "
        "(Kosson et al., arXiv 2305.17212).",
        ("xx", "gg"),
        context=True,
    ),
    _quantity(
        "equilibrium_norm",
        "weight norm in equilibrium",
        "r_eq",
        "",
        "> 0",
        "predicted norm",
        "What norm comes to at the same time. Gradients of real networks are no random walk: norms often settle "
        "elsewhere, angles closer to their prediction.",
        ("xx", "gg"),
        context=True,
    ),
)
"""Recorded beside "core" and "full": what the numbers are to be compared with."""

QUANTITIES: dict[str, Quantity] = {quantity.name: quantity for quantity in CORE + PHENOMENA + CONTEXT}
"""All quantities by name, in recorded order."""


def sums_of(names: Iterable[str]) -> frozenset[Sum]:
    """All sums that some quantities are computed from."""
    return frozenset[Sum]().union(*(QUANTITIES[name].sums for name in names))


def markdown_table() -> str:
    """The table of quantities as the README shows it (a test holds them equal)."""
    rows = ["| quantity | symbol | unit | range | definition | what it tells |", "|---|---|---|---|---|---|"]
    for quantity in QUANTITIES.values():
        symbol, equation = (text.replace("|", "\\|") for text in (quantity.symbol, quantity.equation))
        rows.append(
            f"| `{quantity.name}` | `{symbol}` | {quantity.unit or '-'} | {quantity.range} | `{equation}` "
            f"| {quantity.meaning} |"
        )
    return "\n".join(rows)
