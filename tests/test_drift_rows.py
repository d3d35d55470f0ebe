"""At which steps drift is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.nn.functional import cross_entropy

from lightning_sphere import RunRecord, SphereTracker, read_run
from lightning_sphere.measurement import step
from nets import FIRST, batches, conv_net


def run(
    folder: Path, steps: int, after: Callable[[nn.Module, int], None] = lambda *_: None, **options: Any
) -> tuple[RunRecord, list[float]]:
    """The record, and the median over the first layer's rows of the true angle from the start after each step."""
    model = conv_net()
    optimizer = optim.AdamW(model.parameters(), 1e-2)
    start = model.get_parameter(FIRST).detach().clone().double().flatten(1)
    drift = []
    with SphereTracker(model, optimizer, folder, strict=True, **options) as tracker:
        for number, (images, classes) in enumerate(batches(steps)):
            optimizer.zero_grad()
            cross_entropy(model(images), classes).backward()
            optimizer.step()
            now = model.get_parameter(FIRST).detach().double().flatten(1)
            cosine = torch.nn.functional.cosine_similarity(start, now, dim=1)
            drift.append(float(np.median(np.arccos(cosine.numpy()))))
            after(model, number)
            tracker.flush() if number % 30 == 29 else None
    return read_run(folder), drift


def known(record: RunRecord) -> list[int]:
    return np.flatnonzero(~np.isnan(record["drift"][:, 0])).tolist()


@pytest.mark.parametrize("every", [1, 2])
def test_all_early_steps_then_each_tenth_and_the_last_before_each_flush(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "REFERENCE_ALL", 12)
    record, drift = run(tmp_path, 65, every_n_steps=every)
    if every == 1:
        assert known(record) == [*range(12), 20, 29, 30, 40, 50, 59, 60, 64]
    else:  # 29 and 59 are no measured steps, so that the weights have moved on; 64 is one
        assert known(record) == [*range(12), 20, 30, 32]
    rows = known(record)
    np.testing.assert_allclose(record["drift"][rows, 0], [drift[int(record.steps[row])] for row in rows], rtol=1e-5)


def test_weights_that_were_exchanged_since_are_not_taken_for_those_of_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As averages of them are, for validation."""
    monkeypatch.setattr(step, "REFERENCE_ALL", 0)

    def exchange(model: nn.Module, number: int) -> None:
        if number == 29:
            model.get_parameter(FIRST).data.mul_(1.001)

    record, _ = run(tmp_path, 35, exchange)
    assert known(record) == [0, 10, 20, 30, 34]


def test_copies_in_the_hosts_memory_are_not_streamed_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_sphere.measurement.reference.ReferenceWeights.near", False)
    record, _ = run(tmp_path, 12)
    assert known(record) == [0, 10, 11]


def test_weights_that_an_unmeasured_step_has_turned_are_not_taken_for_those_of_the_last_measured_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So little that their norms tell nothing."""
    monkeypatch.setattr(step, "REFERENCE_ALL", 0)
    model = conv_net().double()
    optimizer = optim.SGD(model.parameters(), 1e-10)
    with SphereTracker(model, optimizer, tmp_path, every_n_steps=2, strict=True):
        for images, classes in batches(4):
            optimizer.zero_grad()
            cross_entropy(model(images.double()), classes).backward()
            optimizer.step()
    record = read_run(tmp_path)
    assert (record["angular_step"][:, 0] > 0).all()
    assert known(record) == [0]
