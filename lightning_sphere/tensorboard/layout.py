"""Our charts in TensorBoard's Custom Scalars tab, beside those of the user.

TensorBoard shows one layout per run, the last one that was written. To add ours, the one that the run has is read back
from its event files, and both are written as one.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG, create_summary_metadata

from lightning_sphere.guard import warn
from lightning_sphere.quantities import QUANTITIES
from lightning_sphere.tensorboard.values import string_value

CHARTS: tuple[str, ...] = ("angular_step", "effective_lr", "norm")
"""Quantities that have a chart, as far as they are recorded."""

CATEGORY = "Sphere"
"""Title of ours among the categories of a layout."""

_TAG = CONFIG_SUMMARY_TAG.encode()
_HEADER, _FOOTER = struct.calcsize("<QI"), struct.calcsize("<I")
"""Bytes of a record before its data (length, checksum) and after it (checksum)."""


def our_layout(quantities: Sequence[str]) -> Any:
    """A chart for each of :data:`CHARTS` that is recorded: the median over layers in the band of their spread."""
    charts = []
    for name in reversed(CHARTS):  # the tab shows the last one first
        if name in quantities:
            quantity = QUANTITIES[name]
            unit = f" ({quantity.unit})" if quantity.unit else ""
            series = layout_pb2.MarginChartContent.Series(
                value=f"sphere/{name}", lower=f"sphere_bands/{name}/p10", upper=f"sphere_bands/{name}/p90"
            )
            margin = layout_pb2.MarginChartContent(series=[series])
            charts.append(layout_pb2.Chart(title=f"{quantity.title}{unit}: median, p10 to p90", margin=margin))
    return layout_pb2.Layout(category=[layout_pb2.Category(title=CATEGORY, chart=charts)] if charts else [])


def with_ours(layout: Any, ours: Any) -> Any:
    """A layout of the user's with our charts added.

    Args:
        layout: that of the run.
        ours: from :func:`our_layout`.

    Returns:
        The layout to write; ``None`` if all our charts are there.
    """
    merged = layout_pb2.Layout()
    merged.CopyFrom(layout)
    for category in ours.category:
        there = next((own for own in merged.category if own.title == category.title), None)
        if there is None:
            merged.category.add().CopyFrom(category)
        else:
            titles = {chart.title for chart in there.chart}
            there.chart.extend([chart for chart in category.chart if chart.title not in titles])
    return None if merged == layout else merged


def layout_value(layout: Any) -> Any:
    """A layout as TensorBoard reads it."""
    return string_value(CONFIG_SUMMARY_TAG, layout.SerializeToString(), create_summary_metadata())


class FileWriter(Protocol):
    """The part of torch's ``SummaryWriter.file_writer`` that is used."""

    def get_logdir(self) -> str:
        """The run's folder."""

    def add_event(self, event: Any, step: int | None = None, walltime: float | None = None) -> None:
        """Queue one event."""

    def flush(self) -> None:
        """Write queued events to disk."""


class LayoutKeeper:
    """Keeps our charts in the layout of a run, also where the user writes another one later.

    Args:
        file_writer: the run's own.
    """

    def __init__(self, file_writer: Any) -> None:
        self._file_writer: FileWriter = file_writer
        self._scan: LayoutScan | None = None
        self._failed = False

    def keep(self, quantities: Sequence[str], step: int, walltime: float, *, all_of_it: bool = False) -> None:
        """Write the run's layout with ours, if ours is not in it.

        Args:
            quantities: those that are recorded.
            step: to write it at.
            walltime: the same, in seconds since the epoch.
            all_of_it: have what is queued written to disk and looked at as well.
        """
        ours = our_layout(quantities)
        if self._scan is None or all_of_it:
            self._file_writer.flush()
        if self._joined(ours) is None:
            return
        self._file_writer.flush()  # the user may have queued another one
        layout = self._joined(ours)
        if layout is not None:
            event = Event(summary=Summary(value=[layout_value(layout)]), step=step)
            self._file_writer.add_event(event, walltime=walltime)
            self._file_writer.flush()  # so that it is found the next time

    def _joined(self, ours: Any) -> Any:
        """The layout to write; ``None`` if there is nothing to add, or the run's cannot be known."""
        if self._failed:
            return None
        try:
            if self._scan is None:
                self._scan = LayoutScan(self._file_writer.get_logdir())
            return with_ours(self._scan.last(), ours)
        except (OSError, ValueError, AttributeError) as error:  # a folder of another machine's, or without such files
            self._failed = True
            warn(f"custom_scalars is left out, for it cannot be read whether the run has a layout of yours: {error}")
            return None


class LayoutScan:
    """Finds the layout that TensorBoard would show of a run; each call reads only what was written since the last.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._read: dict[Path, int] = {}
        """How far each file was read: the end of its last whole record."""
        self._found: dict[Path, Any] = {}
        """The last layout of each file."""

    def last(self) -> Any:
        """The layout; an empty one if there is none.

        Raises:
            OSError: if the folder's files cannot be read.
        """
        files = sorted(file for file in self._folder.iterdir() if "tfevents" in file.name)
        for file in files:
            for record in self._news(file):
                if (layout := _layout_in(record)) is not None:
                    self._found[file] = layout
        layouts = [self._found[file] for file in files if file in self._found]
        return layouts[-1] if layouts else layout_pb2.Layout()

    def _news(self, file: Path) -> Iterator[bytes]:
        """Records that hold the tag of layouts. Of all others only the length is looked at; checksums are not."""
        start, size = self._read.get(file, 0), file.stat().st_size
        if size <= start:
            return
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ) as data:
            at = data.find(_TAG, start)
            while start + _HEADER <= size:
                stop = start + _HEADER + struct.unpack_from("<Q", data, start)[0]
                if stop + _FOOTER > size:
                    break  # not whole yet
                if start <= at < stop:
                    yield data[start + _HEADER : stop]
                    at = data.find(_TAG, stop)
                start = stop + _FOOTER
        self._read[file] = start


def _layout_in(record: bytes) -> Any:
    """The last layout in an event; ``None`` if it has none that can be read."""
    found = None
    try:
        for value in Event.FromString(record).summary.value:
            if value.tag == CONFIG_SUMMARY_TAG and value.tensor.string_val:
                found = layout_pb2.Layout.FromString(value.tensor.string_val[0])
    except Exception:  # damaged: TensorBoard does not read it either
        return None
    return found
