"""What the gradients say of a claimed invariance: verdicts, and the bounds behind them, as pure functions.

A residual is *large* above ``0.1 / sqrt(d)``, ``d`` being the number of entries. Measured on the digits network of
``examples/01`` and on others (SGD and AdamW; ``d`` from 2 to a million), in units of ``1 / sqrt(d)``:

==============================================  ==========================
true claim, float32                             up to 0.0013
true claim, bfloat16 autocast                   up to 0.023
true claim, bfloat16 weights, first 10 steps    up to 0.03
the same when the loss has come down to 0.001   up to 0.1
wrong claim, rows                               0.04 to 9, median 0.4 to 4
wrong claim, whole weights                      0.14 to 18
==============================================  ==========================

Rounding grows where gradients fade, so a group that the first steps bore out is held to three times as much later on.
A wrong claim is wrong for nearly all groups of a layer, rounding large in few: up to one in a hundred decides nothing.

With the share ``s`` of the norm's ``eps`` in what it divides by, the weight's scale matters by the factor ``s``. On the
same network, with ``eps`` from 1e-3 to 1 in its place, the residual was at most ``2 s``: up to ``10 s`` is laid to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Outcome = Literal["verified", "contradicted", "not yet seen", "eps dominates"]

LARGE = 0.1
"""A residual is large above this over ``sqrt(d)``."""

ONCE_VERIFIED = 3.0
"""So many times more it may be in a group that the first steps bore out."""

EXPLAINS = 10.0
"""A share ``s`` of ``eps`` explains residuals up to so many times ``s``."""

PRACTICAL = 1e-2
"""A residual up to here that ``eps`` explains leaves a group invariant in practice."""

NEGLIGIBLE = 0.01
"""Share of a layer's groups that decides nothing."""


@dataclass(frozen=True)
class Verdict:
    """What the gradients say of one layer's claim.

    A residual is the root mean square over steps, weighted by the squared gradient, of a group's
    ``|cos(gradient, weight)|``: from 0 to 1, NaN where no group had a gradient.

    ``contradicted``: groups change with their scale, and no ``eps`` explains it. ``eps dominates``: groups are
    invariant by structure, but not in practice, since the norm's ``eps`` is not small against the variance.
    ``verified``: of no more than one group in a hundred either can be said. ``not yet seen``: no group had a gradient.

    Attributes:
        outcome: ``verified``, ``contradicted``, ``eps dominates`` or ``not yet seen``, as the most recent steps decide.
        groups: groups that the claim is about.
        seen: groups that had a gradient; only they are counted below.
        verified: groups that nothing speaks against.
        eps_dominated: groups that the norm's ``eps`` keeps from being invariant in practice.
        contradicted: groups that change with their scale for no reason that is known.
        residual: residual over the most recent steps: the median over the layer's groups.
        worst: residual over the most recent steps: the largest of the layer's groups.
        first: residual over the first steps: the median over the layer's groups.
        overall: residual over all steps: the median over the layer's groups.
    """

    outcome: Outcome
    groups: int
    seen: int = 0
    verified: int = 0
    eps_dominated: int = 0
    contradicted: int = 0
    residual: float = math.nan
    worst: float = math.nan
    first: float = math.nan
    overall: float = math.nan

    @property
    def concerned(self) -> int:
        """How many of the groups seen the outcome is about."""
        others = {"contradicted": self.contradicted, "eps dominates": self.eps_dominated}
        return others.get(self.outcome, self.verified)

    @property
    def share(self) -> float:
        """Share of the groups seen that the outcome is about; NaN where none was seen."""
        return self.concerned / self.seen if self.seen else math.nan

    @property
    def verified_share(self) -> float:
        """Share of the groups seen that nothing speaks against; NaN where none was seen."""
        return self.verified / self.seen if self.seen else math.nan


PerGroup: TypeAlias = npt.NDArray[Any]
"""float64 ``[groups]``, or bool."""


def judge(
    residual: PerGroup, first: PerGroup, size: PerGroup, eps_share: PerGroup
) -> tuple[PerGroup, PerGroup, PerGroup]:
    """Sort groups by what their residual says.

    Args:
        residual: over the most recent steps; NaN where there was no gradient.
        first: over the first steps.
        size: entries per group. One of a single entry says nothing: invariance leaves it no gradient but rounding.
        eps_share: share of ``eps`` in what the norm divides by; 0 where unknown.

    Returns:
        Which are verified, which are dominated by ``eps``, which are contradicted.
    """
    seen = ~np.isnan(residual) & (size > 1)
    limit = LARGE / np.sqrt(size)
    large = residual > np.where(first <= limit, ONCE_VERIFIED * limit, limit)
    explained = residual <= EXPLAINS * eps_share
    dominated = seen & explained & (residual > PRACTICAL)
    contradicted = seen & large & ~explained
    return seen & ~dominated & ~contradicted, dominated, contradicted


def outcome_of(verified: int, dominated: int, contradicted: int) -> Outcome:
    """The outcome for a layer of so many groups of each sort."""
    seen = verified + dominated + contradicted
    if not seen:
        return "not yet seen"
    if contradicted > NEGLIGIBLE * seen:
        return "contradicted"
    return "eps dominates" if dominated > NEGLIGIBLE * seen else "verified"
