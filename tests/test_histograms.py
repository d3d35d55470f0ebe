"""Counts over a layer's groups against NumPy's own, and which steps have them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sphere.groups import GroupPart, ScaleGroup
from lightning_sphere.histograms import BUCKETS, GroupHistograms, histograms
from lightning_sphere.statistics import LayerGroups
from lightning_sphere.strides import Stride

Values = npt.NDArray[np.float64]


def expected(values: Values) -> Values | None:
    """By NumPy, of one layer."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    if known.min() == known.max():
        return np.array([[known[0], known[0], len(known)]])
    counts, edges = np.histogram(known, BUCKETS)
    return np.stack([edges[:-1], edges[1:], counts], axis=1)


DRAWS = {
    "normal": lambda random, n: random.normal(size=n),
    "many alike": lambda random, n: np.round(random.normal(size=n), 1),
    "over decades": lambda random, n: np.exp(5 * random.normal(size=n)),
    "on the edges": lambda random, n: random.integers(0, BUCKETS + 1, n) / BUCKETS,
    "constant": lambda random, n: np.full(n, 0.1),
    "negative": lambda random, n: -1e-20 - 1e-25 * random.random(n),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_counts_and_edges_are_numpys(draw: str) -> None:
    random = np.random.default_rng(len(draw))
    for _ in range(50):
        labels = np.repeat(np.arange(20), random.integers(1, 60, 20)) * 3
        values = np.array(DRAWS[draw](random, len(labels)))
        values[random.random(len(values)) < 0.05] = np.nan
        values[random.random(len(values)) < 0.02] = np.inf
        found = dict(histograms(values, labels))
        for label in set(labels.tolist()):
            own = expected(values[labels == label])
            if own is None:
                assert label not in found
            else:
                np.testing.assert_array_equal(found[label], own)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=40))
def test_no_value_is_lost_whatever_it_is(numbers: list[float]) -> None:
    values = np.array(numbers, dtype=np.float64)
    known = values[np.isfinite(values)]
    found = histograms(values, np.zeros(len(values), dtype=np.int64))
    assert len(found) == (len(known) > 0)
    for _, buckets in found:
        assert buckets[:, 2].sum() == len(known)
        assert np.isfinite(buckets).all()
        assert buckets[0, 0] == known.min()
        assert buckets[-1, 1] == known.max()
        assert (buckets[:, 1] >= buckets[:, 0]).all()


def layer(name: str, blocks: int, kind: str = "row", members: tuple[int, ...] | None = None) -> ScaleGroup:
    part = GroupPart(f"{name}.weight")
    return ScaleGroup(name, (part,), blocks, kind, (blocks, 3), members)  # type: ignore[arg-type]


def test_layers_have_their_own_groups_and_only_those_that_count() -> None:
    layers = [layer("a", 5), layer("b", 1), layer("c", 6, members=(1, 4)), layer("d", 4, "none"), layer("e", 3)]
    layers += [layer("f", 4, members=(2,))]
    random = np.random.default_rng(1)
    values = random.random((4, sum(each.blocks for each in layers)))
    values[2] = np.nan
    values[3, -7:-4] = np.nan
    found = GroupHistograms(layers, LayerGroups(layers)).of(values)
    assert [list(row) for row in found] == [["a", "c", "e"], ["a", "c", "e"], [], ["a", "c"]]
    for row in (0, 1, 3):
        np.testing.assert_array_equal(found[row]["a"], expected(values[row, :5]))
        np.testing.assert_array_equal(found[row]["c"], expected(values[row, [7, 10]]))
    np.testing.assert_array_equal(found[1]["e"], expected(values[1, 16:19]))


def test_no_layer_to_show() -> None:
    layers = [layer("a", 1), layer("b", 4, "none")]
    assert GroupHistograms(layers, LayerGroups(layers)).of(np.ones((2, 5))) == [{}, {}]


def test_each_nth_step_or_the_next_one_that_is_known() -> None:
    stride = Stride(3)
    assert stride.take(np.array([True] * 5)) == [0, 3]
    assert stride.take(np.array([True, False, True, True])) == [2]  # 6 is unknown: 7 in its place
    assert stride.take(np.zeros(2, dtype=bool)) == []
    assert stride.take(np.array([True, True])) == [0, 1]  # 11 for 9; and 12
    assert Stride(1).take(np.array([False, True, True])) == [1, 2]
