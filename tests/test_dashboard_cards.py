"""What the page is told of a run, without a server: cases that need numbers of their own."""

from __future__ import annotations

import numpy as np

from dashboard_world import schema_of
from lightning_sphere.diagnosis import Evidence
from lightning_sphere.quantities import QUANTITIES
from lightning_sphere.tensorboard.dashboard.about import about
from lightning_sphere.tensorboard.dashboard.cards import cards
from lightning_sphere.tensorboard.dashboard.plugin import _quantity
from lightning_sphere.tensorboard.dashboard.series import Description, Table, Told


def test_a_joint_set_is_told_as_one() -> None:
    rows = {"a": {"kind": "whole", "joint": True}, "b": {"kind": "whole", "joint": False}}
    schema = schema_of(("a", "b"), ("norm",), invariant=(True, True), rows=rows)
    table = Table(np.arange(3), np.arange(3.0), np.ones((3, 2, 4), dtype=np.float32))
    told = about("run", Description((Told(0, 0.0, schema),)), ("norm",), lambda name: table)
    assert [layer["kind"] for layer in told["layers"]] == ["joint", "whole"]


def test_a_layer_that_is_unknown_for_some_steps_does_not_move_the_ratio() -> None:
    effective = np.tile(np.array([1.0, 2.0, 9.0], dtype=np.float32), (30, 1))
    effective[10:20, 0] = np.nan  # the median of the others would be 5.5
    medians = {"effective_lr": effective, "lr": np.ones_like(effective)}
    evidence = Evidence(("a", "b", "c"), np.ones(3, dtype=bool), {}, medians, steps=30)
    layer = {"invariant": True, "verdict": None, "equilibrium_state": None, "invariant_blocks": 1}
    found = cards(evidence, [layer] * 3, np.arange(30))
    assert found["lr_ratio_highest"]["ratio"] == found["lr_ratio_lowest"]["ratio"] == found["lr_ratio_start"] == 2.0


def test_the_page_knows_what_has_no_meaning_without_invariance() -> None:
    told = {name: _quantity(quantity)["of_invariant"] for name, quantity in QUANTITIES.items()}
    assert {name for name, flag in told.items() if flag} == {"effective_lr", "spherical_lr", "invariance_residual"}
