"""What a flush hands to its sinks: many steps of the table, and the few curves that summarize it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lightning_sphere.histograms import Counted
from lightning_sphere.quantities import QUANTITIES, STATS
from lightning_sphere.statistics import spread
from lightning_sphere.strides import Stride
from lightning_sphere.tensorboard.schema import TableSchema

MEDIAN = STATS.index("median")
RMS = STATS.index("rms")


@dataclass(frozen=True)
class Recording:
    """Consecutive recorded steps."""

    schema: TableSchema
    steps: npt.NDArray[np.int64]
    """Positions on the user's x axis, ``[steps]``."""
    wall_times: npt.NDArray[np.float64]
    """Seconds since the epoch, ``[steps]``."""
    table: npt.NDArray[np.float32]
    """``[steps, layers, quantities, stats]``; NaN where unknown or skipped."""
    scalars: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Summary curves by tag, ``[steps]``; NaN where there is nothing to show."""
    partial: npt.NDArray[np.bool_] | None = None
    """Which steps were not taken by all optimizers, ``[steps]``; ``None`` if there is only one."""
    histograms: dict[int, Counted] = field(default_factory=dict)
    """How the groups of each layer are spread, by row, at those steps where that is counted."""

    def __len__(self) -> int:
        return len(self.steps)

    @cached_property
    def known_scalars(self) -> npt.NDArray[np.bool_]:
        """Which of :attr:`scalars` are known, ``[steps, tags]``."""
        known: npt.NDArray[np.bool_] = ~np.isnan(self._stacked)
        return known

    def scalars_at(self, row: int) -> dict[str, float]:
        """The known ones of a step, by tag."""
        found = np.flatnonzero(self.known_scalars[row])
        values = self._stacked[row, found].tolist()
        return {self._tags[index]: value for index, value in zip(found.tolist(), values, strict=True)}

    @cached_property
    def _tags(self) -> list[str]:
        return list(self.scalars)

    @cached_property
    def _stacked(self) -> npt.NDArray[np.float32]:
        none = np.empty((len(self), 0), dtype=np.float32)
        return np.stack(list(self.scalars.values()), axis=1) if self.scalars else none


class Sink(Protocol):
    """Somewhere to put recordings."""

    def write(self, recording: Recording) -> None:
        """Take the steps of one flush."""

    def close(self) -> None:
        """Make sure that everything taken is kept."""


def shown_layers(schema: TableSchema) -> npt.NDArray[np.intp]:
    """Indices of the layers that count where one number stands for all: those that a normalization follows, if any."""
    return np.flatnonzero(schema.invariant) if any(schema.invariant) else np.arange(len(schema.layers))


def summary_scalars(
    recording: Recording, *, per_layer: Mapping[str, Stride] | None = None
) -> dict[str, npt.NDArray[np.float32]]:
    """The curves shown as ordinary scalars.

    ``sphere/<quantity>`` is the median over layers of each layer's median, ``sphere_bands/<quantity>/p10`` and ``p90``
    the spread over layers. Layers that no normalization follows are left out, unless there are no others. Where several
    optimizers step at different times, only steps that all took have a point: medians over changing sets of layers
    would jump for no other reason. (If there are none, every step has one.)

    Args:
        recording: without scalars.
        per_layer: by name of the quantity, at which steps to add ``sphere_<quantity>/<layer>`` for every layer.

    Returns:
        Arrays of shape ``[steps]`` by tag.
    """
    schema, table = recording.schema, recording.table
    medians = table[..., MEDIAN]
    over_layers = spread(medians[:, shown_layers(schema)].swapaxes(1, 2))  # [steps, quantities, 3]
    if recording.partial is not None and not recording.partial.all():
        over_layers[recording.partial] = np.nan
    curves: dict[str, npt.NDArray[np.float32]] = {}
    drawn = [(index, name) for index, name in enumerate(schema.quantities) if not _context(name)]
    for index, name in drawn:
        low, middle, high = np.moveaxis(over_layers[:, index], -1, 0)
        curves[f"sphere/{name}"] = middle
        curves[f"sphere_bands/{name}/p10"] = low
        curves[f"sphere_bands/{name}/p90"] = high
    strides = per_layer or {}
    for index, name in ((index, name) for index, name in drawn if name in strides):
        values = medians[..., index]
        known: npt.NDArray[np.bool_] = np.asarray(~np.isnan(values).all(axis=1))
        rows = strides[name].take(known)
        some = np.full_like(values, np.nan)
        some[rows] = values[rows]
        curves |= {f"sphere_{name}/{layer}": some[:, i] for i, layer in enumerate(schema.layers)}
    return curves


def _context(name: str) -> bool:
    """Whether a quantity has no curve of its own."""
    return name in QUANTITIES and QUANTITIES[name].context


def merge(parts: Sequence[Recording], layer_order: Sequence[str]) -> Recording:
    """Put the recordings of several optimizers side by side.

    Rows of the same step become one; where an optimizer stepped several times at one position, its n-th row joins the
    others' n-th. A layer whose optimizer took no step there is NaN.

    Args:
        parts: one recording per optimizer, with disjoint layers.
        layer_order: all layers' names in the order to show.

    Returns:
        One recording, sorted by step, without scalars.
    """
    if len(parts) == 1:
        return parts[0]
    keys = [_occurrences(part.steps) for part in parts]
    rows = {key: row for row, key in enumerate(sorted(set().union(*keys)))}
    names = [name for part in parts for name in part.schema.layers]
    order = sorted(range(len(names)), key=lambda index: layer_order.index(names[index]))
    first = parts[0].schema
    table = np.full((len(rows), len(names), len(first.quantities), len(first.stats)), np.nan, dtype=np.float32)
    wall_times = np.zeros(len(rows))
    parts_at = np.zeros(len(rows), dtype=np.int64)
    histograms: dict[int, Counted] = {}
    start = 0
    for part, part_keys in zip(parts, keys, strict=True):
        at = [rows[key] for key in part_keys]
        table[at, start : start + part.table.shape[1]] = part.table
        wall_times[at] = np.maximum(wall_times[at], part.wall_times)
        parts_at[at] += 1
        for row, counted in part.histograms.items():
            histograms.setdefault(at[row], {}).update(counted)
        start += part.table.shape[1]
    invariant = [flag for part in parts for flag in part.schema.invariant]
    cuts = [cut for part in parts for cut in part.schema.cuts]
    schema = TableSchema(
        layers=tuple(names[index] for index in order),
        quantities=first.quantities,
        stats=first.stats,
        invariant=tuple(invariant[index] for index in order),
        cuts=tuple(cuts[index] for index in order),
        groups=first.groups,
    )
    steps = np.array([step for step, _ in rows], dtype=np.int64)
    partial = parts_at < len(parts)
    return Recording(schema, steps, wall_times, table[:, order], partial=partial, histograms=histograms)


def _occurrences(steps: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Pair each step with how often it occurred before."""
    seen: dict[int, int] = {}
    keys = []
    for step in steps.tolist():
        keys.append((step, seen.get(step, 0)))
        seen[step] = seen.get(step, 0) + 1
    return keys
