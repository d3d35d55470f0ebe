"""Fake copies of a callable and its arguments: it may be run without anything of the originals changing."""

from __future__ import annotations

import copy
import types
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as _hooks_of_all


class Memo(dict[int, Any]):
    """What was copied, by identity of the original; refuses what must not have a copy."""

    def __setitem__(self, key: int, value: Any) -> None:
        """Take a copy, which at this time is still empty."""
        kind = type(value)
        if hasattr(kind, "__del__"):
            raise ValueError(f"a {kind.__name__} cleans up after itself: its copy would do so too")
        if kind.__module__.startswith(("torch.distributed", "torch.nn.parallel")):
            raise ValueError(f"a {kind.__name__} talks to other processes: its copy would do so too")
        if isinstance(value, Tensor) and value.requires_grad and not value.is_leaf:
            raise ValueError("a tensor that has a graph is used without being an argument")
        super().__setitem__(key, value)


def twins_of(things: Sequence[Any], memo: Memo) -> list[Any]:
    """Deep copies, also of what closures refer to. Run it where tensors are copied as fakes.

    Args:
        things: modules, other callables, and their arguments.
        memo: takes the copies.

    Raises:
        Exception: for what can't be copied, or has hooks of the user's: they may change what is returned, or keep what
            they see.
    """
    twins = [_copied(thing, memo) for thing in things]
    for original in memo.get(id(memo), ()):  # what was copied; it grows
        if not isinstance(original, nn.Module):
            continue
        module = memo[id(original)]
        vars(module).pop("_compiled_call_impl", None)  # some classes hand on that of the original
        for name, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType) and value is vars(original).get(name):
                vars(module)[name] = _copied(value, memo)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if getattr(hook, "__module__", "").startswith("lightning_sphere."):
                    del hooks[key]
                elif not type(hook).__module__.startswith("torch."):  # those of torch's weight and spectral norm
                    raise ValueError(f"a hook may change what {type(module).__name__} returns")
    if _hooks_of_all._global_forward_hooks or _hooks_of_all._global_forward_pre_hooks:
        raise ValueError("a hook may change what any module returns")
    return twins


def _copied(thing: Any, memo: Memo) -> Any:
    """A deep copy, also of what a closure refers to."""
    if isinstance(thing, types.FunctionType) and thing.__closure__:
        if id(thing) not in memo:
            cells = tuple(types.CellType() for _ in thing.__closure__)
            twin = types.FunctionType(thing.__code__, thing.__globals__, thing.__name__, thing.__defaults__, cells)
            twin.__kwdefaults__ = thing.__kwdefaults__
            memo[id(thing)] = twin  # it may be among what it refers to
            for cell, original in zip(cells, thing.__closure__, strict=True):
                cell.cell_contents = _copied(original.cell_contents, memo)
        return memo[id(thing)]
    if isinstance(thing, partial):
        args, keywords = copy.deepcopy((thing.args, thing.keywords), memo)
        return partial(_copied(thing.func, memo), *args, **keywords)
    return copy.deepcopy(thing, memo)
