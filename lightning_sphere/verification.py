"""Is a claimed invariance true? The gradients of every step tell.

A scale-invariant group has ``<g, x> = 0`` (Euler), so the cosine of gradient and weight is a free check of every claim.
Per group (block of a layer) the *residual* is ``sqrt(sum <g,x>^2 / sum |g|^2 |x|^2)`` over steps: the root mean square
of the cosine, each step weighted by its squared gradient, because the cosine of a vanishing gradient is rounding alone.
It is kept over the first steps, over the most recent ones, which decide, and over all.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_sphere.epsilon import NormStatistics, rescaled_share
from lightning_sphere.geometry import InnerProducts
from lightning_sphere.groups import ScaleGroup
from lightning_sphere.statistics import Array, LayerGroups
from lightning_sphere.verdict import Verdict, judge, outcome_of

_log = logging.getLogger("lightning_sphere")

FIRST_STEPS = 20
"""So many recorded steps are the first ones."""

RECENT_STEPS = 50
"""So many recorded steps, or a few more, are the most recent ones."""


@dataclass(frozen=True)
class Sums:
    """Sums of ``<g,x>^2`` and of ``|g|^2 |x|^2`` per group over some steps, float64 ``[groups]``."""

    radial: Array
    total: Array
    steps: int

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.radial + other.radial, self.total + other.total, self.steps + other.steps)

    def of(self, groups: slice | Array) -> Sums:
        """Those of some groups."""
        return Sums(self.radial[groups], self.total[groups], self.steps)

    @property
    def residual(self) -> Array:
        """The residual; NaN where there was no gradient."""
        return np.where(self.total > 0, np.sqrt(self.radial / self.total), np.nan)


class Ledger:
    """The running statistics of some layers that take the same steps.

    Args:
        layers: what is claimed.
    """

    def __init__(self, layers: Sequence[ScaleGroup]) -> None:
        self.layers, self.places = tuple(layers), LayerGroups(layers)
        zeros = np.zeros(self.places.count)
        self.first = self.overall = Sums(zeros, zeros, 0)
        self.residual = zeros + np.nan
        """Over the most recent steps, or the last ones that had a gradient."""
        self._eps_share = self.places.per_group(np.array([layer.eps_share or 0.0 for layer in layers]))
        self._square_then: Array | None = None
        self._recent: deque[tuple[Sums, Array]] = deque()  # by flush, with the largest share of eps

    def select(self, indices: Sequence[int]) -> Ledger:
        """The same of some of the layers."""
        if list(indices) == list(range(len(self.layers))):
            return self
        own = self.places.positions(indices)
        found = Ledger([self.layers[index] for index in indices])
        found.first, found.overall, found.residual = self.first.of(own), self.overall.of(own), self.residual[own]
        found._square_then = None if self._square_then is None else self._square_then[own]
        found._recent = deque((sums.of(own), share[own]) for sums, share in self._recent)
        return found

    @np.errstate(all="ignore")
    def add(self, gx: Array, gg: Array, xx: Array, running: Array) -> None:
        """Take the inner products of some steps.

        Args:
            gx: ``<g, x>`` of steps that were taken, ``[steps, groups]``.
            gg: ``|g|^2``.
            xx: ``|x|^2``.
            running: the share of ``eps`` that a norm tells now, ``[groups]``; NaN where none does.
        """
        if not len(xx):
            return
        radial, total = gx * gx, gg * xx
        known = (total > 0) & np.isfinite(total) & np.isfinite(gx)

        def over(steps: slice) -> Sums:
            one, other = (np.add.reduce(values[steps], axis=0, where=known[steps]) for values in (radial, total))
            return Sums(one, other, len(range(len(xx))[steps]))

        room = max(0, FIRST_STEPS - self.first.steps)
        if room:
            self.first += over(slice(room))
        every = over(slice(None))
        self.overall += every
        recent = every if len(xx) <= RECENT_STEPS else over(slice(-RECENT_STEPS, None))
        share = self._share(xx, running)
        if self._recent and self._recent[-1][0].steps + recent.steps <= RECENT_STEPS // 5:
            before, largest = self._recent.pop()  # flushes of few steps share an entry
            recent, share = recent + before, np.maximum(share, largest)
        self._recent.append((recent, share))
        while sum(sums.steps for sums, _ in self._recent) - self._recent[0][0].steps >= RECENT_STEPS:
            self._recent.popleft()
        together = self._recent[0][0]
        for sums, _ in list(self._recent)[1:]:
            together += sums
        self.residual = np.where(together.total > 0, together.residual, self.residual)

    @np.errstate(all="ignore")
    def verdicts(self, size: Array) -> list[Verdict]:
        """Each layer's verdict, given the entries per group, float64 ``[groups]``."""
        places = self.places
        share = np.max([share for _, share in self._recent], axis=0) if self._recent else np.zeros_like(size)
        first = self.first.residual
        counts = places.total(np.stack(judge(self.residual, first, size, share)) & places.counting)
        telling = np.where((size > 1) & places.counting, self.residual, np.nan)
        worst = np.fmax.reduceat(telling, places.starts)
        medians = places.lower_median(np.stack([telling, first, self.overall.residual]))
        groups = places.total(places.counting)
        found = zip(groups.tolist(), *counts.tolist(), worst.tolist(), *medians.tolist(), strict=True)
        return [
            Verdict(
                outcome_of(verified, dominated, contradicted),
                groups=count,
                seen=verified + dominated + contradicted,
                verified=verified,
                eps_dominated=dominated,
                contradicted=contradicted,
                residual=residual,
                worst=largest,
                first=at_first,
                overall=overall,
            )
            for count, verified, dominated, contradicted, largest, residual, at_first, overall in found
        ]

    def _share(self, xx: Array, running: Array) -> Array:
        """The largest share of ``eps`` during some steps: at their end, and if they are the first, at their start."""
        start = self._square_then is None
        if self._square_then is None:
            self._square_then = xx[0].copy()
        rescaled = rescaled_share(self._eps_share, xx[-1], self._square_then)
        now = np.where(np.isnan(running), rescaled, running)
        return np.maximum(now, self._eps_share) if start else now


@dataclass
class _Arranged:
    """Which ledger keeps which of an optimizer's layers."""

    layers: tuple[ScaleGroup, ...]
    places: LayerGroups
    ledgers: list[tuple[Ledger, list[int]]]
    """With the indices of the layers."""


class Verification:
    """Running statistics and verdicts of all layers that are claimed to be invariant.

    Attributes:
        verdicts: by name of the layer, as of the last steps taken.
    """

    def __init__(self) -> None:
        self.verdicts: dict[str, Verdict] = {}
        self._arranged: list[_Arranged] = []
        self._told: set[str] = set()

    def take(
        self, products: InnerProducts, layers: Sequence[ScaleGroup], statistics: NormStatistics | None = None
    ) -> None:
        """Add recorded steps and judge anew; what contradicts a claim is told once per layer.

        Args:
            products: of the groups of all layers, one layer after another.
            layers: the layers, in the same order.
            statistics: what the layers' norms tell of their ``eps``.
        """
        arranged = self._arrange(layers)
        places = arranged.places
        gx, gg, xx = (sums.numpy()[:, : places.count] for sums in (products.gx, products.gg, products.xx))
        size, running = products.size.numpy()[: places.count], np.full(places.count, np.nan)
        for index, share in (statistics.shares() if statistics is not None else {}).items():
            running[places.of(index)] = share
        taken = places.total(~np.isnan(xx)) > 0  # [steps, layers]: a skipped step is none
        arranged.ledgers = [part for known in arranged.ledgers for part in _alike(*known, taken)]
        for ledger, indices in arranged.ledgers:
            own, steps = places.positions(indices), taken[:, indices[0]]
            rows = slice(None) if steps.all() else steps
            ledger.add(gx[rows][:, own], gg[rows][:, own], xx[rows][:, own], running[own])
            for index, verdict in zip(indices, ledger.verdicts(size[own]), strict=True):
                layer = layers[index]
                self.verdicts[layer.name] = verdict
                if verdict.outcome == "contradicted" and layer.name not in self._told:
                    self._told.add(layer.name)
                    _log.warning("%s", contradiction(layer, verdict))

    def _arrange(self, layers: Sequence[ScaleGroup]) -> _Arranged:
        """Ledgers for just these layers, with what is known of any of them."""
        for arranged in self._arranged:
            if len(arranged.layers) == len(layers) and all(map(_identical, arranged.layers, layers)):
                return arranged
        index_of = {layer.name: index for index, layer in enumerate(layers)}
        found = _Arranged(tuple(layers), LayerGroups(layers), [])
        new = {index for index, layer in enumerate(layers) if layer.invariant}
        for arranged in self._arranged:
            rest = []
            for ledger, indices in arranged.ledgers:
                here, staying = [], []  # of the ledger's layers: those to judge here, and those of other optimizers
                for there, layer in enumerate(ledger.layers):
                    index = index_of.get(layer.name)
                    if index is None:
                        staying.append(there)
                    elif layers[index].invariant and _same_claim(layer, layers[index]):
                        here.append((there, index))
                if here:
                    found.ledgers.append((ledger.select([there for there, _ in here]), [index for _, index in here]))
                    new -= {index for _, index in here}
                if staying:
                    rest.append((ledger.select(staying), [indices[there] for there in staying]))
                if len(staying) < len(indices):
                    arranged.layers = ()  # it is no longer that of any plan
            arranged.ledgers = rest
        if new:
            found.ledgers.append((Ledger([layers[index] for index in sorted(new)]), sorted(new)))
        for layer in layers:
            if not layer.invariant:
                self.verdicts.pop(layer.name, None)
        self._arranged = [arranged for arranged in self._arranged if arranged.ledgers] + [found]
        return found


def _identical(one: object, other: object) -> bool:
    return one is other


def _alike(ledger: Ledger, indices: list[int], taken: Array) -> Iterator[tuple[Ledger, list[int]]]:
    """Part layers that took different steps.

    Args:
        ledger: of some layers.
        indices: of these layers.
        taken: bool ``[steps, layers]``.
    """
    patterns: dict[bytes, list[int]] = {}
    for there, index in enumerate(indices):
        patterns.setdefault(taken[:, index].tobytes(), []).append(there)
    for theres in patterns.values():
        yield ledger.select(theres), [indices[there] for there in theres]


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
