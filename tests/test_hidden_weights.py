"""Weights that the loss's graph hides, in training: looked through where possible, else judged by their gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_sphere import SphereTracker, calls, discover, read_run
from lightning_sphere.discovery.compiled import standins_for
from lightning_sphere.discovery.standins import Standins
from lightning_sphere.guard import SphereWarning
from lightning_sphere.layers import PATIENCE
from test_discovery_hidden import WAYS, Net, claims, expected, loss_of


class Opaque(torch.autograd.Function):
    """A linear map with BatchNorm behind ReLU, as somebody's own kernel may have it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
            hidden = (leaves[0] @ leaves[1].T + leaves[2]).relu()
            y = nn.functional.batch_norm(hidden, None, None, training=True, eps=eps)
        ctx.inner = leaves, y
        return y.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        leaves, y = ctx.inner
        return (*torch.autograd.grad(y, leaves, grads), None)


class WithOpaque(nn.Module):
    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.linear, self.head, self.eps = nn.Linear(9, 12), nn.Linear(12, 5), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Opaque.apply(x, self.linear.weight, self.linear.bias, self.eps))


def train(model: nn.Module, steps: int, start: Callable[[], Tensor], **options: Any) -> SphereTracker:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    tracker = SphereTracker(model, optimizer, flush_every_n_steps=10, strict=True, **options)
    with tracker:
        for _ in range(steps):
            optimizer.zero_grad()
            start().backward()
            optimizer.step()
    return tracker


def loss_with_opaque(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: nn.functional.cross_entropy(model(torch.randn(32, 9)), torch.arange(32) % 5)


@pytest.mark.filterwarnings("ignore::lightning_sphere.guard.SphereWarning")
def test_gradients_tell_what_an_opaque_operation_hides(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = WithOpaque()
    tracker = train(model, 60, loss_with_opaque(model), log_dir=tmp_path)
    found = tracker.discovery
    assert found is not None
    assert found.way == "gradients"
    row = found.table()[0]
    assert (row["kind"], row["axis"], row["blocks"], row["joint_with"]) == ("row", 0, 12, ("linear.bias",))
    assert row["reason"].startswith("invariant per row together with its bias: by the gradients of ")
    assert row["reason"].endswith("steps alone (unknown operation `Opaque` reads it)")
    assert found.table()[1]["kind"] == "none"
    assert tracker.verdicts["linear"].outcome == "verified"
    record = read_run(tmp_path)
    assert len(record.steps) == 60
    assert record.layers == ("linear", "head")
    assert record.groups[0]["verdict"] == "verified"


@pytest.mark.filterwarnings("ignore::lightning_sphere.guard.SphereWarning")
def test_an_opaque_operation_that_normalizes_nothing_is_not_claimed() -> None:
    torch.manual_seed(0)
    model = WithOpaque(eps=10.0)
    found = train(model, 60, loss_with_opaque(model)).discovery
    assert found is not None
    assert found.groups == ()
    assert found.hidden == {"linear.weight"}


@pytest.mark.filterwarnings("ignore::lightning_sphere.guard.SphereWarning")
def test_a_claim_that_later_gradients_contradict_is_taken_back() -> None:
    torch.manual_seed(0)
    model = WithOpaque()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with SphereTracker(model, optimizer, flush_every_n_steps=10, strict=True) as tracker:
        for step in range(120):
            model.eps = 1e-5 if step < 40 else 10.0
            optimizer.zero_grad()
            loss_with_opaque(model)().backward()
            optimizer.step()
            if step == 39:
                assert tracker.discovery is not None
                assert tracker.discovery.groups
    assert tracker.discovery is not None
    assert tracker.discovery.groups == ()


def test_an_unreadable_graph_is_told_once() -> None:
    model = WithOpaque()
    with pytest.warns(SphereWarning, match="could not be read: unknown operation `Opaque`") as caught:
        train(model, 5, loss_with_opaque(model))
    assert len([w for w in caught if w.category is SphereWarning]) == 1


@pytest.mark.parametrize("way", WAYS)
def test_compiled_modules_are_measured_as_if_they_were_not(way: Callable[[Net], nn.Module]) -> None:
    right = expected()
    model = way(Net())
    tracker = train(model, 4, lambda: loss_of(model))
    assert tracker.discovery is not None
    assert tracker.discovery.way == "traced"
    assert claims(tracker.discovery) == right


@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_training_keeps_every_bit(way: Callable[[Net], nn.Module]) -> None:
    torch.manual_seed(0)
    source = Net()
    results = []
    for tracked in (False, True):
        model = way(copy.deepcopy(source))
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        tracker = SphereTracker(model, optimizer, strict=True)
        if tracked:
            tracker.__enter__()
        for _ in range(5):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        if tracked:
            tracker.__exit__()
        results.append([*[t.clone() for t in model.state_dict().values()], torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_copy_of_a_watched_model_watches_nothing() -> None:
    model = Net()
    model.blocks[0] = torch.compile(model.blocks[0], backend="aot_eager")  # type: ignore[assignment]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with SphereTracker(model, optimizer, strict=True):
        twin = copy.deepcopy(model)
        loss_of(twin).backward()
    assert not model.blocks[0]._forward_hooks


def test_steps_do_not_look_for_compiled_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []

    def count(model: nn.Module) -> Standins:
        searches.append(model)
        return standins_for(model)

    monkeypatch.setattr(calls, "standins_for", count)
    model = Net()
    train(model, 20, lambda: loss_of(model))
    assert 1 <= len(searches) <= PATIENCE + 1  # one for each loss that is read


class Secretive(torch.autograd.Function):
    """Uses a weight that it is not given, and makes its gradient itself, as reversible layers do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Linear) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        return x @ layer.weight.T

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        ctx.layer.weight.grad = grads[0].T @ x
        return grads[0] @ ctx.layer.weight, None


def test_a_weight_behind_an_operation_that_does_not_tell_of_it_is_hidden() -> None:
    stem, secret, outside = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
    model = nn.ModuleList([stem, secret, outside])
    found = discover(Secretive.apply(stem(torch.randn(3, 4)), secret).exp().sum(), model)
    assert found.hidden == {"0.weight", "1.weight", "2.weight"}  # of the last, too, nothing is known
    assert discover(stem(torch.randn(3, 4)).exp().sum(), model).hidden == frozenset()
