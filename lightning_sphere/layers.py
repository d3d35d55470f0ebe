"""Which layers there are to measure: what the losses showed of the model, and what the user selected."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_sphere.discovery import Discovery, discover, merge
from lightning_sphere.discovery.plain import undiscovered
from lightning_sphere.groups import ScaleGroup
from lightning_sphere.guard import warn
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

    Attributes:
        discovery: what the losses read so far tell; ``None`` before the first.
        loss_given: whether a loss was given, which says more than outputs that a forward hook saw.
    """

    def __init__(self, model: nn.Module, options: Options) -> None:
        self.discovery: Discovery | None = None
        self.loss_given = False
        self._model, self._options = model, options
        self._uninformative = 0

    @property
    def worth_reading(self) -> bool:
        """Whether another loss may still tell something new."""
        return self._uninformative < PATIENCE

    def incomplete(self, plan: Plan | None) -> bool:
        """Whether a plan holds weights that no loss has reached yet: those of a network that joins late."""
        reached = self.discovery.reached if self.discovery is not None else frozenset()
        return plan is not None and any(layer.parameter not in reached for layer in plan.layers)

    def read(self, loss: Any, *, given: bool) -> None:
        """Add what one loss shows; a weight that any of them shows to vary is not invariant.

        Args:
            loss: a loss before ``backward``, or outputs of the model.
            given: whether it is the loss itself.
        """
        if given and not self.loss_given:
            self.loss_given, self.discovery = True, None
        known, found = self.discovery, discover(loss, self._model)
        self.discovery = merge([known, found]) if known is not None and _same_model(known, found) else found
        self._uninformative = self._uninformative + 1 if self.discovery == known else 0
        if known is None:
            _tell_if_unreadable(found)

    def plan(self, optimizer: Optimizer) -> Plan:
        """Lay out the measurement of an optimizer: the selected layers whose weight it steps."""
        self._uninformative = 0
        layers = self.of(optimizer)
        if not layers:
            _log.warning("%s steps no weight that is selected: nothing to measure of it", type(optimizer).__name__)
        return Plan(layers, dict(self._model.named_parameters()), _param_groups(self._model, optimizer))

    def of(self, optimizer: Optimizer) -> list[ScaleGroup]:
        """The selected layers whose weight an optimizer steps, in the model's order."""
        if self.discovery is None:
            warn(
                "no loss was seen before the first optimizer step, so no weight is known to be scale-invariant; "
                "call discover(loss) of the SphereTracker before backward"
            )
            self.discovery = undiscovered(self._model)
        parameters = dict(self._model.named_parameters())
        param_group = _param_groups(self._model, optimizer)
        unfrozen = [
            replace(layer, reason="unknown: it was frozen when the loss was read")
            for layer in self.discovery.frozen
            if layer.parameter in param_group and parameters[layer.parameter].requires_grad
        ]
        layers = [
            _within(layer, param_group)
            for layer in (*self.discovery.layers, *unfrozen)
            if layer.parameter in param_group
            and parameters[layer.parameter].is_floating_point()
            and parameters[layer.parameter].numel() > 0
            and self._options.selects([layer.name, layer.parameter])
        ]
        place = {name: index for index, name in enumerate(parameters)}
        return sorted(layers, key=lambda layer: place[layer.parameter])

    @property
    def order(self) -> list[str]:
        """Names of all layers, in the model's order as far as one discovery knows it."""
        discovery = self.discovery or Discovery()
        by_parameter = {layer.parameter: layer.name for layer in (*discovery.layers, *discovery.frozen)}
        return [by_parameter[name] for name in discovery.order if name in by_parameter]


def _same_model(one: Discovery, other: Discovery) -> bool:
    """Whether two discoveries speak of the same parameters: a replaced layer may keep its name."""
    shapes = [{layer.parameter: layer.shape for layer in (*d.layers, *d.frozen)} for d in (one, other)]
    return one.order == other.order and shapes[0] == shapes[1]


def _tell_if_unreadable(found: Discovery) -> None:
    """Say so where a graph could not be read, as that of a compiled model: not invariant then means not known."""
    unreadable = next((layer.reason for layer in found.layers if layer.reason.startswith("unknown operation")), None)
    if unreadable is not None and not found.groups:
        remedy = "; show the loss of the uncompiled model to discover()" if "Compiled" in unreadable else ""
        warn(f"no weight is known to be scale-invariant, for the loss's graph could not be read: {unreadable}{remedy}")


def known_names(model: nn.Module) -> set[str]:
    """Names of all modules and parameters, as ``include`` and ``exclude`` may use them."""
    return {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}


def _param_groups(model: nn.Module, optimizer: Optimizer) -> dict[str, int]:
    """Index of the optimizer's param group by name of the parameter."""
    index = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    return {name: index[id(p)] for name, p in model.named_parameters() if id(p) in index}


def _within(layer: ScaleGroup, param_group: Mapping[str, int]) -> ScaleGroup:
    """The layer as one optimizer can measure it: a partner that another optimizer steps cannot be part of it."""
    missing = [name for name in layer.joint_with if name not in param_group]
    if not missing:
        return layer
    reason = f"invariant only together with {', '.join(missing)}, which another optimizer steps"
    return replace(layer, parts=layer.parts[:1], kind="none", members=None, norm=None, reason=reason)
