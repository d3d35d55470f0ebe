"""What the graph hides, compiled modules and reentrant checkpoints, is looked through, and nothing is touched."""

from __future__ import annotations

import functools
import gc
import random
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_sphere.calls import CompiledCalls
from lightning_sphere.discovery import Discovery, discover

BACKEND = "aot_eager"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Dropout(0.2)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.drop(self.conv(x))))


class Net(nn.Module):
    """An embedding, a stem and two blocks, which may be called in several ways."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor] = lambda block, x: block(x)) -> None:
        super().__init__()
        self.table, self.stem = nn.Embedding(11, 3), nn.Conv2d(3, 8, 3)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.last, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.table(x).permute(0, 3, 1, 2))
        for block in self.blocks:
            x = self.call(block, x)
        return self.head(self.last(x).mean((2, 3)))


def loss_of(model: nn.Module) -> Tensor:
    ids = torch.arange(4 * 64).reshape(4, 8, 8) % 11
    return model(ids).logsumexp(1).sum()


def claims(discovery: Discovery) -> list[tuple[Any, ...]]:
    keys = ("kind", "axis", "blocks", "members")
    return [(row["parameter"].replace("_orig_mod.", ""), *(row[key] for key in keys)) for row in discovery.table()]


def expected() -> list[tuple[Any, ...]]:
    model = Net()
    return claims(discover(loss_of(model), model))


def compile_root(model: Net) -> nn.Module:
    return torch.compile(model, backend=BACKEND)  # type: ignore[return-value]


def compile_part(model: Net) -> nn.Module:
    model.blocks[0] = torch.compile(model.blocks[0], backend=BACKEND)  # type: ignore[assignment]
    return model


def compile_in_place(model: Net) -> nn.Module:
    model.blocks[1].compile(backend=BACKEND)
    return model


def compile_root_in_place(model: Net) -> nn.Module:
    model.compile(backend=BACKEND)
    return model


WAYS = [compile_root, compile_part, compile_in_place, compile_root_in_place]


@pytest.mark.parametrize("way", WAYS)
def test_compiled_modules_are_looked_through(way: Callable[[Net], nn.Module]) -> None:
    model = way(Net())
    calls = CompiledCalls(model, lambda: True)
    loss = loss_of(model)
    found = discover(loss, model, calls.standins)
    calls.detach()
    assert found.way == "traced"
    assert claims(found) == expected()
    loss.backward()


@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_module_of_one_argument_needs_no_witness(way: Callable[[Net], nn.Module]) -> None:
    model = way(Net())
    loss = loss_of(model)
    assert claims(discover(loss, model)) == expected()
    loss.backward()


def test_a_function_is_run_without_compilation() -> None:
    model = compile_root(Net())
    before = loss_of(model)
    found = discover(lambda: loss_of(model), model)
    assert found.way == "uncompiled"
    assert claims(found) == expected()
    before.backward()  # buffers that an earlier graph holds were not written to


class Two(nn.Module):
    """Its arguments can't be told from one another, so a call must be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x: Tensor, *, y: Tensor) -> Tensor:
        return self.norm(self.one(x)) * self.two(y)


def test_what_stays_hidden_is_not_claimed() -> None:
    model = torch.compile(Two(), backend=BACKEND)
    loss = model(torch.randn(3, 4), y=torch.randn(3, 4)).exp().sum()
    found = discover(loss, model)  # type: ignore[arg-type]
    assert found.way == "graph"
    assert found.groups == ()
    assert {row["reason"] for row in found.table()} == {
        "unknown operation `CompiledFunction` reads it; discover(function, model) looks inside"
    }


def test_a_compiled_module_within_autocast() -> None:
    model = torch.compile(Two(), backend=BACKEND)
    calls = CompiledCalls(model, lambda: True)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(torch.randn(3, 4).bfloat16(), y=torch.randn(3, 4))
    found = discover(outputs.float().exp().sum(), model, calls.standins)  # type: ignore[arg-type]
    assert [row["kind"] for row in found.table()] == ["whole", "none"]


class CountsAndBranches(nn.Module):
    """Forward changes the module, and looks at numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.calls, self.kept = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), 0, []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        return self.bn(self.conv(x))


def test_looking_through_leaves_module_and_random_numbers_alone() -> None:
    inner = CountsAndBranches()
    model = torch.compile(inner, backend=BACKEND)
    x = torch.randn(2, 3, 6, 6)
    calls = CompiledCalls(model, lambda: True)  # type: ignore[arg-type]
    torch.manual_seed(1)
    out = model(x)
    state, buffers = torch.get_rng_state(), [b.clone() for b in inner.buffers()]
    versions = [b._version for b in inner.buffers()]
    numbers = random.getstate()
    discover(out.exp().sum(), model, calls.standins)  # type: ignore[arg-type]
    assert torch.equal(state, torch.get_rng_state())
    assert random.getstate() == numbers
    assert all(torch.equal(a, b) for a, b in zip(buffers, inner.buffers(), strict=True))
    assert versions == [b._version for b in inner.buffers()]
    assert inner.calls == 1
    assert inner.last is x
    calls.detach()
    assert not model._forward_hooks


def test_without_grad_or_wish_nothing_is_traced() -> None:
    model = compile_root_in_place(Net())
    calls = CompiledCalls(model, lambda: False)
    loss_of(model)
    assert not calls.standins.looked_through
    calls.detach()
    calls = CompiledCalls(model, lambda: True)
    with torch.no_grad():
        loss_of(model)
    loss_of(model.eval())
    assert not calls.standins.looked_through


CHECKPOINTED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "module": lambda block, x: checkpoint(block, x, use_reentrant=True),
    "closure": lambda block, x: checkpoint(lambda y: block(y), x, use_reentrant=True),
    "partial": lambda block, x: checkpoint(functools.partial(lambda b, y: b(y), block), x, use_reentrant=True),
    "bound method": lambda block, x: checkpoint(block.forward, x, use_reentrant=True),
    "not reentrant": lambda block, x: checkpoint(block, x, use_reentrant=False),
}


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_checkpoints_are_looked_through(name: str) -> None:
    right = expected()
    model = Net(CHECKPOINTED[name])
    loss = loss_of(model)
    state, buffers = torch.get_rng_state(), [b.clone() for b in model.buffers()]
    found = discover(loss, model)
    assert found.way == ("graph" if name == "not reentrant" else "traced")
    assert claims(found) == right
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    loss.backward()


def test_a_second_use_inside_a_checkpoint_is_seen() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(6, 6, bias=False), nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            normed = self.norm(self.linear(x))
            return checkpoint(lambda y: torch.tanh(self.linear(y)), normed, use_reentrant=True)

    model = Tied()
    assert discover(model(torch.randn(3, 6)).sum(), model).groups == ()


def test_no_graph_is_kept() -> None:
    for model in (Net(), compile_root(Net()), Net(CHECKPOINTED["module"])):
        loss = loss_of(model)
        activation = weakref.ref(loss)
        found = discover(loss, model)
        node = weakref.ref(loss.grad_fn) if hasattr(type(loss.grad_fn), "__weakref__") else None
        del loss
        gc.collect()
        assert activation() is None
        assert node is None or node() is None
        assert found.groups
