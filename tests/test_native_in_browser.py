"""What TensorBoard's own tabs show of a run: a real server, a real browser."""

from __future__ import annotations

import json
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Dialog, Page, expect, sync_playwright
from torch.nn.functional import cross_entropy
from torch.utils.tensorboard import SummaryWriter

from dashboard_world import serving
from lightning_sphere import SphereTracker, read_run
from nets import batches, conv_net

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
HOSTILE = "<img src=x onerror=alert(1)>|`*b*`"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything on, a layout of the user's in it, and a module of an odd name."""
    root = tmp_path_factory.mktemp("runs")
    model = torch.nn.Sequential()
    model.add_module(HOSTILE, conv_net())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    writer = SummaryWriter(str(root / "run"))
    asked: dict[str, Any] = {"histograms": 10, "per_layer_scalars": 5, "custom_scalars": True}
    with SphereTracker(model, optimizer, writer=writer, flush_every_n_steps=10, strict=True, **asked):
        for number, (images, classes) in enumerate(batches(40)):
            optimizer.zero_grad()
            loss = cross_entropy(model(images), classes)
            loss.backward()
            optimizer.step()
            writer.add_scalar("loss", loss.item(), number)
            if number == 25:
                writer.add_custom_scalars({"Mine": {"losses": ["Multiline", ["loss"]]}})  # type: ignore[no-untyped-call]
    writer.close()
    return root


@pytest.fixture(scope="module", params=[True, False], ids=["fast loader", "python loader"])
def address(root: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    with serving(root, request.param) as address:
        yield address


@pytest.fixture
def page() -> Iterator[Page]:
    """Nothing that is shown may run as a program."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page, said = browser.new_page(viewport={"width": 1500, "height": 1400}), []

        def hear(dialog: Dialog) -> None:
            said.append(dialog.message)
            dialog.dismiss()

        page.on("dialog", hear)
        yield page
        browser.close()
        assert not said


def ask(address: str, route: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{address}/data/plugin/{route}?{urllib.parse.urlencode(query)}") as answer:
        return json.loads(answer.read())


def test_the_server_gives_both_layouts(address: str) -> None:
    """The user's was written after ours, which it had replaced."""
    layout = ask(address, "custom_scalars/layout")
    assert {each["title"]: len(each["chart"]) for each in layout["category"]} == {"Mine": 1, "Sphere": 3}


def test_bands_are_drawn_beside_the_users_charts(address: str, page: Page) -> None:
    page.goto(f"{address}/#custom_scalars")
    for title in ("losses", "angular step (rad)", "effective lr", "weight norm"):
        expect(page.get_by_text(re.compile(rf"^\s*{re.escape(title)}")).first).to_be_visible(timeout=30_000)
    charts = page.locator("tf-custom-scalar-margin-chart-card")
    expect(charts).to_have_count(3)
    for index, title in enumerate(("angular step (rad)", "effective lr", "weight norm")):
        expect(charts.nth(index).locator("tf-card-heading")).to_contain_text(f"{title}: median, p10 to p90")
        band = charts.nth(index).locator("path.area")
        expect(band).to_have_attribute("d", re.compile(r"^M.{500,}"), timeout=30_000)


def test_histograms_have_the_counts_of_the_filters(address: str, root: Path, page: Page) -> None:
    record = read_run(root / "run")
    layer = next(name for name in record.layers if name.endswith(".3"))
    points = ask(address, "histograms/histograms", run="run", tag=f"sphere_histograms_norm/{layer}")
    assert [step for _, step, _ in points] == [0, 10, 20, 30]
    for _, step, buckets in points:
        assert sum(count for *_, count in buckets) == 11
        middle = record["norm"][step, record.layers.index(layer)]
        counts = np.cumsum([count for *_, count in buckets])
        left, right, _ = buckets[int(np.searchsorted(counts, 6))]
        assert left * (1 - 1e-6) <= middle <= right * (1 + 1e-6)
    page.goto(f"{address}/#histograms")
    for name in ("angular_step", "effective_lr", "norm"):
        expect(page.get_by_text(f"sphere_histograms_{name}", exact=True)).to_be_visible(timeout=30_000)
    expect(page.locator("tf-histogram-loader").first).to_contain_text(f"{HOSTILE}.0")


def test_the_text_says_what_the_run_is_and_runs_nothing(address: str, page: Page) -> None:
    page.goto(f"{address}/#text")
    text = page.locator("tf-text-loader")
    expect(text).to_contain_text("2 of 3 weights are scale-invariant.", timeout=30_000)
    expect(text).to_contain_text("AdamW: lr 0.01, weight_decay 0.01")
    expect(text).to_contain_text("histograms 10")
    cells = text.locator("td")
    expect(cells.first).to_have_text(f"{HOSTILE}.0")
    assert cells.count() == 9
    assert text.locator("img").count() == 0
