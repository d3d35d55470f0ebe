"""Reading a run back: whole, truncated, damaged, resumed, several."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_sphere import read_run
from lightning_sphere.quantities import STATS
from lightning_sphere.recording import Recording
from lightning_sphere.tensorboard.schema import TableSchema
from lightning_sphere.tensorboard.writer import TensorBoardSink

SCHEMA = TableSchema(
    layers=("stem", "head"),
    quantities=("norm", "effective_lr"),
    stats=STATS,
    invariant=(True, False),
    cuts=((0, 16), (1, 10)),
    groups=({"parameter": "stem.weight", "kind": "row", "members": (0, 2), "joint_with": ()},),
)


def recording(steps: range, schema: TableSchema = SCHEMA, seed: int = 0) -> Recording:
    table = np.random.default_rng(seed).normal(size=(len(steps), *schema.shape)).astype(np.float32)
    return Recording(schema, np.array(steps, dtype=np.int64), 1e9 + np.array(steps, dtype=np.float64), table)


def write(folder: Path, *recordings: Recording, suffix: str = "") -> Path:
    writer = SummaryWriter(str(folder), filename_suffix=suffix)
    sink = TensorBoardSink(writer.file_writer)
    for part in recordings:
        sink.write(part)
    sink.close()
    writer.close()
    return sorted(folder.glob("*tfevents*"))[-1]


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    first, second = recording(range(5)), recording(range(5, 8), seed=1)
    write(tmp_path, first, second)
    record = read_run(tmp_path)
    np.testing.assert_array_equal(record.values, np.concatenate([first.table, second.table]))
    assert record.values.dtype == np.float32
    assert record.steps.tolist() == list(range(8))
    np.testing.assert_array_equal(record.wall_times, 1e9 + np.arange(8))
    assert (record.layers, record.quantities, record.stats) == (SCHEMA.layers, SCHEMA.quantities, SCHEMA.stats)
    assert record.groups == SCHEMA.groups
    assert record.invariant == SCHEMA.invariant
    assert record.cuts == SCHEMA.cuts
    np.testing.assert_array_equal(record["effective_lr"], record.values[:, :, 1, STATS.index("median")])


def test_an_unknown_quantity_is_named_with_those_that_exist(tmp_path: Path) -> None:
    write(tmp_path, recording(range(2)))
    with pytest.raises(KeyError, match="'speed' is not recorded here; recorded are norm, effective_lr"):
        read_run(tmp_path)["speed"]


def test_a_truncated_file_gives_what_is_whole(tmp_path: Path) -> None:
    full = recording(range(6))
    file = write(tmp_path / "full", full)
    content = file.read_bytes()
    lengths = set()
    for size in range(len(content) - 300, len(content), 3):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / file.name).write_bytes(content[:size])
        record = read_run(folder)
        lengths.add(len(record.steps))
        np.testing.assert_array_equal(record.values, full.table[: len(record.steps)])
    assert max(lengths) == 5
    assert min(lengths) < 5


def test_a_damaged_record_ends_what_is_read(tmp_path: Path) -> None:
    full = recording(range(6))
    file = write(tmp_path, full)
    content = bytearray(file.read_bytes())
    content[-100] ^= 0xFF
    file.write_bytes(content)
    np.testing.assert_array_equal(read_run(tmp_path).values, full.table[:5])


def test_a_resumed_run_replaces_the_steps_that_it_repeats(tmp_path: Path) -> None:
    before, after = recording(range(6)), recording(range(4, 9), seed=1)
    write(tmp_path, before, suffix=".a")
    write(tmp_path, after, suffix=".b")
    record = read_run(tmp_path)
    assert record.steps.tolist() == list(range(9))
    np.testing.assert_array_equal(record.values, np.concatenate([before.table[:4], after.table]))


def test_layers_that_join_later_are_unknown_before(tmp_path: Path) -> None:
    wider = replace(
        SCHEMA, layers=("stem", "new", "head"), invariant=(True, True, False), cuts=((0, 16), (0, 4), (1, 10))
    )
    before, after = recording(range(2)), recording(range(2, 4), schema=wider, seed=1)
    write(tmp_path, before, after)
    record = read_run(tmp_path)
    assert record.layers == wider.layers
    np.testing.assert_array_equal(record.values[:2][:, [0, 2]], before.table)
    assert np.isnan(record.values[:2, 1]).all()
    np.testing.assert_array_equal(record.values[2:], after.table)


def test_the_only_run_below_a_folder_is_found(tmp_path: Path) -> None:
    write(tmp_path / "logs" / "version_3", recording(range(3)))
    foreign = SummaryWriter(str(tmp_path / "logs" / "other"))
    foreign.add_scalar("loss", 1.0, 0)
    foreign.close()
    assert len(read_run(tmp_path).steps) == 3


def test_several_runs_are_an_error_that_names_them(tmp_path: Path) -> None:
    write(tmp_path / "a", recording(range(3)))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match=r"several recorded runs below .*/a.*, .*/b"):
        read_run(tmp_path)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_no_run_is_an_error(tmp_path: Path, make: object) -> None:
    make(tmp_path / "run")  # type: ignore[operator]
    with pytest.raises(FileNotFoundError, match="run"):
        read_run(tmp_path / "run")


@pytest.mark.parametrize(("number", "age"), [(1, "older"), (3, "newer")])
def test_another_format_is_refused(number: int, age: str) -> None:
    with pytest.raises(ValueError, match=f"format {number} is {age}"):
        TableSchema.from_json(SCHEMA.to_json().replace(b'"format":2', f'"format":{number}'.encode()))
    with pytest.raises(ValueError, match="not a lightning_sphere table"):
        TableSchema.from_json(b"{}")


def test_reading_needs_neither_torch_nor_lightning(tmp_path: Path) -> None:
    write(tmp_path, recording(range(2)))
    program = (
        "import sys\n"
        "for name in ('torch', 'pytorch_lightning', 'lightning'): sys.modules[name] = None\n"
        "from lightning_sphere import read_run\n"
        f"assert len(read_run({str(tmp_path)!r}).steps) == 2\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
