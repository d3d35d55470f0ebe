"""Evaluation and writing beside the training: nothing waits, nothing grows, nothing is lost that was recorded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_sphere import GroupPart, RunRecord, ScaleGroup, SphereTracker, read_run
from lightning_sphere.background import Background
from lightning_sphere.evaluation import Evaluation
from lightning_sphere.guard import SphereWarning
from lightning_sphere.measurement import ring, step
from lightning_sphere.measurement.ring import Drained
from lightning_sphere.recording import Recording
from lightning_sphere.tensorboard.writer import TensorBoardSink
from nets import FIRST, SECOND, batches, conv_net


class Collect:
    """A sink of a user's."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.threads: set[str] = set()

    def write(self, recording: Recording) -> None:
        self.steps += recording.steps.tolist()
        self.threads.add(threading.current_thread().name)

    def close(self) -> None: ...


class Gate:
    """Holds every evaluation up until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        self.threads: list[str] = []
        original = Evaluation.evaluate

        def held(*arguments: Any) -> Recording | None:
            self.threads.append(threading.current_thread().name)
            self.entered.set()
            assert self.open.wait(60)
            return original(*arguments)

        monkeypatch.setattr(Evaluation, "evaluate", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


def steps(tracker: SphereTracker, count: int, each: Callable[[int], None] = lambda _: None) -> None:
    model = tracker.model
    optimizer = tracker._taps[0].optimizer
    for number, (images, classes) in enumerate(batches(count)):
        optimizer.zero_grad()
        cross_entropy(model(images), classes).backward()
        optimizer.step()
        each(number)


def tracked(**settings: Any) -> SphereTracker:
    torch.manual_seed(0)
    model = conv_net()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    return SphereTracker(model, optimizer, **{"strict": True, **settings})


# ------------------------------------------------------------ nothing waits


def test_steps_go_on_while_others_are_evaluated(gate: Gate) -> None:
    sink = Collect()
    with tracked(sinks=[sink], flush_every_n_steps=5) as tracker:
        steps(tracker, 40)  # a training that waited would never come here
        assert gate.entered.is_set()
        assert sink.steps == []
        gate.open.set()
    assert sink.steps == list(range(40))
    assert len(gate.threads) == 2, "all that was recorded meanwhile is evaluated at once"


def test_formulas_and_events_are_made_in_another_thread_and_sinks_of_users_are_not(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.open.set()
    writers: set[str] = set()
    original = TensorBoardSink.write

    def write(sink: TensorBoardSink, recording: Recording) -> None:
        writers.add(threading.current_thread().name)
        original(sink, recording)

    monkeypatch.setattr(TensorBoardSink, "write", write)
    sink = Collect()
    with tracked(sinks=[sink], log_dir=tmp_path, flush_every_n_steps=5) as tracker:
        steps(tracker, 20)
    here = threading.current_thread().name
    assert {name.startswith("lightning_sphere") for name in gate.threads} == {True}
    assert {name.startswith("lightning_sphere") for name in writers} == {True}
    assert sink.threads == {here}


def test_what_a_flush_finds_out_waits_for_it(gate: Gate) -> None:
    with tracked(flush_every_n_steps=5) as tracker:
        steps(tracker, 20)
        assert gate.entered.wait(10)
        timer = threading.Timer(0.2, gate.open.set)
        timer.start()
        assert tracker.verdicts, "the verdicts of the steps under way"
        assert gate.open.is_set()
        timer.join()


def test_the_thread_ends_with_the_tracker() -> None:
    def ours() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith("lightning_sphere")]

    before = ours()
    with tracked(flush_every_n_steps=5) as tracker:
        steps(tracker, 20)
        tracker.flush()
        assert len(ours()) == len(before) + 1
    assert ours() == before


# ------------------------------------------------------------- nothing grows


def test_without_room_fewer_steps_are_recorded_and_it_is_told_once(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "_HOST_ROWS", 0)
    recorded: list[int] = []

    def each(number: int) -> None:
        recorded.append(len(tracker._taps[0]._meter.ring))  # type: ignore[union-attr]
        if number == 59:
            gate.open.set()

    with pytest.warns(SphereWarning) as caught, tracked(log_dir=tmp_path, flush_every_n_steps=4) as tracker:
        steps(tracker, 200, each)
    assert [str(each.message) for each in caught if "evaluated and written" in str(each.message)] == [
        "steps are recorded faster than they can be evaluated and written: from step 16 of AdamW on, one in 2 is "
        "recorded. every_n_steps, include and quantities choose what to record"
    ]
    assert max(recorded) <= 12, "rows for a flush, and eight more"
    found = read_run(tmp_path).steps
    assert found[:16].tolist() == list(range(16))
    assert found[16] >= 60, "there was no room before"
    assert set(np.diff(found[16:]).tolist()) <= {2**power for power in range(1, 8)}


def test_both_buffers_fit_into_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    with tracked(device_budget_mb=0.1) as tracker:
        steps(tracker, 3)
        tracker.flush()
        found = tracker._taps[0]._meter.ring  # type: ignore[union-attr]
        assert found._free is not None
        assert found.data.nbytes + found._free[0].nbytes <= 0.1 * 2**20
        assert found.rows > 5


def test_steps_left_out_are_told_from_those_taken_in_what_adds_up(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "_HOST_ROWS", 0)

    def each(number: int) -> None:
        if number == 20:
            gate.open.set()

    names = ["angular_step", "path_length", "adam_equivalence"]
    torch.manual_seed(0)
    model = conv_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    whole = [ScaleGroup(name, (GroupPart(name),), blocks=1, kind="whole") for name in (FIRST, SECOND)]
    tracker = SphereTracker(model, optimizer, tmp_path, quantities=names, groups=whole, flush_every_n_steps=4)
    with pytest.warns(SphereWarning, match="evaluated and written"), tracker:
        steps(tracker, 60, each)
    record = read_run(tmp_path)
    apart = np.diff(record.steps)
    assert apart.max() > 1
    theta, path = record["angular_step"][:, :2], record["path_length"][:, :2]
    np.testing.assert_allclose(np.diff(path, axis=0), apart[:, None] * theta[1:], rtol=1e-5)
    equivalence = record["adam_equivalence"]
    invariant = np.array(record.invariant)
    assert np.nanmax(np.abs(equivalence[:, invariant] - 1.0)) < 0.05, "it begins again where steps are missing"


# ------------------------------------------------------------ nothing is lost


def test_the_rings_memory_is_not_read_after_it_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(folder: Path) -> RunRecord:
        with tracked(log_dir=folder, quantities="full", flush_every_n_steps=6) as tracker:
            steps(tracker, 30, lambda number: tracker.flush() if number % 6 == 5 else None)
        return read_run(folder)

    usual = run(tmp_path / "usual")
    release = Drained.release

    def spoil(drained: Drained) -> None:
        drained._buffer.fill_(1e30)
        release(drained)

    monkeypatch.setattr(ring.Drained, "release", spoil)
    spoiled = run(tmp_path / "spoiled")
    np.testing.assert_array_equal(usual.values, spoiled.values)
    assert usual.groups == spoiled.groups


@pytest.mark.parametrize("strict", [False, True])
def test_a_failure_in_the_thread_is_told_in_the_training(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("the cause")

    monkeypatch.setattr(Evaluation, "evaluate", broken)
    tracker = tracked(strict=strict, flush_every_n_steps=5)
    if strict:
        with pytest.raises(ZeroDivisionError, match="the cause"), tracker:
            steps(tracker, 40)
    else:
        with pytest.warns(SphereWarning, match="the cause") as caught, tracker:
            steps(tracker, 40)
        assert len(caught) == 1
        assert tracker.guard.failure is not None


def test_the_thread_adds_no_team_of_its_own() -> None:
    here = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        background: Background[int] = Background()
        background.start(torch.get_num_threads)
        assert background.take() == 1
        assert torch.get_num_threads() == 2
        background.close()
    finally:
        torch.set_num_threads(here)


def test_a_background_does_one_job_after_the_other() -> None:
    background: Background[int] = Background()
    assert background.idle
    assert not background.done
    assert background.take() is None
    go = threading.Event()
    background.start(lambda: int(go.wait(10)))
    assert not background.idle
    assert not background.done
    go.set()
    assert background.take() == 1
    assert background.idle
    assert background.take() is None
    background.start(lambda: 2)
    background.close()
    assert background.done
    assert background.take() == 2
    background.start(lambda: 3)
    assert background.take() == 3
    background.close()


def test_where_no_thread_can_be_had_the_job_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    background: Background[int] = Background()
    background.start(lambda: 7)
    assert background.take() == 7
