"""What to read in place of nodes that hide operations: compiled modules and reentrant checkpoints.

What they hide is run once more on *fake* tensors, which have shapes and a graph but no numbers, in a fake copy. Nothing
is computed, hardly any memory is needed, and no weight, buffer or random number is touched. The graph that results is
read in the place of the hidden one. What the copy can't be trusted to do alike stays hidden.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_sphere.discovery.aside import Caches, same_random_numbers, without_saved_tensor_hooks
from lightning_sphere.discovery.twin import Memo, twins_of

CHECKPOINT = "CheckpointFunctionBackward"
"""Name of the node of a reentrant checkpoint."""

NodeOutput = tuple[Any, int]
"""An autograd node and which of its outputs."""

Opener = Callable[["Standins", Any], None]
"""Traces what a node hides; raises if it can't."""


@dataclass(frozen=True)
class Hidden:
    """A call whose operations the graph hides."""

    function: Any
    """A module, or any callable; a fake copy of it is run."""
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    sources: Mapping[int, NodeOutput]
    """Where tensors among the arguments come from, by identity."""
    outputs: Sequence[NodeOutput | None]
    """Where the returned tensors are in the real graph, in their order."""
    shapes: Sequence[tuple[int, ...]]
    """Shapes of the returned tensors."""
    autocast: Sequence[Mapping[str, Any]] = ()
    """Settings of ``torch.autocast`` during the call."""


@dataclass
class Standins:
    """Which parts of a graph stand for hidden ones."""

    openers: dict[str, Opener] = field(default_factory=lambda: {CHECKPOINT: open_checkpoint})
    """By name of the hiding node."""
    looked_through: bool = False
    """Whether anything was traced."""
    _outputs: dict[NodeOutput, NodeOutput] = field(default_factory=dict)
    """From an output in the real graph to the one in the fake graph."""
    _inputs: dict[int, NodeOutput] = field(default_factory=dict)
    """From the identity of a fake input to the output in the real graph that it stands for."""
    _parameters: dict[int, int] = field(default_factory=dict)
    """From the identity of a fake parameter to the identity of the real one."""
    _tried: set[Any] = field(default_factory=set)
    _caches: Caches = field(default_factory=Caches)
    _alive: list[Any] = field(default_factory=list)
    """What the identities above belong to."""

    def resolve(self, source: NodeOutput) -> NodeOutput:
        """The output to read in place of one in the real graph; mostly itself."""
        while True:
            node, _ = source
            opener = self.openers.get(type(node).__name__)
            if opener is not None and source not in self._outputs and node not in self._tried:
                self._tried.add(node)
                try:
                    opener(self, node)
                except Exception:
                    return source  # It stays hidden, and nothing that it reads is claimed.
            if source in self._outputs:
                source = self._outputs[source]
                continue
            variable = getattr(node, "variable", None)
            if variable is None or id(variable) not in self._inputs:
                return source
            source = self._inputs[id(variable)]

    def identity(self, leaf: Tensor) -> int:
        """Identity of a leaf, or of the parameter that it stands for."""
        return self._parameters.get(id(leaf), id(leaf))

    def trace(self, call: Hidden, accept: Callable[[list[Tensor]], bool] = lambda _: True) -> None:
        """Run a call on fakes, and note what stands for what.

        Args:
            call: the call.
            accept: looks at the fake results before anything is noted.

        Raises:
            Exception: whatever the function raises where fakes are not enough, as for control flow on numbers.
            ValueError: if what it returns is not what the real call returned, or is not accepted.
        """
        from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode

        mode, memo = FakeTensorMode(), Memo()  # A real tensor among fakes is an error: nothing real is run.
        leaves, spec = tree_flatten((list(call.args), dict(call.kwargs)))
        with FakeCopyMode(mode):
            twin, *others = twins_of([call.function, *(leaf for leaf in leaves if not isinstance(leaf, Tensor))], memo)
        inputs: dict[int, NodeOutput] = {}
        for index, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor):
                leaves[index] = others.pop(0)
            else:
                leaves[index] = fake = memo.get(id(leaf), None)
                if fake is None:
                    source = call.sources.get(id(leaf))
                    leaves[index] = fake = mode.from_tensor(leaf.detach()).requires_grad_(source is not None)
                    if source is not None:
                        inputs[id(fake)] = source
        args, kwargs = tree_unflatten(leaves, spec)
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            for settings in call.autocast:
                stack.enter_context(torch.autocast(**settings))
            stack.enter_context(_silent(mode.__class__.__module__))
            stack.enter_context(same_random_numbers())
            stack.enter_context(without_saved_tensor_hooks())
            stack.enter_context(self._caches.without(FakeTensor))
            stack.enter_context(mode)
            found = tensors_of(twin(*args, **kwargs))
        if [tuple(tensor.shape) for tensor in found] != list(call.shapes):
            raise ValueError("the fake run returned other shapes than the real one")
        parameters = {id(fake): real for real, fake in memo.items() if isinstance(fake, Tensor)}
        self._inputs |= inputs
        self._parameters |= parameters
        self._alive += [memo, leaves, found]
        if not accept(found):
            raise ValueError("the fake run is not what was looked for")
        self.looked_through = True
        for real, tensor in zip(call.outputs, found, strict=True):
            if real is not None and tensor.requires_grad:
                self._outputs[real] = edge_of(tensor)


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Keep a logger from reporting failures that are expected and handled."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def open_checkpoint(standins: Standins, node: Any) -> None:
    """Trace the function of a reentrant checkpoint, which its node keeps for the backward pass."""
    args, kwargs, sources = list(node.inputs), dict[str, Any](), dict[int, NodeOutput]()
    for position, tensor, source in zip(node.tensor_indices, node.saved_tensors, node.next_functions, strict=True):
        args[position] = tensor
        if source[0] is not None:
            sources[id(tensor)] = source
    function = node.run_function
    while type(function) is partial:
        args, kwargs = [*function.args, *args], {**function.keywords, **kwargs}
        function = function.func
    for tensor in tensors_of((args, kwargs)):
        if tensor.requires_grad and id(tensor) not in sources:
            sources[id(tensor)] = edge_of(tensor)
    autocast = [{"device_type": "cpu", **node.cpu_autocast_kwargs}]
    if node.device_type != "cpu":
        autocast.append({"device_type": node.device_type, **node.device_autocast_kwargs})
    shapes = output_shapes(node)
    outputs = [(node, index) for index in range(len(shapes))]
    standins.trace(Hidden(function, args, kwargs, sources, outputs, shapes, autocast))


def may_read(node: Any, model: nn.Module) -> list[NodeOutput]:
    """Where the parameters are that a node may read without telling: what a checkpoint runs is not shown by its node.

    Args:
        node: a node that was not opened.
        model: the model, any of whose parameters is read where more is not known.
    """
    if type(node).__name__ != CHECKPOINT:
        return []
    owner = getattr(node.run_function, "__self__", node.run_function)
    parameters = (owner if isinstance(owner, nn.Module) else model).parameters()
    return [edge_of(p) for p in parameters if p.requires_grad and not nn.parameter.is_lazy(p)]


def output_shapes(node: Any) -> list[tuple[int, ...]]:
    """Shapes of a node's outputs."""
    return [tuple(int(size) for size in metadata.shape) for metadata in node._input_metadata]


def edge_of(tensor: Tensor) -> NodeOutput:
    """Where a tensor that needs a gradient is in the graph."""
    edge = torch.autograd.graph.get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def tensors_of(tree: Any) -> list[Tensor]:
    """All tensors in nested containers, in a fixed order."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]
