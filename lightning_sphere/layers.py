"""Which layers there are to measure: what the losses showed of the model, and what the user selected."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_sphere.claims import Claims, claims_of
from lightning_sphere.discovery import Discovery, discover, merge
from lightning_sphere.discovery.plain import undiscovered
from lightning_sphere.discovery.standins import Standins
from lightning_sphere.groups import GroupPart, ScaleGroup
from lightning_sphere.guard import warn
from lightning_sphere.inference import Inference
from lightning_sphere.measurement.plan import Plan
from lightning_sphere.options import Options

_log = logging.getLogger("lightning_sphere")

PATIENCE = 3
"""After how many losses in a row that show nothing new no more are read: under gradient accumulation all look alike."""


class KnownLayers:
    """What is known of a model's layers while it trains.

    Args:
        model: the network.
        options: which layers the user selected.
        given: the groups that the user gave in place of discovery's, checked against the model; ``None`` if none.
        optimizers: those that are measured.

    Attributes:
        discovery: what the losses read so far tell; ``None`` before the first.
        inference: what gradients alone tell of weights that the losses' graphs hide.
        loss_given: whether a loss was given, which says more than outputs that a forward hook saw.
    """

    def __init__(
        self,
        model: nn.Module,
        options: Options,
        given: Sequence[ScaleGroup] | None = None,
        optimizers: Sequence[Optimizer] = (),
    ) -> None:
        self.discovery: Discovery | None = None
        self.loss_given = False
        self._model, self._options, self._given, self._optimizers = model, options, given, optimizers
        self.inference = Inference()
        self._uninformative = 0
        self._claims: tuple[Discovery | None, list[str], Claims] | None = None

    @property
    def known(self) -> Discovery | None:
        """What the losses showed, and of weights hidden in their graphs what the gradients bear out."""
        inferred = self.inference.claims
        if self.discovery is None or not inferred:
            return self.discovery
        layers = [layer if layer.invariant else inferred.get(layer.parameter, layer) for layer in self.discovery.layers]
        return replace(self.discovery, layers=tuple(layers), way="gradients")

    @property
    def claims(self) -> Claims:
        """What is taken to be invariant, by what is known now."""
        inferred = list(self.inference.claims)
        if self._claims is None or self._claims[0] is not self.discovery or self._claims[1] != inferred:
            self._claims = self.discovery, inferred, claims_of(self.known or Discovery(), self._given)
        return self._claims[2]

    def open_questions(self, layers: Sequence[ScaleGroup]) -> list[ScaleGroup]:
        """Those of some layers that only their gradients can tell about."""
        if self.discovery is None or self._given is not None:
            return []
        return self.inference.open_questions(layers, self.discovery.hidden)

    @property
    def worth_reading(self) -> bool:
        """Whether another loss may still tell something new."""
        return self._uninformative < PATIENCE

    def incomplete(self, plan: Plan | None) -> bool:
        """Whether a plan holds weights that no loss has reached yet: those of a network that joins late."""
        reached = self.discovery.reached if self.discovery is not None else frozenset()
        return plan is not None and any(layer.parameter not in reached for layer in plan.layers)

    def read(self, loss: Any, *, given: bool, standins: Standins | None = None) -> None:
        """Add what one loss shows; a weight that any of them shows to vary is not invariant.

        Args:
            loss: a loss before ``backward``, or outputs of the model.
            given: whether it is the loss itself.
            standins: what to read in place of operations that hide what they do.
        """
        if given and not self.loss_given:
            self.loss_given, self.discovery = True, None
        known, found = self.discovery, discover(loss, self._model, standins)
        self.discovery = merge([known, found]) if known is not None and _same_model(known, found) else found
        self._uninformative = self._uninformative + 1 if self.discovery == known else 0
        if known is None and self._given is None:
            _tell_if_unreadable(found)

    def plan(self, optimizer: Optimizer) -> Plan:
        """Lay out the measurement of an optimizer: the selected layers whose weight it steps."""
        self._uninformative = 0
        layers = self.of(optimizer)
        if not layers:
            # Biases and gains have often an optimizer of their own: nobody need be warned.
            matrices = any(p.dim() > 1 for group in optimizer.param_groups for p in group["params"])
            level, name = logging.WARNING if matrices else logging.INFO, type(optimizer).__name__
            _log.log(level, "%s steps no weight that is selected: nothing to measure of it", name)
        parameters, param_group = dict(self._model.named_parameters()), _param_groups(self._model, optimizer)
        stepped = {name: parameters[name] for name in param_group}
        probes = [_with_bias(layer, stepped) for layer in self.open_questions(layers)]
        return Plan(layers, parameters, param_group, [probe for probe in probes if probe is not None])

    def of(self, optimizer: Optimizer) -> list[ScaleGroup]:
        """The selected layers whose weight an optimizer steps, in the model's order, then the joint sets."""
        if self.discovery is None:
            if self._given is None:
                warn(
                    "no loss was seen before the first optimizer step, so no weight is known to be scale-invariant; "
                    "call discover(loss) of the SphereTracker before backward"
                )
            self.discovery = undiscovered(self._model)
        parameters = dict(self._model.named_parameters())
        param_group = _param_groups(self._model, optimizer)
        unfrozen = [
            replace(layer, reason="unknown: it was frozen when the loss was read")
            for layer in self.claims.weights.frozen
            if layer.parameter in param_group and parameters[layer.parameter].requires_grad
        ]
        layers = [
            _within(layer, param_group)
            for layer in (*self.claims.weights.layers, *unfrozen)
            if layer.parameter in param_group
            and parameters[layer.parameter].is_floating_point()
            and parameters[layer.parameter].numel() > 0
            and self._options.selects([layer.name, layer.parameter])
        ]
        place = {name: index for index, name in enumerate(parameters)}
        sets = zip(self.claims.joint, self._why_not_measured(parameters), strict=True)
        joint = [group for group, why in sets if why is None and group.parameter in param_group]
        return [*sorted(layers, key=lambda layer: place[layer.parameter]), *joint]

    def _why_not_measured(self, parameters: Mapping[str, nn.Parameter]) -> list[str | None]:
        """What keeps each joint set from being measured; ``None`` if it can be."""
        number = {id(p): n for n, o in enumerate(self._optimizers) for g in o.param_groups for p in g["params"]}
        stepper = {name: number[id(p)] for name, p in parameters.items() if id(p) in number}
        names = {layer.parameter: layer.name for layer in self.claims.weights.layers}

        def why(group: ScaleGroup) -> str | None:
            for name in (part.parameter for part in group.parts):
                if not self._options.selects([names.get(name, name), name]):
                    return f"{name} is left out"
                if name not in stepper:
                    return f"no optimizer steps {name}"
            several = len({stepper[part.parameter] for part in group.parts}) > 1
            return "several optimizers step it" if several else None

        return [why(group) for group in self.claims.joint]

    def table(self) -> list[dict[str, Any]]:
        """One row per weight as ``Discovery.table()`` gives it, with its layer's name; then one per joint set."""
        weights, joint = self.claims.weights, self.claims.joint
        names = {layer.parameter: layer.name for layer in (*weights.layers, *weights.frozen)}
        rows = [{"layer": names[row["parameter"]], **row, "joint": False} for row in weights.table()]
        reasons = self._why_not_measured(dict(self._model.named_parameters()))
        for group, row, why in zip(joint, Discovery(layers=joint).table(), reasons, strict=True):
            remark = "" if why is None else f"; not measured as one: {why}"
            rows.append({"layer": group.name, **row, "reason": row["reason"] + remark, "joint": True})
        return rows

    @property
    def order(self) -> list[str]:
        """Names of all layers, in the order to show."""
        return self.claims.order


def _same_model(one: Discovery, other: Discovery) -> bool:
    """Whether two discoveries speak of the same parameters: a replaced layer may keep its name."""
    shapes = [{layer.parameter: layer.shape for layer in (*d.layers, *d.frozen)} for d in (one, other)]
    return one.order == other.order and shapes[0] == shapes[1]


def _tell_if_unreadable(found: Discovery) -> None:
    """Say so where a graph could not be read, as that of a compiled model: not invariant then means not known."""
    unreadable = next((layer.reason for layer in found.layers if layer.reason.startswith("unknown operation")), None)
    if unreadable is not None and not found.groups:
        warn(
            f"no weight is known to be scale-invariant, for the loss's graph could not be read: {unreadable}. "
            "Some may be recognized by their gradients after several steps"
        )


def known_names(model: nn.Module) -> set[str]:
    """Names of all modules and parameters, as ``include`` and ``exclude`` may use them."""
    return {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}


def _param_groups(model: nn.Module, optimizer: Optimizer) -> dict[str, int]:
    """Index of the optimizer's param group by name of the parameter."""
    index = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    return {name: index[id(p)] for name, p in model.named_parameters() if id(p) in index}


def _with_bias(layer: ScaleGroup, parameters: Mapping[str, nn.Parameter]) -> ScaleGroup | None:
    """A weight together with its module's bias, row by row; ``None`` if it has none that is trained."""
    module = layer.parameter.rpartition(".")[0]
    names = [
        name
        for name, parameter in parameters.items()
        if name.rpartition(".")[0] == module and parameter.shape == (layer.blocks,) and parameter.requires_grad
    ]
    bias = next((name for name in names if name.endswith("bias")), names[0] if names else None)
    return None if bias is None else replace(layer, parts=(layer.parts[0], GroupPart(bias)))


def _within(layer: ScaleGroup, param_group: Mapping[str, int]) -> ScaleGroup:
    """The layer as one optimizer can measure it: a partner that another optimizer steps cannot be part of it."""
    missing = [name for name in layer.joint_with if name not in param_group]
    if not missing:
        return layer
    reason = f"invariant only together with {', '.join(missing)}, which another optimizer steps"
    return replace(layer, parts=layer.parts[:1], kind="none", members=None, norm=None, reason=reason)
