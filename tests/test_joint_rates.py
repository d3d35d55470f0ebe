"""A weight invariant together with its bias has one effective learning rate only if both have the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_sphere import SphereTracker, read_run

pytestmark = pytest.mark.usefixtures("copies")


@pytest.mark.parametrize("same", [True, False])
def test_different_rates_of_weight_and_bias_leave_the_rate_unknown_with_the_reason(tmp_path: Path, same: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    weight, bias, *rest = model.parameters()
    groups = [{"params": [weight]}, {"params": [bias], "lr": 0.1 if same else 0.2}, {"params": rest}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with SphereTracker(model, optimizer, tmp_path, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).exp().sum().backward()
            optimizer.step()
    record = read_run(tmp_path)
    assert record.groups[0]["joint_with"] == ("0.bias",)
    assert np.isfinite(record["angular_step"]).all()
    assert np.isfinite(record["effective_lr"][:, 0]).all() == same
    assert ("different learning rates" in record.groups[0]["reason"]) != same


def test_a_skipped_step_has_no_rates(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    optimizer = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1)
    with SphereTracker(model, optimizer, tmp_path, strict=True) as tracker:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).exp().sum().backward()
            optimizer.step()
            tracker.expect_step(optimizer)  # a loss scaler skips every other one
            tracker.settle_step()
    record = read_run(tmp_path)
    assert np.isfinite(record["effective_lr"][:, 0]).tolist() == [True, False] * 3
    assert "different learning rates" not in record.groups[0]["reason"]
