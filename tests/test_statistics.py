"""Statistics over filters and layers against numpy."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sphere.groups import GroupPart, ScaleGroup
from lightning_sphere.statistics import per_layer, rms, spread


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
    np.testing.assert_allclose(spread(torch.from_numpy(values)), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(rms(torch.from_numpy(values)), expected_rms, rtol=1e-12)


def test_infinite_values_do_not_spoil_quantiles_that_are_finite() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, torch.inf]).double()
    assert spread(values)[1] == 3.0
    assert spread(torch.full((4,), torch.inf).double())[1] == torch.inf


def layer(name: str, blocks: int, members: tuple[int, ...] | None = None) -> ScaleGroup:
    return ScaleGroup(name, (GroupPart(f"{name}.weight"),), blocks, "row", members=members)


def test_each_layer_gets_its_own_groups() -> None:
    layers = [layer("a", 4), layer("b", 3), layer("c", 4), layer("d", 1)]
    values = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = per_layer(values, layers)
    assert table.shape == (5, 4, 2, 4)
    start = 0
    for number, one in enumerate(layers):
        own = values[:, :, start : start + one.blocks].numpy()
        np.testing.assert_allclose(table[:, number, :, 1].T, np.median(own, axis=2))
        np.testing.assert_allclose(table[:, number, :, 3].T, np.sqrt((own**2).mean(axis=2)))
        start += one.blocks


def test_only_the_invariant_blocks_of_a_layer_count() -> None:
    values = torch.arange(6, dtype=torch.float64).reshape(1, 1, 6)
    table = per_layer(values, [layer("a", 4, members=(0, 1)), layer("b", 2)])
    assert table[0, :, 0, 1].tolist() == [0.5, 4.5]
