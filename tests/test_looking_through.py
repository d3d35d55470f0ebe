"""Looking through compiled modules and checkpoints: no training notices it, and nothing is claimed that is not so."""

from __future__ import annotations

import functools
import gc
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_sphere import SphereTracker
from lightning_sphere.calls import CompiledCalls
from lightning_sphere.discovery import Discovery, discover
from test_discovery_hidden import BACKEND, compile_in_place, loss_of
from test_discovery_hidden import Net as ConvNet

CHANGE = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A linear map before a LayerNorm, and what tests do between them."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor] = lambda _, y: y) -> None:
        super().__init__()
        self.linear, self.other = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.norm, self.between, self.calls = nn.LayerNorm(6), between, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        normed: Tensor = self.norm(self.between(self, self.linear(x)))
        return normed


def wrapped(net: nn.Module) -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(net, backend=BACKEND)  # type: ignore[return-value]


def in_place(net: nn.Module) -> nn.Module:
    torch._dynamo.reset()
    net.compile(backend=BACKEND)
    return net


def checkpointed(net: nn.Module) -> nn.Module:
    return nn.Sequential(Checkpointed(net))


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, reentrant: bool = True) -> None:
        super().__init__()
        self.inner, self.reentrant, self.first = inner, reentrant, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = checkpoint(self.inner, self.first(x).tanh(), use_reentrant=self.reentrant)
        return result


HIDDEN = [wrapped, in_place, checkpointed]


def found(model: nn.Module, *more: Any) -> Discovery:
    """What is discovered of one call."""
    calls = CompiledCalls(model, lambda: True)
    try:
        return discover(model(torch.randn(5, 6), *more).exp().sum(), model, calls.standins)
    finally:
        calls.detach()


def claimed(model: nn.Module) -> list[str]:
    return [layer.parameter.rpartition(".")[0].rpartition(".")[2] for layer in found(model).groups]


@pytest.mark.parametrize("hide", HIDDEN)
def test_what_is_plain_is_looked_through(hide: Callable[[nn.Module], nn.Module]) -> None:
    net = Net()
    assert claimed(hide(net)) == ["linear"]
    assert net.calls == 1


# ------------------------------------------------------------------- no training notices it


@pytest.mark.parametrize("hide", HIDDEN)
def test_no_generator_of_random_numbers_moves(hide: Callable[[nn.Module], nn.Module]) -> None:
    def noise(_: nn.Module, y: Tensor) -> Tensor:
        return y * (2.0 + random.random() + np.random.rand())  # noqa: NPY002

    results = []
    for wanted in (False, True):
        model = hide(Net(noise))
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        calls = CompiledCalls(model, lambda wanted=wanted: wanted)  # type: ignore[misc]
        loss = model(torch.randn(5, 6)).exp().sum()
        if wanted:
            discover(loss, model, calls.standins)
        results.append((random.random(), np.random.rand(), float(torch.rand(()))))  # noqa: NPY002
    assert results[0] == results[1]


@functools.lru_cache(maxsize=4)
def ones(n: int) -> Tensor:
    return torch.ones(n)


@functools.cache
def pair_of_ones(n: int) -> tuple[list[Tensor], int]:
    return [torch.ones(n)], n


@pytest.mark.filterwarnings("ignore:.*lru_cache")
@pytest.mark.parametrize("hide", [wrapped, in_place])
def test_caches_of_functions_keep_no_fake(hide: Callable[[nn.Module], nn.Module]) -> None:
    """A compiled call leaves such caches empty, so that the trace is the first to fill them."""
    for kept in (ones, pair_of_ones):
        kept.cache_clear()
    net = Net(lambda _, y: y * ones(6) * pair_of_ones(6)[0][0])
    assert claimed(hide(net)) == ["linear"]
    assert type(ones(6)) is type(pair_of_ones(6)[0][0]) is Tensor


@pytest.mark.parametrize("hide", [wrapped, in_place])
def test_a_checkpoint_around_a_compiled_module_counts_the_same_tensors(hide: Callable[[nn.Module], nn.Module]) -> None:
    """In the fourth backward nothing is looked at any more; in its forward something was."""
    model = Checkpointed(hide(Net()), reentrant=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with SphereTracker(model, optimizer, strict=True) as tracker:
        for _ in range(6):
            model(torch.randn(5, 6)).exp().sum().backward()
        optimizer.step()
    assert tracker.discovery is not None
    assert [layer.name for layer in tracker.discovery.groups] != []


def test_hooks_on_saved_tensors_see_no_fake_and_stay() -> None:
    seen: list[str] = []

    def pack(tensor: Tensor) -> Tensor:
        seen.append(type(tensor).__name__)
        return tensor.detach()

    model = wrapped(Net())
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        assert claimed(model) == ["linear"]
        before = len(seen)
        torch.ones(2, requires_grad=True).exp()
        assert len(seen) == before + 1
    assert set(seen) <= {"Tensor", "Parameter"}


class Cache:
    """An argument that is no container to PyTorch."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []


class WithCache(Net):
    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        assert cache is not None
        cache.kept.append(x)
        return super().forward(x)


@pytest.mark.parametrize("hide", [wrapped, in_place])
def test_arguments_are_copied_too(hide: Callable[[nn.Module], nn.Module]) -> None:
    cache = Cache()
    assert found(hide(WithCache()), cache).groups
    assert len(cache.kept) == 1


class Handle:
    """Something that cleans up after itself."""

    closed: list[int | None] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.number = 7

    def __del__(self) -> None:
        Handle.closed.append(getattr(self, "number", None))


def test_what_cleans_up_after_itself_is_not_copied() -> None:
    net = Net()
    net.handle = Handle()  # type: ignore[assignment]
    assert claimed(checkpointed(net)) == []
    gc.collect()
    assert 7 not in Handle.closed


def test_a_forward_that_was_replaced_by_a_closure_is_copied_with_what_it_refers_to() -> None:
    net = Net()
    forward, seen = net.forward, []  # type: ignore[var-annotated]

    def replaced(x: Tensor) -> Tensor:
        seen.append(x.shape)
        return forward(x)

    net.forward = replaced  # type: ignore[method-assign]
    assert claimed(checkpointed(net)) == ["linear"]
    assert (net.calls, len(seen)) == (1, 1)


class HandsOn(Net):
    """Its copies are told how the original is called, as those of a ``LightningModule`` are."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()


def test_a_copy_does_not_call_the_original() -> None:
    net = HandsOn()
    assert claimed(in_place(net)) == ["linear"]
    assert net.calls == 1


@pytest.fixture
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_module_trained_on_several_devices_talks_to_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, copies = nn.parallel.DistributedDataParallel, []
    monkeypatch.setattr(kind, "__setstate__", lambda *_: copies.append(1))
    assert claimed(wrapped(kind(Net()))) == ["linear"]
    assert claimed(nn.Sequential(Checkpointed(kind(Net())))) == []
    assert copies == []


def test_a_tracker_entered_twice_leaves_nothing_attached() -> None:
    model = compile_in_place(ConvNet())
    original: Any = model.blocks[1]._compiled_call_impl  # type: ignore[index, union-attr]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    tracker = SphereTracker(model, optimizer, strict=True)
    with tracker, tracker:
        loss_of(model).backward()
        optimizer.step()
    assert model.blocks[1]._compiled_call_impl is original  # type: ignore[index, union-attr]
    assert not model._forward_hooks
    assert tracker.history.steps == 1


# -------------------------------------------------- nothing is claimed that is not shown


HOOKS: dict[str, Callable[[Net], Callable[..., Tensor]]] = {
    "another parameter": lambda net: lambda _, inputs, out: out + net.other(inputs[0]).tanh(),
    "a limit": lambda _: lambda _, __, out: out.clamp(max=0.3),
}


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("hide", HIDDEN)
def test_a_hook_that_changes_what_is_returned(hide: Callable[[nn.Module], nn.Module], name: str) -> None:
    net = Net()
    net.linear.register_forward_hook(HOOKS[name](net))
    assert claimed(hide(net)) == []


def test_a_hook_of_a_wrapper_that_changes_what_is_returned() -> None:
    net = Net()
    model = wrapped(net)
    model.register_forward_hook(lambda _, inputs, out: out + net.linear(inputs[0]))
    assert claimed(model) == []


@pytest.mark.parametrize("of_all", [False, True])
def test_no_hook_sees_a_fake(of_all: bool) -> None:
    net, seen = Net(), []  # type: ignore[var-annotated]

    def look(_: nn.Module, __: Any, out: Tensor) -> None:
        seen.append(type(out))

    register = nn.modules.module.register_module_forward_hook if of_all else net.linear.register_forward_hook
    with register(look):  # type: ignore[operator]
        assert claimed(checkpointed(net)) == []
    assert set(seen) == {Tensor}


def test_a_checkpoint_is_looked_into_with_the_autocast_that_it_ran_with() -> None:
    model = checkpointed(Net())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(5, 6)).float().exp().sum()
    assert [layer.parameter for layer in discover(loss, model).groups] == ["0.inner.linear.weight"]


def test_what_was_seen_is_let_go_after_the_step() -> None:
    model = wrapped(WithCache())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with SphereTracker(model, optimizer, strict=True) as tracker:
        kept = []
        for _ in range(2):
            cache = Cache()
            kept.append(weakref.ref(cache))
            model(torch.randn(5, 6), cache).exp().sum().backward()
            del cache
            optimizer.step()
        gc.collect()
        assert [ref() for ref in kept] == [None, None]
    assert tracker.discovery is not None
    assert tracker.discovery.way == "traced"


def every_other_time(net: Any, y: Tensor) -> Tensor:
    return y + net.other(y).tanh() if net.calls % 2 else y


@pytest.mark.parametrize("hide", [wrapped, in_place])
def test_a_module_that_reads_other_parameters_the_second_time(hide: Callable[[nn.Module], nn.Module]) -> None:
    assert claimed(hide(Net(every_other_time))) == []


class ReadsAgain(nn.Module):
    """A checkpoint's function uses what it is not given."""

    def __init__(self, again: Callable[[ReadsAgain, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.norm, self.again = nn.Linear(6, 6, bias=False), nn.LayerNorm(6), again

    def looks_at_numbers(self, y: Tensor) -> Tensor:
        return torch.tanh(self.linear(y)) * (1.0 if bool(y.sum() > 0) else 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self, self.norm(self.linear(x)), self.linear(x + CHANGE))


AGAIN: dict[str, Callable[[ReadsAgain, Tensor, Tensor], Tensor]] = {
    "a tensor": lambda _, y, raw: checkpoint(lambda z: z + raw.sin(), y, use_reentrant=True),
    "a tensor of a partial": lambda _, y, raw: checkpoint(functools.partial(torch.atan2, raw), y, use_reentrant=True),
    "the weight, unseen": lambda net, y, _: checkpoint(net.looks_at_numbers, y, use_reentrant=True),
    "the weight, by a closure": lambda net, y, _: checkpoint(lambda z: net.looks_at_numbers(z), y, use_reentrant=True),
}


@pytest.mark.parametrize("name", AGAIN)
def test_what_a_checkpoint_reads_without_being_given_it(name: str) -> None:
    torch.manual_seed(0)
    model = ReadsAgain(AGAIN[name])
    loss = model(torch.randn(5, 6)).exp().sum()
    assert discover(loss, model).groups == ()
    loss.backward()
    gradient, weight = model.linear.weight.grad, model.linear.weight
    assert gradient is not None
    assert (gradient * weight).sum().abs() > 1e-3 * gradient.norm() * weight.norm()


def test_a_checkpoint_of_a_module_that_cannot_be_looked_into_leaves_others_alone() -> None:
    looks_at_numbers = Net(lambda _, y: y * (1.0 if bool(y.sum() > 0) else 2.0))
    model = nn.Sequential(Net(), Checkpointed(looks_at_numbers))
    assert [layer.parameter for layer in found(model).groups] == ["0.linear.weight"]
