"""Which layers there are to measure: what the losses showed of the model, and what the user selected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_sphere.discovery import Discovery, discover, merge
from lightning_sphere.discovery.plain import undiscovered
from lightning_sphere.groups import ScaleGroup
from lightning_sphere.measurement.plan import Plan
from lightning_sphere.options import Options

LOSSES_TO_READ = 16
"""How many losses are read before an optimizer's first step: under gradient accumulation all of them look alike."""


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
        self._losses_to_read = LOSSES_TO_READ

    @property
    def worth_reading(self) -> bool:
        """Whether another loss may still tell something new."""
        return self._losses_to_read > 0

    def read(self, loss: Any, *, given: bool) -> None:
        """Add what one loss shows; a weight that any of them shows to vary is not invariant.

        Args:
            loss: a loss before ``backward``, or outputs of the model.
            given: whether it is the loss itself.
        """
        if given and not self.loss_given:
            self.loss_given, self.discovery = True, None
        self._losses_to_read -= 1
        known, found = self.discovery, discover(loss, self._model)
        same_model = known is not None and known.order == found.order
        self.discovery = merge([known, found]) if known is not None and same_model else found

    def plan(self, optimizer: Optimizer) -> Plan:
        """Lay out the measurement of an optimizer: the selected layers whose weight it steps."""
        self._losses_to_read = LOSSES_TO_READ
        return Plan(self.of(optimizer), dict(self._model.named_parameters()), _param_groups(self._model, optimizer))

    def of(self, optimizer: Optimizer) -> list[ScaleGroup]:
        """The selected layers whose weight an optimizer steps, in the model's order."""
        if self.discovery is None:
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
