"""Every rule both ways: where it must speak, and where it must not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightning_sphere.diagnosis import APART, FEWEST, LOST, RULES, WINDOW, Evidence, Finding, diagnose

LAYERS = ("a", "b", "c", "d", "head")


def evidence(**changes: Any) -> Evidence:
    """A healthy run of 60 steps, changed in places."""
    random = np.random.default_rng(0)
    medians = {
        name: (scale * (1 + 0.2 * random.random((60, len(LAYERS))))).astype(np.float32)
        for name, scale in {"angular_step": 0.01, "effective_lr": 0.1, "lost_update": 0.001, "lr": 0.1}.items()
    }
    groups = {name: {"layer": name, "verdict": "verified", "residual": 1e-7, "verified_share": 1.0} for name in LAYERS}
    groups["head"] = {"layer": "head", "verdict": None, "residual": None, "verified_share": None}
    given: dict[str, Any] = {
        "layers": LAYERS,
        "invariant": np.array([True, True, True, True, False]),
        "groups": groups,
        "medians": medians,
        "steps": 60,
        "skipped": 0,
    }
    given["medians"] = medians | changes.pop("medians", {})
    given["groups"] = groups | changes.pop("groups", {})
    return Evidence(**(given | changes))


def with_column(quantity: str, layer: str, value: float | np.ndarray) -> dict[str, np.ndarray]:
    values = evidence().medians[quantity].copy()
    values[:, LAYERS.index(layer)] = value
    return {quantity: values}


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1, [finding.name for finding in found]
    return found[0]


def test_a_healthy_run_has_no_finding() -> None:
    assert diagnose(evidence()) == []


def test_a_run_of_which_little_is_recorded_has_none() -> None:
    assert diagnose(Evidence(LAYERS, np.ones(5, dtype=bool), {}, {}, steps=60)) == []
    assert diagnose(Evidence((), np.ones(0, dtype=bool), {}, {}, steps=0)) == []
    nothing = np.full((60, 5), np.nan, dtype=np.float32)
    unknown = evidence(medians=dict.fromkeys(evidence().medians, nothing))
    assert diagnose(unknown) == []


def test_contradicted_claims() -> None:
    groups = {name: {"verdict": "contradicted", "residual": value} for name, value in (("b", 0.25), ("d", 0.5))}
    found = only(diagnose(evidence(groups=groups)))
    assert (found.name, found.severity, found.layers) == ("claim contradicted", "error", ("b", "d"))
    assert found.title == "2 layers do change with the scale of the weight"
    assert "0.25 to 0.5" in found.evidence


def test_eps_dominates() -> None:
    found = only(diagnose(evidence(groups={"c": {"verdict": "eps dominates", "residual": 0.0312}})))
    assert (found.name, found.severity, found.layers) == ("eps dominates", "warning", ("c",))
    assert found.title == "the norm's eps dominates in 1 layer"
    assert "0.031" in found.evidence


@pytest.mark.parametrize("residual", [None, "x", float("nan")])
def test_a_residual_may_be_unknown(residual: Any) -> None:
    found = only(diagnose(evidence(groups={"c": {"verdict": "contradicted", "residual": residual}})))
    assert "is not told" in found.evidence


def test_verdicts_that_are_no_finding() -> None:
    groups = {
        name: {"verdict": verdict} for name, verdict in zip("abc", ("not yet seen", None, "verified"), strict=True)
    }
    assert diagnose(evidence(groups=groups)) == []


def test_updates_lost() -> None:
    lost = np.full(60, np.nan)
    lost[::10] = LOST + 0.26
    found = only(diagnose(evidence(medians=with_column("lost_update", "head", lost))))
    assert (found.name, found.severity, found.layers) == ("updates lost", "warning", ("head",))
    assert found.evidence.startswith("76% of the movement")
    assert diagnose(evidence(medians=with_column("lost_update", "head", LOST))) == []


def test_only_the_last_steps_count() -> None:
    lost = np.full(60, 0.9)
    lost[-WINDOW:] = 0.0
    assert diagnose(evidence(medians=with_column("lost_update", "a", lost))) == []
    lost[-WINDOW // 2 - 1 :] = 0.9
    assert only(diagnose(evidence(medians=with_column("lost_update", "a", lost)))).name == "updates lost"


@pytest.mark.parametrize(("factor", "name"), [(1.5 * APART, "turns faster"), (1 / (1.5 * APART), "turns slower")])
def test_a_layer_stands_apart(factor: float, name: str) -> None:
    odd = evidence(medians=with_column("angular_step", "b", 0.011 * factor))
    found = only(diagnose(odd))
    assert (found.name, found.severity, found.layers) == (name, "warning", ("b",))
    usual = np.median([np.median(odd.medians["angular_step"][-WINDOW:, index].astype(float)) for index in range(4)])
    assert f"{np.float32(0.011 * factor):.2g} rad" in found.evidence
    assert f"is {usual:.2g} rad" in found.evidence
    assert diagnose(evidence(medians=with_column("angular_step", "b", 0.011 * factor**0.7))) == []


def test_what_cannot_stand_apart() -> None:
    assert diagnose(evidence(medians=with_column("angular_step", "head", 1.0))) == []  # it is not invariant
    few = np.array([True] * (FEWEST - 1) + [False] * (5 - FEWEST + 1))
    assert diagnose(evidence(medians=with_column("angular_step", "b", 1.0), invariant=few)) == []


def test_steps_skipped() -> None:
    found = only(diagnose(evidence(skipped=3)))
    assert (found.name, found.severity, found.layers) == ("steps skipped", "info", ())
    assert found.title == "3 steps were not taken"
    assert found.evidence == "3 of the 60 steps shown"
    assert only(diagnose(evidence(skipped=1))).title == "1 step was not taken"


def test_nothing_invariant() -> None:
    found = only(diagnose(evidence(invariant=np.zeros(5, dtype=bool))))
    assert (found.name, found.severity, found.layers) == ("nothing invariant", "info", ())
    assert "none of 5 layers" in found.evidence


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_layer_does_not_turn(value: float) -> None:
    found = only(diagnose(evidence(medians=with_column("angular_step", "c", value))))
    assert (found.name, found.severity, found.layers) == ("does not turn", "info", ("c",))
    counts = "0 in 1, unknown in 0" if value == 0.0 else "0 in 0, unknown in 1"
    assert found.evidence == f"angular step over the last {WINDOW} steps: {counts}"


def test_a_layer_that_turned_of_late_does_turn() -> None:
    turned = np.zeros(60)
    turned[-1] = 0.01
    assert diagnose(evidence(medians=with_column("angular_step", "c", turned))) == []


def test_skipped_steps_do_not_hide_what_was_before() -> None:
    turned = evidence().medians["angular_step"].copy()
    turned[-30:] = np.nan
    assert diagnose(evidence(medians={"angular_step": turned})) == []
    turned[:30, 0] = 0.0
    assert only(diagnose(evidence(medians={"angular_step": turned}))).layers == ("a",)


def test_the_most_severe_comes_first() -> None:
    groups = {"b": {"verdict": "eps dominates", "residual": 0.1}, "c": {"verdict": "contradicted", "residual": 0.1}}
    found = diagnose(evidence(groups=groups, skipped=2, medians=with_column("angular_step", "a", 0.0)))
    assert [finding.severity for finding in found] == ["error", "warning", "info", "info"]
    assert len({rule.__name__ for rule in RULES}) == len(RULES)
