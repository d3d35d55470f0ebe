"""From what TensorBoard kept of a run to arrays: which rows count, and which layer each number belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lightning_sphere.quantities import STATS
from lightning_sphere.tensorboard.schema import TableSchema

MOST_BYTES = 2**30
"""Of one quantity of one run. No run comes near it; a damaged one may ask for it."""
MOST_SCHEMA_BYTES = 32 * 2**20
"""Of the description of a run: hundreds of thousands of layers."""


class UnreadableError(Exception):
    """What a run holds cannot be shown; the message says why."""


class Datum(Protocol):
    """TensorBoard's ``TensorDatum``."""

    step: int
    wall_time: float
    numpy: npt.NDArray[Any]


@dataclass(frozen=True)
class Told:
    """A schema and since when it holds."""

    step: int
    wall_time: float
    schema: TableSchema


@dataclass(frozen=True)
class Description:
    """Everything that a run says of its layers.

    Args:
        told: at least one schema, in the order of time.
    """

    told: tuple[Told, ...]

    @property
    def last(self) -> TableSchema:
        """The schema that has the last word."""
        return self.told[-1].schema

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of all layers: those of the last schema in its order, then those that are no longer in it."""
        names = dict.fromkeys(self.last.layers)
        for told in reversed(self.told):
            names |= dict.fromkeys(told.schema.layers)
        return tuple(names)

    @cached_property
    def invariant(self) -> dict[str, bool]:
        """By layer: whether a normalization follows, as said last."""
        return {
            name: flag
            for told in self.told
            for name, flag in zip(told.schema.layers, told.schema.invariant, strict=True)
        }

    @cached_property
    def blocks(self) -> dict[str, int]:
        """By layer: into how many groups it is cut, as said last."""
        return {
            name: cut[1] for told in self.told for name, cut in zip(told.schema.layers, told.schema.cuts, strict=True)
        }

    @cached_property
    def groups(self) -> dict[str, Mapping[str, Any]]:
        """What is known of a layer, by its name."""
        found: dict[str, Mapping[str, Any]] = {}
        for told in reversed(self.told):
            for row in told.schema.groups:
                name = row.get("layer")
                if isinstance(name, str):
                    found.setdefault(name, row)
        return found


@dataclass(frozen=True)
class Table:
    """One quantity of a run.

    Attributes:
        steps: int64 ``[rows]``.
        wall_times: float64 ``[rows]``, seconds since the epoch, ascending.
        values: float32 ``[rows, layers, 4]``, layers as in the description, statistics as in ``STATS``; NaN unknown.
    """

    steps: npt.NDArray[np.int64]
    wall_times: npt.NDArray[np.float64]
    values: npt.NDArray[np.float32]

    @property
    def medians(self) -> npt.NDArray[np.float32]:
        """The median over each layer's groups, ``[rows, layers]``."""
        return self.values[:, :, STATS.index("median")]


def read_schema(content: Any) -> TableSchema:
    """A schema from what an event holds, every part of it checked.

    Args:
        content: the string scalar's value.

    Raises:
        UnreadableError: with the reason, for a person.
    """
    if not isinstance(content, bytes):
        raise UnreadableError("the description of its layers is no text")
    if len(content) > MOST_SCHEMA_BYTES:
        raise UnreadableError(f"the description of its layers is too large ({len(content) / 2**20:.0f} MiB)")
    try:
        schema = TableSchema.from_json(content)
    except RecursionError:
        raise UnreadableError("the description of its layers is damaged: nested too deeply") from None
    except (ValueError, ArithmeticError) as error:
        raise UnreadableError(f"the description of its layers cannot be read: {error}"[:300]) from None
    damage = _damage(schema)
    if damage:
        raise UnreadableError(f"the description of its layers is damaged: {damage}")
    return schema


def _damage(schema: TableSchema) -> str:
    """What of a schema is not what its type says; empty if all is."""
    layers, names = schema.layers, (*schema.layers, *schema.quantities, *schema.stats)
    if not all(isinstance(name, str) for name in names):
        return "a name is no text"
    if not all(len(set(axis)) == len(axis) for axis in (layers, schema.quantities, schema.stats)):
        return "a name occurs twice"
    if len(schema.invariant) != len(layers) or not all(isinstance(flag, bool) for flag in schema.invariant):
        return "not every layer is either invariant or not"
    if len(schema.cuts) != len(layers) or not all(type(number) is int for cut in schema.cuts for number in cut):
        return "not every layer says how it is cut"
    return ""


def describe(data: Iterable[Datum]) -> Description:
    """All schemas of a run that can be read.

    Raises:
        UnreadableError: if there is none, or the last one cannot be read.
    """
    told: list[Told] = []
    problem = "it has no description of its layers"
    known: dict[Any, TableSchema] = {}
    for datum in sorted(data, key=lambda datum: datum.wall_time):
        content = datum.numpy.item() if datum.numpy.size == 1 else None
        try:
            schema = known.get(content) or read_schema(content)
        except UnreadableError as error:
            problem = str(error)
            continue
        known[content], problem = schema, ""
        told.append(Told(datum.step, datum.wall_time, schema))
    if problem or not told:
        raise UnreadableError(problem)
    return Description(tuple(told))


def valid_rows(steps: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which rows no resumed run has taken again.

    Where a step is lower than the one before it in time, the run was resumed there, and all rows before that are at
    the same step or beyond are superseded. Equal steps in a row stay: several optimizers may share one.

    Args:
        steps: in the order of time, ``[rows]``.

    Returns:
        bool ``[rows]``.
    """
    if not len(steps):
        return np.ones(0, dtype=bool)
    highest = np.iinfo(np.int64).max
    restarts = np.where(np.diff(steps, prepend=steps[0]) < 0, steps, highest)
    later = np.append(np.minimum.accumulate(restarts[::-1])[::-1][1:], highest)  # the lowest restart after each row
    return steps < later


def tabulate(data: Sequence[Datum], description: Description) -> Table:
    """Bring the rows of one quantity to one set of axes.

    Args:
        data: what TensorBoard kept, in any order.
        description: of the same run.

    Returns:
        The rows that count, in the order of time; rows that fit no schema are left out.

    Raises:
        UnreadableError: if the table would be absurdly large.
    """
    told, layers = description.told, description.layers
    since = np.array([one.wall_time for one in told])
    fitting: list[tuple[Datum, int]] = []
    for datum in sorted((datum for datum in data if np.isfinite(datum.wall_time)), key=lambda datum: datum.wall_time):
        index = _schema_of(datum, told, since)
        if index is not None:
            fitting.append((datum, index))
    # A schema is written when a run is resumed: it marks the place even where TensorBoard has dropped the rows nearby.
    marks = sorted(
        [(one.wall_time, 0, one.step, -1) for one in told]
        + [(datum.wall_time, 1, datum.step, row) for row, (datum, _) in enumerate(fitting)]
    )
    valid = valid_rows(np.array([step for _, _, step, _ in marks], dtype=np.int64))
    rows = [fitting[mark[3]] for mark, keep in zip(marks, valid.tolist(), strict=True) if keep and mark[3] >= 0]
    if 4 * len(rows) * len(layers) * len(STATS) > MOST_BYTES:
        raise UnreadableError(f"{len(rows)} steps of {len(layers)} layers are too much to show")
    values = np.full((len(rows), len(layers), len(STATS)), np.nan, dtype=np.float32)
    place = {name: column for column, name in enumerate(layers)}
    for index in {index for _, index in rows}:
        schema = told[index].schema
        own = [row for row, (_, other) in enumerate(rows) if other == index]
        shared = [stat for stat in schema.stats if stat in STATS]
        stacked = np.stack([rows[row][0].numpy for row in own]).astype(np.float32, copy=False)
        if schema.layers == layers and schema.stats == STATS:
            values[own] = stacked
        else:
            columns = [place[name] for name in schema.layers]
            target = np.ix_(own, columns, [STATS.index(stat) for stat in shared])
            values[target] = stacked[:, :, [schema.stats.index(stat) for stat in shared]]
    return Table(
        steps=np.array([datum.step for datum, _ in rows], dtype=np.int64),
        wall_times=np.array([datum.wall_time for datum, _ in rows], dtype=np.float64),
        values=values,
    )


def _schema_of(datum: Datum, told: Sequence[Told], since: npt.NDArray[np.float64]) -> int | None:
    """Index of the schema of a row: the last one told by then, else the one nearest in time that it fits."""
    if datum.numpy.dtype.kind != "f":
        return None
    index = max(0, int(np.searchsorted(since, datum.wall_time, side="right")) - 1)
    shape = datum.numpy.shape
    if _shape(told[index].schema) == shape:
        return index
    others = [other for other, one in enumerate(told) if _shape(one.schema) == shape]
    return min(others, key=lambda other: abs(float(since[other]) - datum.wall_time), default=None)


def _shape(schema: TableSchema) -> tuple[int, int]:
    return len(schema.layers), len(schema.stats)
