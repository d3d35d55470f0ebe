"""One event per recorded step, through the event file that the run already has.

A second event file in the run's folder would hide the user's own metrics from some of TensorBoard's loaders, so
everything goes through the logger's own file writer.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT

from lightning_sphere.quantities import QUANTITIES
from lightning_sphere.tensorboard.checksum import quicken
from lightning_sphere.tensorboard.schema import PLUGIN_NAME, TABLE_TAG, TableSchema

if TYPE_CHECKING:
    from lightning_sphere.recording import Recording


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


def open_sink(writer: Any = None, log_dir: str | PathLike[str] | None = None) -> TensorBoardSink:
    """A sink into a ``SummaryWriter`` of the user's, or into one of our own that the sink closes.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``.
        log_dir: folder for a new one, if no writer is given.
    """
    if writer is not None:
        file_writer = file_writer_of(writer)
        assert file_writer is not None
        return TensorBoardSink(file_writer)
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoardSink(SummaryWriter(str(log_dir)).file_writer, owned=True)  # type: ignore[arg-type]


class TensorBoardSink:
    """Writes recordings as TensorBoard events.

    Args:
        file_writer: the run's own writer, ``SummaryWriter.file_writer``.
        owned: whether :meth:`close` closes it too.
    """

    def __init__(self, file_writer: FileWriter, *, owned: bool = False) -> None:
        self._file_writer = file_writer
        self._owned = owned
        self._schema: TableSchema | None = None
        self._described: set[str] = set()
        self._restore = quicken(file_writer)

    def write(self, recording: Recording) -> None:
        """Queue one event per step: the table, then the scalars that are known."""
        tags = list(recording.scalars)
        scalars = np.stack(list(recording.scalars.values()), axis=1) if tags else np.empty((len(recording), 0))
        known = ~np.isnan(scalars)  # NaN is not drawn; a gap says the same
        drafts: dict[bytes, Any] = {}  # by which scalars are known: only numbers differ between their steps
        for row in range(len(recording)):
            own = [tags[index] for index in np.flatnonzero(known[row]).tolist()]
            which = known[row].tobytes()
            if which not in drafts or not self._described.issuperset(own) or recording.schema is not self._schema:
                values = [Summary.Value(tag=tag, metadata=self._describe(tag)) for tag in own]
                event = Event(summary=Summary(value=[self._table(recording.schema), *values]))
                drafts[which] = _plain(event)
            else:
                event = Event()
                event.CopyFrom(drafts[which])
            event.step = int(recording.steps[row])
            table, *values = event.summary.value
            table.tensor.tensor_content = np.ascontiguousarray(recording.table[row], dtype="<f4").tobytes()
            for value, number in zip(values, scalars[row, known[row]].tolist(), strict=True):
                value.simple_value = number
            self._file_writer.add_event(event, walltime=float(recording.wall_times[row]))

    def close(self) -> None:
        """Write what is queued to disk."""
        self._file_writer.flush()
        self._restore()
        if self._owned:
            self._file_writer.close()

    def _table(self, schema: TableSchema) -> Any:
        """The table tensor, without numbers; with its description where the reader has not seen it yet."""
        metadata = None
        if schema is not self._schema:
            if schema != self._schema:
                plugin_data = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=schema.to_json())
                metadata = SummaryMetadata(plugin_data=plugin_data, data_class=DATA_CLASS_TENSOR)
            self._schema = schema
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in schema.shape])
        return Summary.Value(tag=TABLE_TAG, tensor=TensorProto(dtype=DT_FLOAT, tensor_shape=shape), metadata=metadata)

    def _describe(self, tag: str) -> Any:
        """Unit, equation and meaning, once per tag: TensorBoard shows them beside the chart."""
        if tag in self._described:
            return None
        self._described.add(tag)
        group, _, rest = tag.partition("/")
        name = rest.partition("/")[0] if group in ("sphere", "sphere_bands") else group.removeprefix("sphere_")
        quantity = QUANTITIES.get(name)
        if quantity is None:
            return None
        unit = f", in {quantity.unit}" if quantity.unit else ""
        text = f"{quantity.title}{unit}: `{quantity.equation}`. {quantity.meaning}"
        plugin_data = SummaryMetadata.PluginData(plugin_name="scalars")
        return SummaryMetadata(plugin_data=plugin_data, summary_description=text)


def _plain(event: Any) -> Any:
    """A copy of an event without descriptions."""
    plain = Event()
    plain.CopyFrom(event)
    for value in plain.summary.value:
        value.ClearField("metadata")
    return plain
