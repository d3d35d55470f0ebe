"""Why a weight is, or is not, invariant: one short sentence in plain words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightning_sphere.discovery.graph import Graph, Parameter
from lightning_sphere.discovery.names import operation, weight_of
from lightning_sphere.discovery.solve import Finding, Solution
from lightning_sphere.discovery.system import Cause
from lightning_sphere.discovery.walks import JOINS, Step, Walks

NAMED = 3
"""So many normalizations are named one by one."""

LONG = 120
"""Sentences longer than this leave a name out."""

FROZEN = "frozen: it gets no gradient"
OF_THE_WEIGHT = ("weight norm", "weight standardization", "spectral norm")


class Reasons:
    """The sentences about one model.

    Args:
        graph: The graph, whose normalizations the rules have named.
        parameters: All parameters.
        solution: What was found.
    """

    def __init__(self, graph: Graph, parameters: Sequence[Parameter], solution: Solution) -> None:
        self.graph, self.parameters, self.findings = graph, parameters, solution.findings
        self.walks = Walks(graph, parameters)
        self.place_of = {parameter.module: number for number, parameter in enumerate(parameters)}
        self.by_name = {parameter.name: parameter for parameter in parameters}
        self.set_of = {number: members for members in solution.joint_sets for number in members}

    def reason(self, number: int, kind: str) -> str:
        """Explain one parameter.

        Args:
            number: Its number.
            kind: Its granularity.
        """
        finding = self.findings.get(number)
        if not self.parameters[number].trainable:
            return FROZEN
        if finding is None:
            return "not part of this loss"
        try:
            if finding.axis is not None:
                return self._why(number, kind, finding)
            return self._together(number, finding) if number in self.set_of else self._why_not(number, finding)
        except Exception:
            # What was found holds without its explanation; a graph of a kind never seen must not stop a training run.
            return "not invariant" if finding.axis is None else "invariant"

    def norm(self, number: int) -> str | None:
        """What normalizes a parameter, for people."""
        names = self._norms(self.findings[number])
        return listed(names) if names else None

    def _norms(self, finding: Finding) -> list[str]:
        """Names of normalizations, in the model's order."""
        names = dict.fromkeys(name for name, _ in finding.norms)
        return sorted(
            names, key=lambda name: self.place_of.get(name.partition("`")[2].rstrip("`"), len(self.parameters))
        )

    def _why(self, number: int, kind: str, finding: Finding) -> str:
        parameter = self.parameters[number]
        rows = _unit(parameter, finding.axis or 0)
        size = parameter.shape[finding.axis or 0] // max(finding.blocks, 1)
        unit = {"row": f"per {rows}", "group": f"per block of {size} {rows}s", "whole": "as a whole"}[kind]
        together = ""
        if finding.partner is not None:
            partner = self.parameters[finding.partner]
            its_bias = partner.module == parameter.module and partner.name.endswith("bias")
            together = " together with its bias" if its_bias else f" together with `{partner.name}`"
        some = ""
        if finding.members is not None:
            some = f", {_ranges(finding.members, f'{rows}s' if kind == 'row' else 'blocks')} of {finding.blocks} only"
            parts = self.walks.attention_parts(number)
            some += f" ({parts})" if parts else ""
        names = self._norms(finding)
        via = finding.norms[0][1]
        through = f", through {listed(via)}" if via else ""
        if names[0] in OF_THE_WEIGHT:
            return f"invariant {unit}{together}{some}: {names[0]} is applied to it"
        return f"invariant {unit}{together}{some}: {listed(names)} follow{'s' * (len(names) == 1)}{through}"

    # -- what forbids it -----------------------------------------------------------------------------------------

    def _why_not(self, number: int, finding: Finding) -> str:
        cause = finding.cause
        if cause is None:
            return "not invariant: no normalization reads it"
        way = self.walks.way(number, cause.node)
        if cause.kind == "unknown":
            name = re.sub(r"(Backward)?\d*$", "", self.graph.names[cause.node]) or self.graph.names[cause.node]
            remedy = "; discover(function, model) looks inside" if name == "CompiledFunction" else ""
            return f"unknown operation `{name}` reads it{self._passing(way, ', through ')}{remedy}"
        if cause.kind == "statistic":
            return "not invariant: the constant added to the statistic that divides it is too large for an eps"
        batch_norm = self.walks.evaluated(way)
        if batch_norm is not None:
            name = self.walks.name_of_affine(batch_norm)
            return f"not invariant: {name} is in evaluation mode: an affine map, no normalization"
        if cause.kind in ("loss", "operation"):
            layer = weight_of(self.graph, self.parameters, cause.node) if cause.kind == "operation" else None
            if layer is not None:  # a recurrent one, which is one operation
                return self._unnormalized(number, finding, f"the gates of `{layer.module}`", way[:-1])
            what = "the loss" if cause.kind == "loss" else operation(self.graph, cause.node)
            return self._unnormalized(number, finding, what, way)
        if not self.walks.multiplied(way) and self.walks.penalized(number):
            return "not invariant: the loss also reads the weight itself, as a penalty on it does"
        return self._another_use(number) or self._met(number, finding, cause, way)

    def _unnormalized(self, number: int, finding: Finding, what: str, way: Sequence[Step]) -> str:
        """No normalization stands before an operation."""
        norms = [name for name in self._norms(finding) if name not in OF_THE_WEIGHT]
        uses = len(self.walks.uses(number))
        one = len(norms) == 1
        if norms and uses > 1:
            some = f"normalize{'s' * one} {'one' if one else 'some'} of its {uses} uses"
            return f"not invariant: {listed(norms)} {some}, {what} reads another"
        if norms:
            without = f"{what} reads its output without {'it' if one else 'them'}"
            return f"not invariant: {listed(norms)} follow{'s' * one}, but {without}"
        passing = self._passing(way, " through ")
        if passing:
            return f"not invariant: it reaches {what}{passing} without normalization"
        return f"not invariant: no normalization follows before {what}"

    def _another_use(self, number: int) -> str | None:
        """Of a tied weight: a use that reaches an operation without any normalization."""
        also, uses = self.parameters[number].also, self.walks.uses(number)
        readers = [self.walks.reader(use) for use in uses] if also else []
        bare = [reader.name for reader in readers if reader is not None and reader.kind == "operation"]
        if not bare or len(bare) == len(uses):
            return None
        one = f"one of its {len(uses)} uses reaches {bare[0]} without normalization"
        return f"not invariant: tied to `{also[-1]}`; {one}"

    def _met(self, number: int, finding: Finding, cause: Cause, way: Sequence[Step]) -> str:
        """What meets the output of a parameter on its way, and what reads the result."""
        own = self.parameters[number].module
        joined = next((place for place, (node, _) in enumerate(way) if self.walks.name(node) in JOINS), None)
        for place, (node, edge) in self.walks.sums(way):
            if joined is not None and place > joined and cause.kind == "mixed":
                break
            before = way[:place]
            layers, subject = self.walks.layers_on(before), self._subject(before)
            if edge is None and cause.kind != "constant" and node != cause.node:
                continue
            reader = self.walks.reader(node)
            if reader is not None and reader.kind == "operation":
                return self._unnormalized(number, finding, reader.name, before)
            if edge is None:
                written = self.walks.name(node) in ("Add", "Sub", "Rsub")
                what = "a constant or data" if written else "a constant, a frozen bias,"
                return f"not invariant: {subject} is added to {what}{self._before(node)}"
            if self.walks.is_stream(node):
                start = f"not invariant: {subject} is added to the residual stream"
                return start if layers else self._fitting(start, " before {} reads it", node)
            writers = self.walks.summands(edge)
            if layers and all(self._is_vector_of(layers, writer) for writer in writers):
                return f"not invariant: `{layers[-1]}` reads it and adds a bias"
            if not all(self._is_vector_of([own], writer) or writer == f"the output of `{own}`" for writer in writers):
                full = f"not invariant: {subject} is added to {listed(writers)}{self._before(node)}"
                short = f"not invariant: {subject} is added to another layer's output"
                return full if len(full) <= LONG else self._fitting(short, " before {} reads it", node)
        if joined is not None:
            start = f"not invariant: {self._subject(way[:joined])} is concatenated with other outputs"
            return self._fitting(start, " before {} reads it", way[joined][0])
        subject = self._subject(way)
        place = way[-1][0] if way else cause.node
        onward = self.walks.onward(place)
        if onward:
            return self._met(number, finding, cause, [*way, *onward])
        reader = self.walks.reader(place)
        if reader is not None and reader.kind == "operation":
            return self._unnormalized(number, finding, reader.name, way)
        verb = "mixed with" if cause.kind == "mixed" else "added to"
        return f"not invariant: {subject} is {verb} what does not scale with it{self._before(place)}"

    def _subject(self, way: Sequence[Step]) -> str:
        """What of a parameter arrives at the end of a way."""
        if self.walks.multiplied(way):
            return f"its output{self._passing(way, ', through ', ',')}"
        return "its product" if any(self.walks.name(node) in ("Mul", "Div", "Addcmul") for node, _ in way) else "it"

    def _is_vector_of(self, modules: Sequence[str], writer: str) -> bool:
        """Whether a summand is a bias of one of some modules."""
        parameter = self.by_name.get(writer.strip("`"))
        return parameter is not None and len(parameter.shape) == 1 and parameter.module in modules

    def _before(self, position: int) -> str:
        """What reads a sum."""
        reader = self.walks.reader(position)
        return f" before {reader.name} reads it" if reader is not None else ""

    def _fitting(self, start: str, rest: str, position: int) -> str:
        """A sentence that names what reads a sum: with its type, without it, or not at all, as far as there is room."""
        reader = self.walks.reader(position)
        if reader is None:
            return start
        names = (reader.name, reader.name[reader.name.find("`") :] if "`" in reader.name else "")
        sentences = [start + rest.format(name) for name in names if name]
        return next((sentence for sentence in sentences if len(sentence) <= LONG), start)

    def _passing(self, way: Sequence[Step], before: str, after: str = "") -> str:
        """The layers that a way passes, as part of a sentence."""
        layers = self.walks.layers_on(way)
        return f"{before}{listed(_quoted(layers))}{after}" if layers else ""

    # -- sets ----------------------------------------------------------------------------------------------------

    def _together(self, number: int, finding: Finding) -> str:
        """A parameter that is invariant with others only."""
        others = [self.parameters[n].name for n in self.set_of[number] if n != number]
        cause = finding.cause
        way = self.walks.way(number, cause.node) if cause is not None else []
        place = way[-1][0] if way else None
        stream = next((node for _, (node, _) in self.walks.sums(way) if self.walks.is_stream(node)), None)
        if stream is not None and len(others) > 1:
            start = f"not invariant alone; jointly with {len(others)} others that write to the residual stream"
            return self._fitting(start, ", which {} reads", stream)
        start, before = "not invariant alone; jointly with", self._before(place) if place is not None else ""
        meet = f" meet{'s' * (len(others) == 1)} it{before}" if before else ""
        full = f"{start} {listed(_quoted(others))}{meet and ', which'}{meet}"
        if len(others) <= NAMED and len(full) <= LONG:
            return full
        return f"{start} {len(others)} other{'s' * (len(others) > 1)}{meet and ' that'}{meet}"


def _unit(parameter: Parameter, axis: int) -> str:
    """What one index of an axis is called."""
    if len(parameter.shape) == 2:
        return "row" if axis == 0 else "column"
    if "Conv" not in parameter.module_type:
        return "slice"
    return "filter" if axis == parameter.output_axis else "input channel"


def _quoted(names: Sequence[str]) -> list[str]:
    return [f"`{name}`" for name in names]


def listed(names: Sequence[str]) -> str:
    """Names in a row, the type said once where it is the same: BatchNorm `a`, `b` and `c`."""
    shown: list[str] = []
    kind = None
    for name in names[:NAMED]:
        this, _, rest = name.rpartition(" ")
        shown.append(rest if kind is not None and this == kind and this else name)
        kind = this
    if len(names) > NAMED:
        return f"{', '.join(shown)} and {len(names) - NAMED} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _ranges(members: Sequence[int], what: str) -> str:
    """Numbers of blocks in short."""
    runs: list[list[int]] = []
    for member in members:
        if runs and member == runs[-1][1] + 1:
            runs[-1][1] = member
        else:
            runs.append([member, member])
    if len(runs) > 2:
        return f"{len(members)} {what}"
    return f"{what} " + " and ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
