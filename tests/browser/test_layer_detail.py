"""The opened layer: its curves have the recorded numbers, its words say what the run says of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from playwright.sync_api import expect

from browser_runs import HOLE, JOINT, LAYERS, SECONDS, STEPS, World
from browser_tab import Curve, Tab, hex_colour

X = np.arange(STEPS)
OPENED = "stage1.conv"
"""Has a skipped step and a stretch without values."""


def of(world: World, quantity: str, layer: str, stat: str = "median") -> np.ndarray:
    """As it was written, float64 ``[steps]``."""
    return world.first.of(quantity, stat)[:, LAYERS.index(layer)].astype(np.float64)


def debiased(values: np.ndarray, weight: float) -> np.ndarray:
    """At each known value the mean of all known ones up to it, each weighted by ``weight`` to the power of its age."""
    known = np.flatnonzero(np.isfinite(values))
    result = np.full(len(values), np.nan)
    for count, place in enumerate(known, start=1):
        result[place] = np.average(values[known[:count]], weights=weight ** np.arange(count)[::-1])
    return result


def has(key: str, values: np.ndarray) -> Callable[[dict[str, Curve]], bool]:
    """Whether a curve has about these values."""
    return lambda drawn: (
        key in drawn and len(drawn[key].y) == len(values) and np.allclose(drawn[key].y, values, equal_nan=True)
    )


def stretches(known: np.ndarray) -> list[np.ndarray]:
    """Indices of the values between gaps."""
    places = np.flatnonzero(known)
    return np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)


def assert_band(band: Curve, low: np.ndarray, high: np.ndarray, x: np.ndarray) -> None:
    """One closed outline for each stretch of known values: along the upper end, and back along the lower one."""
    parts = [part for part in np.split(np.arange(len(band.x)), np.flatnonzero(np.isnan(band.x))) if len(part) > 1]
    expected = stretches(np.isfinite(low))
    assert len(parts) == len(expected)
    for part, places in zip(parts, expected, strict=True):
        inside = part[np.isfinite(band.x[part])]
        np.testing.assert_allclose(band.x[inside], [*x[places], *x[places][::-1]])
        np.testing.assert_array_equal(band.y[inside], [*high[places], *low[places][::-1]])


def on_screen(tab: Tab, curve: Curve, places: list[int]) -> np.ndarray:
    """Distance of the colour of a curve from that of the nearest pixel around some of its points."""
    script = """([at, axis]) => {
        const { xaxis, [axis]: yaxis } = document.getElementById("detail-plot")._fullLayout;
        return at.map(([x, y]) => [xaxis._offset + xaxis.d2p(x), yaxis._offset + yaxis.d2p(y)]);
    }"""
    points = [[float(curve.x[place]), float(curve.y[place])] for place in places]
    spots = tab.frame.evaluate(script, [points, curve.axis.replace("y", "yaxis")])
    picture = tab.pixels("#detail-plot").astype(np.float64)
    found = []
    for left, top in np.round(spots).astype(int):
        around = picture[top - 2 : top + 3, left - 2 : left + 3].reshape(-1, 3)
        found.append(np.abs(around - hex_colour(curve.colour)).max(axis=1).min())
    return np.array(found)


def colour_at(tab: Tab, curve: Curve, x: float) -> float:
    """The same, of the nearest pixel anywhere above and below an x value: how near a line comes to crossing it."""
    left = tab.frame.evaluate(
        """(x) => {
            const { xaxis } = document.getElementById("detail-plot")._fullLayout;
            return xaxis._offset + xaxis.d2p(x);
        }""",
        x,
    )
    picture = tab.pixels("#detail-plot").astype(np.float64)[30:, round(left) - 1 : round(left) + 2]
    return float(np.abs(picture - hex_colour(curve.colour)).max(axis=-1).min())


@pytest.mark.parametrize("way", ["heatmap", "list", "link"])
def test_an_opened_layer_has_its_median_and_its_band(dashboard: Tab, world: World, way: str) -> None:
    if way == "heatmap":
        expect(dashboard.get("detail")).to_be_hidden()
        dashboard.click(LAYERS.index(OPENED), 5)
    elif way == "list":
        dashboard.layer(OPENED).click()
    else:
        dashboard.show(run="first", layer=OPENED, smooth=0)
    expect(dashboard.get("detail")).to_be_visible()
    expect(dashboard.get("detail").locator(".detail-title")).to_contain_text(OPENED)
    expect(dashboard.layer(OPENED)).to_have_attribute("aria-selected", "true")
    curves = dashboard.until(dashboard.curves)
    assert set(curves) == {"raw-a", "band-a", "predicted-a", "rate-a"}
    median = of(world, "angular_step", OPENED)
    np.testing.assert_array_equal(curves["raw-a"].x, X)
    np.testing.assert_array_equal(curves["raw-a"].y, median)
    assert np.isnan(median[HOLE[1]]).all()
    assert_band(curves["band-a"], of(world, "angular_step", OPENED, "p10"), of(world, "angular_step", OPENED, "p90"), X)
    assert on_screen(dashboard, curves["raw-a"], [3, 17, 40, 55]).max() < 40
    for x, crossed in ((17.0, True), (23.5, False), (12.5, False), (50.0, True)):
        assert (colour_at(dashboard, curves["raw-a"], x) < 40) == crossed, x
    dashboard.get("detail-close").click()
    expect(dashboard.get("detail")).to_be_hidden()


def test_the_prediction_of_equilibrium_stands_beside_it(dashboard: Tab, world: World) -> None:
    dashboard.layer("stage2.conv").click()
    for quantity, prediction in (("angular_step", "equilibrium_angle"), ("norm", "equilibrium_norm")):
        dashboard.get("quantity").select_option(quantity)
        values = of(world, quantity, "stage2.conv")
        curves = dashboard.until(dashboard.curves, has("raw-a", values))
        predicted = curves["predicted-a"]
        np.testing.assert_array_equal(curves["raw-a"].y, values)
        np.testing.assert_array_equal(predicted.x, X)
        np.testing.assert_array_equal(predicted.y, of(world, prediction, "stage2.conv"))
        assert predicted.dash == "dash"
        assert "in equilibrium" in predicted.name
        expect(dashboard.frame.locator("#detail-plot .legend")).to_contain_text(predicted.name)
    dashboard.get("quantity").select_option("equilibrium_ratio")
    curves = dashboard.until(dashboard.curves, lambda drawn: "reference" in drawn)
    assert curves["reference"].y.tolist() == [1.0, 1.0]
    np.testing.assert_allclose(curves["reference"].x, dashboard.range("detail-plot"))
    assert "predicted-a" not in curves
    dashboard.get("quantity").select_option("effective_lr")
    assert set(dashboard.until(dashboard.curves, lambda drawn: "reference" not in drawn)) == {
        "raw-a",
        "band-a",
        "rate-a",
    }


def test_the_learning_rate_is_drawn_below(dashboard: Tab, world: World) -> None:
    dashboard.layer("stem.conv").click()
    rate = dashboard.until(dashboard.curves)["rate-a"]
    np.testing.assert_array_equal(rate.x, X)
    np.testing.assert_array_equal(rate.y, of(world, "lr", "stem.conv"))
    np.testing.assert_allclose(rate.y[:12], 0.1 * 0.97 ** X[:12], rtol=1e-6)
    layout = dashboard.layout()
    assert layout["yaxis2"]["domain"][1] < layout["yaxis"]["domain"][0]
    assert layout["yaxis2"]["title"]["text"] == "nominal lr"
    assert "angular step (rad)" in layout["yaxis"]["title"]["text"].replace("<br>", " ")
    assert rate.axis == "y2"
    assert on_screen(dashboard, rate, [2, 30, 55]).max() < 40
    dashboard.get("quantity").select_option("lr")
    assert "rate-a" not in dashboard.until(dashboard.curves, lambda drawn: "rate-a" not in drawn)


def test_a_layer_of_one_group_has_no_band(dashboard: Tab, world: World) -> None:
    dashboard.layer("attention.qkv").click()
    curves = dashboard.until(dashboard.curves)
    assert "band-a" not in curves
    np.testing.assert_array_equal(curves["raw-a"].y, of(world, "angular_step", "attention.qkv"))
    expect(dashboard.get("detail-note")).to_contain_text("no band")


def test_a_rare_quantity_is_a_line_through_what_was_measured(dashboard: Tab, world: World) -> None:
    dashboard.layer("stem.conv").click()
    dashboard.get("quantity").select_option("drift")
    curve = dashboard.until(dashboard.curves, lambda drawn: "raw-a" in drawn and len(drawn["raw-a"].x) == 6)["raw-a"]
    assert curve.x.tolist() == [0, 10, 20, 30, 40, 50]
    np.testing.assert_array_equal(curve.y, of(world, "drift", "stem.conv")[::10])


def test_a_real_training_has_its_numbers(tab: Tab, world: World) -> None:
    record = world.real
    layer = record.layers[1]
    tab.show(run="real", layer=layer, smooth=0, quantity="norm")
    curves = tab.until(tab.curves)
    low, median, high = (record.stat("norm", stat)[:, 1].astype(np.float64) for stat in ("p10", "median", "p90"))
    np.testing.assert_array_equal(curves["raw-a"].y, median)
    assert_band(curves["band-a"], low, high, record.steps.astype(np.float64))
    np.testing.assert_array_equal(curves["rate-a"].y, record["lr"][:, 1])
    row = next(row for row in record.groups if row["layer"] == layer)
    facts = tab.get("facts")
    for text in (row["reason"], row["norm"], f"{row['blocks']} groups", row["equilibrium"], row["verdict"]):
        expect(facts).to_contain_text(text)


FACTS = {
    "stem.conv": (
        "per row",
        "✓ verified",
        [
            "followed by BatchNorm2d",
            "stem.conv.norm",
            "8 groups",
            "100% of its groups",
            "residual |cos(g, x)| 1.25e\u22127",
        ],
        "in equilibrium since step 40",
    ),
    "stage2.conv": (
        "per group of rows",
        "✓ verified",
        ["followed by GroupNorm", "4 groups", "|cos(g, x)| 2e\u22127"],
        "reaches equilibrium in about 500 steps",
    ),
    "stage1.conv": (
        "per row",
        "✕ contradicted",
        ["16 groups", "for 75% of its groups", "residual |cos(g, x)| 0.31"],
        "out of reach: no weight decay",
    ),
    "attention.qkv": (
        "as a whole",
        "! eps dominates",
        ["followed by RMSNorm", "one group", "residual |cos(g, x)| 0.05"],
        "in equilibrium since step 40",
    ),
    "adapter": ("per row", "\u2013 not yet seen", ["2 groups", "adapter.norm"], "unknown"),
    "head": ("not scale-invariant", None, ["feeds the loss directly", "none", "rows"], None),
    JOINT: (
        "only together",
        "✓ verified",
        ["only the product is normalized", "mlp.norm", "one group", "mlp.down.weight"],
        "reaches equilibrium in about 500 steps",
    ),
}


def test_the_words_beside_it(dashboard: Tab) -> None:
    """Kind, reason, norm, what the gradients say, how far from equilibrium."""
    facts, brief = dashboard.get("facts"), dashboard.get("detail").locator(".brief")
    for layer, (kind, verdict, texts, equilibrium) in FACTS.items():
        dashboard.layer(layer).click()
        expect(dashboard.get("detail").locator(".detail-title")).to_contain_text(layer)
        expect(brief).to_contain_text(kind)
        if verdict is None:
            expect(brief.locator(".tag")).to_have_count(0)
            expect(facts).not_to_contain_text("Check by the gradients")
        else:
            expect(brief.locator(".tag")).to_have_text(verdict)
            expect(facts).to_contain_text(verdict)
        for text in texts:
            expect(facts).to_contain_text(text)
        if equilibrium:
            expect(facts.locator("dt:text-is('Equilibrium') + dd")).to_have_text(equilibrium)
        else:
            expect(facts.locator("dt:text-is('Equilibrium')")).to_have_count(0)


def test_smoothing_is_the_debiased_mean_and_keeps_gaps(dashboard: Tab, world: World) -> None:
    dashboard.layer(OPENED).click()
    values = of(world, "angular_step", OPENED)
    assert "smooth-a" not in dashboard.until(dashboard.curves)
    before = dashboard.heatmap()
    for weight in (0.5, 0.9):
        dashboard.get("smooth").fill(str(weight))
        expected = debiased(values, weight)
        curves = dashboard.until(dashboard.curves, has("smooth-a", expected))
        np.testing.assert_allclose(curves["smooth-a"].y, expected, rtol=1e-9)
        np.testing.assert_array_equal(np.isnan(curves["smooth-a"].y), np.isnan(values))
        np.testing.assert_array_equal(curves["raw-a"].y, values)
        assert "smoothed" in curves["smooth-a"].name
        assert on_screen(dashboard, curves["smooth-a"], [3, 40, 55]).max() < 40
    expect(dashboard.frame.locator(".weight")).to_have_text("0.90")
    np.testing.assert_array_equal(dashboard.heatmap().z, before.z)
    dashboard.get("smooth").fill("0")
    assert "smooth-a" not in dashboard.until(dashboard.curves, lambda drawn: "smooth-a" not in drawn)


def test_time_instead_of_steps(dashboard: Tab, world: World) -> None:
    """Seconds since the first step, in heatmap and curves; the zoom of the other axis is dropped."""
    dashboard.layer("stem.conv").click()
    dashboard.until(dashboard.curves)
    dashboard.drag(20, 40)
    assert dashboard.until(dashboard.range, lambda found: found[0] > 10) == pytest.approx((20, 40), abs=0.2)
    dashboard.get("x-axis").get_by_text("Time").click()
    heatmap = dashboard.until(dashboard.heatmap, lambda drawn: drawn.range[1] > 2 * STEPS)
    np.testing.assert_allclose(heatmap.edges, SECONDS * np.arange(-0.5, STEPS), atol=1e-3)
    assert heatmap.range == pytest.approx((-0.5 * SECONDS, (STEPS - 0.5) * SECONDS), abs=1e-3)
    curves = dashboard.until(dashboard.curves, lambda drawn: drawn["raw-a"].x[-1] > 2 * STEPS)
    for key, curve in curves.items():
        if key != "band-a":
            np.testing.assert_allclose(curve.x, world.first.wall_times - world.first.wall_times[0], err_msg=key)
    low, high = (of(world, "angular_step", "stem.conv", stat) for stat in ("p10", "p90"))
    assert_band(curves["band-a"], low, high, SECONDS * X)
    assert dashboard.layout()["xaxis"]["title"]["text"] == "relative time (s)"
    expect(dashboard.frame.locator(".axis-title")).to_have_text("relative time (s)")
    assert dashboard.range("detail-plot") == pytest.approx(heatmap.range)
    dashboard.get("x-axis").get_by_text("Step").click()
    assert dashboard.until(dashboard.heatmap, lambda drawn: drawn.range[1] < STEPS).edges[-1] == STEPS - 0.5
    expect(dashboard.frame.locator(".axis-title")).to_have_text("step")


def test_zooming_in_the_curve_zooms_the_heatmap(dashboard: Tab) -> None:
    dashboard.layer("stem.conv").click()
    dashboard.until(dashboard.curves)
    full = dashboard.range()
    dashboard.drag(15, 45, plot="detail-plot")
    assert dashboard.until(dashboard.range, lambda found: found != full) == pytest.approx((15, 45), abs=0.3)
    drawn = dashboard.until(lambda: dashboard.range("detail-plot"), lambda found: found[0] > 10)
    assert drawn == pytest.approx(dashboard.range())
    low, high = dashboard.layout()["yaxis"]["range"]
    curve = dashboard.curves()["raw-a"]
    inside = np.log10(curve.y[(curve.x >= drawn[0]) & (curve.x <= drawn[1])])
    assert low < np.nanmin(inside)
    assert np.nanmax(inside) < high
    dashboard.get("reset-zoom").click()
    assert dashboard.until(dashboard.range, lambda found: found == full) == full


def test_a_number_without_meaning_is_told_as_such(tab: Tab) -> None:
    """The effective learning rate of a layer that no normalization follows."""
    cases = (("effective_lr", "head", True), ("effective_lr", "stem.conv", False), ("norm", "head", False))
    for quantity, layer, told in cases:
        tab.show(run="first", quantity=quantity, layer=layer)
        expect(tab.get("detail-note")).to_contain_text("band")
        assert ("has no meaning" in tab.get("detail-note").inner_text()) == told


def test_a_double_click_opens_no_layer(dashboard: Tab) -> None:
    left, top = dashboard.place(2, 30)
    dashboard.frame.locator("#heatmap-plot").dblclick(position={"x": left, "y": top}, force=True)
    dashboard.frame.wait_for_timeout(800)  # longer than what makes a click of two
    expect(dashboard.get("detail")).to_be_hidden()
