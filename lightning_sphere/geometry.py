"""From inner products to the quantities of the paper: pure functions, no state.

Legend (Roburin et al., arXiv 2006.13382, section 3; per group, before the step unless primed):

======================  ==============================================================================
``x``, ``x' = x + D``   weights before and after the optimizer step; ``D`` is the whole displacement
``r = |x|``             radius; ``u = x/r`` the point on the unit sphere
``g``                   gradient that the optimizer used; ``|grad L(u)| = r |g_perp|``
``eta``                 configured learning rate (``lr`` everywhere else in the package)
``b``                   element-wise divisor of the update; ``nu = r |b| / sqrt(d)``
``c = -(nu/eta) D``     the step on the sphere's scale; ``c_perp`` its tangential part
``a``                   the optimizer's direction before the division: ``D = -eta a/b``, less decoupled decay
``eta_e``               effective learning rate; ``theta = arctan(eta_e |c_perp|)`` the angular step
======================  ==============================================================================

All of it is computed in float64 from sums that the hot path accumulated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeAlias

import torch
from jaxtyping import Float64
from torch import Tensor

PerGroup: TypeAlias = Float64[Tensor, "steps groups"]

TILE = 1 << 14
"""Numbers in a tile at most: its intermediate results stay in the cache, and torch starts no threads for so few."""


@dataclass(frozen=True)
class InnerProducts:
    """Inner products per step and group; every tensor is float64 of shape ``[steps, groups]`` unless said otherwise.

    They are additive: sums over the tensors of a group, over shards and over ranks simply add up.
    """

    xx: PerGroup
    """``<x, x>``"""
    xd: PerGroup
    """``<x, D>``"""
    dd: PerGroup
    """``<D, D>``"""
    gx: PerGroup
    """``<g, x>``; NaN where the group had no gradient."""
    gg: PerGroup
    """``<g, g>``; NaN where the group had no gradient."""
    bb: PerGroup
    """``|b|^2``; ``d`` where the optimizer divides by nothing, NaN where unknown."""
    lr: PerGroup
    """Learning rate; NaN where a group's tensors have different ones."""
    size: Float64[Tensor, " groups"]
    """``d``, entries per group, shape ``[groups]``."""
    aa: PerGroup | None = None
    """``<a, a>``; NaN where unknown, ``None`` where it was not asked for."""
    ax: PerGroup | None = None
    """``<a, x>``."""
    ad: PerGroup | None = None
    """``<a, D>``; ``None`` also where ``b = 1``, so that nothing is deformed."""

    # What several quantities share is computed once.

    @cached_property
    def radius(self) -> PerGroup:
        """``r = |x|``"""
        return self.xx.sqrt()

    @cached_property
    def turned_square(self) -> PerGroup:
        """``|D_perp|^2``"""
        return tangential_square(self.dd, self.xd, self.xx)

    @cached_property
    def stretch(self) -> PerGroup:
        """``1 + <x,D>/<x,x>``"""
        return 1.0 + self.xd / self.xx

    @cached_property
    def across(self) -> PerGroup:
        """``|D_perp| = |x'| sin(theta)``"""
        return self.turned_square.sqrt()

    @cached_property
    def along(self) -> PerGroup:
        """``r + <D,u> = |x'| cos(theta)``"""
        return self.radius * self.stretch

    @cached_property
    def angle(self) -> PerGroup:
        """``theta``"""
        return torch.atan2(self.across, self.along)

    @cached_property
    def divisor(self) -> PerGroup:
        """``nu``"""
        return (self.xx * self.bb / self.size).sqrt()

    @cached_property
    def slope(self) -> PerGroup:
        """``r |g_perp|``"""
        return (self.xx * tangential_square(self.gg, self.gx, self.xx)).sqrt()

    def part(self, steps: slice, groups: slice) -> InnerProducts:
        """Some steps of some groups, as views."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        size = values.pop("size")[groups]
        cut: dict[str, Any] = {name: None if value is None else value[steps, groups] for name, value in values.items()}
        return InnerProducts(size=size, **cut)


def tiles(steps: int, groups: int) -> Iterator[tuple[slice, slice]]:
    """Cut ``[steps, groups]`` into rectangles of at most ``TILE`` numbers."""
    for start in range(0, groups, TILE):
        columns = slice(start, min(start + TILE, groups))
        rows = max(1, TILE // (columns.stop - start))
        for first in range(0, steps, rows):
            yield slice(first, min(first + rows, steps)), columns


def tangential_square(aa: PerGroup, ax: PerGroup, xx: PerGroup) -> PerGroup:
    """``|a_perp|^2 = <a,a> - <a,x>^2/<x,x>``, not below 0 where rounding would make it so."""
    return (aa - ax * ax / xx).clamp_min(0.0)


def norm(s: InnerProducts) -> PerGroup:
    """``r = |x|``."""
    return s.radius


def angular_step(s: InnerProducts) -> PerGroup:
    """``theta = atan2(|D_perp|, r + <D,u>)`` in radians: exact, and free of the arccos of a number near 1.

    Its floor is about ``1e-8 |D|/r``, where ``D`` is radial up to rounding of the float64 sums.
    """
    return s.angle


def second_moment(s: InnerProducts) -> PerGroup:
    """``nu = r |b| / sqrt(d)``; equals ``r`` where ``b = 1``."""
    return s.divisor


def effective_lr(s: InnerProducts) -> PerGroup:
    """``eta_e = eta/(r nu) (1 - eta <c,u>/(r nu))^-1``, with ``-eta <c,u>/(r nu) = <x,D>/<x,x>``.

    NaN where the optimizer took no step for the group (no gradient), where its tensors have different learning rates,
    and where a divisor is unknown or has never seen a gradient.
    """
    rate = s.lr / (s.radius * s.divisor) / s.stretch
    return torch.where(s.gg.isnan(), torch.nan, rate)


def gradient_norm(s: InnerProducts) -> PerGroup:
    """``|grad L(u)| = r |g_perp|``."""
    return s.slope


def spherical_lr(s: InnerProducts) -> PerGroup:
    """``tan(theta) / |grad L(u)|``; NaN where the gradient is zero."""
    return torch.where(s.slope > 0, s.across / s.along / s.slope, torch.nan)


def radial_fraction(s: InnerProducts) -> PerGroup:
    """``<c,u>/|c| = -<x,D>/(r |D|)``; NaN where the weights did not move."""
    return -s.xd / (s.xx * s.dd).sqrt()


def radius_growth(s: InnerProducts) -> PerGroup:
    """``log(r'/r)``, through ``log1p`` because a step changes the norm by little; NaN for a weight that was zero."""
    return torch.where(s.xx > 0, 0.5 * torch.log1p((2.0 * s.xd + s.dd) / s.xx), torch.nan)


def invariance_residual(s: InnerProducts) -> PerGroup:
    """``|<g,x>| / (|g| |x|)``: Euler's identity says 0 for a scale-invariant group; NaN where the gradient is zero."""
    return s.gx.abs() / (s.gg * s.xx).sqrt()


def deformation_angle(s: InnerProducts) -> PerGroup:
    """Angle between the tangential parts of ``a`` and ``a/b``, in radians: the first phenomenon.

    ``(a/b)_perp`` is ``-D_perp`` up to its length, for decoupled decay is radial. NaN where one of them is zero.
    """
    if s.aa is None or s.ax is None:
        return torch.full_like(s.xx, torch.nan)
    a, d = tangential_square(s.aa, s.ax, s.xx), s.turned_square
    if s.ad is None:
        return torch.where(a > 0, torch.zeros_like(a), torch.nan)
    along = s.ax * s.xd / s.xx - s.ad
    across = (a * d - along * along).clamp_min(0.0).sqrt()
    return torch.where((a > 0) & (d > 0), torch.atan2(across, along), torch.nan)


def momentum_radial_fraction(s: InnerProducts) -> PerGroup:
    """``<a,u>/|a|``: the second phenomenon; NaN where ``a`` is zero."""
    if s.aa is None or s.ax is None:
        return torch.full_like(s.xx, torch.nan)
    return s.ax / (s.aa * s.xx).sqrt()


def angle_between(x0x0: PerGroup, x0e: PerGroup, ee: PerGroup) -> PerGroup:
    """Angle between ``x0`` and ``x0 + E`` in radians, as :func:`angular_step` takes that of one step.

    Args:
        x0x0: ``<x0, x0>``.
        x0e: ``<x0, E>``.
        ee: ``<E, E>``.
    """
    return torch.atan2(tangential_square(ee, x0e, x0x0).sqrt(), x0x0.sqrt() * (1.0 + x0e / x0x0))


FORMULAS = {
    "norm": norm,
    "angular_step": angular_step,
    "effective_lr": effective_lr,
    "spherical_lr": spherical_lr,
    "gradient_norm": gradient_norm,
    "radial_fraction": radial_fraction,
    "radius_growth": radius_growth,
    "invariance_residual": invariance_residual,
    "second_moment": second_moment,
    "deformation_angle": deformation_angle,
    "momentum_radial_fraction": momentum_radial_fraction,
}
"""Formula by name of each quantity that one step's sums give (see :mod:`lightning_sphere.quantities`)."""


def evaluate(s: InnerProducts, names: Sequence[str]) -> Float64[Tensor, "quantities steps groups"]:
    """All quantities of all steps and groups at once.

    Args:
        s: inner products of ``steps x groups``.
        names: which quantities, in order.

    Returns:
        float64 of shape ``[quantities, steps, groups]``; NaN where unknown.
    """
    result = torch.empty(len(names), *s.xx.shape, dtype=s.xx.dtype, device=s.xx.device)
    for rows, columns in tiles(*s.xx.shape):
        part = s.part(rows, columns)
        for found, name in zip(result, names, strict=True):
            found[rows, columns] = FORMULAS[name](part)
    return result
