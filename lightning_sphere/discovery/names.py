"""Names for people of what the graph contains: who owns a weight, what a normalization is called, what an operation is.

Nothing here decides anything: a poor name makes a poor sentence, never a wrong claim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from lightning_sphere.discovery.graph import Edge, Graph, Parameter, short_name

CONTRACTIONS = frozenset({
    "Convolution", "CudnnConvolution", "MkldnnConvolution", "MiopenConvolution", "ConvolutionOverrideable", "Linear",
    "Mm", "Bmm", "Addmm", "Baddbmm", "Addbmm", "Embedding", "EmbeddingBag", "MkldnnRnnLayer", "CudnnRnn", "MiopenRnn",
})  # fmt: skip
"""Operations that multiply by a layer's weight and sum."""

TORCH_NORMS = ("BatchNorm", "LazyBatchNorm", "SyncBatchNorm", "InstanceNorm", "LazyInstanceNorm", "LayerNorm",
               "GroupNorm", "RMSNorm")  # fmt: skip

OF_WEIGHTS = {
    "RMS norm": "weight norm",
    "L2 normalization": "weight norm",
    "standardization": "weight standardization",
}
"""What a norm written out by hand is called when it is applied to a weight itself."""

NEAR = 40
"""So many nodes are looked at to find an owner."""

OPERATIONS = {
    "SafeSoftmax": "softmax",
    "Softmax": "softmax",
    "LogSoftmax": "log-softmax",
    "Gelu": "GELU",
    "Silu": "SiLU",
    "Elu": "ELU",
    "Selu": "SELU",
    "Celu": "CELU",
    "Glu": "GLU",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Hardtanh": "ReLU6 or hardtanh",
    "Hardsigmoid": "hard sigmoid",
    "Hardswish": "hard swish",
    "Exp": "exp",
    "Clamp": "clamping",
    "ClampMin": "clamping",
    "ClampMax": "clamping",
    "CopySlices": "an assignment to a slice",
    "ThnnFusedLstmCell": "the gates of the recurrent layer",
    "ThnnFusedGruCell": "the gates of the recurrent layer",
}
LOSSES = frozenset({
    "NllLoss", "NllLoss2D", "BinaryCrossEntropy", "BinaryCrossEntropyWithLogits", "MseLoss", "SmoothL1Loss",
    "HuberLoss", "L1Loss", "KlDiv", "CtcLoss", "CudnnCtcLoss", "SoftMarginLoss", "MultilabelMarginLoss",
})  # fmt: skip
HARMLESS = frozenset({"View", "UnsafeView", "Expand", "Clone", "ToCopy", "NativeDropout", "Reshape", "Transpose",
                      "Permute", "Squeeze", "Unsqueeze"})  # fmt: skip


def operation(graph: Graph, position: int) -> str:
    """What an operation is called, by its place: a softmax is one of attention, of the loss, or just one."""
    name = short_name(graph.names[position])
    if name.startswith("ScaledDotProduct"):
        return "the softmax of attention"
    if name in LOSSES:
        return "the loss"
    if name in ("LogSoftmax", "Softmax", "SafeSoftmax"):
        readers = {short_name(graph.names[reader]) for reader in _soon(graph, position)}
        if name == "LogSoftmax" and readers & LOSSES:
            return "the softmax of the loss"
        if name != "LogSoftmax" and "Bmm" in readers:
            return "the softmax of attention"
    return OPERATIONS.get(name, name)


def only_moves(graph: Graph, position: int) -> bool:
    """Whether an operation moves elements, or multiplies them by numbers or data, as dropout does."""
    name = short_name(graph.names[position])
    return name in HARMLESS or (name in ("Mul", "Div") and None in graph.edges[position][:2])


def _soon(graph: Graph, position: int) -> Iterator[int]:
    """Readers of a node's output behind operations that only move or drop elements."""
    pending = list(graph.consumers[position])
    for reader in islice(pending, NEAR):
        yield reader
        if only_moves(graph, reader):
            pending += graph.consumers[reader]


def owner(graph: Graph, parameters: Sequence[Parameter], edge: Edge) -> Parameter | None:
    """The parameter that an operand is made of, if no activation is involved; through casts, views, own formulas."""
    if edge is None:
        return None
    queue, found = [edge[0]], None
    for node in queue:
        if node in graph.leaves:
            found = found or parameters[graph.leaves[node]]
            continue
        if short_name(graph.names[node]) in CONTRACTIONS or len(queue) > NEAR:
            return None
        queue += [source[0] for source in graph.edges[node] if source is not None and source[0] not in queue]
    return found


def weight_of(graph: Graph, parameters: Sequence[Parameter], node: int) -> Parameter | None:
    """The weight of a convolution, a linear layer or an embedding; ``None`` for products of activations."""
    if short_name(graph.names[node]) not in CONTRACTIONS:
        return None
    owners = (owner(graph, parameters, edge) for edge in reversed(graph.edges[node]))
    return next((found for found in owners if found is not None and len(found.shape) > 1), None)


def name_norm(graph: Graph, parameters: Sequence[Parameter], position: int, kind: str) -> str:
    """Name a normalization that PyTorch knows by the module that owns its gain or bias, and remember it.

    Args:
        graph: The graph.
        parameters: All parameters.
        position: The node.
        kind: What it is, such as ``BatchNorm``.
    """
    if position not in graph.norms:
        found = (owner(graph, parameters, edge) for edge in graph.edges[position][1:3])
        gain = next((parameter for parameter in found if parameter is not None and parameter.module), None)
        if kind == "weight norm":
            graph.norms[position] = kind
        elif gain is not None:
            graph.norms[position] = _with_owner(kind, gain, f"{kind} in")
        else:
            graph.norms[position] = f"{kind}{_place(graph, parameters, position)}"
    return graph.norms[position]


def name_written_norm(graph: Graph, parameters: Sequence[Parameter], position: int, divisor: int) -> str:
    """Name a normalization that is written out: the product or quotient of something and its own statistic.

    Args:
        graph: The graph.
        parameters: All parameters.
        position: The node that multiplies or divides.
        divisor: Which of its inputs is the statistic.
    """
    if position not in graph.norms:
        edges = graph.edges[position]
        kind = _kind(graph, edges[divisor], edges[1 - divisor])
        gain = None if kind == "spectral norm" else _gain(graph, parameters, position, edges[1 - divisor])
        if kind == "spectral norm" or owner(graph, parameters, edges[1 - divisor]) is not None:
            graph.norms[position] = OF_WEIGHTS.get(kind, kind)
        elif gain is not None:
            graph.norms[position] = _with_owner(kind, gain, f"{kind} in")
        else:
            graph.norms[position] = f"{kind}{_place(graph, parameters, position)}"
    return graph.norms[position]


def _with_owner(kind: str, gain: Parameter, elsewhere: str) -> str:
    """The norm's module and type, if its gain belongs to a module made for it."""
    if "norm" not in gain.module_type.lower():
        return f"{elsewhere} `{gain.module}`"
    known = gain.module_type.startswith(TORCH_NORMS) and kind in TORCH_NORMS
    return f"{kind if known else gain.module_type} `{gain.module}`"


def _kind(graph: Graph, divisor: Edge, dividend: Edge) -> str:
    """What a norm written out by hand divides by."""
    queue = [] if divisor is None else [divisor[0]]
    stop = None if dividend is None else dividend[0]
    seen: list[str] = []
    for node in islice(queue, NEAR):
        name = short_name(graph.names[node])
        if node != stop and name not in CONTRACTIONS:
            seen.append(name)
            queue += [source[0] for source in graph.edges[node] if source is not None and source[0] not in queue]
    centred = stop is not None and short_name(graph.names[stop]) == "Sub"
    if {"Mv", "Dot", "Vdot"} & set(seen):
        return "spectral norm"
    first = next((name for name in seen if name in _STATISTICS), None)
    return "standardization" if first == "Mean" and centred else _STATISTICS.get(first or "", "division by a statistic")


_STATISTICS = {
    **dict.fromkeys(("Var", "Std", "VarMean", "StdMean"), "standardization"),
    **dict.fromkeys(("LinalgVectorNorm", "Norm", "Sum", "Nansum"), "L2 normalization"),
    **dict.fromkeys(("Amax", "Max", "Amin", "Min"), "division by the maximum"),
    "Mean": "RMS norm",
    "Median": "division by the median",
}


def _gain(graph: Graph, parameters: Sequence[Parameter], position: int, dividend: Edge) -> Parameter | None:
    """The gain that is multiplied after a norm, or before its division."""
    chain, node = [] if dividend is None else [dividend[0]], position
    for _ in range(4):
        readers = graph.consumers[node]
        if len(readers) != 1:
            break
        node = readers[0]
        chain.append(node)
    for node in reversed(chain):
        if short_name(graph.names[node]) == "Mul":
            for edge in graph.edges[node]:
                found = owner(graph, parameters, edge)
                if found is not None and found.module:
                    return found
    return None


def _place(graph: Graph, parameters: Sequence[Parameter], position: int) -> str:
    """Where something without parameters of its own stands: in the module of its neighbours, or before the next."""
    before = next((n for n in graph.writers(position, NEAR)), None)
    readers = (weight_of(graph, parameters, node) for node in graph.readers(position, NEAR))
    after = next((found for found in readers if found is not None), None)
    modules = [parameters[before].module] if before is not None else []
    modules += [after.module] if after is not None else []
    parents = [module.rpartition(".")[0] for module in modules]
    around = min(parents, key=len, default="")
    if around and all(f"{parent}.".startswith(f"{around}.") for parent in parents):
        return f" in `{around}`"
    return f" before `{modules[-1]}`" if after is not None and after.module else ""
