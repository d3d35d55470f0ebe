"""Every recorded number of a real run equals a slow recomputation from weights saved around each step."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_sphere import SphereTracker, read_run
from lightning_sphere.measurement.plan import CHUNK_ELEMENTS
from nets import FIRST, LAST, SECOND, batches, conv_net
from oracle import KNOWN, Watch, assert_recorded, cut_of, layer_index, layer_table

pytestmark = pytest.mark.usefixtures("copies")

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]

OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgd": partial(SGD, lr=0.1),
    "sgd with momentum and L2": partial(SGD, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "sgd with nesterov momentum": partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": partial(Adam, lr=1e-2),
    "adam with L2": partial(Adam, lr=1e-2, weight_decay=1e-2),
    "adamw": partial(AdamW, lr=1e-2, weight_decay=0.1),
    "adamw with amsgrad": partial(AdamW, lr=1e-2, weight_decay=0.1, amsgrad=True),
    "adam with a large eps": partial(Adam, lr=1e-2, eps=1e-3),
}


def run(
    folder: Path, model: nn.Module, optimizer: Optimizer, steps: int = 50, clip: float | None = None
) -> tuple[Any, Watch]:
    """Train and return what was recorded and what the test saw."""
    watch = Watch(model, optimizer)
    with SphereTracker(model, optimizer, log_dir=folder, strict=True, flush_every_n_steps=17):
        for images, classes in batches(steps):
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            watch.before()
            optimizer.step()
            watch.after()
    return read_run(folder), watch


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_number_of_fifty_steps_equals_the_oracle(name: str, tmp_path: Path) -> None:
    model = conv_net()
    optimizer = OPTIMIZERS[name](model.parameters())
    record, watch = run(tmp_path, model, optimizer)
    assert record.values.shape == (50, 3, len(record.quantities), 4)
    assert set(KNOWN) < set(record.quantities)
    assert record.stats == ("p10", "median", "p90", "rms")
    assert all(np.isfinite(record.stat(name, stat)).all() for name in KNOWN for stat in record.stats)
    assert_recorded(record, watch, [FIRST, SECOND, LAST], adam=isinstance(optimizer, Adam))


@pytest.mark.parametrize("limit", [1, 7, 30, 200])
@pytest.mark.parametrize("name", ["sgd with momentum and L2", "adamw"])
def test_cutting_tensors_into_small_pieces_changes_no_number(
    name: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large tensors are measured piece by piece: along rows, and along the entries of a row where one is too long."""
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", limit)
    model = conv_net()
    optimizer = OPTIMIZERS[name](model.parameters())
    record, watch = run(tmp_path, model, optimizer, steps=5)
    assert_recorded(record, watch, [FIRST, SECOND, LAST], adam=isinstance(optimizer, Adam))


def test_what_precedes_a_batchnorm_is_known_as_rows_and_the_last_layer_as_none(tmp_path: Path) -> None:
    model = conv_net()
    record, _ = run(tmp_path, model, SGD(model.parameters(), lr=0.1), steps=2)
    kinds = {row["parameter"]: (row["kind"], row["axis"], row["blocks"]) for row in record.groups}
    assert kinds[FIRST] == ("row", 0, 8)
    assert kinds[SECOND] == ("row", 0, 11)
    assert kinds[LAST][0] == "none"
    assert [record.invariant[layer_index(record, p)] for p in (FIRST, SECOND, LAST)] == [True, True, False]


@pytest.mark.parametrize("name", ["sgd with momentum and L2", "adamw"])
def test_the_gradient_is_the_one_after_clipping(name: str, tmp_path: Path) -> None:
    model = conv_net()
    optimizer = OPTIMIZERS[name](model.parameters())
    record, watch = run(tmp_path, model, optimizer, steps=10, clip=0.05)
    norms = [torch.stack([s.gradient.norm() for s in seen.values() if s.gradient is not None]) for seen in watch.steps]
    assert max(float(norm.norm()) for norm in norms) == pytest.approx(0.05, rel=1e-4)  # clipping was active
    assert_recorded(record, watch, [FIRST, SECOND, LAST], adam=isinstance(optimizer, Adam))


@pytest.mark.parametrize(("factory", "lr"), [(SGD, 2e-5), (SGD, 2e-6), (AdamW, 2e-7), (AdamW, 2e-8)])
def test_the_smallest_angles_are_right_within_one_percent(
    factory: Callable[..., Optimizer], lr: float, tmp_path: Path
) -> None:
    model = conv_net()
    optimizer = factory(model.parameters(), lr=lr)
    record, watch = run(tmp_path, model, optimizer, steps=20)
    angles = record["angular_step"]
    assert angles[angles > 0].min() < 1e-6  # some are 0: float32 weights swallow an update below half their last place
    index = record.quantities.index("angular_step")
    for parameter in (FIRST, SECOND, LAST):
        expected = layer_table(watch.steps, cut_of(record, parameter, watch), ["angular_step"], adam=factory is AdamW)
        actual = record.values[:, layer_index(record, parameter), index]
        np.testing.assert_allclose(actual, expected[:, 0], rtol=1e-2)


def test_sgd_without_decay_has_one_effective_rate_by_both_definitions(tmp_path: Path) -> None:
    """For SGD on an exactly invariant weight, eta_e = lr / r^2 = tan(theta) / |grad L(u)|."""
    model = conv_net().double()
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-30
    optimizer = SGD(model.parameters(), lr=0.1)
    watch = Watch(model, optimizer)
    with SphereTracker(model, optimizer, log_dir=tmp_path, strict=True):
        for images, classes in batches(5):
            optimizer.zero_grad()
            cross_entropy(model(images.double()), classes).backward()
            watch.before()
            optimizer.step()
            watch.after()
    record = read_run(tmp_path)
    for parameter in (FIRST, SECOND):
        layer = layer_index(record, parameter)
        rows = np.stack([seen[parameter].before.flatten(1).numpy() for seen in watch.steps])
        by_hand = np.median(0.1 / (rows**2).sum(-1), axis=-1)
        np.testing.assert_allclose(record["effective_lr"][:, layer], by_hand, rtol=1e-6)
        np.testing.assert_allclose(record["spherical_lr"][:, layer], by_hand, rtol=1e-6)
        assert record["invariance_residual"][:, layer].max() < 1e-12
        np.testing.assert_allclose(record["radial_fraction"][:, layer], 0.0, atol=1e-12)
