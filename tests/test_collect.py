"""Segments added up to groups, against a loop."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sphere.measurement.collect import _Adder


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.integers(1, 6), st.integers(0, 12), st.integers(0, 2**31))
def test_numbers_are_added_up_that_belong_together(sums: int, more: int, seed: int) -> None:
    """Each sum has one number at least; a number may belong to several, in any order, or to none."""
    random = np.random.default_rng(seed)
    of = random.permutation(np.concatenate([np.arange(sums), random.integers(0, sums, more)]))
    members = random.permutation(sums + more) if random.random() < 0.5 else random.integers(0, sums, len(of))
    if random.random() < 0.2:
        of, members = np.sort(of), np.arange(len(of))
    values = random.normal(size=(3, sums + more))
    values[random.random(values.shape) < 0.1] = np.nan
    expected = np.zeros((3, sums))
    for member, total in zip(members, of, strict=True):
        expected[:, total] += values[:, member]
    adder, out = _Adder(torch.from_numpy(members), torch.from_numpy(of)), np.empty((3, sums))
    before = values.copy()
    if members.max() < values.shape[1]:
        np.testing.assert_allclose(adder(values)[..., :sums], expected, rtol=1e-12)
        assert adder(values, out) is out
        np.testing.assert_allclose(out, expected, rtol=1e-12)
        np.testing.assert_array_equal(values, before)
