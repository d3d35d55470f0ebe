"""From what the taps measured to one recording, and to a verdict on every claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_sphere.geometry import InnerProducts, evaluate
from lightning_sphere.groups import ScaleGroup
from lightning_sphere.inference import Sums
from lightning_sphere.layers import KnownLayers
from lightning_sphere.measurement.collect import inner_products, mixed_rates
from lightning_sphere.measurement.plan import Plan
from lightning_sphere.measurement.tap import OptimizerTap
from lightning_sphere.quantities import CORE, STATS
from lightning_sphere.recording import Recording, merge, summary_scalars
from lightning_sphere.statistics import per_layer
from lightning_sphere.tensorboard.schema import TableSchema
from lightning_sphere.verdict import Verdict
from lightning_sphere.verification import Verification

_NAMES = tuple(quantity.name for quantity in CORE)
_REMARK = "; effective_lr unknown: its tensors have different learning rates"


class Evaluation:
    """What happens at a flush.

    Args:
        model: the network.
        layers: what is known of its layers.
        per_layer_scalars: whether curves of every layer are wanted.

    Attributes:
        measured: all layers measured so far, by name.
    """

    def __init__(self, model: nn.Module, layers: KnownLayers, *, per_layer_scalars: bool) -> None:
        self.measured: dict[str, ScaleGroup] = {}
        self._verification = Verification(model)
        self._layers, self._per_layer_scalars = layers, per_layer_scalars
        self._written: dict[str, Verdict] = {}

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """What the gradients say of each claim that still stands, by name of the layer."""
        claims = self._layers.claims
        claimed = {layer.name for layer in (*claims.weights.groups, *claims.joint)}
        return {name: verdict for name, verdict in self._verification.verdicts.items() if name in claimed}

    def drain(self, taps: Sequence[OptimizerTap]) -> Recording | None:
        """One recording of all that the taps hold; ``None`` if they hold nothing."""
        mixed: set[str] = set()
        parts = [part for tap in taps if (part := self._evaluate(tap, mixed)) is not None]
        if not parts:
            return None
        recording = merge(parts, self._layers.order)
        schema = replace(recording.schema, groups=tuple(self._rows(mixed)))
        recording = replace(recording, schema=schema)
        return replace(recording, scalars=summary_scalars(recording, per_layer=self._per_layer_scalars))

    def _evaluate(self, tap: OptimizerTap, mixed: set[str]) -> Recording | None:
        """All formulas at once over the steps that a tap has recorded."""
        drained = tap.drain()
        if drained is None or tap.plan is None or not tap.plan.layers:
            return None
        data, host = drained
        layers = tap.plan.layers
        products = inner_products(data, host, tap.plan, tap.direction)
        table = per_layer(evaluate(products, _NAMES), layers)
        mixed |= mixed_rates(host, tap.plan)
        self.measured |= {layer.name: layer for layer in layers}
        self._verification.take(products, layers)
        self._infer(products, tap.plan)
        schema = TableSchema(
            layers=tuple(layer.name for layer in layers),
            quantities=_NAMES,
            stats=STATS,
            invariant=tuple(layer.invariant for layer in layers),
            cuts=tuple((layer.axis, layer.blocks) for layer in layers),
        )
        return Recording(
            schema,
            np.array([row.step for row in host], dtype=np.int64),
            np.array([row.wall_time for row in host], dtype=np.float64),
            table.to(torch.float32).numpy(),
        )

    def _infer(self, products: InnerProducts, plan: Plan) -> None:
        """Learn from the gradients what the graph hides, and take back what they contradict."""

        def sums(index: int) -> Sums:
            group = slice(*plan.first_group[index : index + 2])
            return products.gx[:, group], products.gg[:, group], products.xx[:, group], products.dd[:, group]

        inference = self._layers.inference
        for layer in plan.layers:
            verdict = self._verification.verdicts.get(layer.name)
            if verdict is not None and verdict.outcome == "contradicted":
                inference.refute(layer.parameter)
        probes = {probe.parameter: index for index, probe in enumerate(plan.probes)}
        places = {layer.name: index for index, layer in enumerate(plan.layers)}
        for question in self._layers.open_questions(plan.layers):
            alone, probe = sums(places[question.name]), probes.get(question.parameter)
            if probe is None:
                inference.take(question, alone, None, None)
            else:
                bias = plan.probes[probe].joint_with[0]
                inference.take(question, alone, sums(len(plan.layers) + probe), bias)

    def _rows(self, mixed: set[str]) -> list[dict[str, Any]]:
        """What is known of each weight and joint set.

        The rows are written again whenever they change. Residuals change at every step, so the verdicts shown are those
        of the last time that the outcome of any changed.
        """
        verdicts = self.verdicts
        if _outcomes(verdicts) != _outcomes(self._written):
            self._written = verdicts
        return [
            {**row, "reason": row["reason"] + (_REMARK if row["layer"] in mixed else ""), **self._verdict(row["layer"])}
            for row in self._layers.table()
        ]

    def _verdict(self, layer: str) -> dict[str, Any]:
        verdict = self._written.get(layer)
        if verdict is None:
            return {"verdict": None, "verified_share": None, "residual": None}
        seen = verdict.seen > 0
        return {
            "verdict": verdict.outcome,
            "verified_share": verdict.verified_share if seen else None,
            "residual": verdict.residual if seen else None,
        }


def _outcomes(verdicts: Mapping[str, Verdict]) -> dict[str, str]:
    return {layer: verdict.outcome for layer, verdict in verdicts.items()}
