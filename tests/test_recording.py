"""Summary curves, and several optimizers' steps put side by side."""

from __future__ import annotations

import numpy as np

from lightning_sphere.quantities import STATS
from lightning_sphere.recording import MEDIAN, Recording, merge, summary_scalars
from lightning_sphere.tensorboard.schema import TableSchema


def schema(*layers: str, invariant: tuple[bool, ...] | None = None) -> TableSchema:
    return TableSchema(layers, ("norm",), STATS, invariant or (True,) * len(layers), ((0, 2),) * len(layers))


def recording(layers: tuple[str, ...], steps: list[int], offset: float = 0.0) -> Recording:
    one = schema(*layers)
    table = np.arange(len(steps) * len(layers) * len(STATS), dtype=np.float32).reshape(len(steps), *one.shape) + offset
    return Recording(one, np.array(steps), np.array(steps, dtype=np.float64), table)


def test_one_optimizer_is_left_as_it_is() -> None:
    one = recording(("a",), [0, 1])
    assert merge([one], ["a"]) is one


def test_steps_of_two_optimizers_share_a_row() -> None:
    a, b = recording(("a", "c"), [0, 1, 2]), recording(("b",), [1, 2, 3], offset=100)
    both = merge([a, b], ["a", "b", "c"])
    assert both.schema.layers == ("a", "b", "c")
    assert both.steps.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(both.table[:3, [0, 2]], a.table)
    np.testing.assert_array_equal(both.table[1:, 1], b.table[:, 0])
    assert np.isnan(both.table[0, 1]).all()
    assert np.isnan(both.table[3, [0, 2]]).all()


def test_several_steps_at_one_position_stay_several() -> None:
    a, b = recording(("a",), [0, 0, 1, 1]), recording(("b",), [0, 1], offset=100)
    both = merge([a, b], ["a", "b"])
    assert both.steps.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(both.table[:, 0], a.table[:, 0])
    np.testing.assert_array_equal(both.table[[0, 2], 1], b.table[:, 0])
    assert np.isnan(both.table[[1, 3], 1]).all()


def test_curves_are_medians_over_invariant_layers() -> None:
    one = schema("a", "b", "c", "free", invariant=(True, True, True, False))
    table = np.random.default_rng(0).normal(size=(6, *one.shape)).astype(np.float32)
    curves = summary_scalars(Recording(one, np.arange(6), np.arange(6.0), table))
    medians = table[:, :3, 0, MEDIAN]
    np.testing.assert_allclose(curves["sphere/norm"], np.median(medians, axis=1), rtol=1e-6)
    np.testing.assert_allclose(curves["sphere_bands/norm/p10"], np.quantile(medians, 0.1, axis=1), rtol=1e-5)
    np.testing.assert_allclose(curves["sphere_bands/norm/p90"], np.quantile(medians, 0.9, axis=1), rtol=1e-5)


def test_where_nothing_is_invariant_all_layers_count() -> None:
    one = schema("a", "b", invariant=(False, False))
    table = np.random.default_rng(0).normal(size=(2, *one.shape)).astype(np.float32)
    curve = summary_scalars(Recording(one, np.arange(2), np.arange(2.0), table))["sphere/norm"]
    np.testing.assert_allclose(curve, table[:, :, 0, MEDIAN].mean(axis=1), rtol=1e-6)


def test_curves_do_not_jump_where_optimizers_alternate() -> None:
    often, seldom = recording(("a", "c"), list(range(6))), recording(("b",), [2, 5], offset=1000)
    both = merge([often, seldom], ["a", "b", "c"])
    curve = summary_scalars(both)["sphere/norm"]
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(curve)), [2, 5])
    never_together = merge([recording(("a",), [0, 2]), recording(("b",), [1, 3])], ["a", "b"])
    assert not np.isnan(summary_scalars(never_together)["sphere/norm"]).any()
