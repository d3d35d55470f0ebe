"""What is saved: tables hold the recorded numbers, pictures show what the page shows."""

from __future__ import annotations

import numpy as np
import pytest

from browser_runs import FACTOR, JOINT, LAYERS, LONG, OTHER_LAYERS, OTHER_STEPS, SECONDS, STEPS, World
from browser_tab import Heatmap, Tab, hex_colour, image
from browser_views import downloads, singles, table
from dashboard_world import START, Run

KINDS = dict(zip(LAYERS, ("row", "group", "row", "whole", "row", "row", "none", "joint"), strict=True))
CURVES = "() => document.getElementById('detail-plot')?.data?.some((trace) => trace.meta === 'rate-a')"
"""The opened layer is drawn."""


def recorded(run: Run, quantity: str, layers: tuple[str, ...], steps: range, stat: str = "median") -> np.ndarray:
    """Layer by layer, in the order of the table's lines."""
    places = [run.schema.layers.index(layer) for layer in layers]
    return run.of(quantity, stat)[steps.start : steps.stop : steps.step][:, places].T.ravel()


def test_a_table_holds_every_number_as_recorded(tab: Tab, world: World) -> None:
    tab.show(run="first")
    ((name, content),) = downloads(tab, "export-csv")
    assert name == "sphere_first_angular_step.csv"
    head, lines = table(content)
    assert head == ["run", "layer", "kind", "step", "wall_time", "angular_step (rad)"]
    assert content.count(b"\r\n") == len(lines) + 1, "lines end as RFC 4180 has it"
    assert {line["run"] for line in lines} == {"first"}
    assert [(line["layer"], line["kind"], int(line["step"])) for line in lines] == [
        (layer, KINDS[layer], step) for layer in LAYERS for step in range(STEPS)
    ]
    assert [float(line["wall_time"]) for line in lines[:STEPS]] == [START + SECONDS * step for step in range(STEPS)]
    numbers = recorded(world.first, "angular_step", LAYERS, range(STEPS))
    np.testing.assert_array_equal(singles(lines, head[-1]), numbers)
    assert np.isnan(numbers).any(), "what is unknown is empty"


def test_tables_follow_filter_kinds_and_zoom(tab: Tab, world: World) -> None:
    tab.show(run="first", quantity="norm", filter="conv", kind="row,none", zoom="10.5,31.5")
    ((_, content),) = downloads(tab, "export-csv")
    head, lines = table(content)
    layers = ("stem.conv", "stage1.conv")
    assert head[-1] == "norm", "no unit"
    assert [(line["layer"], int(line["step"])) for line in lines] == [
        (one, step) for one in layers for step in range(11, 32)
    ]
    np.testing.assert_array_equal(singles(lines, "norm"), recorded(world.first, "norm", layers, range(11, 32)))
    tab.show(run="first", quantity="norm", filter="head", x="relative", zoom="30,45")
    ((_, content),) = downloads(tab, "export-csv")
    assert [int(line["step"]) for line in table(content)[1]] == [10, 11, 12, 13, 14, 15], "three seconds each"


def test_rare_quantities_are_saved_where_they_were_measured(tab: Tab, world: World) -> None:
    tab.show(run="first", quantity="drift", filter="stem.conv")
    ((_, content),) = downloads(tab, "export-csv")
    head, lines = table(content)
    assert [int(line["step"]) for line in lines] == [0, 10, 20, 30, 40, 50]
    np.testing.assert_array_equal(
        singles(lines, head[-1]), recorded(world.first, "drift", ("stem.conv",), range(0, 60, 10))
    )


def test_a_long_run_is_saved_whole(tab: Tab, world: World) -> None:
    """The heatmap draws medians of neighbouring samples; the table has each."""
    tab.show(run=LONG)
    ((_, content),) = downloads(tab, "export-csv")
    head, lines = table(content)
    run = world.runs[LONG]
    np.testing.assert_array_equal(singles(lines, head[-1]), run.of("angular_step").T.ravel())


def test_an_opened_layer_is_saved_with_all_statistics(tab: Tab, world: World) -> None:
    tab.show(run="first", layer="stage2.conv", zoom="4.5,20.5", ready=CURVES)
    (_, (name, content)) = downloads(tab, "export-csv", 2)
    assert name == "sphere_first_angular_step_stage2.conv.csv"
    head, lines = table(content)
    assert [int(line["step"]) for line in lines] == list(range(5, 21))
    for stat in ("p10", "median", "p90", "rms"):
        expected = recorded(world.first, "angular_step", ("stage2.conv",), range(5, 21), stat)
        np.testing.assert_array_equal(singles(lines, f"{stat} of angular_step (rad)"), expected)
    assert len(head) == 8


def test_two_runs_are_saved_with_their_difference(tab: Tab, world: World) -> None:
    tab.show(run="first", vs="second")
    ((name, content),) = downloads(tab, "export-csv")
    assert name == "sphere_first_vs_second_angular_step.csv"
    head, lines = table(content)
    title = "angular_step (rad)"
    assert head[5:] == [title, "run_b", "step_b", "wall_time_b", f"{title} of run_b", "difference (b - a)"]
    both = [line for line in lines if line["layer"] in set(LAYERS) & set(OTHER_LAYERS)]
    near = [line for line in both if int(line["step"]) < OTHER_STEPS]
    assert len(near) == 6 * OTHER_STEPS
    assert {line["run_b"] for line in near} == {"second"}
    assert all(line["step"] == line["step_b"] for line in near)
    places = [(int(line["step"]), OTHER_LAYERS.index(line["layer"])) for line in near]
    other = np.array([world.second.of("angular_step")[place] for place in places])
    np.testing.assert_array_equal(singles(near, f"{title} of run_b"), other)
    one = singles(near, title).astype(np.float64)
    np.testing.assert_allclose(singles(near, head[-1]), other.astype(np.float64) - one, rtol=1e-6)
    known = ~np.isnan(one) & ~np.isnan(other)
    assert known.sum() > 200
    # the second run is the first, times a factor, where the layer stands at the same place
    assert FACTOR == 4.0
    stem = [line["layer"] == "stem.conv" and line[title] != "" for line in near]
    np.testing.assert_allclose(singles(near, head[-1])[stem], 3 * one[stem], rtol=1e-6)
    only_b = [line for line in lines if line["layer"] == "new.conv"]
    assert len(only_b) == OTHER_STEPS
    assert {line[title] for line in only_b} == {""}
    expected = world.second.of("angular_step")[:, OTHER_LAYERS.index("new.conv")]
    np.testing.assert_array_equal(singles(only_b, f"{title} of run_b"), expected)
    only_a = [line for line in lines if line["layer"] == JOINT]
    assert {line[head[-1]] for line in only_a} == {line[f"{title} of run_b"] for line in only_a} == {""}


def variable(tab: Tab, name: str) -> str:
    """A colour of the theme."""
    return str(tab.frame.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}')"))


def colours_of(drawn: Heatmap, column: int, gap: str) -> np.ndarray:
    """What the cells of a column must look like, float64 ``[rows, 3]``."""
    places, colours = zip(*((place, hex_colour(colour)) for place, colour in drawn.colours), strict=True)
    share = np.clip((drawn.z[:, column] - drawn.low) / (drawn.high - drawn.low), 0, 1)
    found = np.stack([np.interp(share, places, np.array(colours)[:, part]) for part in range(3)], axis=1)
    found[np.isnan(share)] = hex_colour(gap)
    return found


def where(pixels: np.ndarray, colours: np.ndarray) -> int | None:
    """An x at which cells of these colours stand one below the other, of equal height; None: nowhere."""
    for x in range(0, pixels.shape[1], 4):
        line = pixels[:, x].astype(np.int64)
        cuts = np.flatnonzero((np.abs(np.diff(line, axis=0)) > 1).any(axis=1)) + 1
        ends = [*cuts, len(line)]
        parts = [(low, high) for low, high in zip([0, *cuts], ends, strict=True) if high - low >= 20]
        middles = np.array([line[(low + high) // 2] for low, high in parts])
        for first in range(len(parts) - len(colours) + 1):
            if (np.abs(middles[first : first + len(colours)] - colours) <= 3).all():
                return x
    return None


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_picture_shows_the_heatmap(tab: Tab, theme: str) -> None:
    tab.show(run="first", theme=theme)
    drawn = tab.heatmap()
    ((name, content),) = downloads(tab, "export-png")
    assert name == "sphere_first_angular_step.png"
    pixels = image(content)
    assert pixels.shape[1] == 2800
    assert 700 < pixels.shape[0] < 1000
    panel, text, gap = (variable(tab, name) for name in ("panel", "text", "gap"))
    for corner in (pixels[0, 0], pixels[-1, 0], pixels[0, -1], pixels[-1, -1]):
        assert (corner == hex_colour(panel)).all()
    assert (hex_colour(panel).mean() > 128) == (theme == "light")
    title = pixels[:70, :600].reshape(-1, 3)
    assert ((np.abs(title - hex_colour(text)) < 40).all(axis=1)).sum() > 300, "a title is written"
    places = [where(pixels, colours_of(drawn, column, gap)) for column in (3, 30, 57)]
    assert None not in places
    assert places == sorted(places)
    assert places[2] - places[0] > 1800, "the heatmap fills the picture"  # type: ignore[operator]


def test_a_picture_of_two_runs_and_an_opened_layer(tab: Tab) -> None:
    tab.show(run="first", vs="second", layer="stem.conv", theme="light", smooth=0, ready=CURVES)
    drawn = tab.heatmaps()
    ((_, content),) = downloads(tab, "export-png")
    pixels = image(content)
    heatmaps, curves = pixels[:-800], pixels[-800:]
    places = [where(heatmaps, colours_of(drawn[key], 40, "#e2e5ea")) for key in "ab"]
    assert None not in places
    assert places[0] + 600 < places[1]  # type: ignore[operator]
    difference = colours_of(drawn["difference"], 40, "#e2e5ea")[0]
    assert (np.abs(heatmaps[:, 1900:].astype(np.int64) - difference) <= 3).all(axis=2).sum() > 10_000
    for key in "ab":
        colour = hex_colour(variable(tab, key))
        drawn_at = (np.abs(curves.astype(np.int64) - colour) < 30).all(axis=2)
        assert drawn_at.any(axis=0).sum() > 1000, f"the line of {key} goes from left to right"


def test_there_is_something_to_save_only_where_something_is_shown(tab: Tab) -> None:
    tab.show(run="first", filter="nothing has this name", ready=None)
    tab.frame.get_by_text("No layer matches the filter").wait_for()
    tab.get("export-png").click()
    tab.until(lambda: "nothing to save" in (tab.get("status").text_content() or ""))
    assert "nothing to save" in (tab.get("status").text_content() or "")
    ((_, content),) = downloads(tab, "export-csv")
    assert table(content)[1] == []
