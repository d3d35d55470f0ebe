"""Run something aside, so that the training that is under way does not notice."""

from __future__ import annotations

import functools
import gc
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_Cache = functools._lru_cache_wrapper


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Put the generators of Python, NumPy and PyTorch back to where they were."""
    python, numpy = random.getstate(), sys.modules.get("numpy.random")
    state = None if numpy is None else numpy.get_state()
    cuda: Any = torch.cuda
    devices = range(cuda.device_count()) if cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):  # naming them: else it starts CUDA where it was not used so far
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.set_state(state)


@contextmanager
def without_saved_tensor_hooks() -> Iterator[None]:
    """Keep the user's hooks from what autograd saves: a checkpoint that is not reentrant counts it.

    Raises:
        RuntimeError: if there are hooks and PyTorch, before 2.8, does not tell which.
    """
    autograd: Any = torch._C._autograd
    taken: list[Any] = []
    if not hasattr(autograd, "_top_saved_tensors_default_hooks"):
        with torch.autograd.graph.disable_saved_tensors_hooks("there are hooks on saved tensors"):
            pass
        yield
        return
    try:
        while (hooks := autograd._top_saved_tensors_default_hooks(False)) is not None:
            taken.append(hooks)
            autograd._pop_saved_tensors_default_hooks()
        yield
    finally:
        while taken:
            autograd._push_saved_tensors_default_hooks(*taken.pop())


class Caches:
    """The caches of functions (``functools.lru_cache``), which must not keep what was made aside."""

    def __init__(self) -> None:
        self._all: list[Any] | None = None

    @contextmanager
    def without(self, kind: type) -> Iterator[None]:
        """Empty those caches that hold objects of a type afterwards, and took something in."""
        if self._all is None:  # looking for them takes as long as a garbage collection
            self._all = [thing for thing in gc.get_objects() if type(thing) is _Cache]
        before = [cache.cache_info().misses for cache in self._all]
        try:
            yield
        finally:
            for cache, misses in zip(self._all, before, strict=True):
                if cache.cache_info().misses != misses and _holds(cache, kind):
                    cache.cache_clear()


def _holds(cache: Any, kind: type) -> bool:
    """Whether a cache holds an object of some type, perhaps inside containers."""
    stack, seen = [thing for thing in gc.get_referents(cache) if thing is not cache.__dict__], set[int]()
    while stack:
        thing = stack.pop()
        if isinstance(thing, kind):
            return True
        if isinstance(thing, (dict, list, tuple)) and id(thing) not in seen:
            seen.add(id(thing))
            stack += thing.values() if isinstance(thing, dict) else thing
    return False
