"""From the graph to the groups: three readings, each with other symbols.

1. Each parameter alone, along each of its first two axes; again where one number was made of all its rows.
2. Each weight together with its own module's bias, where the first reading failed at adding that bias.
3. Each set of parameters that the sums of the first reading propose, as one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lightning_sphere.discovery.graph import Graph, Parameter
from lightning_sphere.discovery.interpret import interpret
from lightning_sphere.discovery.joint import propose_sets
from lightning_sphere.discovery.system import Cause, Symbol, System


@dataclass(frozen=True)
class Finding:
    """What was found about one parameter."""

    axis: int | None = None
    """Axis along which its rows are counted; ``None`` if it is not invariant."""
    blocks: int = 0
    members: tuple[int, ...] | None = None
    partner: int | None = None
    """Number of the bias that must be scaled along."""
    norms: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """What normalizes it, with the operations passed before."""
    cause: Cause | None = None
    """What forbids it."""
    eps_share: float | None = None
    """Largest share of an ``eps`` in what normalizes it."""

    @property
    def rank(self) -> tuple[bool, int, bool]:
        """Better findings are greater: all blocks, then many, then alone."""
        covered = self.blocks if self.members is None else len(self.members)
        return (self.axis is not None and self.members is None, covered, self.partner is None)


@dataclass(frozen=True)
class Solution:
    """The result of all readings."""

    findings: dict[int, Finding]
    """By parameter number; for trainable parameters of two dimensions or more that the graph reaches."""
    joint_sets: tuple[tuple[int, ...], ...]
    joint_facts: tuple[tuple[tuple[str, ...], float | None], ...] = ()
    """Of each joint set: the norms that read it, and the largest share of their ``eps``."""


def solve(graph: Graph, parameters: list[Parameter]) -> Solution:
    """Find the invariant rows of every parameter.

    Args:
        graph: The graph behind the loss.
        parameters: The model's parameters.

    Returns:
        The findings.
    """
    reached = set(graph.leaves.values())
    weights = [n for n, p in enumerate(parameters) if n in reached and len(p.shape) > 1 and 0 not in p.shape]
    symbols: list[Symbol] = []
    for number in weights:
        first = len(symbols)
        symbols += [Symbol(parameters[number].shape[axis], ((number, axis),), first + 1 - axis) for axis in (0, 1)]
    system = interpret(graph, parameters, symbols, record=True)
    findings = _findings(system, symbols, parameters)
    scaled = _by_own_number(symbols, system, findings)
    if scaled:
        finer = _findings(interpret(graph, parameters, scaled, record=False, free=True), scaled, parameters)
        for number, finding in finer.items():
            if finding.axis is not None and finding.rank > findings[number].rank:
                findings[number] = finding
    candidates = _with_bias(parameters, system, findings, reached)
    if candidates:
        joint = _findings(interpret(graph, parameters, candidates, record=False), candidates, parameters)
        for number, finding in joint.items():
            if finding.axis is not None and finding.rank > findings[number].rank:
                findings[number] = finding
            elif finding.axis is None and findings[number].axis is None and finding.cause is not None:
                # What stops weight and bias together explains more than that the bias is added.
                findings[number] = replace(findings[number], cause=finding.cause)
    return Solution(findings, *_joint_sets(graph, parameters, system, findings))


def _findings(system: System, symbols: list[Symbol], parameters: list[Parameter]) -> dict[int, Finding]:
    """Read the classes of rows; of a parameter's axes the better one is kept."""
    findings: dict[int, Finding] = {}
    for number, symbol in enumerate(symbols):
        if number in system.pruned:
            continue
        (parameter, axis), *partners = symbol.axes
        blocks = system.partitions[number].blocks()
        cause, norms = system.causes.get(number), tuple(system.norms.get(number, ()))
        if blocks is None or not norms:
            finding = Finding(cause=cause, norms=norms)
        else:
            partner = partners[0][0] if partners else None
            output, shape = parameters[parameter].output_axis, parameters[parameter].shape
            if blocks[0] == 1 and (partner is None or shape[output] == parameters[partner].shape[0]):
                axis = output  # all rows together: any axis says the same
            finding = Finding(axis, blocks[0], blocks[1], partner, norms, cause, system.shares.get(number))
        known = findings.get(parameter)
        tied = known is not None and finding.rank == known.rank and finding.axis == parameters[parameter].output_axis
        if known is None or finding.rank > known.rank or (tied and finding.axis is not None):
            findings[parameter] = finding
    return findings


def _by_own_number(symbols: list[Symbol], system: System, findings: dict[int, Finding]) -> list[Symbol]:
    """Weights to be read again because a single number that was made of them may be all that joins their rows."""
    gathered = {symbols[number].axes[0][0] for number in system.gathered}
    alive = {number for number in gathered if findings[number].axis is not None}
    return [Symbol(symbol.rows, symbol.axes) for symbol in symbols if symbol.axes[0][0] in alive]


def _with_bias(
    parameters: list[Parameter], system: System, findings: dict[int, Finding], reached: set[int]
) -> list[Symbol]:
    """Weights to be read again together with a vector of their module that was added to their output."""
    vectors: dict[str, list[int]] = {}
    for number in sorted(reached):
        if len(parameters[number].shape) == 1:
            vectors.setdefault(parameters[number].module, []).append(number)
    added = {
        (weight, bias)
        for balance in system.balances
        for left, right in ((balance.left, balance.right), (balance.right, balance.left))
        for bias in right
        if len(parameters[bias].shape) == 1
        for weight in left
        if parameters[weight].module == parameters[bias].module
    }
    symbols = []
    for number, finding in findings.items():
        if finding.cause is None:
            continue
        shape = parameters[number].shape
        # Of a concatenation, the powers of the first part stand for all.
        elsewhere = finding.cause.kind == "added" and not any(number in side for side in finding.cause.sides)
        for bias in vectors.get(parameters[number].module, ()):
            if (number, bias) not in added and finding.cause.kind != "mixed" and not elsewhere:
                continue
            rows = parameters[bias].shape[0]
            axes = [axis for axis in (0, 1) if shape[axis] == rows]
            if parameters[number].module_type.startswith(_KNOWN_LAYOUTS) and len(axes) == 2:
                axes = [parameters[number].output_axis]
            symbols += [Symbol(rows, ((number, axis), (bias, 0))) for axis in axes]
    return symbols


_KNOWN_LAYOUTS = ("Linear", "NonDynamicallyQuantizableLinear", "LazyLinear", "Conv", "LazyConv", "Bilinear")
"""Types of modules of which it is known which axis of the weight a bias belongs to."""


def _joint_sets(
    graph: Graph, parameters: list[Parameter], system: System, findings: dict[int, Finding]
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[tuple[str, ...], float | None], ...]]:
    """Propose sets and check each as one symbol; with the facts of those that hold."""
    seeds = [number for number, finding in findings.items() if finding.axis is None]
    allowed = frozenset(number for number in set(graph.leaves.values()))
    proposals = [
        members for members in propose_sets(system.balances, seeds, allowed) if not _is_own_bias(parameters, members)
    ]
    if not proposals:
        return (), ()
    symbols = [Symbol(1, tuple((number, None) for number in members)) for members in proposals]
    check = interpret(graph, parameters, symbols, record=False)
    held = [number for number in range(len(proposals)) if number in check.norms and check.partitions[number].alive]
    facts = [(tuple(dict.fromkeys(name for name, _ in check.norms[n])), check.shares.get(n)) for n in held]
    return tuple(proposals[number] for number in held), tuple(facts)


def _is_own_bias(parameters: list[Parameter], members: tuple[int, ...]) -> bool:
    """Whether a set is one weight with its own module's vectors."""
    weights = [number for number in members if len(parameters[number].shape) > 1]
    return len(weights) == 1 and len({parameters[number].module for number in members}) == 1
