"""The path of every optimizer step never waits for the device, sends nothing to other ranks, and is the same number of
operations for a wide network as for a narrow one.

Whatever hooks the package has put on the optimizer run under :class:`NoHostReads`, which fails on any operation that
brings data of a tensor to the host. A second run has all weights on the meta device, where there are no data to read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_sphere import SphereTracker
from nets import batches, conv_net

READING_OPERATIONS = (
    "_local_scalar_dense",
    "allclose",
    "argwhere",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique",
)
READING_METHODS = (
    "__array__",
    "__bool__",
    "__complex__",
    "__float__",
    "__index__",
    "__int__",
    "cpu",
    "item",
    "numpy",
    "tolist",
)
COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "barrier",
    "broadcast",
    "gather",
    "recv",
    "reduce",
    "reduce_scatter_tensor",
    "scatter",
    "send",
)


class SynchronizationError(AssertionError):
    """Something brought data to the host, or to other ranks."""


class NoHostReads(TorchDispatchMode):
    """Fails on operations that read data to the host, copy across devices or communicate; counts all others."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        kwargs = kwargs or {}
        self.operations += 1
        if any(name.strip("_").startswith(reading.strip("_")) for reading in READING_OPERATIONS):
            raise SynchronizationError(f"{func} reads data")
        if "c10d" in func.namespace:
            raise SynchronizationError(f"{func} communicates")
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            indices = [index for index in args[1] if isinstance(index, Tensor)]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                raise SynchronizationError(f"{func} with a mask reads how many are set")
        if name == "_to_copy" and kwargs.get("device") not in (None, args[0].device):
            raise SynchronizationError(f"{func} copies from {args[0].device} to {kwargs['device']}")
        if name in ("copy_", "_copy_from") and args[0].device != args[1].device:
            raise SynchronizationError(f"{func} copies from {args[1].device} to {args[0].device}")
        return func(*args, **kwargs)


@contextmanager
def no_host_reads() -> Iterator[NoHostReads]:
    """The mode, and Python's own ways to the data and to other ranks closed as well."""

    def closed(name: str) -> Callable[..., Any]:
        def fail(*_: Any, **__: Any) -> Any:
            raise SynchronizationError(f"{name} reads data or communicates")

        return fail

    with pytest.MonkeyPatch.context() as patch, NoHostReads() as mode:
        for name in READING_METHODS:
            patch.setattr(Tensor, name, closed(f"Tensor.{name}"))
        for name in COLLECTIVES:
            patch.setattr(torch.distributed, name, closed(f"torch.distributed.{name}"))
        patch.setattr(torch.cuda, "synchronize", closed("torch.cuda.synchronize"))
        yield mode


def guard_hooks(optimizer: Optimizer) -> list[int]:
    """Let all step hooks run under the mode; the list gets the number of operations of each call."""
    counts: list[int] = []

    def guarded(hook: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(hook)
        def run(*args: Any) -> Any:
            with no_host_reads() as mode:
                result = hook(*args)
            counts.append(mode.operations)
            return result

        return run

    for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
        assert hooks, "the tracker has no hook there"
        for key, hook in hooks.items():
            hooks[key] = guarded(hook)
    return counts


BAD: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda t: t.sum().item(),
    "float": lambda t: float(t.sum()),
    "int": lambda t: int(t.sum()),
    "bool": lambda t: "x" if t.sum() > 0 else "y",
    "range": lambda t: range(t.long().sum()),
    "tolist": lambda t: t.tolist(),
    "numpy": lambda t: t.numpy(),
    "cpu": lambda t: t.cpu(),
    "another device": lambda t: t.to("meta"),
    "copy to another device": lambda t: torch.empty(3, device="meta").copy_(t),
    "nonzero": lambda t: t.nonzero(),
    "where": lambda t: torch.where(t > 0),
    "mask": lambda t: t[t > 0],
    "masked_select": lambda t: t.masked_select(t > 0),
    "unique": lambda t: t.unique(),
    "equal": lambda t: torch.equal(t, t),
    "scalar tensor as a Python number": lambda t: torch.full((2,), t.sum()),
    "all_reduce": lambda t: torch.distributed.all_reduce(t),
}


@pytest.mark.parametrize("name", BAD)
def test_the_mode_catches_what_it_is_for(name: str) -> None:
    with pytest.raises(SynchronizationError), no_host_reads():
        BAD[name](torch.ones(3))


def test_the_mode_leaves_no_trace() -> None:
    with no_host_reads():
        torch.ones(3) + 1
    assert torch.ones(3).sum().item() == float(torch.ones(3).cpu().sum()) == 3


def test_a_hook_that_reads_is_caught_in_place() -> None:
    model = conv_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: None)
    optimizer.register_step_post_hook(lambda *_: print(model[0].weight.norm().item()))
    guard_hooks(optimizer)
    with pytest.raises(SynchronizationError):
        optimizer.step()


CASES: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: Adam(p, lr=1e-2),
    "adamw": lambda p: AdamW(p, lr=1e-2),
    "adamw amsgrad": lambda p: AdamW(p, lr=1e-2, amsgrad=True),
    "adamw fused": lambda p: AdamW(p, lr=1e-2, fused=True),
    "adamw tensor lr": lambda p: AdamW(p, lr=torch.tensor(1e-2), foreach=False),
}


def train(model: nn.Module, optimizer: Optimizer, steps: int, closure: bool = False) -> list[int]:
    """One free warm-up step, then guarded ones; the number of operations of each guarded hook."""
    counts: list[int] = []
    with SphereTracker(model, optimizer, strict=True):
        for step, (images, classes) in enumerate(batches(steps)):

            def backward(images: Tensor = images, classes: Tensor = classes) -> Tensor:
                optimizer.zero_grad()
                loss = cross_entropy(model(images), classes)
                loss.backward()
                return loss

            if step == 1:
                counts = guard_hooks(optimizer)
            if closure:
                optimizer.step(backward)  # type: ignore[arg-type]
            else:
                backward()
                optimizer.step()
    return counts


@pytest.mark.parametrize("name", CASES)
def test_no_step_reads_the_device(name: str) -> None:
    model = conv_net()
    optimizer = CASES[name](model.parameters())
    counts = train(model, optimizer, 5)
    assert len(counts) == 8
    assert min(counts) > 0, "a guarded hook measured nothing"


def test_no_step_reads_the_device_where_some_weights_have_no_gradient() -> None:
    model = conv_net()
    model[3].weight.requires_grad_(False)
    assert min(train(model, AdamW(model.parameters(), lr=1e-2), 4)) > 0


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_no_step_reads_the_device_where_weights_have_no_data_at_all(name: str) -> None:
    model = conv_net().to("meta")
    optimizer = CASES[name](model.parameters())
    SphereTracker(model, optimizer, strict=True).start()  # never closed: a flush is what may read
    for step in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        if step == 1:
            counts = guard_hooks(optimizer)
        optimizer.step()
    assert min(counts) > 0


def test_no_step_copies_between_devices_where_a_capturable_adam_has_not_moved_a_weight_yet() -> None:
    """Capturable and fused variants count their steps on the device; a weight without gradient has no count there."""
    model = conv_net().to("meta")
    optimizer = AdamW(model.parameters(), lr=1e-2, capturable=True)
    for index, parameter in enumerate(model.parameters()):
        if index:  # what capturable Adam keeps for a weight that it has stepped
            parameter.grad = torch.empty_like(parameter)
            optimizer.state[parameter] = {
                "step": torch.zeros((), device="meta"),
                "exp_avg": torch.empty_like(parameter),
                "exp_avg_sq": torch.empty_like(parameter),
            }
    SphereTracker(model, optimizer, strict=True).start()
    pre, post = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    for step in range(3):  # its arithmetic needs an accelerator: the hooks are called without
        if step == 1:
            guard_hooks(optimizer)
        for hook in (*pre.values(), *post.values()):
            hook(optimizer, (optimizer,), {})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}], ids=str)
def test_cuda_itself_sees_no_synchronization(options: dict[str, Any]) -> None:
    model = conv_net().cuda()
    model[3].weight.requires_grad_(False)
    optimizer = AdamW(model.parameters(), lr=1e-2, **options)
    with SphereTracker(model, optimizer, strict=True):
        for step, (images, classes) in enumerate(batches(4)):
            optimizer.zero_grad()
            cross_entropy(model(images.cuda()), classes.cuda()).backward()
            try:
                torch.cuda.set_sync_debug_mode("error" if step else "default")
                optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_number_of_operations_does_not_grow_with_the_number_of_filters(name: str) -> None:
    narrow, wide = (train(model, CASES[name](model.parameters()), 3) for model in (conv_net(8), conv_net(64)))
    assert narrow == wide


def test_a_closure_is_measured_without_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement then runs inside the closure, not in the hook: it is guarded by its own name."""
    from lightning_sphere.measurement.tap import OptimizerTap

    original, counts = OptimizerTap.before_step, []

    def guarded(self: OptimizerTap) -> None:
        with no_host_reads() if self.steps_seen else nullcontext(NoHostReads()) as mode:
            original(self)
        counts.append(mode.operations)

    monkeypatch.setattr(OptimizerTap, "before_step", guarded)
    model = conv_net()
    train(model, SGD(model.parameters(), lr=0.1), 4, closure=True)
    assert counts[0] == 0
    assert min(counts[1:]) > 0
