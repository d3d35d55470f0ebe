"""Is a claimed invariance true? The gradients of every step tell.

A scale-invariant group has ``<g, x> = 0`` (Euler), so the cosine of gradient and weight is a free check of every claim.
Per group (block of a layer) the *residual* is ``sqrt(sum <g,x>^2 / sum |g|^2 |x|^2)`` over steps: the root mean square
of the cosine, each step weighted by its squared gradient, because the cosine of a vanishing gradient is rounding alone.
It is kept over the first steps, over the most recent ones, which decide, and over all.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from lightning_sphere.epsilon import rescaled_share, running_share
from lightning_sphere.geometry import InnerProducts
from lightning_sphere.groups import ScaleGroup
from lightning_sphere.verdict import PerGroup, Verdict, judge, outcome_of

_log = logging.getLogger("lightning_sphere")

FIRST_STEPS = 20
"""So many recorded steps are the first ones."""

RECENT_STEPS = 50
"""So many recorded steps, or a few more, are the most recent ones."""


class Sums:
    """Sums of ``<g,x>^2`` and of ``|g|^2 |x|^2`` per group over some steps."""

    def __init__(self, blocks: int) -> None:
        self.radial = torch.zeros(blocks, dtype=torch.float64, device="cpu")
        self.total = torch.zeros(blocks, dtype=torch.float64, device="cpu")
        self.steps = 0

    def add(self, radial: Float64[Tensor, "steps groups"], total: Float64[Tensor, "steps groups"]) -> None:
        """Take steps; zeros stand for no gradient."""
        self.radial += radial.sum(0)
        self.total += total.sum(0)
        self.steps += len(radial)

    def add_all(self, other: Sums) -> None:
        """Take the steps of others."""
        self.radial += other.radial
        self.total += other.total
        self.steps += other.steps

    @property
    def residual(self) -> PerGroup:
        """The residual; NaN where there was no gradient."""
        return torch.where(self.total > 0, (self.radial / self.total).sqrt(), torch.nan)


class Ledger:
    """The running statistics of one layer.

    Args:
        layer: what is claimed.
    """

    def __init__(self, layer: ScaleGroup) -> None:
        self.layer = layer
        self.first, self.overall = Sums(layer.blocks), Sums(layer.blocks)
        self.residual = torch.full((layer.blocks,), torch.nan, dtype=torch.float64, device="cpu")
        """Over the most recent steps, or the last ones that had a gradient."""
        members = range(layer.blocks) if layer.members is None else layer.members
        self._members = torch.tensor(members, device="cpu")
        self._square_then: Tensor | None = None
        self._recent: deque[tuple[Sums, Tensor]] = deque()  # by flush, with the largest share of eps

    def add(self, gx: Tensor, gg: Tensor, xx: Tensor, running: Tensor | None) -> None:
        """Take the inner products of some steps, ``[steps, blocks]``, and the share of ``eps`` that a norm tells."""
        taken = ~xx.isnan().all(1)  # a skipped step is none
        if not taken.any():
            return
        gx, gg, xx = gx[taken], gg[taken], xx[taken]
        known = (gg * xx > 0) & (gg * xx).isfinite() & gx.isfinite()
        radial, total = (torch.where(known, value, 0.0) for value in (gx * gx, gg * xx))
        room = max(0, FIRST_STEPS - self.first.steps)
        self.first.add(radial[:room], total[:room])
        self.overall.add(radial, total)
        recent = Sums(self.layer.blocks)
        recent.add(radial[-RECENT_STEPS:], total[-RECENT_STEPS:])
        share = self._share(xx, running)
        if self._recent and self._recent[-1][0].steps + recent.steps <= RECENT_STEPS // 5:
            recent.add_all(self._recent[-1][0])  # flushes of few steps share an entry
            share = torch.maximum(share, self._recent.pop()[1])
        self._recent.append((recent, share))
        while sum(sums.steps for sums, _ in self._recent) - self._recent[0][0].steps >= RECENT_STEPS:
            self._recent.popleft()
        together = Sums(self.layer.blocks)
        for sums, _ in self._recent:
            together.add_all(sums)
        self.residual = torch.where(together.total > 0, together.residual, self.residual)

    def verdict(self, size: Tensor) -> Verdict:
        """The layer's verdict, given the entries per group."""
        members = self._members
        share = torch.stack([share for _, share in self._recent]).amax(0) if self._recent else torch.zeros_like(size)
        sorts = judge(self.residual, self.first.residual, size, share)
        verified, dominated, contradicted = (int(mask[members].sum()) for mask in sorts)
        residuals = self.residual[members][(size > 1)[members]]
        return Verdict(
            outcome_of(verified, dominated, contradicted),
            groups=len(members),
            seen=verified + dominated + contradicted,
            verified=verified,
            eps_dominated=dominated,
            contradicted=contradicted,
            residual=_median(residuals),
            worst=max(residuals[~residuals.isnan()].tolist(), default=math.nan),
            first=_median(self.first.residual[members]),
            overall=_median(self.overall.residual[members]),
        )

    def _share(self, xx: Tensor, running: Tensor | None) -> Tensor:
        """The largest share of ``eps`` during some steps: at their end, and if they are the first, at their start."""
        start = self._square_then is None
        if self._square_then is None:
            self._square_then = xx[0].clone()
        now = rescaled_share(self.layer.eps_share, xx[-1], self._square_then) if running is None else running
        return now.clamp_min(self.layer.eps_share or 0.0) if start else now


class Verification:
    """Running statistics and verdicts of all layers that are claimed to be invariant.

    Args:
        model: the network, whose norms may tell how large their ``eps`` is against the variance.

    Attributes:
        verdicts: by name of the layer, as of the last steps taken.
    """

    def __init__(self, model: nn.Module) -> None:
        self.verdicts: dict[str, Verdict] = {}
        self._model = model
        self._ledgers: dict[str, Ledger] = {}
        self._told: set[str] = set()

    def take(self, products: InnerProducts, layers: Sequence[ScaleGroup]) -> None:
        """Add recorded steps and judge anew; what contradicts a claim is told once per layer.

        Args:
            products: of the groups of all layers, one layer after another.
            layers: the layers, in the same order.
        """
        modules: Mapping[str, nn.Module] = dict(self._model.named_modules())
        stop = 0
        for layer in layers:
            start, stop = stop, stop + layer.blocks
            if not layer.invariant:
                self._ledgers.pop(layer.name, None)
                self.verdicts.pop(layer.name, None)
                continue
            ledger = self._ledgers.get(layer.name)
            if ledger is None or not _same_claim(ledger.layer, layer):
                ledger = self._ledgers[layer.name] = Ledger(layer)
            gx, gg, xx = (sums[:, start:stop] for sums in (products.gx, products.gg, products.xx))
            ledger.add(gx, gg, xx, running_share(layer, modules))
            verdict = self.verdicts[layer.name] = ledger.verdict(products.size[start:stop])
            if verdict.outcome == "contradicted" and layer.name not in self._told:
                self._told.add(layer.name)
                _log.warning("%s", contradiction(layer, verdict))


def contradiction(layer: ScaleGroup, verdict: Verdict) -> str:
    """What is told of a claim that the gradients contradict."""
    of = f"in {verdict.contradicted} of its {verdict.seen} groups" if verdict.groups > 1 else "in its one group"
    return (
        f"{layer.name} was taken to be scale-invariant, and its gradients contradict it {of}: |cos(gradient, weight)| "
        f"is up to {verdict.worst:.1e}. (Gradients that are changed after backward, such as by clipping each value, or "
        f"that were taken at other weights, look the same.) It was taken for this reason: {layer.reason}"
    )


def _same_claim(one: ScaleGroup, other: ScaleGroup) -> bool:
    return (one.parts, one.blocks, one.members) == (other.parts, other.blocks, other.members)


def _median(values: Tensor) -> float:
    return float(values.nanmedian()) if len(values) else math.nan
