"""From numbers per group to numbers per layer, and from layers to one summary curve.

NumPy's sort is several times as fast as torch's, and starts no threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_sphere.groups import ScaleGroup

QUANTILES: tuple[float, ...] = (0.1, 0.5, 0.9)

Array: TypeAlias = npt.NDArray[Any]


class LayerGroups:
    """Where the groups of some layers stand among all groups, one layer after another.

    Args:
        layers: in order. Where only some blocks of a layer are invariant, only they count.

    Attributes:
        count: how many groups there are, all blocks counted.
        starts: first group of each layer, int64 ``[layers]``.
        blocks: groups of each layer, int64 ``[layers]``.
        counting: which groups count, bool ``[groups]``.
    """

    def __init__(self, layers: Sequence[ScaleGroup]) -> None:
        self.blocks = np.array([layer.blocks for layer in layers], dtype=np.int64)
        stops = np.cumsum(self.blocks)
        self.starts = stops - self.blocks
        self.count = int(stops[-1]) if len(layers) else 0
        self.counting = np.ones(self.count, dtype=bool)
        self._alike: dict[int, tuple[list[int], list[slice | Array]]] = {}  # by how many groups count
        for number, (layer, start) in enumerate(zip(layers, self.starts.tolist(), strict=True)):
            own: slice | Array = slice(start, start + layer.blocks)
            if layer.members is not None:
                self.counting[own] = False
                own = start + np.array(layer.members, dtype=np.int64)
                self.counting[own] = True
            size = layer.blocks if layer.members is None else len(layer.members)
            numbers, places = self._alike.setdefault(size, ([], []))
            numbers.append(number)
            places.append(own)

    def of(self, layer: int) -> slice:
        """The groups of one layer."""
        start = int(self.starts[layer])
        return slice(start, start + int(self.blocks[layer]))

    def positions(self, layers: Sequence[int]) -> slice | Array:
        """The groups of some layers, one layer after another; a slice where they stand together."""
        if list(layers) == list(range(layers[0], layers[0] + len(layers))):
            return slice(self.of(layers[0]).start, self.of(layers[-1]).stop)
        return np.concatenate([np.arange(own.start, own.stop) for own in map(self.of, layers)])

    def alike(self, values: Array) -> Iterator[tuple[list[int], Array]]:
        """Layers of equally many groups, for what is done to each group's numbers in one call.

        Args:
            values: ``[..., groups]``.

        Yields:
            Indices of the layers, and a copy of the values of their groups that count, ``[layers, ..., n]``.
        """
        for size, (numbers, places) in self._alike.items():
            found = np.empty((len(numbers), *values.shape[:-1], size), dtype=values.dtype)
            for part, place in zip(found, places, strict=True):
                part[...] = values[..., place]
            yield numbers, found

    def total(self, values: Array) -> Array:
        """Sums over all groups of each layer, ``[..., groups]`` -> ``[..., layers]``; booleans are counted."""
        dtype = np.int64 if values.dtype == bool else values.dtype
        return np.add.reduceat(values, self.starts, axis=-1, dtype=dtype)

    def per_group(self, values: Array) -> Array:
        """Each layer's number for all of its groups, ``[..., layers]`` -> ``[..., groups]``."""
        return np.repeat(values, self.blocks, axis=-1)

    def lower_median(self, values: Array) -> Array:
        """The median of each layer's groups that count, the lower one of two; NaN left out, NaN where all are.

        Args:
            values: ``[..., groups]``.

        Returns:
            ``[..., layers]``.
        """
        result = np.full((*values.shape[:-1], len(self.blocks)), np.nan)
        for numbers, own in self.alike(values):
            if own.shape[-1]:
                own.sort(axis=-1)
                at = np.maximum(_known(own) - 1, 0) // 2
                result[..., numbers] = np.moveaxis(np.take_along_axis(own, at[..., None], axis=-1)[..., 0], 0, -1)
        return result


def spread(values: Array) -> Array:
    """10th, 50th and 90th percentile along the last axis, NaN left out.

    Args:
        values: floating point of shape ``[..., n]``.

    Returns:
        Shape ``[..., 3]``, linearly interpolated; NaN where every value is.
    """
    return _spread_of_sorted(np.sort(values, axis=-1))


def _known(ordered: Array) -> Array:
    """How many numbers along the last axis are not NaN, int64 ``[...]``; NaN stands last."""
    known = np.full(ordered.shape[:-1], ordered.shape[-1], dtype=np.int64)
    some = np.isnan(ordered[..., -1])
    if some.any():
        known[some] = np.count_nonzero(~np.isnan(ordered[some]), axis=-1)
    return known


def _spread_of_sorted(ordered: Array) -> Array:
    result = np.full((*ordered.shape[:-1], len(QUANTILES)), np.nan, dtype=ordered.dtype)
    known = _known(ordered)
    counts = set(known.ravel().tolist()) - {0}
    for count in counts:
        rows: Any = ... if len(counts) == 1 else known == count
        some = ordered[rows]
        for index, quantile in enumerate(QUANTILES):
            position = (count - 1) * quantile
            below = math.floor(position)
            low, high = some[..., below], some[..., math.ceil(position)]
            with np.errstate(invalid="ignore"):  # infinite values less each other
                between = low + (position - below) * (high - low)
            result[rows, index] = np.where(low == high, low, between)
    return result


def rms(values: Array) -> Array:
    """Root mean square along the last axis, NaN left out; NaN where every value is."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        result = np.sqrt(np.einsum("...i,...i->...", values, values) / values.shape[-1])
        some = np.isnan(result)
        if some.any():
            known = values[some]
            counts = np.count_nonzero(~np.isnan(known), axis=-1)
            result[some] = np.sqrt(np.nansum(np.square(known), axis=-1) / counts)
    return np.asarray(result)


def per_layer(values: Array, groups: LayerGroups) -> Array:
    """Statistics over the groups of each layer.

    Args:
        values: float64 ``[quantities, steps, groups]``, the groups of all layers one after another.
        groups: where those of each layer are.

    Returns:
        float64 ``[steps, layers, quantities, 4]``, the last axis as in :data:`lightning_sphere.quantities.STATS`.
    """
    quantities, steps, _ = values.shape
    result = np.empty((steps, len(groups.blocks), quantities, len(QUANTILES) + 1))
    for numbers, own in groups.alike(values):  # [layers, quantities, steps, n]
        stats = np.empty((*own.shape[:-1], len(QUANTILES) + 1))
        stats[..., -1] = rms(own)
        own.sort(axis=-1)
        stats[..., :-1] = _spread_of_sorted(own)
        result[:, numbers] = stats.transpose(2, 0, 1, 3)
    return result
