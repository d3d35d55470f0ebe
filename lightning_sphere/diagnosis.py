"""What is worth a look in a run: rules over recorded numbers, each a pure function from evidence to findings.

A rule says nothing on a healthy run, and nothing where it does not know. To add one, write a function and put it into
:data:`RULES`; its threshold is a constant here, with the reason for its value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Severity = Literal["error", "warning", "info"]

WINDOW = 20
"""Recorded steps that count as "of late" (and as "at the start"): enough for a median that one odd step does not move,
few enough to follow a schedule."""

LOST = 0.5
"""Share of the update that rounding may discard. Beyond half of it, the weights go less than half of the way that the
optimizer asks for; float32 loses next to nothing, bfloat16 weights with a small learning rate lose nearly all."""

APART = 10.0
"""How many times faster or slower than the others a layer may turn. Layers in equilibrium turn at similar speeds, those
that are on their way to it usually within a factor of a few."""

FEWEST = 3
"""Layers that must be known for one of them to stand apart: of two, neither is the odd one."""

Medians: TypeAlias = npt.NDArray[np.floating[Any]]
"""Of one quantity: the median over each layer's groups, ``[steps, layers]``, NaN where unknown."""

PerLayer: TypeAlias = npt.NDArray[np.float64]
"""``[layers]``, NaN where unknown."""


@dataclass(frozen=True)
class Finding:
    """Something that a person should know of a run."""

    name: str
    """Short identifier of the rule."""
    title: str
    """One short sentence."""
    severity: Severity
    layers: tuple[str, ...]
    """Names of the layers concerned; empty if it concerns the run."""
    evidence: str
    """The numbers that say so."""
    meaning: str
    """What follows from it, in one sentence."""


@dataclass(frozen=True)
class Evidence:
    """What rules look at.

    Attributes:
        layers: names, in the order to show.
        invariant: whether a normalization follows, bool ``[layers]``.
        groups: what is known of a layer by its name, as ``RunRecord.groups`` describes it.
        medians: by quantity. Quantities that were not recorded are absent, and each may have steps of its own.
        steps: recorded steps, skipped ones included.
        skipped: those that were not taken.
    """

    layers: tuple[str, ...]
    invariant: npt.NDArray[np.bool_]
    groups: Mapping[str, Mapping[str, Any]]
    medians: Mapping[str, Medians]
    steps: int
    skipped: int = 0

    def of_late(self, quantity: str) -> PerLayer | None:
        """Each layer's median over the last known steps; ``None`` if the quantity was not recorded."""
        return per_layer(late(self.medians[quantity])) if quantity in self.medians else None

    def names(self, where: npt.NDArray[np.bool_]) -> tuple[str, ...]:
        """Names of some layers."""
        return tuple(self.layers[index] for index in np.flatnonzero(where))


def known_rows(medians: Medians) -> npt.NDArray[np.intp]:
    """Indices of the steps at which some layer's number is known."""
    return np.flatnonzero(~np.isnan(medians).all(axis=1))


def late(medians: Medians, window: int = WINDOW) -> Medians:
    """The last steps at which some layer's number is known, ``[at most window, layers]``."""
    return medians[known_rows(medians)[-window:]]


def per_layer(medians: Medians) -> PerLayer:
    """Each layer's median over steps, unknown ones left out; NaN where all are."""
    result = np.full(medians.shape[1], np.nan)
    known = ~np.isnan(medians).all(axis=0)
    if known.any():
        result[known] = np.nanmedian(medians[:, known].astype(np.float64), axis=0)
    return result


def middle(values: PerLayer) -> float:
    """The median over layers, unknown ones left out; NaN where all are."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else math.nan


def claim_contradicted(evidence: Evidence) -> Iterable[Finding]:
    """Gradients that have a part along the weight, where the graph of the loss says that they have none."""
    layers = _with_verdict(evidence, "contradicted")
    if layers:
        yield Finding(
            "claim contradicted",
            f"{_counted(layers)} {_verb(layers, 'does', 'do')} change with the scale of the weight",
            "error",
            layers,
            f"median |cos(gradient, weight)| {_residuals(evidence, layers)}, where 0 is expected",
            "The normalization does not make the loss independent of this weight's length, so that its effective "
            "learning rate and equilibrium do not mean what they say.",
        )


def eps_dominates(evidence: Evidence) -> Iterable[Finding]:
    """Outputs so small that the norm's eps is what they are divided by."""
    layers = _with_verdict(evidence, "eps dominates")
    if layers:
        yield Finding(
            "eps dominates",
            f"the norm's eps dominates in {_counted(layers)}",
            "warning",
            layers,
            f"median |cos(gradient, weight)| {_residuals(evidence, layers)}, as large as the share of eps explains",
            "The outputs are so small that the normalization divides by its eps instead of by their size: the layer is "
            "not scale-invariant in practice.",
        )


def updates_lost(evidence: Evidence) -> Iterable[Finding]:
    """Weights too coarse for their updates."""
    lost = evidence.of_late("lost_update")
    if lost is not None and (lost > LOST).any():
        layers = evidence.names(lost > LOST)
        yield Finding(
            "updates lost",
            f"rounding discards most of the update of {_counted(layers)}",
            "warning",
            layers,
            f"{_span(lost[lost > LOST], '.0%')} of the movement that the optimizer asked for did not happen",
            "The weights' precision is too low for so small a step: keep them in float32, or raise the learning rate.",
        )


def stands_apart(evidence: Evidence) -> Iterable[Finding]:
    """Invariant layers that turn much faster or slower than the others."""
    turned = evidence.of_late("angular_step")
    if turned is None:
        return
    turning = evidence.invariant & (turned > 0.0)
    if np.count_nonzero(turning) < FEWEST:
        return
    usual = float(np.median(turned[turning]))
    for word, which in (("faster", turning & (turned > APART * usual)), ("slower", turning & (turned < usual / APART))):
        layers = evidence.names(which)
        if layers:
            yield Finding(
                f"turns {word}",
                f"{_counted(layers)} {_verb(layers, 'turns', 'turn')} over {APART:.0f} times {word} than the others",
                "warning",
                layers,
                f"{_span(turned[which], '.2g')} rad per step; the median of all invariant layers is {usual:.2g} rad",
                "Layers in equilibrium turn at similar speeds: look at the learning rate, decay and gradients here.",
            )


def steps_skipped(evidence: Evidence) -> Iterable[Finding]:
    """Steps that a loss scaler left out."""
    if evidence.skipped:
        yield Finding(
            "steps skipped",
            f"{evidence.skipped} {'step was' if evidence.skipped == 1 else 'steps were'} not taken",
            "info",
            (),
            f"{evidence.skipped} of the {evidence.steps} steps shown",
            "The loss scaler of mixed precision leaves out steps whose gradients overflow; a few at first are usual.",
        )


def nothing_invariant(evidence: Evidence) -> Iterable[Finding]:
    """Networks without normalized weights."""
    if evidence.layers and not evidence.invariant.any():
        yield Finding(
            "nothing invariant",
            "no layer is scale-invariant",
            "info",
            (),
            f"none of {len(evidence.layers)} layers is followed by a normalization",
            "Effective learning rate and equilibrium are defined for normalized weights; the numbers shown are those "
            "of all layers.",
        )


def does_not_turn(evidence: Evidence) -> Iterable[Finding]:
    """Layers without a gradient, frozen ones, and those of which nothing is known, while others turn."""
    if "angular_step" not in evidence.medians:
        return
    recent = late(evidence.medians["angular_step"])
    if not len(recent):
        return
    still = (np.isnan(recent) | (recent == 0.0)).all(axis=0)
    layers = evidence.names(still)
    if layers:
        unknown = int(np.count_nonzero(np.isnan(recent).all(axis=0)))
        yield Finding(
            "does not turn",
            f"{_counted(layers)} {_verb(layers, 'does', 'do')} not turn",
            "info",
            layers,
            f"angular step over the last {len(recent)} steps: 0 in {len(layers) - unknown}, unknown in {unknown}",
            "It has no gradient or a learning rate of 0, it is frozen, or its updates are lost to rounding.",
        )


Rule: TypeAlias = Callable[[Evidence], Iterable[Finding]]

RULES: tuple[Rule, ...] = (
    claim_contradicted,
    eps_dominates,
    updates_lost,
    stands_apart,
    steps_skipped,
    nothing_invariant,
    does_not_turn,
)
"""In the order in which findings of the same severity are shown."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


def diagnose(evidence: Evidence, rules: Sequence[Rule] = RULES) -> list[Finding]:
    """All findings, the most severe first."""
    found = [finding for rule in rules for finding in rule(evidence)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _with_verdict(evidence: Evidence, verdict: str) -> tuple[str, ...]:
    return tuple(name for name in evidence.layers if evidence.groups.get(name, {}).get("verdict") == verdict)


def _residuals(evidence: Evidence, layers: Iterable[str]) -> str:
    found = [evidence.groups[name].get("residual") for name in layers]
    known = [float(value) for value in found if isinstance(value, (int, float)) and math.isfinite(value)]
    return _span(np.array(known), ".2g") if known else "is not told"


def _span(values: npt.NDArray[np.floating[Any]], form: str) -> str:
    low, high = format(values.min(), form), format(values.max(), form)
    return low if low == high else f"{low} to {high}"


def _counted(layers: Sequence[str]) -> str:
    return "1 layer" if len(layers) == 1 else f"{len(layers)} layers"


def _verb(layers: Sequence[str], one: str, several: str) -> str:
    return one if len(layers) == 1 else several
