"""What keeps a norm away from zero is overlooked only where it is small enough to be that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_sphere import discover
from lightning_sphere.discovery.saved import saved_tensor
from lightning_sphere.discovery.stabilizers import BOUND

Norm = Callable[[Tensor], Tensor]

NUMBERS = pytest.mark.skipif(
    not hasattr(torch._C._autograd.SavedTensor, "unpack_hook"),
    reason="this PyTorch does not tell whether a hook would run, so that no saved tensor is read",
)


def llama(h: Tensor) -> Tensor:
    kind = h.dtype
    h = h.to(torch.float32)
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).to(kind)


def squash(h: Tensor) -> Tensor:
    square = h.square().sum(-1, keepdim=True)
    return square / (1 + square) * h / square.sqrt()


def grouped(h: Tensor) -> Tensor:
    x = h.view(2, 2, 5)
    mean, variance = x.mean((1, 2), keepdim=True), x.var((1, 2), keepdim=True)
    return ((x - mean) / torch.sqrt(variance + 1e-5)).view(h.shape)


def columns(h: Tensor) -> Tensor:
    mean, variance = h.mean(0), h.var(0, unbiased=False)
    return (h - mean) / torch.sqrt(variance + 1e-5)


NORMS: dict[str, tuple[Norm, str]] = {
    "normalize": (lambda h: F.normalize(h, dim=-1), "whole"),
    "rms with eps": (lambda h: h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6), "whole"),
    "rms in float32": (llama, "whole"),
    "rms, power": (lambda h: h * (h.pow(2).mean(-1, keepdim=True) + 1e-6) ** -0.5, "whole"),
    "rms, eps first": (lambda h: h * (1e-6 + h.pow(2).mean(-1, keepdim=True)).pow(-0.5), "whole"),
    "rms, product": (lambda h: h / ((h * h).sum(-1, keepdim=True) / 5 + 1e-6).sqrt(), "whole"),
    "rms, reciprocal": (lambda h: h * (1 / (h.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()), "whole"),
    "rms, two eps": (lambda h: h / ((h.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() + 1e-6), "whole"),
    "rms, einsum": (lambda h: h / (torch.einsum("bi,bi->b", h, h) + 1e-6).sqrt()[:, None], "whole"),
    "rms, transposed": (lambda h: (h.t() / (h.t().square().mean(0) + 1e-6).sqrt()).t(), "whole"),
    "rms, subtracted eps": (lambda h: h / (h.square().mean(-1, keepdim=True) - -1e-6).sqrt(), "whole"),
    "largest, eps": (lambda h: h / (h.abs().amax(-1, keepdim=True) + 1e-6), "whole"),
    "sum of magnitudes": (lambda h: h / (h.abs().sum(-1, keepdim=True) + 1e-6), "whole"),
    "norm of all": (lambda h: h / (h.norm() + 1e-6), "whole"),
    "mean norm": (lambda h: h / (h.norm(dim=-1).mean() + 1e-6), "whole"),
    "vector norm": (lambda h: h / (torch.linalg.vector_norm(h, dim=-1, keepdim=True) + 1e-8), "whole"),
    "norm without keepdim": (lambda h: h / (h.norm(dim=-1) + 1e-6)[:, None], "whole"),
    "norm without keepdim, later": (lambda h: h / (h.norm(dim=-1)[:, None] + 1e-6).expand_as(h), "whole"),
    "std": (lambda h: (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True) + 1e-6), "whole"),
    "var": (lambda h: (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True) + 1e-6).sqrt(), "whole"),
    "groups": (grouped, "whole"),
    "columns": (columns, "row"),
    "eps as a tensor": (lambda h: h / (h.norm(dim=-1, keepdim=True) + torch.tensor(1e-6)), "whole"),
    "eps as many": (lambda h: h / (h.norm(dim=-1, keepdim=True) + torch.full((4, 1), 1e-6)), "whole"),
    "clamped from below by little": (lambda h: h / h.norm(dim=-1, keepdim=True).clamp_min(1e-6), "whole"),
    "largest of two": (lambda h: h / torch.maximum(h.norm(dim=-1, keepdim=True), torch.tensor(1e-6)), "whole"),
    "cosine": (lambda h: F.cosine_similarity(h, torch.ones(5), dim=-1), "whole"),
    "weighted mean": (lambda h: h / ((h.abs() @ torch.rand(5, 1)) + 1e-6), "whole"),
    # what must not be taken for a norm
    "clamped from below by much": (lambda h: h / h.norm(dim=-1, keepdim=True).clamp_min(10.0), "none"),
    "clamped from above": (lambda h: h / h.norm(dim=-1, keepdim=True).clamp(max=1e-3), "none"),
    "maximum norm": (lambda h: h / h.norm(dim=-1, keepdim=True).clamp(min=1.0), "none"),
    "largest of two, large": (lambda h: h / torch.maximum(h.norm(dim=-1, keepdim=True), torch.tensor(1.0)), "none"),
    "relu of a shifted mean": (lambda h: torch.relu(h.mean(-1, keepdim=True) + 1.0), "none"),
    "clamped mean": (lambda h: h.mean(-1, keepdim=True).clamp(-0.1, 0.1), "none"),
    "mean clamped to be positive": (lambda h: h / h.mean(-1, keepdim=True).clamp_min(1e-6), "none"),
    "one plus mean": (lambda h: h / (1 + h.abs().mean(-1, keepdim=True)), "none"),
    "one plus mean, later": (lambda h: h / (1 + h.abs().mean(-1))[:, None].expand(4, 5), "none"),
    "squash": (squash, "none"),
    "root of one plus": (lambda h: h / torch.sqrt(1 + h.square().mean(-1, keepdim=True)), "none"),
    "rsqrt of one plus": (lambda h: h * torch.rsqrt(1 + h.square().mean(-1, keepdim=True)), "none"),
    "one plus deviation": (lambda h: (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True) + 1), "none"),
    "one plus norm": (lambda h: h / (torch.linalg.vector_norm(h, dim=-1, keepdim=True) + 0.5), "none"),
    "data plus norm": (lambda h: h / (h.norm(dim=-1, keepdim=True) + torch.rand(4, 1)), "none"),
    "some data plus norm": (
        lambda h: h / (h.norm(dim=-1, keepdim=True) + torch.tensor([[0.0], [9.0], [0.0], [0.0]])),
        "none",
    ),
    "one minus mean": (lambda h: h / (1 - h.abs().mean(-1, keepdim=True)), "none"),
    "double precision": (lambda h: h.double() / (h.double().norm(dim=-1, keepdim=True) + 0.1), "none"),
}


def table_of(function: Norm, scale: float = 1.0, context: Any = None) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False))
    with torch.no_grad():
        model[0].weight.mul_(scale)
    with context or torch.enable_grad():
        loss = function(model(torch.randn(4, 6))).float().exp().sum()
    return discover(loss, model).table()[0]


@NUMBERS
@pytest.mark.parametrize("name", NORMS)
def test_only_small_numbers_beside_statistics_are_overlooked(name: str) -> None:
    function, kind = NORMS[name]
    row = table_of(function)
    assert row["kind"] == kind, row["reason"]


@NUMBERS
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize("name", ["rms in float32", "var", "std", "normalize", "one plus mean", "squash"])
def test_the_size_of_the_statistic_does_not_matter(name: str, scale: float) -> None:
    function, kind = NORMS[name]
    assert table_of(function, scale)["kind"] == kind


@pytest.mark.parametrize("name", ["rms in float32", "vector norm", "var", "std", "normalize"])
def test_autocast(name: str) -> None:
    function, kind = NORMS[name]
    assert table_of(function, context=torch.autocast("cpu", torch.bfloat16))["kind"] == kind


@NUMBERS
def test_the_reason_names_the_constant() -> None:
    reason = table_of(NORMS["one plus mean"][0])["reason"]
    assert reason == "not invariant: the constant added to the statistic that divides it is too large for an eps"


@NUMBERS
@pytest.mark.parametrize(("number", "kind"), [(0.9 * BOUND, "whole"), (1.1 * BOUND, "none")])
def test_the_bound(number: float, kind: str) -> None:
    assert table_of(lambda h: h / (h.norm(dim=-1, keepdim=True) + number))["kind"] == kind
    assert table_of(lambda h: h / h.norm(dim=-1, keepdim=True).clamp_min(number))["kind"] == kind


def test_hooks_of_saved_tensors_are_never_run() -> None:
    def refuse(_: object) -> Tensor:
        raise AssertionError("a hook was run")

    hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, refuse)
    for name in ("rms in float32", "std", "normalize", "clamped from below by little"):
        assert table_of(NORMS[name][0], context=hooks)["kind"] == "whole"


def test_checkpointing_is_not_run_again() -> None:
    calls = []

    def counted(h: Tensor) -> Tensor:
        calls.append(1)
        return llama(h)

    assert table_of(lambda h: checkpoint(counted, h, use_reentrant=False))["kind"] == "whole"
    assert len(calls) == 1


@NUMBERS
def test_what_is_unknown_to_older_versions_counts_as_hooked() -> None:
    node = torch.ones(2, requires_grad=True).sqrt().grad_fn
    assert saved_tensor(node, "result") is not None

    class Older:
        _raw_saved_result = object()

        @property
        def _saved_result(self) -> Tensor:
            raise AssertionError("read")

    assert saved_tensor(Older(), "result") is None


SHARES: dict[str, tuple[Callable[[float], nn.Module], tuple[int, ...]]] = {
    "batch": (lambda eps: nn.BatchNorm1d(5, eps), (16, 6)),
    "layer": (lambda eps: nn.LayerNorm(5, eps), (16, 6)),
    "layer, plain": (lambda eps: nn.LayerNorm(5, eps, elementwise_affine=False), (16, 6)),
    "rms": (lambda eps: nn.RMSNorm(5, eps), (16, 6)),
    "group": (lambda eps: nn.GroupNorm(1, 5, eps), (16, 6)),
    "instance": (lambda eps: nn.InstanceNorm1d(16, eps), (2, 16, 6)),
}


def spread(kind: str, h: Tensor) -> Tensor:
    """Smallest of what a norm divides by, without its eps."""
    if kind == "batch":
        return h.var(0, correction=0).min()
    return (h.square().mean(-1) if kind == "rms" else h.var(-1, correction=0)).min()


@NUMBERS
@pytest.mark.parametrize("kind", SHARES)
@pytest.mark.parametrize("eps", [1e-9, 1e-5, 5e-3])
def test_the_share_of_eps(kind: str, eps: float) -> None:
    make, shape = SHARES[kind]
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), make(eps))
    x = torch.randn(shape)
    share = discover(model(x).exp().sum(), model).layers[0].eps_share
    smallest = float(spread(kind, model[0](x)).detach())
    assert share is not None
    assert abs(share - eps / (smallest + eps)) < 1e-5


@NUMBERS
@pytest.mark.parametrize("eps", [1e-5, 5e-3])
def test_the_share_of_eps_in_norms_written_by_hand(eps: float) -> None:
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(6, 5, bias=False)), torch.randn(16, 6)
    h = model(x)
    square, norm = h.square().mean(-1, keepdim=True), h.norm(dim=-1, keepdim=True)
    forms = {
        (h * torch.rsqrt(square + eps)): eps / (float(square.min()) + eps),
        (h / (norm + eps)): eps / (float(norm.min()) + eps),
        (h / norm.clamp_min(eps)): 0.0,
        (h / (h * 1e-6).norm(dim=-1, keepdim=True).clamp_min(eps)): 1.0,
    }
    for output, expected in forms.items():
        share = discover(output.exp().sum(), model).layers[0].eps_share
        assert share is not None
        assert abs(share - expected) < 1e-5


def test_there_is_no_share_without_a_norm() -> None:
    model = nn.Sequential(nn.Linear(6, 5))
    assert discover(model(torch.randn(2, 6)).exp().sum(), model).layers[0].eps_share is None
