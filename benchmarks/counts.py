"""Counts operations and waits for the device in the training thread, bytes on the disk and memory."""

from __future__ import annotations

import resource
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READING = ("_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "_unique2", "unique_dim")
"""Operations that bring data to the host, or whose result's size they must know."""

_MARK = "_benchmarks_host"


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, and those that would wait for a device that holds the model.

    Without a GPU, a wait is counted by following which tensors a training on a GPU would hold on the host: results of
    ``.cpu()``, what ``torch.tensor`` and ``from_numpy`` make without naming a device, what is computed from these
    alone, and an optimizer's count of steps. Bringing data of any other tensor to Python counts as one wait: ``item``,
    ``float``, ``nonzero``, ``tolist``, ``numpy``, ``cpu``, ``to("cpu")``, ``torch.tensor`` of a list of tensors. That
    is an upper bound: a tensor made in another way (``torch.zeros``) is taken to be where the model is. Threads in the
    background are not counted: training does not wait for them.

    Args:
        host: tensors that live on the host anyway.
    """

    def __init__(self, host: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        self.reads = 0
        self._thread = threading.get_ident()
        for tensor in host:
            setattr(tensor, _MARK, True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, run, and mark what would be on the host."""
        kwargs = kwargs or {}
        self.operations += 1
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_host = bool(tensors) and all(hasattr(tensor, _MARK) for tensor in tensors) and kwargs.get("device") is None
        if func.overloadpacket.__name__ in READING:
            self.read(next(iter(tensors), None))
        result = func(*args, **kwargs)
        if on_host:
            _mark(result)
        return result

    def read(self, tensor: Any) -> None:
        """Bringing the data to Python waits for a device that holds them."""
        if isinstance(tensor, Tensor) and not hasattr(tensor, _MARK):
            self.reads += 1

    def patches(self) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
        """What no dispatch shows: whose attribute to replace, its name, and the replacement for this thread."""

        def reading(name: str) -> Callable[..., Any]:
            original = getattr(Tensor, name)

            def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
                if not _to_host(name, args, kwargs):
                    return original(tensor, *args, **kwargs)
                self.read(tensor)
                result = original(tensor, *args, **kwargs)
                return _mark(tensor.clone() if result is tensor else result)  # the tensor itself is not on the host

            return method

        def making(name: str) -> Callable[..., Any]:
            original = getattr(torch, name)

            def function(data: Any, *args: Any, **kwargs: Any) -> Any:
                for leaf in tree_leaves(data) if isinstance(data, list | tuple) else ():
                    self.read(leaf)
                result = original(data, *args, **kwargs)
                return result if isinstance(data, Tensor) or "device" in kwargs else _mark(result)

            return function

        for owner, make, names in (
            (Tensor, reading, ("cpu", "numpy", "to", "tolist")),
            (torch, making, ("as_tensor", "from_numpy", "tensor")),
        ):
            for name in names:
                yield owner, name, self._here(getattr(owner, name), make(name))

    def _here(self, original: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
        """The replacement in the training thread, the original in all others."""

        @wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            return (replacement if threading.get_ident() == self._thread else original)(*args, **kwargs)

        return call


def _to_host(method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a method of a tensor brings it to the host; ``to`` does where it names the CPU by a word."""
    return method != "to" or kwargs.get("device", args[0] if args else None) == "cpu"


def _mark(result: Any) -> Any:
    for leaf in tree_leaves(result):
        if isinstance(leaf, Tensor):
            setattr(leaf, _MARK, True)
    return result


@contextmanager
def counting(host: list[Tensor]) -> Iterator[Counter]:
    """Count operations and reads within the block; on a GPU, waits are those that CUDA reports."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with ExitStack() as stack:
        counter = Counter([] if cuda else host)
        if cuda:
            caught = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            stack.callback(torch.cuda.set_sync_debug_mode, "default")
        else:
            for owner, name, replacement in counter.patches():
                stack.enter_context(mock.patch.object(owner, name, replacement))
        stack.enter_context(counter)
        yield counter
        if cuda:
            counter.reads = sum("synchroniz" in str(warning.message) for warning in caught)


def host_state(optimizers: list[torch.optim.Optimizer]) -> list[Tensor]:
    """Counts of steps, which an optimizer holds on the host."""
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return [state["step"] for state in states if isinstance(state.get("step"), Tensor)]


def bytes_below(folder: Path) -> int:
    """Size of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors on the GPU, or of this process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
