"""Why a weight is, or is not, invariant: one short sentence in plain words."""

from __future__ import annotations

from lightning_sphere.discovery.graph import Graph, Parameter
from lightning_sphere.discovery.solve import Finding
from lightning_sphere.discovery.system import Cause

OPERATIONS = {
    "LogSoftmax": "the softmax of the loss",
    "SafeSoftmax": "Softmax",
    "Gelu": "GELU",
    "Silu": "SiLU",
    "NllLoss": "the loss",
    "MseLoss": "the loss",
    "Hardtanh": "ReLU6 or Hardtanh",
    "CopySlices": "an assignment to a slice",
}


def norm_of(finding: Finding) -> str | None:
    """What normalizes a parameter, for people."""
    names = list(dict.fromkeys(name for name, _ in finding.norms))
    if not names:
        return None
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def reason_for(
    parameter: Parameter, kind: str, finding: Finding | None, graph: Graph, parameters: list[Parameter]
) -> str:
    """Explain one parameter.

    Args:
        parameter: The parameter.
        kind: Its granularity.
        finding: What was found; ``None`` if the loss does not depend on it.
        graph: The graph.
        parameters: All parameters.

    Returns:
        One sentence.
    """
    if not parameter.trainable:
        return "frozen: it gets no gradient"
    if finding is None:
        return "not part of this loss"
    if finding.axis is None:
        return why_not(parameter, finding.cause, graph, parameters)
    each = "per filter" if len(parameter.shape) > 2 else "per row"
    unit = {"row": each, "group": "per block of rows", "whole": "as a whole"}
    norm, via = finding.norms[0]
    through = f", through {', '.join(via)}" if via else ""
    together = f" together with `{parameters[finding.partner].name}`" if finding.partner is not None else ""
    verb = " follows" if "Norm" in norm else ""
    only = "" if finding.members is None else f", {len(finding.members)} of {finding.blocks} blocks only"
    return f"invariant {unit[kind]}{together}: {norm_of(finding) or norm}{verb}{through}{only}"


def why_not(parameter: Parameter, cause: Cause | None, graph: Graph, parameters: list[Parameter]) -> str:
    """Explain what forbids scaling a parameter."""
    if cause is None:
        return "not invariant: no normalization reads it"
    attention = "the softmax of attention" if cause.name.startswith("ScaledDotProduct") else cause.name
    operation = OPERATIONS.get(cause.name, attention)
    if cause.kind == "unknown":
        return f"unknown operation `{graph.names[cause.node]}` reads it"
    if cause.kind == "loss":
        return "not invariant: no normalization follows before the loss"
    if cause.kind == "operation":
        return f"not invariant: no normalization follows before {operation}"
    norm = _next_norm(cause.node, graph, parameters)
    before = f" before {norm} reads it" if norm else ""
    if cause.kind == "constant":
        return f"not invariant: a constant is added to its output{before}"
    other = _other_side(parameter, cause, graph, parameters)
    if other is not None:
        what = "its own bias" if other.module == parameter.module else f"the output of `{other.module or other.name}`"
        return f"not invariant: its output is added to {what}{before}"
    if cause.kind == "mixed":
        return f"not invariant: {operation} mixes its output with another one{before}"
    return f"not invariant: its output is added to what does not scale with it{before}"


def _other_side(parameter: Parameter, cause: Cause, graph: Graph, parameters: list[Parameter]) -> Parameter | None:
    """The parameter that writes the other summand."""
    writers = [parameters[next(reversed(side))] for side in cause.sides if side]
    if not writers and cause.kind == "added":
        writers = [w for w in map(parameters.__getitem__, graph.writers(cause.node)) if w.module != parameter.module]
    return next((writer for writer in writers if writer is not parameter), None)


def _next_norm(position: int, graph: Graph, parameters: list[Parameter]) -> str | None:
    """The nearest normalization that reads a node's output, or is that node, by the module of its gain."""
    for reader in (position, *graph.readers(position)):
        for edge in graph.edges[reader]:
            if edge is not None and edge[0] in graph.leaves:
                owner = parameters[graph.leaves[edge[0]]]
                if "norm" in owner.module_type.lower() and len(owner.shape) == 1:
                    return f"{owner.module_type} `{owner.module}`"
    return None
