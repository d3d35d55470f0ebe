"""The events of a recording, number by number; and their checksums against TensorBoard's own."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR
from tensorboard.compat.tensorflow_stub.errors import OutOfRangeError
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New, masked_crc32c
from torch.utils.tensorboard import SummaryWriter

from lightning_sphere.quantities import STATS
from lightning_sphere.recording import Recording
from lightning_sphere.tensorboard.checksum import masked, quicken
from lightning_sphere.tensorboard.reader import read_run
from lightning_sphere.tensorboard.schema import PLUGIN_NAME, SCHEMA_TAG, TABLE_TAG, TableSchema
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


def events_of(folder: Path) -> list[Any]:
    return [Event.FromString(record) for record in records(folder)][1:]


def table_of(event: Any, schema: TableSchema) -> np.ndarray[Any, Any]:
    """The table that an event holds, NaN where it has nothing."""
    table = np.full(schema.shape, np.nan, dtype=np.float32)
    for value in event.summary.value:
        if value.tag.startswith(TABLE_TAG):
            assert [dim.size for dim in value.tensor.tensor_shape.dim] == [len(schema.layers), len(schema.stats)]
            part = np.frombuffer(value.tensor.tensor_content, dtype="<f4").reshape(len(schema.layers), -1)
            table[:, schema.quantities.index(value.tag.removeprefix(TABLE_TAG))] = part
    return table


def recording(schema: TableSchema, steps: range, tags: Sequence[str] = (), *, seed: int = 0) -> Recording:
    """Random numbers; of the curves some are unknown."""
    random = np.random.default_rng((seed, steps.start))
    scalars = {tag: random.random(len(steps)).astype(np.float32) for tag in tags}
    for values in scalars.values():
        values[random.random(len(steps)) < 0.4] = np.nan
    table = random.random((len(steps), *schema.shape)).astype(np.float32)
    return Recording(schema, np.array(steps), np.array(steps) + 0.5, table, scalars)


PAIR = TableSchema(("a", "b"), ("norm", "drift"), STATS, (True, True), ((0, 2), (0, 3)))


def test_every_number_and_each_description_once(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    sink = TensorBoardSink(writer.file_writer)
    tags = ["sphere/norm", "sphere/drift", "sphere_bands/norm/p10", "something else"]
    recordings = [recording(PAIR, range(start, start + 20), tags) for start in (0, 20)]
    for part in recordings:
        part.table[np.random.default_rng(1).random(20) < 0.5, :, 1] = np.nan  # drift is not measured at each step
        sink.write(part)
    sink.close()
    writer.close()
    events = events_of(tmp_path)
    assert len(events) == 40
    described: set[str] = set()
    for index, event in enumerate(events):
        part, row = recordings[index // 20], index % 20
        assert (event.step, event.wall_time) == (index, index + 0.5)
        np.testing.assert_array_equal(table_of(event, PAIR), part.table[row])
        known = {tag: scalar[row] for tag, scalar in part.scalars.items() if not np.isnan(scalar[row])}
        assert {v.tag: v.simple_value for v in event.summary.value if v.WhichOneof("value") == "simple_value"} == known
        schemas = [v for v in event.summary.value if v.tag == SCHEMA_TAG]
        assert [v.tensor.string_val[0] for v in schemas] == ([] if index else [PAIR.to_json()])
        has_drift = f"{TABLE_TAG}drift" in {value.tag for value in event.summary.value}
        assert has_drift == (not np.isnan(part.table[row, :, 1]).all())
        for value in event.summary.value:
            new = value.tag not in described and value.tag != "something else"
            own = value.tag == SCHEMA_TAG or value.tag.startswith(TABLE_TAG)
            assert value.metadata.plugin_data.plugin_name == ((PLUGIN_NAME if own else "scalars") if new else "")
            assert bool(value.metadata.summary_description) == (new and not own)
            assert value.metadata.data_class == (DATA_CLASS_TENSOR if new and own else 0)
            described.add(value.tag)


def test_a_skipped_step_is_marked(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    sink = TensorBoardSink(writer.file_writer)
    part = recording(PAIR, range(3))
    part.table[1] = np.nan
    sink.write(part)
    sink.close()
    writer.close()
    skipped = events_of(tmp_path)[1]
    assert [value.tag for value in skipped.summary.value] == [f"{TABLE_TAG}norm"]  # drift is rarely measured anyway
    assert np.isnan(table_of(skipped, PAIR)).all()
    np.testing.assert_array_equal(read_run(tmp_path).values, part.table)


def test_what_is_told_of_layers_follows_the_run_and_stays_small(tmp_path: Path) -> None:
    """The table may grow by ten times the description's size before a changed one is written; at the end it is."""
    writer = SummaryWriter(str(tmp_path))
    sink = TensorBoardSink(writer.file_writer)
    for number, start in enumerate(range(0, 3000, 5)):
        groups = ({"parameter": "a", "residual": number},)
        sink.write(recording(replace(PAIR, groups=groups), range(start, start + 5)))
    sink.close()
    writer.close()
    sizes, table, told = [], 0, []
    for event in events_of(tmp_path):
        for value in event.summary.value:
            if value.tag == SCHEMA_TAG:
                told.append(json.loads(value.tensor.string_val[0])["groups"][0]["residual"])
                sizes.append(len(value.tensor.string_val[0]))
            else:
                table += len(value.tensor.tensor_content)
    assert sum(sizes[1:-1]) <= table / 10 < 2 * sum(sizes)
    assert told == sorted(told)
    assert told[0] == 0
    assert told[-1] == 599
    record = read_run(tmp_path)
    assert record.groups[0]["residual"] == 599
    assert len(record.steps) == 3000


def test_other_layers_are_described_at_once(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    sink = TensorBoardSink(writer.file_writer)
    wider = replace(PAIR, layers=("a", "new", "b"), invariant=(True,) * 3, cuts=((0, 2), (0, 1), (0, 3)))
    sink.write(recording(PAIR, range(2)))
    sink.write(recording(wider, range(2, 4)))
    sink.close()
    writer.close()
    schemas = [[v for v in event.summary.value if v.tag == SCHEMA_TAG] for event in events_of(tmp_path)]
    assert [len(found) for found in schemas] == [1, 0, 1, 0]
