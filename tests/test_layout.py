"""Our charts beside those of the user's custom-scalars layout, whichever was written first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.tensorboard import SummaryWriter

from lightning_sphere.tensorboard.layout import CHARTS, LayoutKeeper, LayoutScan, layout_value, our_layout, with_ours

USERS = {"Mine": {"losses": ["Multiline", ["loss"]]}}


def titles(layout: Any) -> dict[str, list[str]]:
    return {category.title: [chart.title for chart in category.chart] for category in layout.category}


def write_layout(writer: SummaryWriter, layout: Any) -> None:
    writer.file_writer.add_event(Event(summary=Summary(value=[layout_value(layout)])), step=7)  # type: ignore[no-untyped-call]
    writer.flush()


def test_a_chart_per_quantity_that_is_recorded() -> None:
    layout = our_layout(["drift", "norm", "angular_step"])
    assert titles(layout) == {
        "Sphere": ["weight norm: median, p10 to p90", "angular step (rad): median, p10 to p90"],
    }
    (series,) = layout.category[0].chart[0].margin.series
    assert (series.value, series.lower, series.upper) == (
        "sphere/norm",
        "sphere_bands/norm/p10",
        "sphere_bands/norm/p90",
    )
    assert not our_layout(["drift"]).category


def test_ours_joins_what_is_there_and_is_not_written_twice() -> None:
    ours = our_layout(CHARTS)
    assert with_ours(layout_pb2.Layout(), ours) == ours
    assert with_ours(ours, ours) is None
    user = layout_pb2.Layout(category=[layout_pb2.Category(title="Mine", closed=True), *ours.category])
    del user.category[1].chart[1:]
    user.category[1].chart.add(title="my own")
    merged = with_ours(user, ours)
    assert list(titles(merged)) == ["Mine", "Sphere"]
    assert len(titles(merged)["Sphere"]) == len(CHARTS) + 1
    assert merged.category[0].closed
    assert with_ours(merged, ours) is None
    assert with_ours(user, our_layout([])) is None


def test_the_last_layout_of_a_run_is_found_as_it_grows(tmp_path: Path) -> None:
    scan = LayoutScan(str(tmp_path))
    assert titles(scan.last()) == {}
    writer = SummaryWriter(str(tmp_path), filename_suffix=".1")
    writer.add_text("about", "custom_scalars__config__")  # the tag in a text is no layout
    writer.flush()
    assert titles(scan.last()) == {}
    writer.add_custom_scalars(USERS)  # type: ignore[no-untyped-call]
    for step in range(50):
        writer.add_scalar("loss", 1.0, step)
    writer.flush()
    assert titles(scan.last()) == {"Mine": ["losses"]}
    write_layout(writer, our_layout(["norm"]))
    assert list(titles(scan.last())) == ["Sphere"]
    assert list(titles(LayoutScan(str(tmp_path)).last())) == ["Sphere"]
    later = SummaryWriter(str(tmp_path), filename_suffix=".2")
    later.add_custom_scalars(USERS)  # type: ignore[no-untyped-call]
    later.close()
    (last,) = tmp_path.glob("*.2")
    last.rename(tmp_path / "events.out.tfevents.9999999999.of_a_resumed_run")
    write_layout(writer, our_layout(["norm"]))
    assert list(titles(scan.last())) == ["Mine"]
    writer.close()


def test_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SummaryWriter(str(tmp_path))
    writer.add_custom_scalars(USERS)  # type: ignore[no-untyped-call]
    writer.flush()
    scan = LayoutScan(str(tmp_path))
    scan.last()
    parsed: list[bytes] = []
    original = Event.FromString
    monkeypatch.setattr(
        "lightning_sphere.tensorboard.layout.Event.FromString",
        lambda data: parsed.append(data) or original(data),  # type: ignore[func-returns-value]
    )
    writer.add_scalar("loss", 1.0, 0)
    writer.flush()
    assert titles(scan.last()) == {"Mine": ["losses"]}
    assert not parsed
    write_layout(writer, our_layout(["norm"]))
    scan.last()
    assert len(parsed) == 1
    writer.close()


def test_a_file_that_ends_within_a_record_and_one_that_is_damaged(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    writer.add_scalar("loss", 1.0, 0)
    writer.add_custom_scalars(USERS)  # type: ignore[no-untyped-call]
    writer.close()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for length in range(0, len(whole), 3):
        file.write_bytes(whole[:length])
        scan = LayoutScan(str(tmp_path))
        assert titles(scan.last()) == {}
        file.write_bytes(whole)
        assert titles(scan.last()) == {"Mine": ["losses"]}
    at = whole.index(b"custom_scalars__config__")
    file.write_bytes(whole[: at + 24] + os.urandom(20) + whole[at + 44 :])
    LayoutScan(str(tmp_path)).last()
    file.write_bytes(b"\xff" * 64)
    assert titles(LayoutScan(str(tmp_path)).last()) == {}


class Held:
    """A file writer whose queue is written when it is flushed, and no earlier."""

    def __init__(self, writer: SummaryWriter) -> None:
        self._inner: Any = writer.file_writer
        self._queue: list[tuple[Any, Any, Any]] = []

    def get_logdir(self) -> str:
        return str(self._inner.get_logdir())

    def add_event(self, event: Any, step: int | None = None, walltime: float | None = None) -> None:
        self._queue.append((event, step, walltime))

    def flush(self) -> None:
        while self._queue:
            self._inner.add_event(*self._queue.pop(0))
        self._inner.flush()


def test_what_is_queued_is_looked_at_on_request_and_ours_is_found_again(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    held = Held(writer)
    keeper, scan = LayoutKeeper(held), LayoutScan(str(tmp_path))
    users = layout_pb2.Layout(category=[layout_pb2.Category(title="Mine")])

    def queue_users() -> None:
        held.add_event(Event(summary=Summary(value=[layout_value(users)])), step=0)

    def count() -> int:
        (file,) = tmp_path.iterdir()
        return file.read_bytes().count(b"custom_scalars__config__")

    queue_users()
    keeper.keep(CHARTS, 3, 1.0)  # the first time it looks at what is queued
    assert list(titles(scan.last())) == ["Mine", "Sphere"]
    keeper.keep(CHARTS, 3, 1.0)
    assert count() == 2
    queue_users()
    keeper.keep(CHARTS, 3, 1.0)
    assert list(titles(scan.last())) == ["Mine", "Sphere"]
    assert count() == 2  # it waits in the queue
    keeper.keep(CHARTS, 3, 1.0, all_of_it=True)
    assert list(titles(scan.last())) == ["Mine", "Sphere"]
    keeper.keep(CHARTS, 3, 1.0, all_of_it=True)
    assert count() == 4
    queue_users()
    held.flush()
    users.category[0].title = "Newer"
    queue_users()
    keeper.keep(CHARTS, 3, 1.0)  # not from the one on disk
    assert list(titles(scan.last())) == ["Newer", "Sphere"]
    writer.close()


def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LayoutScan(str(tmp_path / "gone")).last()
