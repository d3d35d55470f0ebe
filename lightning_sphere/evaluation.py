"""From what the taps measured to one recording, and to a verdict on every claim."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sphere.geometry import FORMULAS, InnerProducts, evaluate
from lightning_sphere.groups import ScaleGroup
from lightning_sphere.inference import Sums
from lightning_sphere.layers import KnownLayers
from lightning_sphere.measurement.collect import Collected, collect
from lightning_sphere.measurement.plan import Plan
from lightning_sphere.measurement.tap import OptimizerTap
from lightning_sphere.quantities import QUANTITIES, STATS
from lightning_sphere.recording import Recording, merge, summary_scalars
from lightning_sphere.running import Running
from lightning_sphere.settling import LayerEquilibrium
from lightning_sphere.statistics import per_layer
from lightning_sphere.tensorboard.schema import TableSchema
from lightning_sphere.verdict import Verdict
from lightning_sphere.verification import Verification

_log = logging.getLogger("lightning_sphere")

MISMATCH = 0.05
"""Error of an optimizer's formula, relative to the step that it asks for, above which it is told."""

RETELL = 1.2
"""States of equilibrium are written again once so many times the steps are recorded: the file stays small."""

_REMARK = "; effective_lr unknown: its tensors have different learning rates"


class Evaluation:
    """What happens at a flush.

    Args:
        model: the network.
        layers: what is known of its layers.
        names: the quantities to record, in order.
        start: makes what follows quantities that need memory beyond a flush.
        per_layer_scalars: whether curves of every layer are wanted.

    Attributes:
        measured: all layers measured so far, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: KnownLayers,
        *,
        names: Sequence[str],
        start: Callable[[], Running],
        per_layer_scalars: bool,
    ) -> None:
        self.measured: dict[str, ScaleGroup] = {}
        self._names, self._start, self._running = tuple(names), start, start()
        self._settled: dict[str, LayerEquilibrium] = {}
        self._steps = self._told_at = 0
        self._unmatched: Mapping[str, str] = {}
        self._told: set[str] = set()
        self._verification = Verification(model)
        self._layers, self._per_layer_scalars = layers, per_layer_scalars
        self._written: dict[str, Verdict] = {}

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """What the gradients say of each claim that still stands, by name of the layer."""
        claims = self._layers.claims
        claimed = {layer.name for layer in (*claims.weights.groups, *claims.joint)}
        return {name: verdict for name, verdict in self._verification.verdicts.items() if name in claimed}

    def start_anew(self) -> None:
        """Forget the paths so far: the tracker starts again."""
        self._running = self._start()

    def equilibrium(self, remaining: int | None = None) -> dict[str, LayerEquilibrium]:
        """How far each layer is from its equilibrium, by name, where nothing contradicts that it is invariant."""
        verdicts = self.verdicts
        refuted = {name for name, verdict in verdicts.items() if verdict.outcome == "contradicted"}
        found = {name: self._running.equilibrium(name, remaining) for name in self.measured if name not in refuted}
        return {name: state for name, state in found.items() if state is not None}

    def drain(self, taps: Sequence[OptimizerTap], unmatched: Mapping[str, str] | None = None) -> Recording | None:
        """One recording of all that the taps hold; ``None`` if they hold nothing.

        Args:
            taps: all of them.
            unmatched: why a parameter has no reference to measure drift from, by name.
        """
        self._unmatched = unmatched or {}
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
        self._steps += len(host)
        layers = tap.plan.layers
        collected = collect(data, host, tap.plan, tap.direction, tap.columns)
        table = self._table(collected, tap)
        mixed |= collected.mixed_rates
        self.measured |= {layer.name: layer for layer in layers}
        self._verification.take(collected.products, layers)
        self._infer(collected.products, tap.plan)
        self._compare_with_formula(collected.mismatch, type(tap.optimizer).__name__)
        schema = TableSchema(
            layers=tuple(layer.name for layer in layers),
            quantities=self._names,
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

    def _table(self, collected: Collected, tap: OptimizerTap) -> Tensor:
        """All quantities of all layers, float64 ``[steps, layers, quantities, stats]``."""
        assert tap.plan is not None
        layers, products = tap.plan.layers, collected.products
        followed = self._running.take(collected, layers, tap.direction, type(tap.optimizer).__name__)
        table = products.xx.new_full((len(products.xx), len(layers), len(self._names), len(STATS)), torch.nan)

        def fill(rows: Sequence[int], names: Sequence[str], values: Tensor) -> None:
            if len(rows) and names:
                columns = torch.tensor([self._names.index(name) for name in names], device="cpu")
                at = torch.tensor(rows, device="cpu").unsqueeze(1)
                table[at, :, columns] = per_layer(values, layers).transpose(1, 2)

        every = range(len(products.xx))
        direct = [name for name in self._names if name in FORMULAS]
        if direct:
            fill(every, direct, evaluate(products, direct))
        steadily = [name for name in self._names if name in followed and not QUANTITIES[name].rare]
        for rows, names in (
            (every, steadily),
            (collected.reference.rows, [name for name in ("drift", "straightness") if name in self._names]),
            (collected.asked.rows, [name for name in ("lost_update",) if name in self._names]),
        ):
            if names:
                fill(rows, names, torch.stack([followed[name] for name in names]))
        return table

    def _compare_with_formula(self, mismatch: tuple[float, str], optimizer: str) -> None:
        """Tell once of an optimizer whose steps are not what its formula gives."""
        error, where = mismatch
        if error > MISMATCH and optimizer not in self._told:
            self._told.add(optimizer)
            _log.warning(
                "the steps of %s are not what lightning_sphere knows of it (they differ by %.0f %% of the step at %s): "
                "its arithmetic is another, or something else changed gradients or weights within the step. "
                "effective_lr, second_moment and what follows from them may be wrong; norm, angular_step and all else "
                "that is measured is exact. lightning_sphere.directions.register says what it does",
                optimizer,
                100.0 * error,
                where,
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

        The rows are written again whenever they change. Residuals and angles change at every step, so the verdicts
        shown are those of the last time that the outcome of any changed. States of equilibrium come and go as well:
        they are those of the last time that one changed and the run had grown by a fifth since.
        """
        verdicts = self.verdicts
        if _outcomes(verdicts) != _outcomes(self._written):
            self._written = verdicts
        states = self.equilibrium()
        changed = {name: s.state for name, s in states.items()} != {name: s.state for name, s in self._settled.items()}
        if changed and self._steps >= RETELL * self._told_at:
            self._settled, self._told_at = states, self._steps

        def described(row: dict[str, Any]) -> dict[str, Any]:
            layer, settled = row["layer"], self._settled.get(row["layer"])
            reason = row["reason"] + (_REMARK if layer in mixed else "")
            if row["parameter"] in self._unmatched and "drift" in self._names:
                reason += f"; drift unknown: {self._unmatched[row['parameter']]}"
            equilibrium = None if settled is None else settled.describe()
            return {**row, "reason": reason, **self._verdict(layer), "equilibrium": equilibrium}

        return [described(row) for row in self._layers.table()]

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
