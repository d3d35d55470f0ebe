"""The heatmap: what is drawn is what was recorded."""

from __future__ import annotations

import numpy as np
import pytest
from playwright.sync_api import expect

from browser_runs import HOLE, LAYERS, LONG, LONG_STEPS, NEVER, QUANTITIES, SKIPPED, STEPS, World
from browser_tab import Heatmap, Tab, hex_colour
from lightning_sphere.quantities import QUANTITIES as KNOWN

KINDS = dict(zip(LAYERS, ("row", "group", "row", "whole", "row", "row", "none", "joint"), strict=True))
LETTERS = {"row": "R", "group": "G", "whole": "W", "joint": "J", "none": "\u2013"}
WORDS = {
    "row": "per row",
    "group": "per group of rows",
    "whole": "as a whole",
    "joint": "together",
    "none": "not scale-",
}
INVARIANT = [name for name in LAYERS if name != "head"]
TITLES = {name: one.title + (f" ({one.unit})" if one.unit else "") for name, one in KNOWN.items()}


def recorded(world: World, quantity: str, run: str = "first") -> np.ndarray:
    """Medians as they were written, float64 ``[layers, measured steps]``; a rare quantity has every tenth step."""
    values = world.runs[run].of(quantity).astype(np.float64)
    return (values[~np.isnan(values).all(axis=1)] if KNOWN[quantity].rare else values).T


def place_in(heatmap: Heatmap, values: np.ndarray) -> np.ndarray:
    """Colours of the scale at drawn values, float64 ``[..., 3]``."""
    share = np.clip((values - heatmap.low) / (heatmap.high - heatmap.low), 0.0, 1.0)
    stops = [at for at, _ in heatmap.colours]
    channels = np.array([hex_colour(colour) for _, colour in heatmap.colours])
    return np.stack([np.interp(share, stops, channels[:, channel]) for channel in range(3)], axis=-1)


def seen(tab: Tab, heatmap: Heatmap) -> np.ndarray:
    """The pixel in the middle of each cell of a screenshot, float64 ``[rows, columns, 3]``."""
    picture = tab.pixels("#heatmap-plot").astype(np.float64)
    middles = (heatmap.edges[1:] + heatmap.edges[:-1]) / 2
    places = [[tab.place(row, x) for x in (middles[0], middles[-1])] for row in range(len(heatmap.layers))]
    across = np.interp(middles, middles[[0, -1]], [places[0][0][0], places[0][1][0]]).round().astype(int)
    return picture[np.array([int(place[0][1]) for place in places])[:, None], across[None, :]]


def test_every_cell_is_the_recorded_median(dashboard: Tab, world: World) -> None:
    dashboard.get("scale").get_by_text("Linear").click()
    for quantity in QUANTITIES:
        dashboard.get("quantity").select_option(quantity)
        title = TITLES[quantity]
        dashboard.until(lambda title=title: dashboard.heatmap().title == title)
        dashboard.get("scale").get_by_text("Linear").click()
        heatmap = dashboard.until(dashboard.heatmap, lambda drawn: not drawn.log)
        values = recorded(world, quantity)
        assert heatmap.layers == list(LAYERS)
        np.testing.assert_array_equal(heatmap.z, values, err_msg=quantity)
        steps = np.arange(0, STEPS, 10 if KNOWN[quantity].rare else 1)
        half = (steps[1] - steps[0]) / 2
        np.testing.assert_allclose(heatmap.edges, [*(steps - half), steps[-1] + half])


@pytest.mark.parametrize("quantity", ["angular_step", "effective_lr"])
def test_logarithmic_colours_are_powers_of_ten(tab: Tab, world: World, quantity: str) -> None:
    tab.show(run="first", quantity=quantity)
    heatmap, values = tab.heatmap(), recorded(world, quantity)
    assert heatmap.log
    expect(tab.get("legend-a")).to_contain_text("log scale")
    np.testing.assert_allclose(heatmap.z, np.log10(values), rtol=1e-12)
    ends = np.nanpercentile(np.log10(values), [0.5, 99.5])
    np.testing.assert_allclose([heatmap.low, heatmap.high], ends, rtol=1e-9)
    tab.get("scale").get_by_text("Linear").click()
    heatmap = tab.until(tab.heatmap, lambda drawn: not drawn.log)
    expect(tab.get("legend-a")).to_contain_text("linear scale")
    np.testing.assert_array_equal(heatmap.z, values)
    np.testing.assert_allclose([heatmap.low, heatmap.high], np.nanpercentile(values, [0.5, 99.5]), rtol=1e-9)
    tab.get("scale").get_by_text("Log").click()
    np.testing.assert_allclose(tab.until(tab.heatmap, lambda drawn: drawn.log).z, np.log10(values), rtol=1e-12)


def test_a_real_training_is_drawn_as_read_run_reads_it(tab: Tab, world: World) -> None:
    tab.show(run="real", quantity="angular_step", scale="linear")
    heatmap = tab.heatmap()
    assert heatmap.layers == list(world.real.layers) == tab.rows()
    np.testing.assert_array_equal(heatmap.z, world.real["angular_step"].T.astype(np.float64))
    assert np.isfinite(heatmap.z).mean() > 0.9
    tab.get("quantity").select_option("effective_lr")
    heatmap = tab.until(tab.heatmap, lambda drawn: drawn.title == "effective lr")
    np.testing.assert_allclose(heatmap.z, np.log10(world.real["effective_lr"].T.astype(np.float64)), rtol=1e-12)


def test_rows_stand_in_network_order_beside_their_names(dashboard: Tab) -> None:
    assert dashboard.rows() == dashboard.heatmap().layers == list(LAYERS)
    graph = dashboard.frame.locator("#heatmap-plot").bounding_box()
    assert graph is not None
    for row, name in enumerate(LAYERS):
        box = dashboard.layer(name).bounding_box()
        assert box is not None
        assert abs(box["y"] + box["height"] / 2 - graph["y"] - dashboard.place(row, 0)[1]) < 1.5
        expect(dashboard.layer(name).locator(".layer-name")).to_have_text(name)


def test_kinds_are_marked(dashboard: Tab) -> None:
    for name, kind in KINDS.items():
        mark = dashboard.layer(name).locator(f".kind-{kind}")
        expect(mark).to_be_visible()
        expect(mark).to_have_text(LETTERS[kind])
        assert WORDS[kind] in (dashboard.layer(name).get_attribute("aria-label") or "")
    colours = {kind: dashboard.style(f".layers .kind-{kind}", "backgroundColor") for kind in LETTERS}
    assert len(set(colours.values())) >= 2, colours


@pytest.mark.parametrize(("scale", "theme"), [("linear", "light"), ("log", "dark")])
def test_colours_on_the_screen_are_those_of_the_values(tab: Tab, world: World, scale: str, theme: str) -> None:
    """From dark to bright; and grey where nothing is known: skipped steps, a stretch of a layer, a whole layer."""
    tab.show(run="first", quantity="angular_step", scale=scale, theme=theme)
    heatmap, values = tab.heatmap(), recorded(world, "angular_step")
    picture = seen(tab, heatmap)
    known = np.ones(values.shape, dtype=bool)
    known[:, list(SKIPPED)] = False
    known[LAYERS.index(HOLE[0]), list(HOLE[1])] = False
    known[LAYERS.index(NEVER)] = False
    np.testing.assert_array_equal(np.isfinite(heatmap.z), known)
    drawn = np.where(known, np.log10(values) if scale == "log" else values, 0.0)
    assert np.abs(picture - place_in(heatmap, drawn))[known].max() < 8
    bright = (picture @ [0.2126, 0.7152, 0.0722])[known]
    order = np.argsort(values[known])[:: known.sum() // 12]
    inside = [at for at in order if heatmap.low < drawn[known][at] < heatmap.high]
    assert len(inside) >= 8
    assert (np.diff(bright[inside]) > -1).all(), bright[inside]
    assert bright[inside[-1]] - bright[inside[0]] > 80
    colourful = picture.max(axis=-1) - picture.min(axis=-1)
    assert colourful[~known].max() < 30
    assert np.median(colourful[known]) > 60


def test_dragging_zooms_in_and_reset_shows_all_again(dashboard: Tab, world: World) -> None:
    full = dashboard.heatmap()
    assert full.range == pytest.approx((-0.5, STEPS - 0.5))
    expect(dashboard.get("reset-zoom")).to_be_disabled()
    dashboard.drag(9.6, 30.4, row=3)
    near = dashboard.until(dashboard.heatmap, lambda drawn: drawn.range != full.range and drawn.z.shape[1] < STEPS)
    assert near.range == pytest.approx((9.6, 30.4), abs=0.2)
    steps = _steps_of(near)
    assert set(range(10, 31)) <= set(steps) <= set(range(9, 32)), "one more at each end may be cut by the edge"
    np.testing.assert_allclose(near.z, np.log10(recorded(world, "angular_step"))[:, steps], rtol=1e-12)
    assert (near.low, near.high) == (full.low, full.high), "colours keep their meaning"
    ticks = dashboard.frame.eval_on_selector_all(".axes .tick", "all => all.map((tick) => Number(tick.textContent))")
    assert ticks
    assert all(9.6 <= tick <= 30.4 for tick in ticks)
    dashboard.get("reset-zoom").click()
    again = dashboard.until(dashboard.heatmap, lambda drawn: drawn.range == full.range)
    np.testing.assert_array_equal(again.z, full.z)
    assert again.range == full.range
    expect(dashboard.get("reset-zoom")).to_be_disabled()


def test_a_double_click_resets_the_zoom(dashboard: Tab) -> None:
    full = dashboard.range()
    dashboard.drag(20, 40)
    assert dashboard.until(dashboard.range, lambda found: found != full) == pytest.approx((20, 40), abs=0.2)
    left, top = dashboard.place(2, 30)

    def reset() -> bool:
        """A double click that falls into a drawing is none: again."""
        dashboard.frame.locator("#heatmap-plot").dblclick(position={"x": left, "y": top}, force=True)
        dashboard.frame.wait_for_timeout(500)
        return bool(dashboard.range() == full)

    assert any(reset() for _ in range(3))
    expect(dashboard.get("detail")).to_be_hidden()  # it is no click on a layer


def test_zooming_shows_finer_values(tab: Tab, world: World) -> None:
    """A column that stands for several steps has their median; near by, every step has a column."""
    tab.show(run=LONG, quantity="angular_step", scale="linear")
    coarse, values = tab.heatmap(), recorded(world, "angular_step", LONG)
    columns = coarse.z.shape[1]
    assert 300 < columns < LONG_STEPS * 0.8
    steps = np.arange(LONG_STEPS)
    inside = np.digitize(steps, coarse.edges) - 1
    assert set(inside) == set(range(columns)), "no step is left out, no column is empty"
    medians = np.array([[np.median(row[inside == column]) for column in range(columns)] for row in values])
    np.testing.assert_allclose(coarse.z, medians, rtol=1e-7)
    tab.drag(800, 900)
    fine = tab.until(tab.heatmap, lambda drawn: drawn.z.shape[1] < 200)
    shown = _steps_of(fine)
    assert set(range(802, 899)) <= set(shown) <= set(range(797, 904))
    np.testing.assert_array_equal(fine.z, values[:, shown])
    swing = np.abs(np.diff(fine.z[0])) / fine.z[0].mean()
    assert swing.min() > 0.5, "the zigzag from step to step is there"


def _steps_of(heatmap: Heatmap) -> np.ndarray:
    """The steps that have a column of their own; all columns must be such."""
    np.testing.assert_allclose(np.diff(heatmap.edges), 1.0)
    return ((heatmap.edges[1:] + heatmap.edges[:-1]) / 2).round().astype(int)


def test_a_filter_keeps_what_contains_it(dashboard: Tab, world: World) -> None:
    """In name, parameter or reason; an asterisk stands for anything."""
    convolutions = ["stem.conv", "stage2.conv", "stage1.conv"]
    for text, kept in (
        ("conv", convolutions),
        ("ATTENTION", ["attention.qkv", "attention.out"]),
        ("st*conv", convolutions),
        ("stage*.conv", convolutions[1:]),
        ("groupnorm", ["stage2.conv"]),
        ("mlp.up.weight", [LAYERS[-1]]),
    ):
        dashboard.get("filter").fill(text)
        _only(dashboard, world, kept)
    dashboard.get("filter").fill("no such layer")
    expect(dashboard.get("map-cover")).to_contain_text("No layer matches the filter")
    assert dashboard.rows() == []
    dashboard.get("clear-filter").click()
    expect(dashboard.get("filter")).to_have_value("")
    expect(dashboard.get("map-cover")).to_be_hidden()
    _only(dashboard, world, list(LAYERS))


def test_kinds_can_be_taken_away_and_back(dashboard: Tab, world: World) -> None:
    rows = [name for name in LAYERS if KINDS[name] != "row"]
    expect(dashboard.get("kind-row")).to_contain_text("4")
    dashboard.get("kind-row").click()
    _only(dashboard, world, rows)
    expect(dashboard.get("kind-row")).to_have_attribute("aria-pressed", "false")
    dashboard.get("kind-joint").click()
    _only(dashboard, world, [name for name in rows if KINDS[name] != "joint"])
    dashboard.get("kind-row").click()
    dashboard.get("kind-joint").click()
    _only(dashboard, world, list(LAYERS))
    dashboard.get("only-invariant").check()
    _only(dashboard, world, INVARIANT)
    expect(dashboard.get("kind-none")).to_have_attribute("aria-pressed", "false")
    dashboard.get("filter").fill("attention")
    _only(dashboard, world, ["attention.qkv", "attention.out"])
    dashboard.get("filter").fill("")
    dashboard.get("only-invariant").uncheck()
    _only(dashboard, world, list(LAYERS))


def _only(tab: Tab, world: World, names: list[str]) -> None:
    """List, heatmap and count are of these layers alone."""
    heatmap = tab.until(tab.heatmap, lambda drawn: drawn.layers == names)
    assert heatmap.layers == tab.rows() == names
    values = recorded(world, "angular_step")[[LAYERS.index(name) for name in names]]
    np.testing.assert_allclose(heatmap.z, np.log10(values), rtol=1e-12)
    count = f"{len(names)} of {len(LAYERS)} layers" if len(names) < len(LAYERS) else f"{len(LAYERS)} layers"
    expect(tab.get("count")).to_have_text(count)


def test_another_quantity_has_its_own_title_unit_and_meaning(dashboard: Tab, world: World) -> None:
    for quantity, title in (("norm", "weight norm"), ("drift", "drift from the start (rad)"), ("lr", "learning rate")):
        dashboard.get("quantity").select_option(quantity)
        heatmap = dashboard.until(dashboard.heatmap, lambda drawn, title=title: drawn.title == title)
        assert heatmap.title == title
        expect(dashboard.get("legend-a").locator(".legend-title")).to_contain_text(title)
        expect(dashboard.get("meaning")).to_have_text(KNOWN[quantity].meaning)
        drawn = np.power(10.0, heatmap.z) if heatmap.log else heatmap.z
        np.testing.assert_allclose(drawn, recorded(world, quantity), rtol=1e-12)


def test_a_signed_quantity_diverges_from_zero(tab: Tab, world: World) -> None:
    tab.show(run="first", quantity="radius_growth", theme="light")
    heatmap, values = tab.heatmap(), recorded(world, "radius_growth")
    assert not heatmap.log
    assert heatmap.low == -heatmap.high
    assert heatmap.high == pytest.approx(np.abs(np.nanpercentile(values, [0.5, 99.5])).max())
    np.testing.assert_array_equal(heatmap.z, values)
    expect(tab.get("scale-log")).to_be_disabled()
    picture = seen(tab, heatmap)
    red, blue = picture[..., 0], picture[..., 2]
    strong = 0.5 * heatmap.high
    up, down, zero = values > strong, values < -strong, np.abs(values) < 0.02 * heatmap.high
    assert min(up.sum(), down.sum(), zero.sum()) >= 4
    assert (red > blue + 40)[up].all()
    assert (blue > red + 30)[down].all()
    assert (picture.min(axis=-1) > 225)[zero].all(), "nothing is what 0 looks like"
    tab.get("quantity").select_option("angular_step")
    assert tab.until(tab.heatmap, lambda drawn: drawn.log).colours != heatmap.colours


def test_what_is_compared_with_one_diverges_from_one(tab: Tab) -> None:
    tab.show(run="first", quantity="equilibrium_ratio", scale="log")
    heatmap = tab.heatmap()
    assert heatmap.log
    assert heatmap.low == pytest.approx(-heatmap.high)
    tab.get("scale").get_by_text("Linear").click()
    heatmap = tab.until(tab.heatmap, lambda drawn: not drawn.log)
    assert (heatmap.low + heatmap.high) / 2 == pytest.approx(1.0)


def test_pointing_at_a_cell_tells_its_number(dashboard: Tab, world: World) -> None:
    row, step = LAYERS.index("stage2.conv"), 37
    left, top = dashboard.place(row, step)
    dashboard.frame.locator("#heatmap-plot").hover(position={"x": left, "y": top}, force=True)
    tooltip = dashboard.get("tooltip")
    expect(tooltip).to_be_visible()
    value = float(recorded(world, "angular_step")[row, step])
    expect(tooltip).to_contain_text("stage2.conv")
    expect(tooltip).to_contain_text(f"step {step}")
    expect(tooltip).to_contain_text(f"{value:.3g} rad ({np.degrees(value):.3g}°)")
    left, _ = dashboard.place(row, SKIPPED[0])
    dashboard.frame.locator("#heatmap-plot").hover(position={"x": left, "y": top}, force=True)
    expect(tooltip).to_contain_text("no value")
