"""How the groups of a layer are spread: counts over equal buckets, of all layers at once.

The counts are those of ``numpy.histogram``, but made without a call per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from lightning_sphere.groups import ScaleGroup
from lightning_sphere.statistics import LayerGroups
from lightning_sphere.strides import Stride

SHOWN: tuple[str, ...] = ("norm", "angular_step", "effective_lr")
"""Quantities that histograms are made of, as far as they are recorded."""

BUCKETS = 30
"""As many as TensorBoard draws."""

USUAL = 100
"""``histograms=True`` makes them at each recorded step of so many."""

ALIKE = 1e-12
"""Values whose spread is a smaller share of them than this are taken for one: no edges fit between them."""

Buckets: TypeAlias = npt.NDArray[np.float64]
"""``[buckets, 3]``: left edge, right edge, count; TensorBoard's own form."""

Counted: TypeAlias = dict[tuple[str, str], Buckets]
"""The histograms of one step by quantity and layer."""


class Histograms:
    """Makes the histograms of each n-th recorded step of each optimizer.

    Args:
        every: n.
        quantities: what is recorded.
    """

    def __init__(self, every: int, quantities: Sequence[str]) -> None:
        self._every, self._names = every, [name for name in SHOWN if name in quantities]
        self._strides: WeakKeyDictionary[object, Stride] = WeakKeyDictionary()

    def begin(
        self, whose: object, layers: Sequence[ScaleGroup], places: LayerGroups, xx: npt.NDArray[np.float64]
    ) -> Counting:
        """Choose among some recorded steps.

        Args:
            whose: the optimizer, or what stands for it.
            layers: its layers, in the order of their groups.
            places: where their groups are.
            xx: squared norms, ``[steps, groups]``; not finite all over a skipped step.
        """
        stride = self._strides.setdefault(whose, Stride(self._every))
        known: npt.NDArray[np.bool_] = np.asarray(np.isfinite(xx).any(axis=1))
        rows = stride.take(known)
        return Counting(GroupHistograms(layers, places), rows, self._names)


class Counting:
    """The histograms of some recorded steps, as their values come.

    Args:
        groups: of the layers.
        rows: of the steps to be counted.
        names: quantities.

    Attributes:
        found: by row.
    """

    def __init__(self, groups: GroupHistograms, rows: Sequence[int], names: Sequence[str]) -> None:
        self.found: dict[int, Counted] = {}
        self._groups, self._rows, self._names = groups, rows, names

    def take(self, start: int, names: Sequence[str], values: npt.NDArray[np.float64]) -> None:
        """Count.

        Args:
            start: row of the first step.
            names: quantities.
            values: ``[quantities, steps, groups]``.
        """
        rows = [row for row in self._rows if start <= row < start + values.shape[1]]
        for name in self._names if rows else ():
            counted = self._groups.of(values[names.index(name)][[row - start for row in rows]])
            for row, layers in zip(rows, counted, strict=True):
                self.found.setdefault(row, {}).update({(name, layer): own for layer, own in layers.items()})


class GroupHistograms:
    """Histograms over the groups of each invariant layer that has more than one.

    Args:
        layers: all layers, in the order of their groups.
        places: where their groups are.
    """

    def __init__(self, layers: Sequence[ScaleGroup], places: LayerGroups) -> None:
        self._names = [layer.name for layer in layers]
        several = places.total(places.counting) > 1
        wanted = several & np.array([layer.invariant for layer in layers], dtype=bool)
        self._groups = np.flatnonzero(places.counting & places.per_group(wanted))
        self._layer = places.per_group(np.arange(len(layers)))[self._groups]

    def of(self, values: npt.NDArray[np.float64]) -> list[dict[str, Buckets]]:
        """Count the groups of each layer.

        Args:
            values: ``[rows, groups]``; what is not finite is left out.

        Returns:
            For each row, the buckets of each layer that has any known value, by its name.
        """
        rows = len(values)
        layer = (np.arange(rows)[:, None] * len(self._names) + self._layer).ravel()
        found: list[dict[str, Buckets]] = [{} for _ in range(rows)]
        for place, buckets in histograms(values[:, self._groups].ravel(), layer):
            row, index = divmod(place, len(self._names))
            found[row][self._names[index]] = buckets
        return found


@np.errstate(over="ignore")
def histograms(values: npt.NDArray[np.float64], where: npt.NDArray[np.int64]) -> list[tuple[int, Buckets]]:
    """One histogram for each run of equal labels.

    Args:
        values: ``[n]``; what is not finite is left out.
        where: label of each value, ``[n]``, ascending.

    Returns:
        Each label that has a value, with :data:`BUCKETS` buckets from the smallest to the largest, as
        ``numpy.histogram`` makes them; or with a single one, without width, where all are the same.
    """
    known = np.isfinite(values)
    values, where = values[known], where[known]
    if not len(values):
        return []
    first = np.flatnonzero(np.concatenate([[True], where[1:] != where[:-1]]))
    size = np.diff(first, append=len(values))
    low, high = np.minimum.reduceat(values, first), np.maximum.reduceat(values, first)
    width = high - low
    same = (width <= ALIKE * np.maximum(np.abs(low), np.abs(high))) | ~np.isfinite(width)
    apart = np.where(same, 1.0, width)

    own = np.repeat(np.arange(len(first)), size)  # each value's histogram
    edges = np.linspace(low, low + apart, BUCKETS + 1, axis=1)
    edges[:, -1] = np.where(same, edges[:, -1], high)
    with np.errstate(invalid="ignore"):
        bucket = ((values - low[own]) / apart[own] * BUCKETS).astype(np.int64).clip(0, BUCKETS - 1)
    # Rounding may miss by one: the edges decide.
    bucket -= values < edges[own, bucket]
    bucket += (values >= edges[own, bucket + 1]) & (bucket != BUCKETS - 1)
    counts = np.bincount(own * BUCKETS + bucket.clip(0), minlength=len(first) * BUCKETS).reshape(-1, BUCKETS)

    table = np.stack([edges[:, :-1], edges[:, 1:], counts], axis=-1)
    labels = where[first].tolist()
    single = {int(k): np.array([[low[k], high[k], size[k]]], dtype=np.float64) for k in np.flatnonzero(same)}
    return [(label, single.get(index, table[index])) for index, label in enumerate(labels)]
