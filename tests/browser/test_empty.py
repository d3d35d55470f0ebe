"""Where there is nothing to show, the page says why, and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from browser_runs import LAYERS
from browser_tab import Tab
from browser_views import opened
from dashboard_world import START, schema_of, serving, write_run
from lightning_sphere.tensorboard.schema import FORMAT
from lightning_sphere.tensorboard.values import schema_value

LOADERS = pytest.mark.parametrize("fast", [True, False], ids=["fast", "python"])
TOLD = "() => document.querySelector('.state')"
BLOCK = """import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "plotly":
            raise ModuleNotFoundError("No module named 'plotly'")
        return None

sys.meta_path.insert(0, Hidden())
"""


@LOADERS
def test_a_logdir_without_our_data(browser: Browser, tmp_path: Path, fast: bool) -> None:
    writer = SummaryWriter(str(tmp_path / "foreign"))
    writer.add_scalar("loss", 1.0, 0)  # type: ignore[no-untyped-call]
    writer.close()
    with serving(tmp_path, fast, wait=0) as address, opened(browser, address) as tab:
        tab.page.goto(address)
        scalars = tab.page.get_by_role("tab", name="Scalars")
        expect(scalars).to_be_visible()
        expect(tab.page.get_by_role("tab", name="Sphere")).to_be_hidden()
        tab.visit(ready=TOLD)
        expect(tab.get("empty")).to_contain_text("No run with sphere data yet")
        expect(tab.get("empty")).to_contain_text("trainer = Trainer(callbacks=[SphereMonitor()])")
        expect(tab.get("empty")).to_contain_text("--logdir")
        expect(tab.get("heatmap")).to_be_hidden()
        expect(tab.get("cards")).to_be_hidden()


def raw(folder: Path, content: bytes) -> None:
    """A run that has nothing but a description."""
    writer = SummaryWriter(str(folder))
    writer.file_writer.add_event(Event(summary=Summary(value=[schema_value(content)]), step=0), walltime=START)
    writer.close()


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "python"])
def problems(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Tab]:
    """A tab over runs that cannot be shown, and one that can."""
    root = tmp_path_factory.mktemp("problems")
    good = json.loads(schema_of(2, ["norm"]).to_json())
    raw(root / "newer", json.dumps(good | {"format": FORMAT + 1}).encode())
    raw(root / "damaged", b'{"format": 2, "layers"')
    raw(root / "just begun", json.dumps(good).encode())
    write_run(root / "good", steps=20)
    with serving(root, request.param) as address, opened(browser, address) as tab:
        yield tab


@pytest.mark.parametrize(
    ("run", "why"), [("newer", "is newer than what this version of lightning_sphere reads"), ("damaged", "")]
)
def test_a_run_that_cannot_be_read_says_why(problems: Tab, run: str, why: str) -> None:
    problems.show(run=run, ready=TOLD)
    told = problems.get("problem")
    expect(told).to_contain_text("This run cannot be shown")
    expect(told).to_contain_text(f"\u201c{run}\u201d: ")
    expect(told).to_contain_text(why)
    assert len(told.text_content() or "") < 500
    expect(problems.get("run").locator("option", has_text=f"{run} (cannot be read)")).to_have_count(1)
    expect(problems.get("heatmap")).to_be_hidden()
    problems.get("run").select_option("good")
    expect(problems.get("heatmap")).to_be_visible()
    assert problems.until(problems.heatmaps)["a"].z.shape == (4, 20)
    expect(told).to_be_hidden()


def test_a_run_without_steps_is_not_called_unreadable(problems: Tab) -> None:
    problems.show(run="just begun", ready=TOLD)
    expect(problems.get("empty")).to_contain_text("No steps yet")
    expect(problems.get("empty")).to_contain_text("just begun")
    expect(problems.get("run").locator("option", has_text="just begun (no steps yet)")).to_have_count(1)


def test_a_run_that_can_be_shown_comes_first(problems: Tab) -> None:
    problems.show()
    assert problems.get("run").input_value() == "good"
    problems.show(run="good", vs="newer")
    expect(problems.get("notice")).to_contain_text("\u201cnewer\u201d cannot be compared")
    assert list(problems.heatmaps()) == ["a"]


def test_a_filter_without_match(dashboard: Tab) -> None:
    dashboard.get("filter").fill("nothing has this name")
    expect(dashboard.frame.get_by_text("No layer matches the filter")).to_be_visible()
    expect(dashboard.get("count")).to_have_text("0 of 8 layers")
    dashboard.get("clear-filter").click()
    assert dashboard.until(dashboard.rows) == list(LAYERS)
    assert dashboard.until(lambda: dashboard.heatmap().layers, lambda found: len(found) == 8) == list(LAYERS)
    for kind in ("row", "group", "whole", "joint", "none"):
        dashboard.get(f"kind-{kind}").click()
    dashboard.get("clear-filter").click()
    assert dashboard.until(dashboard.rows) == list(LAYERS)
    assert dashboard.get("filter").input_value() == ""


@LOADERS
def test_without_plotly_the_page_says_how_to_get_it(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(BLOCK)
    monkeypatch.setenv("PYTHONPATH", str(hidden), prepend=":")
    run = write_run(tmp_path / "runs" / "run", steps=20, layers=5)
    with serving(tmp_path / "runs", fast) as address, opened(browser, address) as tab:
        tab.allow("plotly.js")
        tab.visit(ready="() => document.querySelector('[data-testid=no-plotly]')", layer=run.schema.layers[1])
        expect(tab.get("no-plotly")).to_contain_text("pip install 'lightning-sphere[dashboard]'")
        expect(tab.get("card-groups")).to_contain_text("4 of 5 layers")
        assert tab.rows() == list(run.schema.layers)
        expect(tab.get("facts")).to_contain_text("followed by BatchNorm2d")
        assert tab.frame.evaluate("document.getElementById('heatmap-plot')._fullData") is None
        expect(tab.frame.locator(".spinner")).to_have_count(0)
