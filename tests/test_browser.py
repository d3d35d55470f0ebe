"""What a person sees in TensorBoard: a real server, a real browser."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect, sync_playwright
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_sphere import RunRecord, SphereMonitor, read_run
from lightning_sphere.quantities import QUANTITIES
from lit import LitNet, loader, quiet_trainer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
STEPS = 60

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    """A short training that logs its own loss as well."""
    root = tmp_path_factory.mktemp("runs")
    logger = TensorBoardLogger(root, name="digits", version="first")
    trainer = quiet_trainer(root, logger=logger, log_every_n_steps=1, callbacks=[SphereMonitor(strict=True)])
    trainer.fit(LitNet(), loader(count=16 * STEPS))
    return root, read_run(logger.log_dir)


@pytest.fixture(params=["true", "false"], ids=["fast loader", "python loader"])
def address(run: tuple[Path, RunRecord], request: pytest.FixtureRequest) -> Iterator[str]:
    """A TensorBoard server over the run."""
    with closing(socket.socket()) as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run[0]), "--port", str(port)]
    server = subprocess.Popen([*command, f"--load_fast={request.param}"], stderr=subprocess.DEVNULL)
    try:
        address = f"http://localhost:{port}"
        _wait_for(f"{address}/data/plugin/timeseries/tags", "sphere/effective_lr")
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_for(url: str, text: str, seconds: float = 60) -> None:
    """Until the server has read the run."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if text in answer.read().decode():
                    return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.3)
    raise TimeoutError(f"{url} did not show {text!r} within {seconds} s")


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser.new_page(viewport={"width": 1500, "height": 1400})
        browser.close()


def test_the_curves_are_drawn_with_their_values(address: str, page: Page, run: tuple[Path, RunRecord]) -> None:
    record = run[1]
    curves = [name for name in record.quantities if not QUANTITIES[name].context]
    drawn = [name for name in curves if not np.isnan(record[name]).all()]
    page.goto(f"{address}/#timeseries")
    tags = page.get_by_role("combobox", name="Filter tags (regex)")
    tags.fill("^sphere/|train_loss")
    count = page.get_by_text(f"{len(drawn) + 1} cards").locator("visible=true")
    expect(count).to_be_visible(timeout=30_000)
    tags.fill("^sphere/effective_lr")
    card = page.locator("card-view").locator("visible=true")
    expect(card).to_have_count(1)
    expect(card.locator("line-chart")).to_be_visible()
    last = float(np.median(record["effective_lr"][-1][np.array(record.invariant)]))
    expect(card).to_contain_text(f"{last:.4f}", timeout=30_000)
    expect(card).to_contain_text(str(STEPS - 1))


def test_the_users_own_metric_is_whole(address: str) -> None:
    """Two writers in one folder would cut it short."""
    with urllib.request.urlopen(f"{address}/data/plugin/scalars/scalars?tag=train_loss&run=digits%2Ffirst") as answer:
        assert answer.read().decode().count("[") - 1 == STEPS


@pytest.mark.parametrize("address", ["false"], indirect=True, ids=["python loader"])
def test_a_chart_says_what_it_shows(address: str) -> None:
    """The fast loader drops the descriptions of plain scalars, of everybody's."""
    with urllib.request.urlopen(f"{address}/data/plugin/scalars/tags") as answer:
        tags = answer.read().decode()
    assert "layers that are in equilibrium turn at similar speeds" in tags
    assert "angular step, in rad" in tags
