"""One event per written step, through the event file that the run already has.

A second event file in the run's folder would hide the user's own metrics from some of TensorBoard's loaders, so
everything goes through the logger's own file writer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from lightning_sphere.quantities import QUANTITIES
from lightning_sphere.tensorboard.checksum import quicken
from lightning_sphere.tensorboard.histogram import histogram_tag, histogram_value
from lightning_sphere.tensorboard.layout import LayoutKeeper
from lightning_sphere.tensorboard.schema import SCHEMA_TAG, TableSchema
from lightning_sphere.tensorboard.text import TEXT_TAG, text_value
from lightning_sphere.tensorboard.thinning import Thinning
from lightning_sphere.tensorboard.values import scalar_value, schema_value, table_value

if TYPE_CHECKING:
    from lightning_sphere.recording import Recording


_log = logging.getLogger("lightning_sphere")

BUDGET_MB = 64.0
"""MiB of an event file that steps at full rate may take, if nothing else is asked for."""

SCALAR = 50
"""Bytes of a scalar in an event, about; most of it is its tag."""

DRAFTS = 64
"""Events of different quantities and scalars that are kept as patterns of the next ones."""

RETELL = 10
"""Descriptions of layers that have changed are written again once the table has grown by so many times their size."""


class FileWriter(Protocol):
    """The part of torch's ``SummaryWriter.file_writer`` that is used."""

    def add_event(self, event: Any, step: int | None = None, walltime: float | None = None) -> None:
        """Queue one event."""

    def flush(self) -> None:
        """Write queued events to disk."""

    def close(self) -> None:
        """Write queued events and end the file."""


def file_writer_of(summary_writer: Any) -> FileWriter | None:
    """The file writer behind a ``SummaryWriter``, opened anew if it was closed; ``None`` if there is none.

    A Trainer closes its logger's writer at the end of each fit, and only this method of torch's opens it again.
    """
    reopen = getattr(summary_writer, "_get_file_writer", None)
    file_writer = reopen() if callable(reopen) else None
    return file_writer if callable(getattr(file_writer, "add_event", None)) else None


def open_sink(writer: Any = None, log_dir: str | PathLike[str] | None = None, **arguments: Any) -> TensorBoardSink:
    """A sink into a ``SummaryWriter`` of the user's, or into one of our own that the sink closes.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``.
        log_dir: folder for a new one, if no writer is given.
        arguments: further ones of :class:`TensorBoardSink`.
    """
    if writer is not None:
        file_writer = file_writer_of(writer)
        assert file_writer is not None
        return TensorBoardSink(file_writer, **arguments)
    from torch.utils.tensorboard import SummaryWriter

    file_writer = cast(FileWriter, SummaryWriter(str(log_dir)).file_writer)
    return TensorBoardSink(file_writer, owned=True, **arguments)


class _Row(NamedTuple):
    """One recorded step."""

    recording: Recording
    at: int


class TensorBoardSink:
    """Writes recordings as TensorBoard events.

    Args:
        file_writer: the run's own writer, ``SummaryWriter.file_writer``.
        owned: whether :meth:`close` closes it too.
        budget_mb: MiB that steps at full rate may take; then they are thinned out, see
            :mod:`lightning_sphere.tensorboard.thinning`.
        about: describes the run in Markdown, from what is known of its layers at first. ``None`` writes no text.
        custom_scalars: whether to add our charts to the run's custom-scalars layout.
    """

    def __init__(
        self,
        file_writer: FileWriter,
        *,
        owned: bool = False,
        budget_mb: float = BUDGET_MB,
        about: Callable[[TableSchema], str] | None = None,
        custom_scalars: bool = False,
    ) -> None:
        self._file_writer, self._owned = file_writer, owned
        self._about = about
        self._layout = LayoutKeeper(file_writer) if custom_scalars else None
        self._rows = self._bytes = 0
        """Steps taken so far, and about what they would take in the file."""
        self._schema: TableSchema | None = None
        """The one that is written."""
        self._newest: Recording | None = None
        self._schema_size = self._since_schema = 0
        self._described: set[str] = set()
        self._drafts: dict[tuple[str, ...], Any] = {}
        self._thinning: Thinning[_Row] = Thinning(budget_mb * 2**20)
        self._thinned = False
        self._restore = quicken(file_writer)

    def write(self, recording: Recording) -> None:
        """Queue one event per step that is to be written: the table, and the scalars that are known."""
        if not len(recording):
            return
        self._newest = recording
        self._tell_about(recording)
        if self._layout is not None:
            self._layout.keep(recording.schema.quantities, int(recording.steps[0]), float(recording.wall_times[0]))
        known, size = self._weigh(recording)
        if not self._thinned and self._thinning.stride(size) > 1:
            self._thinned = True
            _log.info("the event file has reached its budget: from here on, fewer and fewer steps are written")
        for index in range(len(recording)):
            for row in self._thinning.take(_Row(recording, index), known[index], size):
                self._write(row)

    def close(self) -> None:
        """Write what is left to disk."""
        for row in self._thinning.rest():
            self._write(row)
        newest = self._newest
        if self._layout is not None and newest is not None:
            at = int(newest.steps[-1]), float(newest.wall_times[-1])
            self._layout.keep(newest.schema.quantities, *at, all_of_it=True)
        if self._newest is not None and self._newest.schema != self._schema:
            event = Event(summary=Summary(value=[self._tell(self._newest.schema)]), step=int(self._newest.steps[-1]))
            self._file_writer.add_event(event, walltime=float(self._newest.wall_times[-1]))
        self._file_writer.flush()
        self._restore()
        if self._owned:
            self._file_writer.close()

    def _weigh(self, recording: Recording) -> tuple[list[int], int]:
        """How much is known of each step, histograms above all; and how many bytes a step of this run takes."""
        curves = recording.known_scalars.sum(axis=1)
        known = np.count_nonzero(~np.isnan(recording.table), axis=(1, 2, 3)) + curves
        self._bytes += recording.table.nbytes + SCALAR * int(curves.sum())
        for row, counted in recording.histograms.items():
            known[row] += recording.table[row].size + len(recording.scalars)
            self._bytes += sum(SCALAR + buckets.nbytes for buckets in counted.values())
        self._rows += len(recording)
        return known.tolist(), self._bytes // self._rows

    def _tell_about(self, recording: Recording) -> None:
        """Write the description of the run, once."""
        if self._about is not None and recording.schema.groups:
            text, self._about = self._about(recording.schema), None
            event = Event(summary=Summary(value=[text_value(TEXT_TAG, text)]), step=int(recording.steps[0]))
            self._file_writer.add_event(event, walltime=float(recording.wall_times[0]))

    def _write(self, row: _Row) -> None:
        recording, at = row
        schema, table = recording.schema, recording.table[at]  # [layers, quantities, stats]
        measured = _measured(table, schema)
        numbers = recording.scalars_at(at)  # what is not known is not drawn
        quantities = [name for name, any_known in zip(schema.quantities, measured.tolist(), strict=True) if any_known]
        told = [self._tell(schema)] if self._is_due(schema) else []
        event = self._draft(quantities, list(numbers), schema)
        event.step = int(recording.steps[at])
        values = iter(event.summary.value)
        by_quantity = np.ascontiguousarray(table[:, measured].swapaxes(0, 1), dtype="<f4")
        for part in by_quantity:
            next(values).tensor.tensor_content = part.tobytes()
        for number in numbers.values():
            next(values).simple_value = number
        self._since_schema += by_quantity.nbytes
        event.summary.value.extend(told)
        for (quantity, layer), buckets in recording.histograms.get(at, {}).items():
            tag = histogram_tag(quantity, layer)
            event.summary.value.append(histogram_value(quantity, layer, buckets, described=tag not in self._described))
            self._described.add(tag)
        self._file_writer.add_event(event, walltime=float(recording.wall_times[at]))

    def _draft(self, quantities: list[str], tags: list[str], schema: TableSchema) -> Any:
        """An event of these quantities and scalars without numbers; with metadata where the reader has not seen it."""
        key = (*quantities, "", *tags)
        event = Event()
        if key in self._drafts:
            event.CopyFrom(self._drafts[key])
            return event
        if len(self._drafts) >= DRAFTS:  # curves of layers may be known in any combination
            self._drafts.clear()
        event.summary.value.extend(table_value(name, schema) for name in quantities)
        event.summary.value.extend(scalar_value(tag) for tag in tags)
        draft = self._drafts[key] = Event()
        draft.CopyFrom(event)
        for value, plain in zip(event.summary.value, draft.summary.value, strict=True):
            plain.ClearField("metadata")
            if value.tag in self._described:
                value.ClearField("metadata")
        self._described.update(value.tag for value in event.summary.value)
        return event

    def _is_due(self, schema: TableSchema) -> bool:
        """Whether the schema must be written: its axes have changed, or what it tells has and the file has grown."""
        if schema is self._schema:
            return False
        if not schema.same_axes(self._schema):
            return True
        return self._since_schema >= RETELL * self._schema_size and schema != self._schema

    def _tell(self, schema: TableSchema) -> Any:
        content = schema.to_json()
        if not schema.same_axes(self._schema):
            self._drafts.clear()
        self._schema, self._schema_size, self._since_schema = schema, len(content), 0
        value = schema_value(content)
        if SCHEMA_TAG in self._described:
            value.ClearField("metadata")
        self._described.add(SCHEMA_TAG)
        return value


def _measured(table: npt.NDArray[np.float32], schema: TableSchema) -> npt.NDArray[np.bool_]:
    """Which quantities a step has: those of which anything is known; of a skipped step all that each step has."""
    measured = ~np.isnan(table).all(axis=(0, 2))
    if measured.any():
        return np.asarray(measured)
    return np.array([not QUANTITIES[name].rare if name in QUANTITIES else True for name in schema.quantities])
