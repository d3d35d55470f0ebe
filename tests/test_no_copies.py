"""Steps that are measured without a copy of the weights, as they usually are, against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from lightning_sphere import SphereTracker, read_run
from lightning_sphere.measurement import host_kernel
from lightning_sphere.measurement.kernel_sums import KernelSums
from nets import FIRST, LAST, SECOND, batches, conv_net
from oracle import Watch, assert_recorded

pytestmark = pytest.mark.skipif(host_kernel.load() is None, reason=f"no kernel: {host_kernel.reason()}")

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": partial(SGD, lr=0.1),
    "SGD, momentum and decay": partial(SGD, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "Adam, L2": partial(Adam, lr=1e-2, weight_decay=1e-2),
    "AdamW": partial(AdamW, lr=1e-2, weight_decay=0.1),
}

PROMISED = 1e-4
"""The README's: relative for each number, and of the length of the step for those that nearly cancel."""


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_numbers_without_a_copy_are_those_promised(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uncopied: list[int] = []
    original = KernelSums.at_once

    def count(sums: KernelSums, *arguments: Any) -> None:
        uncopied.append(1)
        original(sums, *arguments)

    monkeypatch.setattr(KernelSums, "at_once", count)
    torch.manual_seed(0)
    model = conv_net()
    optimizer = OPTIMIZERS[name](model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, eta_min=1e-3)
    watch = Watch(model, optimizer)
    with SphereTracker(model, optimizer, tmp_path, flush_every_n_steps=5, strict=True):
        for images, classes in batches(80):
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            watch.before()
            optimizer.step()
            watch.after()
            schedule.step()
    assert len(uncopied) >= 60, "all but the first flush's, and where a comparison is due"
    assert_recorded(
        read_run(tmp_path),
        watch,
        [FIRST, SECOND, LAST],
        adam=isinstance(optimizer, Adam),
        relative=PROMISED,
        absolute=PROMISED,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_low_precision_are_copied(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("rounding discards most of such a step")

    monkeypatch.setattr(KernelSums, "at_once", never)
    torch.manual_seed(0)
    model = conv_net().to(dtype)
    optimizer = AdamW(model.parameters(), 1e-3, eps=1e-4)
    with SphereTracker(model, optimizer, flush_every_n_steps=5, strict=True) as tracker:
        for images, classes in batches(20):
            optimizer.zero_grad()
            cross_entropy(model(images.to(dtype)).float(), classes).backward()
            optimizer.step()
            tracker.flush()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("factory", [partial(Adagrad, lr=0.1), partial(AdamW, lr=1e-2), partial(SGD, lr=0.1)])
def test_training_is_the_same_bit_by_bit(factory: Callable[[Any], Optimizer]) -> None:
    def train(watched: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = conv_net()
        optimizer = factory(model.parameters())
        tracker = SphereTracker(model, optimizer, flush_every_n_steps=5, strict=True)
        if watched:
            tracker.__enter__()
        for images, classes in batches(70):
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            optimizer.step()
        if watched:
            tracker.close()
        state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        return [*model.parameters(), *state, torch.get_rng_state()]

    assert all(map(torch.equal, train(False), train(True)))
