"""A training that goes on while the page is open, through the real writer into the same file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from browser_tab import Tab
from browser_views import opened
from dashboard_world import Run, grow, runs_of, serving, until, write_run

LAYERS = 70
SILENT = """() => {
    const real = window.setInterval;
    window.setInterval = (listener, pause, ...rest) => (pause === 10_000 ? 0 : real(listener, pause, ...rest));
}"""
"""Switches the page's own asking off: what is left is TensorBoard's button."""


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "python"])
def training(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[str, Run]]:
    """A server, and a run that has not ended."""
    root = tmp_path_factory.mktemp("growing")
    run = write_run(root / "running", steps=30, layers=LAYERS, close=False)
    with serving(root, request.param) as address:
        yield address, run
    run.close()


def more(training: tuple[str, Run], count: int) -> int:
    """Let the run go on, until the server knows of it; gives the number of steps."""
    address, run = training
    grow(run, count, seed=len(run.steps))
    until(lambda: runs_of(address)[0]["last_step"] == run.steps[-1])
    return len(run.steps)


def reload(page: Page) -> None:
    """TensorBoard's button; the focus stays where it is."""
    page.locator(".reload-button").first.dispatch_event("click")


def steps_drawn(tab: Tab) -> int:
    return tab.heatmap().z.shape[1]


def assert_drawn(tab: Tab, run: Run) -> None:
    """All that was recorded, and the status says until when."""
    assert tab.until(lambda: steps_drawn(tab), lambda count: count == len(run.steps)) == len(run.steps)
    np.testing.assert_allclose(tab.heatmap().z, np.log10(run.of("angular_step").T.astype(np.float64)), rtol=1e-12)
    assert tab.range() == (-0.5, len(run.steps) - 0.5)
    expect(tab.get("status")).to_contain_text(f"Step {run.steps[-1]} ")


def test_tensorboards_button_brings_new_columns(browser: Browser, training: tuple[str, Run]) -> None:
    with opened(browser, training[0]) as tab:
        tab.page.add_init_script(f"({SILENT})()")
        tab.visit()
        assert_drawn(tab, training[1])
        before = steps_drawn(tab)
        assert more(training, 5) == before + 5
        assert steps_drawn(tab) == before, "nobody has asked yet"
        reload(tab.page)
        assert_drawn(tab, training[1])


def test_the_page_asks_by_itself(browser: Browser, training: tuple[str, Run]) -> None:
    with opened(browser, training[0]) as tab:
        tab.page.clock.install()
        tab.visit()
        assert_drawn(tab, training[1])
        more(training, 5)
        tab.page.clock.run_for(10_500)
        assert_drawn(tab, training[1])


def test_zoom_choice_scroll_and_focus_stay(browser: Browser, training: tuple[str, Run]) -> None:
    run = training[1]
    with opened(browser, training[0]) as tab:
        tab.page.add_init_script(f"({SILENT})()")
        layer = run.schema.layers[40]
        tab.visit(layer=layer, zoom="5,20", smooth=0)
        curves = tab.until(tab.curves, lambda found: "rate-a" in found)
        assert len(curves["raw-a"].x) == len(run.steps)
        body = tab.frame.locator(".map-body")
        body.evaluate("element => { element.scrollTop = 333; }")
        options = tab.frame.locator("[data-testid=layers]")
        options.focus()
        tab.page.keyboard.press("ArrowDown")
        expect(tab.layer(run.schema.layers[41])).to_have_attribute("aria-selected", "true")
        tab.until(lambda: tab.curves()["raw-a"].y[0] == run.of("angular_step")[0, 41])
        scrolled = body.evaluate("element => element.scrollTop")
        assert scrolled > 0
        more(training, 5)
        reload(tab.page)
        grown = tab.until(lambda: tab.curves()["raw-a"], lambda found: len(found.x) == len(run.steps))
        np.testing.assert_array_equal(grown.y, run.of("angular_step")[:, 41])
        expect(tab.get("status")).to_contain_text(f"Step {run.steps[-1]} ")
        assert tab.range() == tab.range("detail-plot") == (5.0, 20.0)
        assert body.evaluate("element => element.scrollTop") == scrolled
        expect(options).to_be_focused()
        active = options.get_attribute("aria-activedescendant")
        assert tab.frame.locator(f"#{active}").get_attribute("data-layer") == run.schema.layers[41]
        tab.page.keyboard.press("ArrowDown")
        expect(tab.layer(run.schema.layers[42])).to_have_attribute("aria-selected", "true")


def test_a_word_half_typed_stays(browser: Browser, training: tuple[str, Run]) -> None:
    with opened(browser, training[0]) as tab:
        tab.page.add_init_script(f"({SILENT})()")
        tab.visit()
        field = tab.get("filter")
        field.press_sequentially("stage1")
        field.evaluate("element => element.setSelectionRange(2, 4)")
        more(training, 5)
        reload(tab.page)
        expect(tab.get("status")).to_contain_text(f"Step {training[1].steps[-1]} ")
        expect(field).to_be_focused()
        assert field.evaluate("element => [element.value, element.selectionStart, element.selectionEnd]") == [
            "stage1",
            2,
            4,
        ]
        tab.page.keyboard.type("x")
        expect(field).to_have_value("stxe1")


def test_without_follow_nothing_changes(browser: Browser, training: tuple[str, Run]) -> None:
    with opened(browser, training[0]) as tab:
        tab.page.clock.install()
        tab.visit(follow="0")
        expect(tab.get("follow")).not_to_be_checked()
        before, status = tab.heatmap(), tab.get("status").text_content()
        asked: list[str] = []
        tab.page.on("request", lambda request: asked.append(request.url))
        more(training, 5)
        reload(tab.page)
        tab.page.clock.run_for(60_000)
        tab.until(lambda: any("plugins_listing" in url for url in asked))
        assert not [url for url in asked if "/data/plugin/lightning_sphere" in url]
        assert tab.heatmap().z.tobytes() == before.z.tobytes()
        assert tab.get("status").text_content() == status
        tab.frame.get_by_text("Follow", exact=True).click()
        tab.page.clock.run_for(10_500)
        assert_drawn(tab, training[1])


def test_a_server_that_is_gone_is_said_and_forgiven(browser: Browser, training: tuple[str, Run]) -> None:
    with opened(browser, training[0]) as tab:
        tab.page.clock.install()
        tab.visit()
        tab.page.route(re.compile("/lightning_sphere/runs"), lambda route: route.abort())
        tab.allow("ERR_FAILED")
        tab.page.clock.run_for(10_500)
        expect(tab.get("gone")).to_contain_text("The server has not answered since")
        expect(tab.layer(training[1].schema.layers[0])).to_be_visible()
        assert steps_drawn(tab) == len(training[1].steps)
        tab.page.unroute(re.compile("/lightning_sphere/runs"))
        more(training, 2)
        tab.page.clock.run_for(10_500)
        expect(tab.get("gone")).to_have_count(0)
        assert_drawn(tab, training[1])


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "python"])
def test_a_first_run_appears_by_itself(browser: Browser, tmp_path: Path, fast: bool) -> None:
    with serving(tmp_path, fast) as address, opened(browser, address) as tab:
        tab.page.clock.install()
        tab.visit(ready="() => document.querySelector('[data-testid=empty]')")
        run = write_run(tmp_path / "first of all", steps=10)
        until(lambda: runs_of(address))
        tab.page.clock.run_for(10_500)
        tab.frame.wait_for_function("() => document.getElementById('heatmap-plot')?._fullData")
        assert_drawn(tab, run)
        expect(tab.get("empty")).to_be_hidden()
