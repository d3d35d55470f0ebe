"""From what the taps measured to one recording, and to a verdict on every claim."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from lightning_sphere.directions import Direction
from lightning_sphere.epsilon import Norms, NormStatistics
from lightning_sphere.geometry import FORMULAS, InnerProducts, evaluate
from lightning_sphere.groups import ScaleGroup
from lightning_sphere.histograms import Counted, Histograms
from lightning_sphere.inference import Sums
from lightning_sphere.layers import KnownLayers
from lightning_sphere.measurement.asked import error, rounding
from lightning_sphere.measurement.collect import Collected, collect
from lightning_sphere.measurement.plan import Plan
from lightning_sphere.measurement.ring import Drained, HostRow
from lightning_sphere.measurement.tap import OptimizerTap
from lightning_sphere.measurement.transfer import Transfer
from lightning_sphere.measurement.trust import FAITHFUL
from lightning_sphere.quantities import QUANTITIES, STATS
from lightning_sphere.recording import Recording, merge, summary_scalars
from lightning_sphere.running import MEASURED, Running
from lightning_sphere.settling import LayerEquilibrium
from lightning_sphere.statistics import LayerGroups, per_layer
from lightning_sphere.strides import Stride
from lightning_sphere.tensorboard.schema import TableSchema
from lightning_sphere.verdict import Verdict
from lightning_sphere.verification import Verification

_log = logging.getLogger("lightning_sphere")

MISMATCH = 0.05
"""Error of an optimizer's formula, relative to the step that it asks for, above which it is told."""

BLOCK = 1 << 20
"""Numbers that are computed at a time before their statistics are taken, about."""

_REMARK = "; effective_lr unknown: its tensors have different learning rates"


@dataclass
class Batch:
    """Recorded steps of one optimizer, to be evaluated."""

    tap: OptimizerTap
    drained: Drained
    plan: Plan
    direction: Direction
    columns: tuple[str, ...]
    optimizer: str
    """Its name, for people."""
    statistics: NormStatistics
    """What the norms behind the plan's layers held."""
    formula_error: float | None = None
    """Known after the evaluation, see :func:`lightning_sphere.measurement.asked.error`."""


class Evaluation:
    """What happens at a flush.

    Args:
        model: the network.
        layers: what is known of its layers.
        names: the quantities to record, in order.
        start: makes what follows quantities that need memory beyond a flush.
        per_layer_scalars: curves of every layer have a point at each so many recorded steps; 0 for no such curves.
        histograms: the groups of every layer are counted at each so many recorded steps; 0 for never.
        total_steps: how many steps the run will have, if that is known.

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
        per_layer_scalars: int = 0,
        histograms: int = 0,
        total_steps: int | None = None,
    ) -> None:
        self._total_steps, self._remaining = total_steps, total_steps
        self.measured: dict[str, ScaleGroup] = {}
        self._names, self._start, self._running = tuple(names), start, start()
        self._unmatched: Mapping[str, str] = {}
        self._told: set[str] = set()
        self._verification = Verification()
        self._layers = layers
        self._per_layer = {name: Stride(per_layer_scalars) for name in names if per_layer_scalars}
        self._histograms = Histograms(histograms, names) if histograms else None
        self._model, self._norms = model, WeakKeyDictionary[Plan, Norms]()

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """What the gradients say of each claim that still stands, by name of the layer."""
        claims = self._layers.claims
        claimed = {layer.name for layer in (*claims.weights.groups, *claims.joint)}
        return {name: verdict for name, verdict in self._verification.verdicts.items() if name in claimed}

    def start_anew(self) -> None:
        """Forget the paths so far: the tracker starts again."""
        self._running = self._start()

    @property
    def equilibrium(self) -> dict[str, LayerEquilibrium]:
        """How far each layer is from its equilibrium, by name, where nothing contradicts that it is invariant."""
        remaining = self._remaining
        verdicts = self.verdicts
        refuted = {name for name, verdict in verdicts.items() if verdict.outcome == "contradicted"}
        found = {name: self._running.equilibrium(name, remaining) for name in self.measured if name not in refuted}
        return {name: state for name, state in found.items() if state is not None}

    def gather(self, taps: Sequence[OptimizerTap]) -> list[Batch]:
        """What the taps hold, on its way to the host. Call it in the thread that trains.

        Args:
            taps: all of them, none with steps that were gathered before and not evaluated.
        """
        if self._total_steps is not None:
            self._remaining = max(0, self._total_steps - max(tap.steps_seen for tap in taps))
        batches = []
        for tap in taps:
            drained, plan = tap.drain(), tap.plan
            if drained is not None and plan is not None:
                name = type(tap.optimizer).__name__
                batches.append(Batch(tap, drained, plan, tap.direction, tap.columns, name, self._statistics(plan)))
        return batches

    def evaluate(self, batches: Sequence[Batch], unmatched: Mapping[str, str] | None = None) -> Recording | None:
        """One recording of all that was gathered; ``None`` if there is nothing. It may run beside the training.

        Args:
            batches: of all taps.
            unmatched: why a parameter has no reference to measure drift from, by name.
        """
        self._unmatched = unmatched or {}
        mixed: set[str] = set()
        parts = [part for batch in batches if (part := self._evaluate(batch, mixed)) is not None]
        if not parts:
            return None
        recording = merge(parts, self._layers.order)
        schema = replace(recording.schema, groups=tuple(self._rows(mixed)))
        recording = replace(recording, schema=schema)
        return replace(recording, scalars=summary_scalars(recording, per_layer=self._per_layer))

    def _evaluate(self, batch: Batch, mixed: set[str]) -> Recording | None:
        """All formulas at once over the steps that a tap has recorded."""
        data, host = batch.drained.result()
        batch.formula_error = _formula_error(data, host, batch)
        if not batch.plan.layers:
            return None
        layers = batch.plan.layers
        collected = collect(data, host, batch.plan, batch.direction, batch.columns)
        table, histograms = self._table(collected, batch)
        mixed |= collected.mixed_rates
        self.measured |= {layer.name: layer for layer in layers}
        self._verification.take(collected.products, layers, batch.statistics)
        self._infer(collected.products, batch.plan)
        self._compare_with_formula(collected.mismatch, batch.optimizer)
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
            table,
            histograms=histograms,
        )

    def _statistics(self, plan: Plan) -> NormStatistics:
        """What the norms behind a plan's layers hold now."""
        norms = self._norms.get(plan)
        if norms is None:
            norms = self._norms[plan] = Norms(plan.layers, dict(self._model.named_modules()))
        return NormStatistics.take(norms, Transfer)

    @np.errstate(all="ignore")
    def _table(self, collected: Collected, batch: Batch) -> tuple[npt.NDArray[np.float32], dict[int, Counted]]:
        """All quantities of all layers, float32 ``[steps, layers, quantities, stats]``; and histograms by row."""
        layers, products = batch.plan.layers, collected.products
        places = LayerGroups(layers)
        steps, groups = products.xx.shape
        table = np.full((steps, len(layers), len(self._names), len(STATS)), np.nan, dtype=np.float32)

        def fill(rows: slice | list[int], names: Sequence[str], values: npt.NDArray[np.float64]) -> None:
            found = per_layer(values, places)
            for index, name in enumerate(names):
                table[rows, :, self._names.index(name)] = found[:, :, index]

        counting = None
        if self._histograms is not None:
            counting = self._histograms.begin(batch.tap, layers, places, products.xx.numpy())
        direct = [name for name in self._names if name in FORMULAS]
        formulas = [*direct, *(name for name in MEASURED if name not in direct)]
        measured = {name: np.empty((steps, groups)) for name in MEASURED}
        at_a_time = max(1, BLOCK // (groups * len(formulas)))
        for start in range(0, steps, at_a_time):
            some = slice(start, start + at_a_time)
            found = evaluate(products.part(some, slice(None)), formulas).numpy()
            for name, values in measured.items():
                values[some] = found[formulas.index(name)]
            if direct:
                fill(some, direct, found[: len(direct)])
                if counting is not None:
                    counting.take(start, direct, found[: len(direct)])
        followed = self._running.take(collected, layers, batch.direction, batch.optimizer, measured)
        for rows, names in (
            (slice(None), [name for name in followed if not QUANTITIES[name].rare]),
            (list(collected.reference.rows), ["drift", "straightness"]),
            (list(collected.asked.rows), ["lost_update"]),
        ):
            wanted = [name for name in names if name in self._names]
            if wanted and rows != []:
                fill(rows, wanted, np.stack([followed[name] for name in wanted]))
        if "lr" in self._names:
            table[:, :, self._names.index("lr")] = collected.numbers["lr"].numpy()[:, : len(layers), None]
        return table, counting.found if counting is not None else {}

    def _compare_with_formula(self, mismatch: tuple[float, str], optimizer: str) -> None:
        """Tell once of an optimizer whose steps are not what its formula gives."""
        error, where = mismatch
        if error > MISMATCH and optimizer not in self._told:
            self._told.add(optimizer)
            _log.warning(
                "the steps of %s are not what lightning_sphere knows of it (they differ by %.0f %% of the step at %s): "
                "its arithmetic is another, or something else changed gradients or weights within the step. "
                "effective_lr, second_moment and what follows from them may be wrong; norm, angular_step and all else "
                "is measured with a copy of the weights while that is so, and exact. "
                "lightning_sphere.directions.register says what it does",
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
        """What is known of each weight and joint set now."""
        verdicts, states = self.verdicts, self.equilibrium

        def described(row: dict[str, Any]) -> dict[str, Any]:
            layer, settled = row["layer"], states.get(row["layer"])
            reason = row["reason"] + (_REMARK if layer in mixed else "")
            if row["parameter"] in self._unmatched and "drift" in self._names:
                reason += f"; drift unknown: {self._unmatched[row['parameter']]}"
            return {
                **row,
                "reason": reason,
                **_told(verdicts.get(layer)),
                "equilibrium": None if settled is None else settled.describe(),
                "equilibrium_state": None if settled is None else settled.state,
            }

        return [described(row) for row in self._layers.table()]


def _formula_error(data: Tensor, host: Sequence[HostRow], batch: Batch) -> float | None:
    """By comparison, where there was one; and what rounding alone must make of steps as small as the last one."""
    compared = error([row.asked for row in host], batch.plan)
    last = dict(zip(batch.columns, data[-1], strict=True))
    expected = rounding(last["xx"], last["dd"], batch.plan)
    return max(compared or 0.0, expected) if compared is not None or expected > FAITHFUL else None


def _told(verdict: Verdict | None) -> dict[str, Any]:
    """What a row says of a verdict."""
    if verdict is None:
        return {"verdict": None, "verified_share": None, "residual": None}
    seen = verdict.seen > 0
    return {
        "verdict": verdict.outcome,
        "verified_share": verdict.verified_share if seen else None,
        "residual": verdict.residual if seen else None,
    }
