"""Statistics over filters and layers against numpy."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sphere.groups import GroupPart, ScaleGroup
from lightning_sphere.statistics import LayerGroups, per_layer, rms, spread


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.integers(1, 30), st.floats(0, 1), st.integers(0, 2**31))
def test_spread_and_rms_are_numpys_without_nan(count: int, missing: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(size=(3, count)) * 10.0 ** random.integers(-5, 5, size=(3, 1))
    values[random.random(values.shape) < missing] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # slices that are NaN all over
        expected = np.moveaxis(np.nanquantile(values, [0.1, 0.5, 0.9], axis=1), 0, -1)
        expected_rms = np.sqrt(np.nanmean(values**2, axis=1))
    np.testing.assert_allclose(spread(values), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(rms(values), expected_rms, rtol=1e-12)


def test_infinite_values_do_not_spoil_quantiles_that_are_finite() -> None:
    assert spread(np.array([1.0, 2.0, 3.0, 4.0, np.inf]))[1] == 3.0
    assert spread(np.full(4, np.inf))[1] == np.inf


def layer(name: str, blocks: int, members: tuple[int, ...] | None = None) -> ScaleGroup:
    return ScaleGroup(name, (GroupPart(f"{name}.weight"),), blocks, "row", members=members)


def test_each_layer_gets_its_own_groups() -> None:
    layers = [layer("a", 4), layer("b", 3), layer("c", 4), layer("d", 1)]
    values = np.random.default_rng(0).normal(size=(2, 5, 12))
    table = per_layer(values, LayerGroups(layers))
    assert table.shape == (5, 4, 2, 4)
    start = 0
    for number, one in enumerate(layers):
        own = values[:, :, start : start + one.blocks]
        np.testing.assert_allclose(table[:, number, :, 1].T, np.median(own, axis=2))
        np.testing.assert_allclose(table[:, number, :, 3].T, np.sqrt((own**2).mean(axis=2)))
        start += one.blocks


def test_only_the_invariant_blocks_of_a_layer_count() -> None:
    values = np.arange(6.0).reshape(1, 1, 6)
    table = per_layer(values, LayerGroups([layer("a", 4, members=(0, 1)), layer("b", 2)]))
    assert table[0, :, 0, 1].tolist() == [0.5, 4.5]


SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=8)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(SIZES, st.floats(0, 1), st.integers(0, 2**31))
def test_layers_are_taken_together_as_they_are_one_by_one(sizes: list[int], missing: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    members = [tuple(np.flatnonzero(random.random(size) < 0.7).tolist()) or None for size in sizes]
    layers = [layer(str(i), size, own) for i, (size, own) in enumerate(zip(sizes, members, strict=True))]
    places = LayerGroups(layers)
    values = random.normal(size=(3, sum(sizes)))
    values[random.random(values.shape) < missing] = np.nan
    medians, sums = places.lower_median(values), places.total(~np.isnan(values))
    for index, one in enumerate(layers):
        own = values[:, places.of(index)]
        assert own.shape == (3, one.blocks)
        assert sums[:, index].tolist() == np.count_nonzero(~np.isnan(own), axis=1).tolist()
        counting = own[:, list(range(one.blocks)) if one.members is None else list(one.members)]
        np.testing.assert_array_equal(medians[:, index], torch.from_numpy(counting).nanmedian(1).values.numpy())
    some = sorted(random.choice(len(layers), random.integers(1, len(layers) + 1), replace=False).tolist())
    expected = np.concatenate([values[:, places.of(index)] for index in some], axis=1)
    np.testing.assert_array_equal(values[:, places.positions(some)], expected)
    np.testing.assert_array_equal(places.per_group(np.arange(len(layers))), np.repeat(range(len(layers)), sizes))
