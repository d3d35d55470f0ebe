"""A link opens the page as it was."""

from __future__ import annotations

import urllib.parse

import pytest
from playwright.sync_api import Browser, expect

from browser_runs import LAYERS, World
from browser_tab import PREFIX, READY, Tab
from browser_views import foreign, opened, state_of, visit

DRAWN = "() => document.getElementById('detail-plot')?.data?.length > 0"


def chosen(tab: Tab) -> dict[str, str | bool]:
    """What the controls say."""
    frame = tab.frame
    return {
        **{name: tab.get(name).input_value() for name in ("run", "vs", "quantity", "theme", "smooth", "filter")},
        "scale": frame.locator("[name=scale]:checked").input_value(),
        "x": frame.locator("[name=x]:checked").input_value(),
        "kinds": " ".join(frame.locator(".chip[aria-pressed=true]:not([hidden])").all_text_contents()),
        "follow": tab.get("follow").is_checked(),
        "layers": " ".join(frame.locator("[data-testid=layers] [aria-selected=true]").all_text_contents()),
    }


def test_what_a_person_chose_is_in_the_link_and_comes_back(browser: Browser, server: str) -> None:
    with opened(browser, server) as tab:
        tab.visit(run="second")
        frame = tab.frame
        frame.get_by_role("combobox", name="Run", exact=True).select_option("first")
        frame.get_by_label("Compare with").select_option("second")
        frame.get_by_label("Quantity").select_option("effective_lr")
        frame.get_by_text("Linear", exact=True).click()
        frame.get_by_text("Time", exact=True).click()
        tab.get("smooth").fill("0.25")
        tab.get("kind-whole").click()
        tab.get("filter").fill("*conv")
        frame.get_by_label("Theme").select_option("dark")
        frame.get_by_text("Follow", exact=True).click()
        tab.until(tab.rows, lambda rows: len(rows) == 4)
        tab.drag(30.0, 90.0)
        tab.layer("stage1.conv").click()
        frame.wait_for_function(DRAWN)
        state = tab.until(lambda: state_of(tab.page.url), lambda now: {"layer", "zoom"} <= now.keys())
        zoom = [float(part) for part in state.pop("zoom").split(",")]
        assert zoom == pytest.approx([30.0, 90.0], abs=2.0)
        assert state == {
            "run": "first",
            "vs": "second",
            "quantity": "effective_lr",
            "layer": "stage1.conv",
            "scale": "linear",
            "x": "relative",
            "smooth": "0.25",
            "kind": "row,group,joint,none",
            "filter": "*conv",
            "theme": "dark",
            "follow": "0",
        }
        assert tab.range() == pytest.approx(zoom)
        link, before, drawn, curves = tab.page.url, chosen(tab), tab.heatmaps(), tab.curves()
    with opened(browser, server) as tab:
        visit(tab, link, DRAWN)
        assert chosen(tab) == before
        assert tab.range() == tab.range("detail-plot") == pytest.approx(zoom)
        again = tab.heatmaps()
        assert list(again) == ["a", "b", "difference"]
        for key, one in drawn.items():
            assert (again[key].layers, again[key].low, again[key].high) == (one.layers, one.low, one.high)
            assert again[key].z.tobytes() == one.z.tobytes()
        assert {key: one.y.tobytes() for key, one in tab.curves().items()} == {
            key: one.y.tobytes() for key, one in curves.items()
        }
        assert tab.style("body", "backgroundColor") == "rgb(21, 24, 29)"
        assert tab.page.url == link


def test_only_what_differs_is_in_the_link(tab: Tab) -> None:
    tab.show(run="first")
    assert state_of(tab.page.url) == {"run": "first"}
    tab.get("quantity").select_option("norm")
    assert tab.until(lambda: state_of(tab.page.url), lambda now: len(now) == 2) == {"run": "first", "quantity": "norm"}
    tab.get("quantity").select_option("angular_step")
    assert tab.until(lambda: state_of(tab.page.url), lambda now: len(now) == 1) == {"run": "first"}


def test_what_tensorboard_has_in_the_url_stays(browser: Browser, server: str) -> None:
    with opened(browser, server) as tab:
        own = f"{PREFIX}run=first&tagFilter=a%2Bb&darkMode=true&p.other.key=1%262&{PREFIX}quantity=norm"
        visit(tab, f"{server}/?{own}#lightning_sphere")
        before = foreign(tab.page.url)
        assert sorted(before[0]) == ["darkMode=true", "p.other.key=1%262", "tagFilter=a%2Bb"]
        assert before[1] == "lightning_sphere"
        assert tab.frame.locator("html[data-theme=dark]").count() == 1, "TensorBoard's theme"
        tab.get("quantity").select_option("effective_lr")
        tab.get("filter").fill("a&b=c#d%")
        tab.until(lambda: state_of(tab.page.url), lambda now: now.get("filter") == "a&b=c#d%")
        assert state_of(tab.page.url) == {"run": "first", "quantity": "effective_lr", "filter": "a&b=c#d%"}
        assert foreign(tab.page.url) == before
        entries = tab.page.evaluate("history.length")
        tab.get("filter").fill("")
        tab.until(lambda: state_of(tab.page.url), lambda now: "filter" not in now)
        assert tab.page.evaluate("history.length") == entries, "the way back is not blocked"


def test_a_link_to_what_is_not_there_says_so(tab: Tab, world: World) -> None:
    tab.show(run="no such run", vs="nor this", layer="nor.this.layer", quantity="nor this quantity")
    notices = tab.get("notice")
    for text in (
        "There is no run \u201cno such run\u201d here",
        "no run \u201cnor this\u201d to compare",
        "no layer \u201cnor.this.layer\u201d",
        "was not recorded",
    ):
        expect(notices.filter(has_text=text)).to_have_count(1)
    newest = max(world.runs.values(), key=lambda run: run.wall_times[-1]).folder.name
    shown = tab.get("run").input_value()
    assert shown in (newest, "real")
    assert tab.until(lambda: state_of(tab.page.url), lambda now: now == {"run": shown}) == {"run": shown}
    assert tab.heatmap().title == "angular step (rad)"
    expect(tab.get("detail")).to_be_hidden()
    notices.first.get_by_label("Dismiss").click()
    expect(notices).to_have_count(3)
    tab.get("run").select_option("second")
    expect(notices).to_have_count(0)


def test_what_makes_no_sense_in_a_link_is_ignored(tab: Tab) -> None:
    nonsense = {"scale": "cubic", "x": "y", "smooth": "2", "kind": "odd", "zoom": "9,3", "theme": "pink"}
    counted = "() => document.querySelector('[data-testid=count]')?.textContent"
    tab.show(run="first", ready=counted, follow="maybe", **nonsense)
    assert tab.rows() == list(LAYERS)
    assert chosen(tab) | {"kinds": ""} == {
        "run": "first",
        "vs": "",
        "quantity": "angular_step",
        "theme": "auto",
        "smooth": "0.6",
        "filter": "",
        "scale": "log",
        "x": "step",
        "kinds": "",
        "follow": True,
        "layers": "",
    }
    tab.frame.wait_for_function(READY)
    assert tab.range() == pytest.approx((-0.5, 59.5))


def test_the_link_is_copied(browser: Browser, server: str) -> None:
    with opened(browser, server, permissions=["clipboard-read", "clipboard-write"]) as tab:
        tab.visit(run="first", layer="head", zoom="3,20")
        tab.get("copy-link").click()
        expect(tab.get("status")).to_have_text("Link copied.")
        copied = tab.page.evaluate("navigator.clipboard.readText()")
        assert copied == tab.page.url
        assert state_of(copied) == {"run": "first", "layer": "head", "zoom": "3,20"}
        assert urllib.parse.urlsplit(copied).fragment == "lightning_sphere"


def test_a_visit_to_another_tab_forgets_nothing(browser: Browser, server: str) -> None:
    with opened(browser, server) as tab:
        tab.visit(run="first", layer="head", zoom="3,20")
        tab.page.get_by_role("tab", name="Text").click()
        expect(tab.page.locator("tf-text-dashboard, text-dashboard, .plugins [data-plugin-id]").first).to_be_attached()
        tab.until(lambda: tab.page.url.endswith("#text"))
        tab.page.get_by_role("tab", name="Sphere").click()
        tab.until(lambda: tab.page.url.endswith("#lightning_sphere"))
        assert state_of(tab.page.url) == {"run": "first", "layer": "head", "zoom": "3,20"}
        expect(tab.get("detail")).to_be_visible()
        assert tab.range() == (3.0, 20.0)
