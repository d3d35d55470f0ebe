"""Large, damaged and resumed runs, and a few of ours among many others."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, expect
from torch.utils.tensorboard import SummaryWriter

from browser_tab import Tab
from browser_views import opened
from dashboard_world import START, Run, grow, numbers, runs_of, schema_of, serving, until, write_run

OTHERS = 197
LARGE = ("norm", "angular_step", "effective_lr", "radius_growth", "lr", "equilibrium_angle")
"""All that the cards are made of."""
PATIENCE = 6.0
"""Seconds from the link to the drawn heatmap; on a machine that does nothing else it is less than half."""
COLUMNS = """() => {
    const [{ x, z, meta }] = document.getElementById("heatmap-plot").data;
    const count = z[0].length;
    return [meta.layers, Array.from(x), ...[0, count >> 1, count - 1].map((column) => z.map((row) => row[column]))];
}"""
"""The first, the middle and the last column: reading all of them back would take longer than drawing them."""


def drawn(tab: Tab) -> np.ndarray:
    return tab.until(tab.heatmaps)["a"].z


def logarithms(run: Run, rows: slice = slice(None)) -> np.ndarray:
    return np.log10(run.of("angular_step")[rows].T.astype(np.float64))


def event_file(folder: Path) -> Path:
    (file,) = folder.glob("*tfevents*")
    return file


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "python"])
def many(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[Tab, dict[str, Run]]]:
    """A tab over 200 runs; three of them, two versions of one network and a resumed one, are ours."""
    root = tmp_path_factory.mktemp("many")
    writer = SummaryWriter(str(root / "other0"))
    writer.add_scalar("loss", 1.0, 0)  # type: ignore[no-untyped-call]
    writer.close()
    for index in range(1, OTHERS):
        shutil.copytree(root / "other0", root / f"other{index}")
    runs = {
        name: write_run(root / name, steps=30, seed=n, start=START + 100 * n)
        for n, name in enumerate(("net/version_0", "net/version_1"))
    }
    runs["before"] = write_run(root / "resumed", steps=40, seed=3, start=START - 5000)
    event_file(root / "resumed").rename(root / "resumed" / "events.out.tfevents.1700000001.host.1.0")
    runs["after"] = write_run(root / "resumed2", steps=range(30, 60), seed=4, start=START - 1000)
    event_file(root / "resumed2").rename(root / "resumed" / "events.out.tfevents.1700000002.host.2.0")
    (root / "resumed2").rmdir()
    with serving(root, request.param, wait=3) as address, opened(browser, address) as tab:
        until(lambda: next(run for run in runs_of(address) if run["name"] == "resumed")["last_step"] == 59)
        yield tab, runs


def test_of_many_runs_only_ours_are_offered_and_asked_for(many: tuple[Tab, dict[str, Run]]) -> None:
    tab, runs = many
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url.partition("/lightning_sphere/")[2]))
    start = time.monotonic()
    tab.visit()
    seconds = time.monotonic() - start
    assert tab.get("run").locator("option").all_text_contents() == ["net/version_0", "net/version_1", "resumed"]
    assert tab.get("run").input_value() == "net/version_1", "the newest"
    np.testing.assert_allclose(drawn(tab), logarithms(runs["net/version_1"]), rtol=1e-12)
    questions = [url for url in asked if url and not url.startswith("static/")]
    assert sorted(url.partition("?")[0] for url in questions) == ["plotly.js", "run", "runs", "values"]
    assert seconds < PATIENCE


def test_versions_of_a_run_are_kept_apart(many: tuple[Tab, dict[str, Run]]) -> None:
    tab, runs = many
    for name in ("net/version_0", "net/version_1"):
        tab.show(run=name)
        np.testing.assert_allclose(drawn(tab), logarithms(runs[name]), rtol=1e-12)
    tab.show(run="net/version_0", vs="net/version_1")
    difference = tab.until(tab.heatmaps)["difference"].z
    np.testing.assert_allclose(
        difference, logarithms(runs["net/version_1"]) - logarithms(runs["net/version_0"]), atol=1e-12
    )


def test_a_resumed_run_is_drawn_as_it_went_on(many: tuple[Tab, dict[str, Run]]) -> None:
    tab, runs = many
    tab.show(run="resumed")
    expected = np.concatenate([logarithms(runs["before"], slice(30)), logarithms(runs["after"])], axis=1)
    np.testing.assert_allclose(drawn(tab), expected, rtol=1e-12)
    assert tab.range() == (-0.5, 59.5)


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "python"])
def damaged(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[Tab, dict[str, Run]]]:
    """Files with a whole first half; the user's own metric is in them, too."""
    root, runs = tmp_path_factory.mktemp("damaged"), {}
    for name in ("cut", "flipped", "whole"):
        run = runs[name] = write_run(root / name, steps=20, close=False)
        for step in range(20):
            run.writer.add_scalar("loss", 1.0 / (step + 1), step)
        run.writer.flush()
        half = event_file(run.folder).stat().st_size
        grow(run, 20)
        run.close()
        content = bytearray(event_file(run.folder).read_bytes())
        if name == "cut":
            del content[half + 333 :]
        elif name == "flipped":
            content[half + 333] ^= 0x40
        event_file(run.folder).write_bytes(content)
    with serving(root, request.param) as address, opened(browser, address) as tab:
        until(lambda: [run["last_step"] >= 19 for run in runs_of(address)] == [True] * 3)
        yield tab, runs


@pytest.mark.parametrize("name", ["cut", "flipped"])
def test_what_is_whole_of_a_damaged_file_is_drawn(damaged: tuple[Tab, dict[str, Run]], name: str) -> None:
    tab, runs = damaged
    tab.show(run=name)
    z, heatmap = drawn(tab), tab.heatmap()
    assert z.shape[1] >= 20
    np.testing.assert_allclose(z[:, :20], logarithms(runs[name], slice(20)), rtol=1e-12)
    steps = ((heatmap.edges[:-1] + heatmap.edges[1:]) / 2).round().astype(int) if z.shape[1] > 20 else np.arange(20)
    np.testing.assert_allclose(z, logarithms(runs[name])[:, steps], rtol=1e-12, err_msg="nothing wrong is drawn")
    expect(tab.get("problem")).to_have_count(0)
    tab.show(run="whole")
    np.testing.assert_allclose(drawn(tab), logarithms(runs["whole"]), rtol=1e-12)


@pytest.mark.parametrize("name", ["cut", "flipped", "whole"])
def test_the_users_metrics_of_a_damaged_file_are_there(damaged: tuple[Tab, dict[str, Run]], name: str) -> None:
    tab, _ = damaged
    answer: Any = tab.page.request.get(
        f"{tab.address}/data/plugin/scalars/scalars", params={"run": name, "tag": "loss"}
    ).json()
    assert [(step, pytest.approx(value)) for _, step, value in answer] == [
        (step, 1.0 / (step + 1)) for step in range(20)
    ]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """300 layers, 2000 steps; the steps lie ten apart."""
    schema, steps = schema_of(300, LARGE), list(range(0, 20_000, 10))
    table = numbers(steps, schema)
    return write_run(
        tmp_path_factory.mktemp("large") / "large", steps=steps, schema=schema, table=table, budget_mb=1000
    )


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "python"])
def test_a_large_run_opens_quickly(browser: Browser, large: Run, fast: bool) -> None:
    with serving(large.folder.parent, fast) as address, opened(browser, address) as tab:
        until(lambda: runs_of(address)[0]["last_step"] == 19_990, 120)
        seconds = []
        for _ in range(3):
            start = time.monotonic()
            tab.visit()
            seconds.append(time.monotonic() - start)
        print(f"opened in {', '.join(f'{each:.2f}' for each in seconds)} s")
        layers, edges, *columns = tab.frame.evaluate(COLUMNS)
        assert layers == list(large.schema.layers)
        count = len(edges) - 1
        assert 500 < count <= 1200
        for column, z in zip((0, count >> 1, count - 1), columns, strict=True):
            inside = (large.steps >= edges[column]) & (large.steps < edges[column + 1])
            middle = np.median(large.of("angular_step")[inside].astype(np.float64), axis=0)
            np.testing.assert_allclose(z, np.log10(middle), rtol=1e-12)
        colours = np.unique(tab.pixels("#heatmap-plot").astype(np.int64) @ [1, 256, 256**2])
        assert len(colours) > 50, "pixels are drawn"
        assert statistics.median(seconds) < PATIENCE
