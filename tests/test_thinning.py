"""Long runs: which steps are written, and how large the file becomes."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.tensorboard import SummaryWriter

from lightning_sphere import read_run
from lightning_sphere.quantities import STATS
from lightning_sphere.recording import Recording
from lightning_sphere.tensorboard.schema import TableSchema
from lightning_sphere.tensorboard.thinning import LEAST, Thinning, stride
from lightning_sphere.tensorboard.writer import TensorBoardSink


def test_every_step_first_and_half_as_many_each_time_the_run_doubles() -> None:
    found = [stride(step, 100) for step in (0, 99, 100, 199, 200, 399, 400, 799, 800)]
    assert found == [1, 1, 2, 2, 4, 4, 8, 8, 16]


def written(known: list[int], budget: float, size: int = 1) -> list[int]:
    thinning: Thinning[int] = Thinning(budget)
    steps = [step for index, count in enumerate(known) for step in thinning.take(index, count, size)]
    return steps + thinning.rest()


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.integers(1, 5000), st.integers(LEAST, 700), st.integers(0, 10_000))
def test_each_block_has_its_best_step(count: int, full: int, seed: int) -> None:
    """Against the rule in plain words."""
    known = np.random.default_rng(seed).integers(0, 4, count).tolist()
    expected = list(range(min(count, full)))
    start, apart = full, 2
    while start < count:
        end = min(2 * start, count)
        multiple = start - start % apart  # blocks begin at multiples of the stride
        for block in itertools.count(multiple, apart):
            if block >= end:
                break
            members = range(max(block, start), min(block + apart, end))
            expected.append(max(members, key=lambda step: (known[step], -step)))
        start, apart = 2 * start, 2 * apart
    if count > full and count - 1 not in expected:
        expected.append(count - 1)
    assert written(known, full) == expected


def test_a_million_steps_are_few_thousand() -> None:
    full = 1000
    count = len(written([1] * 1_000_000, full))
    assert count <= full + full / 2 * math.log2(1_000_000 / full) + 2
    assert count > 5 * full


@pytest.mark.slow
def test_the_file_of_a_million_steps_of_300_layers(tmp_path: Path) -> None:
    """The documented bound, with real bytes; steps come in flushes of 50."""
    quantities = tuple(f"quantity {index}" for index in range(20))
    layers = tuple(f"layer {index}" for index in range(300))
    schema = TableSchema(layers, quantities, STATS, (True,) * 300, ((0, 64),) * 300)
    writer = SummaryWriter(str(tmp_path))
    sink = TensorBoardSink(writer.file_writer, budget_mb=8)
    table = np.ones((50, *schema.shape), dtype=np.float32)
    for start in range(0, 1_000_000, 50):
        steps = np.arange(start, start + 50)
        sink.write(Recording(schema, steps, steps + 0.0, table))
    sink.close()
    writer.close()
    full = 8 * 2**20 / table[0].nbytes
    (file,) = tmp_path.glob("*tfevents*")
    bound = 8 * 2**20 * (1 + 0.5 * math.log2(1_000_000 / max(full, LEAST)))
    assert file.stat().st_size < 1.2 * bound
    record = read_run(tmp_path)
    assert record.steps[:80].tolist() == list(range(80))
    assert record.steps[-1] == 999_999
    assert (np.diff(record.steps) > 0).all()
    assert (np.diff(record.steps) <= np.maximum(2, 8 * record.steps[1:] / full)).all()


def test_rare_numbers_survive(tmp_path: Path) -> None:
    schema = TableSchema(("a",), ("norm", "lost_update"), STATS, (True,), ((0, 1),))
    writer = SummaryWriter(str(tmp_path))
    sink = TensorBoardSink(writer.file_writer, budget_mb=1e-6)
    table = np.ones((2000, *schema.shape), dtype=np.float32)
    table[:, :, 1] = np.nan
    table[::47, :, 1] = 0.5
    for start in range(0, 2000, 40):
        steps = np.arange(start, start + 40)
        sink.write(Recording(schema, steps, steps + 0.0, table[steps]))
    sink.close()
    writer.close()
    record = read_run(tmp_path)
    measured = record.steps[~np.isnan(record["lost_update"][:, 0])]
    assert len(record.steps) < 400
    blocks = {step // stride(step, LEAST) for step in range(0, 2000, 47)}
    assert len(measured) >= len(blocks) - 2
    assert (measured % 47 == 0).all()
    assert record.steps[-1] == 1999


def test_the_end_of_full_rate_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    schema = TableSchema(("a",), ("norm",), STATS, (True,), ((0, 1),))
    writer = SummaryWriter(str(tmp_path))
    sink = TensorBoardSink(writer.file_writer, budget_mb=1e-6)
    with caplog.at_level("INFO", logger="lightning_sphere"):
        for start in range(0, 1000, 50):
            steps = np.arange(start, start + 50)
            sink.write(Recording(schema, steps, steps + 0.0, np.ones((50, 1, 1, 4), dtype=np.float32)))
    sink.close()
    writer.close()
    assert sum("fewer steps are written" in message for message in caplog.messages) == 1
