"""Two runs beside each other: what is drawn of both, and of their difference."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from browser_tab import Tab
from browser_views import opened
from dashboard_world import START, Run, numbers, schema_of, serving, write_run

QUANTITIES = ("angular_step", "effective_lr", "radius_growth", "norm", "lr", "equilibrium_angle")
ONE = ("stem", "b1.conv", "b1.skip", "b2.conv", "head")
TWO = ("stem", "b2.conv", "b1.conv", "extra", "head")
BOTH = ("stem", "b1.conv", "extra", "b1.skip", "b2.conv", "head")
"""Network order of the first run; what only the second has stands behind its predecessor there."""
STEPS = np.arange(60)
SPARSE = np.arange(1, 44, 3)
"""No step of the first run lies in the middle between two of the second."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Every cell has a number of its own; the second run has fewer steps, a slower clock, and one quantity less."""
    root, random = tmp_path_factory.mktemp("compared"), np.random.default_rng(6)
    runs = {}
    for name, layers, steps, seconds, quantities in (
        ("one", ONE, STEPS, 1.7, QUANTITIES),
        ("two", TWO, SPARSE, 7.0, tuple(name for name in QUANTITIES if name != "norm")),
    ):
        schema = schema_of(layers, quantities)
        table = numbers(steps.tolist(), schema) * random.lognormal(0.0, 0.5, (len(steps), *schema.shape))
        start = START + (1000 if name == "two" else 0)
        arguments = {"schema": schema, "table": table.astype(np.float32), "seconds": seconds, "start": start}
        runs[name] = write_run(root / name, steps=steps.tolist(), **arguments)
    return runs


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "python"])
def compared(runs: dict[str, Run], browser: Browser, request: pytest.FixtureRequest) -> Iterator[Tab]:
    """A tab over a server with these runs."""
    with serving(runs["one"].folder.parent, request.param) as address, opened(browser, address) as tab:
        yield tab


def of(run: Run, quantity: str, layer: str, stat: str = "median") -> np.ndarray:
    """Float64 ``[steps]``; NaN if there is no such layer."""
    if layer not in run.schema.layers:
        return np.full(len(run.steps), np.nan)
    return run.of(quantity, stat)[:, run.schema.layers.index(layer)].astype(np.float64)


def nearest(xs: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each x the place of the nearest other one."""
    distances = np.sort(np.abs(xs[:, None] - others[None, :]), axis=1)
    assert (distances[:, 0] < distances[:, 1]).all(), "two are equally near"
    return np.abs(xs[:, None] - others[None, :]).argmin(axis=1)


def assert_difference(
    tab: Tab, runs: dict[str, Run], quantity: str, log: bool, xs: np.ndarray, others: np.ndarray
) -> None:
    drawn = tab.heatmaps()["difference"]
    assert drawn.layers == list(BOTH)
    partners = nearest(xs, others)
    near = xs <= others[-1] + (others[1] - others[0]) / 2
    far = xs > others[-1] + 2 * (others[1] - others[0])
    assert near.sum() > 20
    assert far.any()
    for row, layer in zip(drawn.z, BOTH, strict=True):
        a, b = of(runs["one"], quantity, layer), of(runs["two"], quantity, layer)[partners]
        expected = np.log10(b / a) if log else b - a
        if log:
            np.testing.assert_allclose(row[near], expected[near], rtol=1e-9, atol=1e-12, err_msg=layer)
        else:
            np.testing.assert_array_equal(row[near], expected[near], err_msg=layer)
        assert np.isnan(row[far]).all(), "there is nothing to compare with"


def test_both_are_drawn_as_recorded_with_one_colour_scale(compared: Tab, runs: dict[str, Run]) -> None:
    heatmaps = compared.show(run="one", vs="two").heatmaps()
    assert list(heatmaps) == ["a", "b", "difference"]
    a, b = heatmaps["a"], heatmaps["b"]
    for drawn, name in ((a, "one"), (b, "two")):
        assert drawn.layers == list(BOTH)
        expected = np.stack([np.log10(of(runs[name], "angular_step", layer)) for layer in BOTH])
        np.testing.assert_allclose(drawn.z, expected, rtol=1e-12)
    assert (a.low, a.high, a.colours, a.title) == (b.low, b.high, b.colours, b.title)
    assert a.range == b.range
    everything = np.log10(np.concatenate([run.of("angular_step").ravel() for run in runs.values()], dtype=np.float64))
    np.testing.assert_allclose([a.low, a.high], np.quantile(everything, [0.005, 0.995]), rtol=1e-9)


def test_the_legends_say_what_is_what(compared: Tab) -> None:
    compared.show(run="one", vs="two")
    expect(compared.get("legend-a")).to_contain_text(re.compile("A.*one.*angular step \\(rad\\)"))
    expect(compared.get("legend-b")).to_contain_text(re.compile("B.*two.*angular step \\(rad\\)"))
    expect(compared.get("legend-difference")).to_contain_text("factor B / A")
    compared.show(run="one", vs="two", scale="linear")
    expect(compared.get("legend-difference")).to_contain_text("angular step, B \N{MINUS SIGN} A (rad)")


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_the_difference_at_the_nearest_step(compared: Tab, runs: dict[str, Run], scale: str) -> None:
    compared.show(run="one", vs="two", scale=scale)
    assert_difference(compared, runs, "angular_step", scale == "log", STEPS, SPARSE)
    drawn = compared.heatmaps()["difference"]
    assert drawn.log == (scale == "log")
    assert drawn.low == pytest.approx(-drawn.high), "no difference has the colour in the middle"


def test_the_difference_at_the_nearest_time(compared: Tab, runs: dict[str, Run]) -> None:
    times = [runs[name].wall_times - runs[name].wall_times[0] for name in ("one", "two")]
    compared.show(run="two", vs="one", x="relative")
    drawn = compared.heatmaps()
    row = BOTH.index("stem")  # in both, at the same place, whichever is first
    a, b = of(runs["two"], "angular_step", "stem"), of(runs["one"], "angular_step", "stem")
    expected = np.log10(b[nearest(times[1], times[0])] / a)
    near = times[1] <= times[0][-1]
    assert near.sum() == 15
    np.testing.assert_allclose(drawn["difference"].z[row][near], expected[near], rtol=1e-9, atol=1e-12)
    assert drawn["a"].range == pytest.approx((-3.5, 101.5), abs=0.01), "half a sample around the ends"


def test_numbers_with_signs_are_subtracted(compared: Tab, runs: dict[str, Run]) -> None:
    compared.show(run="one", vs="two", quantity="radius_growth")
    assert_difference(compared, runs, "radius_growth", False, STEPS, SPARSE)
    for drawn in compared.heatmaps().values():
        assert drawn.low == pytest.approx(-drawn.high)


def test_layers_of_one_run_only_are_marked(compared: Tab) -> None:
    compared.show(run="one", vs="two")
    assert compared.rows() == list(BOTH)
    marks = {name: compared.layer(name).locator(".only") for name in BOTH}
    assert {name: mark.text_content() for name, mark in marks.items() if mark.count()} == {
        "extra": "only in B",
        "b1.skip": "only in A",
    }
    expect(compared.frame.get_by_role("option", name=re.compile("^extra, .*only in B$"))).to_be_visible()
    drawn = compared.heatmaps()
    unknown = {
        key: [name for name, row in zip(BOTH, one.z, strict=True) if np.isnan(row).all()] for key, one in drawn.items()
    }
    assert unknown == {"a": ["extra"], "b": ["b1.skip"], "difference": ["extra", "b1.skip"]}


def test_an_opened_layer_has_the_lines_of_both(compared: Tab, runs: dict[str, Run]) -> None:
    compared.show(run="one", vs="two", layer="b2.conv", smooth=0)
    curves = compared.until(compared.curves, lambda found: "rate-b" in found)
    for key, name in (("a", "one"), ("b", "two")):
        run = runs[name]
        for line, quantity in (
            (f"raw-{key}", "angular_step"),
            (f"predicted-{key}", "equilibrium_angle"),
            (f"rate-{key}", "lr"),
        ):
            np.testing.assert_array_equal(curves[line].x, run.steps)
            np.testing.assert_array_equal(curves[line].y, of(run, quantity, "b2.conv"), err_msg=line)
        band = curves[f"band-{key}"]
        count = len(run.steps)
        np.testing.assert_array_equal(band.y[:count], of(run, "angular_step", "b2.conv", "p90"))
        np.testing.assert_array_equal(band.y[count : 2 * count], of(run, "angular_step", "b2.conv", "p10")[::-1])
        assert curves[f"raw-{key}"].name.startswith(f"{key.upper()} ")
    assert curves["raw-a"].colour != curves["raw-b"].colour
    assert compared.get("facts").locator("h3").all_text_contents() == ["A", "B"]


def test_a_layer_of_one_run_only_has_one_line(compared: Tab, runs: dict[str, Run]) -> None:
    compared.show(run="one", vs="two", layer="extra", smooth=0)
    curves = compared.until(compared.curves, lambda found: "rate-b" in found)
    assert not [key for key in curves if key.endswith("-a")]
    np.testing.assert_array_equal(curves["raw-b"].y, of(runs["two"], "angular_step", "extra"))
    expect(compared.get("facts")).to_contain_text("does not have this layer")


def test_cards_have_the_numbers_of_both(compared: Tab, runs: dict[str, Run]) -> None:
    compared.show(run="one", vs="two")
    for card in ("card-groups", "card-effective-lr", "card-speed", "card-equilibrium", "card-findings"):
        assert compared.get(card).locator(".side").all_text_contents() == ["A", "B"], card
    halves = compared.get("card-effective-lr").locator(".half")
    for half, name in zip(halves.all(), ("one", "two"), strict=True):
        per_layer = np.median(runs[name].of("effective_lr")[-20:, :-1].astype(np.float64), axis=0)
        expect(half.locator(".big")).to_have_text(f"{np.median(per_layer):.3g}")
        turned = np.median(runs[name].of("angular_step")[-20:, :-1].astype(np.float64), axis=0)
        letter, layers = {"one": "a", "two": "b"}[name], runs[name].schema.layers
        expect(compared.get(f"fastest-{letter}")).to_contain_text(layers[int(turned.argmax())])
        expect(compared.get(f"slowest-{letter}")).to_contain_text(layers[int(turned.argmin())])
        expect(compared.get(f"fastest-{letter}")).to_contain_text(f"{turned.max():.3g} rad")


def test_a_second_run_is_chosen_and_left(compared: Tab) -> None:
    compared.show(run="one")
    assert list(compared.heatmaps()) == ["a"]
    vs = compared.frame.get_by_label("Compare with")
    assert vs.locator("option").all_text_contents()[1:] == ["two"], "not with itself"
    vs.select_option("two")
    assert list(compared.until(compared.heatmaps, lambda found: len(found) == 3)) == ["a", "b", "difference"]
    expect(compared.get("legend-difference")).to_be_visible()
    vs.select_option("")
    assert list(compared.until(compared.heatmaps, lambda found: len(found) == 1)) == ["a"]
    expect(compared.get("legend-difference")).to_have_count(0)


def test_what_the_second_run_has_not_recorded_is_said(compared: Tab, runs: dict[str, Run]) -> None:
    compared.show(run="one", vs="two", quantity="norm")
    expect(compared.frame.locator(".missing")).to_have_text(["weight norm was not recorded in this run"])
    drawn = compared.frame.evaluate("Array.from(document.getElementById('heatmap-plot').data[0].z[0])")
    np.testing.assert_allclose(drawn, np.log10(of(runs["one"], "norm", "stem")), rtol=1e-12)
