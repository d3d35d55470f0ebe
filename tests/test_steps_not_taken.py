"""What an optimizer did not do is unknown, and what rounding did is nobody's mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.nn.functional import cross_entropy

from lightning_sphere import SphereTracker, read_run
from nets import batches
from optimizer_zoo import net, train


def test_a_filter_that_never_had_a_gradient_has_no_second_moment(tmp_path: Path) -> None:
    """Its divisor would be eps, and its effective learning rate astronomic."""
    model = net()
    norm: nn.BatchNorm2d = model[1]  # type: ignore[assignment]
    norm.weight.data[:3] = 0.0
    norm.weight.requires_grad_(False)
    train(model, [optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)], 4, log_dir=tmp_path)
    record = read_run(tmp_path)
    for stat in ("p10", "median", "p90"):
        assert (record.stat("second_moment", stat)[:, 0] > 1e-5).all()
        assert (record.stat("effective_lr", stat)[:, 0] < 1e3).all()


def test_nothing_is_known_of_a_step_that_a_kernel_skipped(tmp_path: Path) -> None:
    """Nor is it a walk of zero length, or an update that was lost."""
    model = net()
    optimizer = optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with SphereTracker(model, optimizer, tmp_path, strict=True) as tracker:
        for step, (images, classes) in enumerate(batches(12)):
            optimizer.zero_grad()
            loss = cross_entropy(model(images), classes)
            scaler.scale(loss * torch.inf if step in (0, 10) else loss).backward()
            scaler.step(optimizer)
            scaler.update()
    record = read_run(tmp_path)
    taken = ~np.isnan(record["norm"][:, 0])
    assert taken.sum() == 10
    for name in ("drift", "straightness", "lost_update", "path_length", "angular_step"):
        assert np.isnan(record[name][~taken]).all(), name
    assert all(state.predicted_norm > 0 for state in tracker.equilibrium.values())  # by the gradients that were


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lr", [1e-4, 1e-2])
def test_rounding_of_the_weights_is_no_mistake_of_the_formula(
    dtype: torch.dtype, lr: float, caplog: pytest.LogCaptureFixture
) -> None:
    model = net().to(dtype)
    train(model, [optim.SGD(model.parameters(), lr=lr, momentum=0.9)], 6)
    assert not caplog.messages


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_the_kernel_unscales_is_unscaled_for_the_formula(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    model = net().to(dtype)
    optimizer = optim.SGD(model.parameters(), lr=1e-2, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    with SphereTracker(model, optimizer, strict=True):
        for images, classes in batches(3):
            optimizer.zero_grad()
            scaler.scale(1e-3 * cross_entropy(model(images.to(dtype)).float(), classes)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert not caplog.messages
