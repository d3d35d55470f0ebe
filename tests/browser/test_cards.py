"""The cards on top: their texts against numbers that are computed here from what was written."""

from __future__ import annotations

from statistics import median

import numpy as np
import pytest
from playwright.sync_api import expect

from browser_runs import JOINT, World
from browser_tab import Tab
from dashboard_world import Run

WINDOW = 20
TIMES = "\u00d7"


def shown(value: float, digits: int = 3) -> str:
    """A number as the page writes it: so many significant digits, and powers of ten if it is very small or large."""
    value = float(f"{value:.{digits}g}")
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.10f}".rstrip("0").rstrip(".").replace("-", "\u2212")
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "\u2212")


def of_late(run: Run, quantity: str) -> dict[str, float]:
    """By invariant layer: the median of its known values among the last steps that were taken."""
    taken = [row for row in run.of(quantity) if not np.isnan(row).all()][-WINDOW:]
    layers = enumerate(zip(run.schema.layers, run.schema.invariant, strict=True))
    values = {name: [float(row[at]) for row in taken if row[at] == row[at]] for at, (name, flag) in layers if flag}
    return {name: median(known) for name, known in values.items() if known}


def ratios(run: Run) -> list[float]:
    """Medians over invariant layers of effective over nominal learning rate, at the steps at which most are known."""
    invariant = np.flatnonzero(run.schema.invariant)
    effective, nominal = run.of("effective_lr"), run.of("lr")
    rows = [[float(effective[t, n]) / float(nominal[t, n]) for n in invariant] for t in range(len(run.steps))]
    known = [[ratio for ratio in row if ratio == ratio] for row in rows]
    return [median(row) for row in known if len(row) == max(map(len, known))]


def rows_of(run: Run) -> list[dict[str, object]]:
    flags = dict(zip(run.schema.layers, run.schema.invariant, strict=True))
    return [dict(row) for row in run.schema.groups if flags.get(str(row["layer"]))]


@pytest.mark.parametrize("name", ["first", "second"])
def test_groups_and_what_the_gradients_say(tab: Tab, world: World, name: str) -> None:
    tab.show(run=name)
    run = world.runs[name]
    rows = rows_of(run)
    card = tab.get("card-groups")
    expect(card.locator(".big")).to_have_text(str(sum(int(str(row["blocks"])) for row in rows)))
    expect(card).to_contain_text(f"in {len(rows)} of {len(run.schema.layers)} layers")
    verdicts = [row["verdict"] for row in rows]
    for sign, verdict in (("✓", "verified"), ("✕", "contradicted"), ("!", "eps dominates"), ("\u2013", "not yet seen")):
        count = verdicts.count(verdict)
        if count:
            expect(card).to_contain_text(f"{sign} {count} {verdict}")
        else:
            expect(card).not_to_contain_text(verdict)


@pytest.mark.parametrize("name", ["first", "second"])
def test_the_effective_learning_rate(tab: Tab, world: World, name: str) -> None:
    tab.show(run=name)
    run, card = world.runs[name], tab.get("card-effective-lr")
    effective, nominal = (median(of_late(run, quantity).values()) for quantity in ("effective_lr", "lr"))
    expect(card.locator(".big")).to_have_text(shown(effective))
    expect(card).to_contain_text(f"{shown(effective / nominal)}{TIMES} nominal lr {shown(nominal)}")
    along = ratios(run)
    start, low, high = (shown(value, 2) for value in (median(along[:WINDOW]), min(along), max(along)))
    expect(card).to_contain_text(f"{start}{TIMES} at the start")
    expect(card).to_contain_text(f"({low}{TIMES} to {high}{TIMES})")


def test_the_fastest_and_the_slowest_layer(tab: Tab, world: World) -> None:
    tab.show(run="first", smooth=0)
    turned = of_late(world.first, "angular_step")
    for word, name in (
        ("fastest", max(turned, key=turned.__getitem__)),
        ("slowest", min(turned, key=turned.__getitem__)),
    ):
        entry = tab.get(word)
        assert (entry.get_attribute("title") or "").startswith(f"{name}\n")
        if len(name) < 20:
            expect(entry.locator(".layer-name")).to_have_text(name)
        angle = turned[name]
        expect(entry.locator(".angle")).to_have_text(f"{shown(angle)} rad ({shown(np.degrees(angle))}°)")
        entry.click()
        expect(tab.get("detail").locator(".detail-title")).to_contain_text(name)
        expect(tab.layer(name)).to_have_attribute("aria-selected", "true")


def test_the_share_in_equilibrium(tab: Tab, world: World) -> None:
    tab.show(run="first")
    states = [row["equilibrium_state"] for row in rows_of(world.first)]
    card = tab.get("card-equilibrium")
    settled = states.count("settled")
    expect(card.locator(".big")).to_have_text(f"{round(100 * settled / len(states))}%")
    expect(card).to_contain_text(f"{settled} of {len(states)} settled")
    words = {
        "settled": "settled",
        "transient": "on the way",
        "out of reach": "not within this run",
        "unknown": "unknown",
    }
    expected = [states.count(state) for state in words]
    assert all(expected)
    expect(card.locator(".words > span")).to_have_text(
        [f"{count} {word}" for count, word in zip(expected, words.values(), strict=True)]
    )
    bar = "[data-testid=card-equilibrium] .shares > span"
    drawn = tab.frame.eval_on_selector_all(bar, "all => all.map((part) => part.getBoundingClientRect().width)")
    np.testing.assert_allclose(np.array(drawn) / sum(drawn), np.array(expected) / sum(expected), atol=0.02)


def test_the_findings(tab: Tab, world: World) -> None:
    """What the first run was made to show, the most severe first, with its numbers; each leads to its layer."""
    tab.show(run="first", smooth=0)
    turned = of_late(world.first, "angular_step")
    usual = median(turned.values())
    assert [name for name, angle in turned.items() if angle > 10 * usual] == [JOINT]
    assert min(turned.values()) > usual / 10
    expected = [
        ("✕ Error", "1 layer does change with the scale of the weight", "0.31, where 0 is expected", ["stage1.conv"]),
        ("! Warning", "the norm's eps dominates in 1 layer", "|cos(gradient, weight)| 0.05", ["attention.qkv"]),
        (
            "! Warning",
            "1 layer turns over 10 times faster than the others",
            f"{turned[JOINT]:.2g} rad per step; the median of all invariant layers is {usual:.2g} rad",
            [JOINT],
        ),
        ("i Note", "2 steps were not taken", "2 of the 60 steps shown", []),
        ("i Note", "1 layer does not turn", "0 in 0, unknown in 1", ["adapter"]),
    ]
    card = tab.get("card-findings")
    expect(card.locator(".big")).to_have_text(str(len(expected)))
    expect(card.locator(".tag")).to_have_text(["✕ 1", "! 2", "i 2"])
    expect(card).to_contain_text(expected[0][1])
    expect(tab.get("findings")).to_be_hidden()
    tab.get("open-findings").click()
    expect(tab.get("finding")).to_have_count(len(expected))
    for place, (severity, title, evidence, layers) in enumerate(expected):
        finding = tab.get("finding").nth(place)
        expect(finding).to_be_visible()
        expect(finding.locator(".tag")).to_have_text(severity)
        expect(finding.locator("h3")).to_contain_text(title)
        expect(finding).to_contain_text(evidence)
        expect(finding.get_by_role("button")).to_have_text(layers)
    tab.get("finding").nth(1).get_by_role("button", name="attention.qkv").click()
    expect(tab.get("findings")).to_be_hidden()
    expect(tab.get("detail").locator(".detail-title")).to_contain_text("attention.qkv")


def test_a_real_training(tab: Tab, world: World) -> None:
    record = world.real
    tab.show(run="real")
    inside = [row for row in record.groups if row["layer"] in record.layers and row["kind"] != "none"]
    groups = tab.get("card-groups")
    expect(groups.locator(".big")).to_have_text(str(sum(row["blocks"] for row in inside)))
    expect(groups).to_contain_text(f"in {sum(record.invariant)} of {len(record.layers)} layers")
    verified = sum(row["verdict"] == "verified" for row in inside)
    expect(groups).to_contain_text(f"✓ {verified} verified")
    invariant = np.array(record.invariant)
    layers = [name for name, flag in zip(record.layers, record.invariant, strict=True) if flag]
    recent = {
        name: np.median(record[name][-WINDOW:, invariant].astype(np.float64), axis=0) for name in record.quantities
    }
    effective = float(np.median(recent["effective_lr"]))
    expect(tab.get("card-effective-lr").locator(".big")).to_have_text(shown(effective))
    expect(tab.get("card-effective-lr")).to_contain_text(f"{shown(effective / 0.05)}{TIMES} nominal lr 0.05")
    for word, at in (("fastest", recent["angular_step"].argmax()), ("slowest", recent["angular_step"].argmin())):
        expect(tab.get(word).locator(".layer-name")).to_contain_text(layers[at])
        expect(tab.get(word)).to_contain_text(f"{shown(recent['angular_step'][at])} rad")


def test_cards_follow_the_choice_of_the_run(tab: Tab, world: World) -> None:
    tab.show(run="first")
    tab.get("run").select_option("second")
    effective = median(of_late(world.second, "effective_lr").values())
    expect(tab.get("card-effective-lr").locator(".big")).to_have_text(shown(effective))
    heatmap = tab.until(tab.heatmap, lambda drawn: drawn.layers == list(world.second.schema.layers))
    np.testing.assert_allclose(heatmap.z, np.log10(world.second.of("angular_step").T.astype(np.float64)), rtol=1e-12)
