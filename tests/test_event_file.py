"""The events of a recording, number by number; and their checksums against TensorBoard's own."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.errors import OutOfRangeError
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New, masked_crc32c
from torch.utils.tensorboard import SummaryWriter

from lightning_sphere.quantities import STATS
from lightning_sphere.recording import Recording
from lightning_sphere.tensorboard.checksum import masked, quicken
from lightning_sphere.tensorboard.schema import TableSchema
from lightning_sphere.tensorboard.writer import TensorBoardSink


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.binary(max_size=300))
def test_checksums_are_tensorboards(data: bytes) -> None:
    assert masked(data) == struct.pack("<I", masked_crc32c(data))


def records(folder: Path) -> list[bytes]:
    """What TensorBoard reads, which checks the checksums."""
    (file,) = folder.glob("*tfevents*")
    reader, found = PyRecordReader_New(str(file)), []
    while True:
        try:
            reader.GetNext()
        except OutOfRangeError:
            return found
        found.append(reader.record())


def test_quick_records_are_read_and_what_was_before_is_restored(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    worker = writer.file_writer.event_writer._async_writer._worker
    original = worker._record_writer
    restore = quicken(writer.file_writer)
    assert worker._record_writer is not original
    for length in (1, 300, 5000):
        writer.add_text("text", "x" * length)
    writer.flush()
    restore()
    assert worker._record_writer is original
    writer.add_text("text", "x" * 6000)
    writer.close()
    sizes = [len(record) for record in records(tmp_path)]
    assert len(sizes) == 5
    assert sizes[1:] == sorted(sizes[1:])


def test_writers_of_another_make_are_left_as_they_are() -> None:
    quicken(object())()


def test_every_number_and_each_description_once(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    schema = TableSchema(("a", "b"), ("norm", "drift"), STATS, (True, True), ((0, 2), (0, 3)))
    writer = SummaryWriter(str(tmp_path))
    sink = TensorBoardSink(writer.file_writer)
    tags = ["sphere/norm", "sphere/drift", "sphere_bands/norm/p10", "something else"]
    recordings = []
    for start in (0, 20):
        scalars = {tag: random.random(20).astype(np.float32) for tag in tags}
        for values in scalars.values():
            values[random.random(20) < 0.4] = np.nan
        table = random.random((20, 2, 2, 4)).astype(np.float32)
        recordings.append(Recording(schema, np.arange(start, start + 20), np.arange(20) + 0.5, table, scalars))
        sink.write(recordings[-1])
    sink.close()
    writer.close()
    events: list[Any] = [Event.FromString(record) for record in records(tmp_path)][1:]
    assert len(events) == 40
    described: set[str] = set()
    for index, event in enumerate(events):
        recording, row = recordings[index // 20], index % 20
        assert (event.step, event.wall_time) == (index, row + 0.5)
        first, *values = event.summary.value
        assert [dim.size for dim in first.tensor.tensor_shape.dim] == [2, 2, 4]
        np.testing.assert_array_equal(
            np.frombuffer(first.tensor.tensor_content, dtype="<f4").reshape(2, 2, 4), recording.table[row]
        )
        assert first.metadata.plugin_data.content == (b"" if index else schema.to_json())
        known = {tag: scalar[row] for tag, scalar in recording.scalars.items() if not np.isnan(scalar[row])}
        assert {value.tag: value.simple_value for value in values} == known
        for value in values:
            new = value.tag not in described and value.tag != "something else"
            assert bool(value.metadata.summary_description) == new
            described.add(value.tag)
