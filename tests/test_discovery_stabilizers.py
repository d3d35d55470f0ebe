"""What keeps a norm away from zero is overlooked only where it is small enough to be that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_sphere import discover

NORMS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "normalize": (lambda h: nn.functional.normalize(h, dim=-1), "whole"),
    "rms with eps": (lambda h: h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6), "whole"),
    "clamped from below by little": (lambda h: h / h.norm(dim=-1, keepdim=True).clamp_min(1e-6), "whole"),
    "clamped from below by much": (lambda h: h / h.norm(dim=-1, keepdim=True).clamp_min(10.0), "none"),
    "clamped from above": (lambda h: h / h.norm(dim=-1, keepdim=True).clamp(max=1e-3), "none"),
    "maximum norm": (lambda h: h / h.norm(dim=-1, keepdim=True).clamp(min=1.0), "none"),
    "relu of a shifted mean": (lambda h: torch.relu(h.mean(-1, keepdim=True) + 1.0), "none"),
    "clamped mean": (lambda h: h.mean(-1, keepdim=True).clamp(-0.1, 0.1), "none"),
}


@pytest.mark.parametrize("name", NORMS)
def test_only_small_bounds_of_statistics_are_overlooked(name: str) -> None:
    function, kind = NORMS[name]
    torch.manual_seed(0)
    layer = nn.Linear(6, 5, bias=False)
    model = nn.Sequential(layer)
    loss = function(model(torch.randn(4, 6))).exp().sum()
    assert discover(loss, model).table()[0]["kind"] == kind
