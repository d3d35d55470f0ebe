"""Watches how compiled modules are called, so that discovery can look through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from lightning_sphere.discovery.compiled import (
    autocast_settings,
    is_compiled,
    is_wrapper,
    leaves,
    reads,
    standins_for,
    uncompiled,
)
from lightning_sphere.discovery.standins import Hidden, Standins, edge_of, tensors_of
from lightning_sphere.outputs import WeakHook


class CompiledCalls:
    """Traces each call of a model's compiled modules while somebody is going to read a loss's graph.

    Args:
        model: the network.
        wanted: whether somebody is.

    Attributes:
        show: called with each output of the model itself, if it is compiled in place.
    """

    def __init__(self, model: nn.Module, wanted: Callable[[], bool]) -> None:
        self.show: Callable[[Any], None] | None = None
        self._model, self._wanted = model, wanted
        self._standins: Standins | None = None
        self._undo = [self._watch(module) for module in list(model.modules()) if is_compiled(module)]

    @property
    def standins(self) -> Standins:
        """What was seen since the last :meth:`clear`."""
        if self._standins is None:
            self._standins = standins_for(self._model)
        return self._standins

    def clear(self) -> None:
        """Let go of the graphs that were seen; called before every step."""
        self._standins = None

    def detach(self) -> None:
        """Leave the modules as they were."""
        self.clear()
        while self._undo:
            self._undo.pop()()

    def _watch(self, module: nn.Module) -> Callable[[], None]:
        if is_wrapper(module):
            hook = WeakHook(self._returned)  # before hooks of the user's, which may change what is returned
            return module.register_forward_hook(hook, prepend=True, with_kwargs=True).remove
        # A hook of a module compiled in place would be compiled with it: its call is replaced.
        original: Any = module._compiled_call_impl
        hook = WeakHook(self._returned)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            hook(module, args, kwargs, result)
            return result

        module._compiled_call_impl = call

        def undo() -> None:
            if module._compiled_call_impl is call:
                module._compiled_call_impl = original

        return undo

    def _returned(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        inner = uncompiled(module)
        if not torch.is_grad_enabled() or not inner.training or not self._wanted():
            return
        try:
            returned = tensors_of(result)
            given = [tensor for tensor in tensors_of((list(args), dict(kwargs))) if tensor.requires_grad]
            call = Hidden(
                inner,
                args,
                kwargs,
                sources={id(tensor): edge_of(tensor) for tensor in given},
                outputs=[edge_of(tensor) if tensor.requires_grad else None for tensor in returned],
                shapes=[tuple(tensor.shape) for tensor in returned],
                autocast=autocast_settings(),
            )
            # A module that changes as it is called, such as one that counts, may read others the second time.
            own = {id(parameter) for parameter in inner.parameters() if parameter.requires_grad}
            before = [node for node, _ in call.sources.values() if not hasattr(node, "variable")]
            read = own.intersection(map(id, leaves(returned, until=before)))
            self.standins.trace(call, partial(reads, self.standins, own, read))
        except Exception:
            pass  # It stays hidden, and nothing that it reads is claimed.
        if module is self._model and not is_wrapper(module) and self.show is not None:
            self.show(result)
