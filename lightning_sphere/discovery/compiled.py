"""Compiled modules: the graph of their loss shows one opaque node, so they are traced, or run, uncompiled."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence, Set
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_sphere.discovery.aside import same_random_numbers
from lightning_sphere.discovery.standins import Hidden, Standins, output_shapes

_T = TypeVar("_T")

NODE = "CompiledFunctionBackward"
"""Name of the node that stands for all operations of a compiled graph."""


def standins_for(model: nn.Module) -> Standins:
    """Stand-ins that also try to look through compiled modules of which no call was seen."""
    standins = Standins()
    compiled = [uncompiled(m) for m in model.modules() if is_compiled(m)]
    if compiled:
        standins.openers[NODE] = partial(_open_unseen, modules=compiled)
    return standins


def _open_unseen(standins: Standins, node: Any, modules: Sequence[nn.Module]) -> None:
    """Trace a module compiled as one graph, of one argument: it is among the tensors that the node saved.

    A tensor is taken for the argument if with it the module returns what the node returned, and reads what it read.
    """
    edges = [source for source in node.next_functions if source[0] is not None]
    variables = {id(v): v for v in (getattr(source[0], "variable", None) for source in edges) if v is not None}
    inner_edges = [source for source in edges if getattr(source[0], "variable", None) is None]
    saved = [raw.data for raw in node._raw_saved_tensors]  # without unpacking, which could free them
    shapes = output_shapes(node)
    outputs = [(node, index) for index in range(len(shapes))]
    for module in modules:
        parameters = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
        if not variables.keys() <= parameters or len(inner_edges) > 1:
            continue

        for tensor in saved:
            if not isinstance(tensor, Tensor) or id(tensor) in parameters:
                continue
            sources = {id(tensor): inner_edges[0]} if inner_edges else {}
            call = Hidden(module, [tensor], {}, sources, outputs, shapes, autocast_settings())
            try:
                standins.trace(call, partial(reads, standins, parameters, variables.keys()))
            except Exception:
                continue
            return


def reads(standins: Standins, parameters: Set[int], expected: Set[int], outputs: Sequence[Tensor]) -> bool:
    """Whether of some parameters exactly the expected ones are behind the outputs."""
    return {standins.identity(leaf) for leaf in leaves(outputs)} & parameters == expected


def leaves(outputs: Sequence[Tensor], until: Collection[Any] = ()) -> list[Tensor]:
    """Leaves of the graph behind some tensors.

    Args:
        outputs: the tensors.
        until: nodes to stop at.
    """
    stack = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    seen: set[Any] = {*stack, *until}
    found: list[Tensor] = []
    while stack:
        node = stack.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)
        for source, _ in node.next_functions:
            if source is not None and source not in seen:
                seen.add(source)
                stack.append(source)
    return found


def run_uncompiled(function: Callable[[], _T], model: nn.Module) -> _T:
    """Call a function with everything compiled run eagerly; buffers and random numbers stay as they are."""
    originals = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    try:
        for buffers, before in originals:  # Others may hold the originals in graphs, which notice changes.
            buffers.update({name: None if b is None else b.detach().clone() for name, b in before.items()})
        with same_random_numbers(), torch.compiler.set_stance("force_eager"), torch.enable_grad():
            return function()
    finally:
        for buffers, before in originals:
            buffers.update(before)


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module run compiled: of a wrapper, or of a module compiled in place."""
    return is_wrapper(module) or getattr(module, "_compiled_call_impl", None) is not None


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module is what ``torch.compile`` made of another one."""
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules


def uncompiled(module: nn.Module) -> nn.Module:
    """The module inside a wrapper, and inside one for training on several devices, or the module itself."""
    inner: nn.Module = module._modules["_orig_mod"] if is_wrapper(module) else module  # type: ignore[assignment]
    while isinstance(inner, nn.parallel.DistributedDataParallel):
        inner = inner.module
    return inner


def autocast_settings() -> list[dict[str, Any]]:
    """Autocast as it is now."""
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [
        {"device_type": kind, "dtype": torch.get_autocast_dtype(kind), "enabled": torch.is_autocast_enabled(kind)}
        for kind in kinds
    ]
