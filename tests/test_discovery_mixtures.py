"""Weights divided by one number made of themselves, and sums whose weights add up to one, as measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sphere.discovery import discover
from measured_invariance import Measured, disagreements, measure, prepare

LENGTHS: dict[str, Callable[[Tensor], Tensor]] = {
    "norm": torch.Tensor.norm,
    "mean_magnitude": lambda w: w.abs().mean(),
    "deviation": lambda w: w.std(),
    "bilinear": lambda w: torch.dot(w.flatten(1) @ w.new_ones(27), torch.linspace(-1, 2, 8, dtype=w.dtype)),
    "sum_of_row_lengths": lambda w: w.flatten(1).norm(dim=1).sum(),
}


@pytest.mark.parametrize("after", ["batch_norm", "gelu", "both", "length_seen", "ratio_seen"])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_weight_divided_by_a_number_of_its_own(length: str, after: str) -> None:
    """What normalizes each channel later leaves the rows free; what does not only the whole."""
    torch.manual_seed(0)
    model = prepare(nn.Conv2d(3, 8, 3, bias=False))

    def loss(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        size = LENGTHS[length](model.weight)
        y = F.conv2d(torch.randn(6, 3, 6, 6, generator=generator, dtype=torch.float64), model.weight / size)
        normal = F.batch_norm(y, None, None, training=True)
        y = {
            "batch_norm": normal,
            "gelu": y,
            "both": normal + F.gelu(y),
            "length_seen": normal + size,
            "ratio_seen": normal + size / model.weight.square().sum().sqrt(),
        }[after]
        return (F.gelu(y) * torch.randn(y.shape, generator=generator, dtype=torch.float64)).sum()

    measured = measure(model, loss)
    if (length, after) == ("norm", "ratio_seen"):
        pytest.skip("the ratio is 1, which no rule sees")
    kinds = {"batch_norm": "row", "gelu": "whole", "both": "whole", "length_seen": "none", "ratio_seen": "whole"}
    assert measured["weight"].kind == kinds[after]
    assert not disagreements(discover(loss(0), model), measured)


def composed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(1, 2)).softmax(-1) @ v


MIXTURES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "composed": composed,
    "fused": lambda q, k, v: F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0],
    "einsum": lambda q, k, v: torch.einsum("bts,bsc->btc", torch.einsum("btc,bsc->bts", q, k).softmax(2), v),
    "transposed": lambda q, k, v: (v.transpose(1, 2) @ (k @ q.transpose(1, 2)).softmax(1)).transpose(1, 2),
    "not_to_one": lambda q, k, v: (q @ k.transpose(1, 2)).softmax(1) @ v,
    "dropped": lambda q, k, v: (q @ k.transpose(1, 2)).softmax(-1).masked_fill(torch.eye(9, dtype=torch.bool), 0) @ v,
    "sigmoid": lambda q, k, v: (q @ k.transpose(1, 2)).sigmoid() @ v,
}


@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_attention_keeps_a_bias(mixture: str, norm: str) -> None:
    """Only a softmax leaves the values' bias what it is: the norm removes it then."""
    torch.manual_seed(0)
    model = prepare(nn.ModuleDict({name: nn.Linear(5, 8) for name in "qkv"}))
    normalize = {"batch": nn.BatchNorm1d, "group": lambda n: nn.GroupNorm(2, n), "layer": lambda n: nn.GroupNorm(1, n)}
    module = prepare(normalize[norm](8))

    def loss(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(4, 9, 5, generator=generator, dtype=torch.float64)
        y = F.gelu(module(MIXTURES[mixture](*(model[name](x) for name in "qkv")).transpose(1, 2)))
        return (y * torch.randn(y.shape, generator=generator, dtype=torch.float64)).sum()

    measured = measure(model, loss)
    if norm == "batch" and mixture not in ("not_to_one", "dropped", "sigmoid"):
        assert measured["v.weight"] == Measured("row", 0, 8)
    assert not disagreements(discover(loss(0), model), measured)


@pytest.mark.parametrize("centred", [True, False])
def test_only_a_norm_that_subtracts_the_mean_removes_what_is_added_to_all(centred: bool) -> None:
    torch.manual_seed(0)
    model = prepare(nn.ModuleDict({"a": nn.Linear(6, 5, bias=False), "shift": nn.Linear(6, 1, bias=False)}))

    def loss(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        y = model["a"](x) + model["shift"](x)
        y = F.layer_norm(y, (5,), eps=0.0) if centred else F.rms_norm(y, (5,), eps=1e-30)
        return (F.gelu(y) * torch.randn(y.shape, generator=generator, dtype=torch.float64)).sum()

    measured = measure(model, loss)
    assert measured["a.weight"].kind == ("whole" if centred else "none")
    assert not disagreements(discover(loss(0), model), measured)
