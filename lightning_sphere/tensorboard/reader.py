"""Reading a run's recorded table back; needs neither torch nor Lightning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat import tf
from tensorboard.compat.proto.event_pb2 import Event

from lightning_sphere.tensorboard.schema import SCHEMA_TAG, TABLE_TAG, TableSchema


@dataclass(frozen=True, repr=False)
class RunRecord:
    """Everything that was recorded of one run.

    ``record["effective_lr"]`` is one quantity of all layers, ``[steps, layers]``: the median over each layer's groups;
    :meth:`stat` gives the other statistics.

    Attributes:
        steps: int64 ``[steps]``, positions on the run's x axis.
        wall_times: float64 ``[steps]``, seconds since the epoch at which each step was taken.
        layers: names of the layers, in the model's order.
        quantities: names of the quantities (see ``lightning_sphere.quantities``).
        stats: names of the statistics over a layer's groups: p10, median, p90, rms.
        values: float32 ``[steps, layers, quantities, stats]``; NaN where unknown, and all over a skipped step.
        groups: what is known of each weight: mappings with the keys parameter, kind, axis, blocks, members, joint_with,
            norm and reason, as ``Discovery.table()`` describes them; ``layer``, its name in :attr:`layers`; and
            ``verdict``, what the gradients say of the claim (verified, contradicted, eps dominates, not yet seen),
            ``verified_share``, the share of its groups that nothing speaks against, and ``residual``, the median of
            their |cos(gradient, weight)|, all three ``None`` where nothing is claimed or seen; and ``equilibrium``, how
            far the layer is from it, in words, and ``equilibrium_state`` (settled, transient, out of reach, unknown).
            All that is as of the end of the run, or of a run still being written as of a little while ago. After the
            weights, one more row for each set that is invariant only together, with ``joint`` true: its first tensor is
            the parameter, ``joint_with`` are the others.
        invariant: per layer, whether a normalization follows.
        cuts: per layer, the axis along which its weight is cut into groups, and into how many equal blocks; also for
            layers that are not invariant, of which ``groups`` says nothing.
    """

    steps: npt.NDArray[np.int64]
    wall_times: npt.NDArray[np.float64]
    layers: tuple[str, ...]
    quantities: tuple[str, ...]
    stats: tuple[str, ...]
    values: npt.NDArray[np.float32]
    groups: tuple[Mapping[str, Any], ...]
    invariant: tuple[bool, ...]
    cuts: tuple[tuple[int, int], ...]

    def __repr__(self) -> str:
        """What is in it, in one line."""
        layers = f"{len(self.layers)} layers ({sum(self.invariant)} invariant)"
        return f"<RunRecord: {len(self.steps)} steps of {layers}; {', '.join(self.quantities)}>"

    def __getitem__(self, quantity: str) -> npt.NDArray[np.float32]:
        """One quantity of all layers.

        Args:
            quantity: a name from :attr:`quantities`.

        Returns:
            ``[steps, layers]``, the median over each layer's groups.

        Raises:
            KeyError: if it was not recorded; the message lists what was.
        """
        return self.stat(quantity, "median")

    def stat(self, quantity: str, stat: str) -> npt.NDArray[np.float32]:
        """One statistic of one quantity, ``[steps, layers]``.

        Raises:
            KeyError: if it was not recorded; the message lists what was.
        """
        for name, known in ((quantity, self.quantities), (stat, self.stats)):
            if name not in known:
                raise KeyError(f"{name!r} is not recorded here; recorded are {', '.join(known)}")
        return self.values[:, :, self.quantities.index(quantity), self.stats.index(stat)]


def read_run(path: str | PathLike[str]) -> RunRecord:
    """Read the table that ``SphereMonitor`` or ``SphereTracker`` recorded.

    A file that ends in the middle of a record (a run still being written, or killed) gives what is whole. Where a
    resumed run wrote a step again, the later value counts.

    Args:
        path: a run's folder, or a folder with exactly one recorded run below it.

    Returns:
        The whole record; see :class:`RunRecord` for its attributes.

    Raises:
        FileNotFoundError: if the path does not exist, or holds no recorded run.
        ValueError: if several runs lie below the path (the message names them), if the record is of a newer format, or
            if two trackers wrote into one run.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"read_run takes a run's folder; there is none at {str(root)!r}")
    runs = {folder: _read_folder(folder) for folder in _candidates(root)}
    found = {folder: rows for folder, rows in runs.items() if rows}
    if not found:
        raise FileNotFoundError(
            f"no run recorded by lightning_sphere in or below {str(root)!r} (only TensorBoard's event files hold one)"
        )
    if len(found) > 1:
        names = ", ".join(sorted(str(folder) for folder in found))
        raise ValueError(f"several recorded runs below {str(root)!r}; name one of {names}")
    return _assemble(next(iter(found.values())))


@dataclass(frozen=True)
class _Row:
    schema: TableSchema
    step: int
    wall_time: float
    table: dict[str, npt.NDArray[np.float32]]
    """``[layers, stats]`` by quantity."""


def _candidates(root: Path) -> list[Path]:
    """The folder itself if it holds event files, else every folder below that does."""
    if any(root.glob("*tfevents*")):
        return [root]
    return sorted({file.parent for file in root.rglob("*tfevents*")})


def _read_folder(folder: Path) -> list[_Row]:
    files = [part for file in folder.glob("*tfevents*") if (part := _read_file(file))]
    rows: list[_Row] = []
    for later in sorted(files, key=lambda part: part[0].wall_time):
        # A later file continues an earlier one from its own first step on.
        rows = [row for row in rows if row.step < later[0].step] + later
    return rows


def _read_file(file: Path) -> list[_Row]:
    rows: list[_Row] = []
    schema: TableSchema | None = None
    for record in _whole_records(file):
        event = Event.FromString(record)
        table: dict[str, npt.NDArray[np.float32]] = {}
        for value in event.summary.value:
            if value.tag == SCHEMA_TAG:
                schema = TableSchema.from_json(value.tensor.string_val[0])
            elif value.tag.startswith(TABLE_TAG):
                table[value.tag.removeprefix(TABLE_TAG)] = np.frombuffer(value.tensor.tensor_content, dtype="<f4")
        if schema is not None and table:
            size = len(schema.layers), len(schema.stats)
            if any(part.size != math.prod(size) for part in table.values()):
                raise ValueError(f"{str(file)!r} mixes tables of different layers: did two trackers write into it?")
            rows.append(
                _Row(schema, event.step, event.wall_time, {name: part.reshape(size) for name, part in table.items()})
            )
    if rows and schema is not None and schema.same_axes(rows[-1].schema):  # the last description has the last word
        rows[-1] = replace(rows[-1], schema=schema)
    return rows


def _whole_records(file: Path) -> Iterator[bytes]:
    """The records of an event file up to the first that is not whole."""
    with suppress(tf.errors.DataLossError):
        yield from RawEventFileLoader(str(file)).Load()


def _assemble(rows: list[_Row]) -> RunRecord:
    """Bring all rows to one set of axes; layers that joined later are NaN before."""
    by_id = {id(row.schema): row.schema for row in rows}
    last = rows[-1].schema
    invariant: dict[str, bool] = {}
    cuts: dict[str, tuple[int, int]] = {}
    for schema in by_id.values():  # the last schema has the last word
        invariant |= dict(zip(schema.layers, schema.invariant, strict=True))
        cuts |= dict(zip(schema.layers, schema.cuts, strict=True))
    layers = [*last.layers, *(name for name in invariant if name not in last.layers)]
    values = np.full((len(rows), len(layers), len(last.quantities), len(last.stats)), np.nan, dtype=np.float32)
    places = {name: index for index, name in enumerate(layers)}
    columns = {key: [places[name] for name in schema.layers] for key, schema in by_id.items()}
    quantities = {name: index for index, name in enumerate(last.quantities)}
    for index, row in enumerate(rows):
        for name, part in row.table.items():
            if name in quantities:
                values[index, columns[id(row.schema)], quantities[name]] = part
    return RunRecord(
        steps=np.array([row.step for row in rows], dtype=np.int64),
        wall_times=np.array([row.wall_time for row in rows], dtype=np.float64),
        layers=tuple(layers),
        quantities=last.quantities,
        stats=last.stats,
        values=values,
        groups=last.groups,
        invariant=tuple(invariant[name] for name in layers),
        cuts=tuple(cuts[name] for name in layers),
    )
