"""Has a layer reached its rotational equilibrium, and if not, when will it: the state beside the prediction.

``y = (predicted angle / measured angle)^2`` relaxes towards 1 as ``exp(-t / time constant)``: it is ``(r / r_eq)^2``
under decoupled decay and ``(r / r_eq)^4`` under SGD's, whose angle falls with the square of the norm
(:mod:`lightning_sphere.equilibrium`). Close to equilibrium the norm itself relaxes with the same time constant, so that
``|growth of log r per step| * time constant`` is the relative distance of the norm from where it is heading, whatever
the prediction says about that place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["settled", "transient", "out of reach", "unknown"]

TOLERANCE = 0.15
"""A measured angle within this share of the predicted one agrees with it."""
STILL = 0.15
"""A norm nearer than this share to where it is heading no longer moves; under decoupled decay that is the same distance
as ``TOLERANCE``. A norm stands still for a moment where it turns back, too: beside the prediction, a third is asked."""

SOON = 0.1
"""Fewer time constants than this to go are fewer than angles are averaged over: no number of steps is told."""

MOST = 10_000_000
"""Beyond so many steps, as where a schedule has brought the learning rate to nearly 0, their number says nothing."""


@dataclass(frozen=True)
class LayerEquilibrium:
    """One layer's distance from rotational equilibrium.

    Attributes:
        state: ``settled``: the norm no longer moves; ``transient``: it does; ``out of reach``: it still will when the
            run ends; ``unknown``: see ``reason``.
        ratio: measured / predicted RMS angle; NaN where unknown.
        measured_angle: RMS angle per step over the last recorded steps, about a time constant of them, in radians.
        predicted_angle: RMS angle per step in equilibrium, at the learning rates of the same steps, in radians; NaN
            where unknown.
        measured_norm: norm of a group.
        predicted_norm: norm of a group in equilibrium; NaN where unknown.
        time_constant: optimizer steps in which the distance from equilibrium falls to ``1/e``; NaN where unknown.
        steps_to_go: optimizer steps until equilibrium, at the present learning rate; 0 if settled, NaN where unknown.
        reason: why the state is unknown; empty otherwise.
        remaining: optimizer steps that are left in this run; ``None`` where unknown.
        idle: groups that had no gradient of late, such as dead filters. All numbers are those of the others.
        groups: all groups of the layer.
    """

    state: State
    ratio: float
    measured_angle: float
    predicted_angle: float
    measured_norm: float
    predicted_norm: float
    time_constant: float
    steps_to_go: float
    reason: str = ""
    remaining: int | None = None
    idle: int = 0
    groups: int = 0

    @property
    def agrees(self) -> bool:
        """Whether the measured angle is within ``TOLERANCE`` of the predicted one."""
        return abs(self.ratio - 1.0) <= TOLERANCE

    def describe(self) -> str:
        """One line for people, angles in degrees."""
        if self.state == "unknown":
            return f"unknown: {self.reason}"
        return self._told() + (f"; {self.idle} of {self.groups} groups had no gradient" if self.idle else "")

    def _told(self) -> str:
        turned = f"turned by {degrees(self.measured_angle)} deg per step (RMS)"
        times = f"{times_of(self.ratio)} x the equilibrium's {degrees(self.predicted_angle)}"
        if self.state == "settled":
            if self.agrees:
                return f"settled: {turned}, {times}"
            return (
                f"settled, at {times_of(self.ratio)} x the prediction: {turned}, predicted "
                f"{degrees(self.predicted_angle)}"
            )
        if self.state != "transient" or self.steps_to_go >= SOON * self.time_constant:
            times += ", but its norm still moves" if self.agrees else ""
        if self.state == "out of reach" and not self.remaining:
            more = f"{roughly(self.steps_to_go)} more are needed at the present learning rate"
            return f"did not reach equilibrium: {more}; {turned}, {times}"
        if self.state == "out of reach":
            return (
                f"will not reach equilibrium within this run: it takes {roughly(self.steps_to_go)}, "
                f"{self.remaining:,} are left; {turned}, {times}"
            )
        if self.steps_to_go < SOON * self.time_constant:
            return f"about to settle: {turned}, {times}"
        return f"reaches equilibrium in {roughly(self.steps_to_go)}: {turned}, {times}"


def told_of_all(states: Sequence[LayerEquilibrium]) -> str:
    """One sentence on all layers for the end of a run; empty if there are none."""
    known = [state for state in states if state.state != "unknown"]
    if not known:
        reasons = sorted({state.reason for state in states})
        return f"no equilibrium of gradients and decay is predicted: {'; '.join(reasons)}" if reasons else ""
    settled = [state for state in known if state.state == "settled"]
    others = [state for state in known if state.state != "settled"]
    layers = "layer" if len(known) == 1 else "layers"
    verb = "are" if len(settled) > 1 else "is"
    told = f"{len(settled) or 'none'} of {len(known)} {layers} {verb} in equilibrium (gradients against weight decay)"
    if settled:
        told += f", turning {_span([state.ratio for state in settled], times_of)} x as far per step as predicted"
    if others:
        low, high = (chosen(state.steps_to_go for state in others) for chosen in (min, max))
        more = roughly(high) if count(low) == count(high) else f"about {count(low)} to {in_steps(high)}"
        turning = _span([state.ratio for state in others], times_of)
        one = len(others) == 1
        who = f"the other{'' if one else 's'}" if settled else "it" if one else "they"
        told += (
            f"; {who} need{'s' * one} {more} more at the present learning rate, and turn{'s' * one} "
            f"{turning} x as far as {'it' if one else 'they'} will then"
        )
    return told


def _span(values: Sequence[float], shown: Callable[[float], str]) -> str:
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low} to {high}"


def steps_to_go(ratio: float, trend: float, time_constant: float) -> float:
    """Optimizer steps until the angle is within ``TOLERANCE`` of the prediction and the norm stands still.

    ``|y - 1|`` falls as ``exp(-t/T)`` from ``|ratio^-2 - 1|`` to where ``ratio`` is ``1 +- TOLERANCE``. Where it is
    there already, the norm's distance ``|trend| T`` has yet to fall to ``STILL``: the layer passes the predicted angle
    on its way to another.

    Args:
        ratio: measured / predicted RMS angle, positive.
        trend: mean change of ``log r`` per step.
        time_constant: ``T`` in steps.

    Returns:
        Steps, at least 0. Close for SGD, AdamW and Lion; the relaxation of Adam with L2 is exponential only near
        equilibrium, and there the estimate is about 15 % low from 3 times the angle and 40 % high from a third of it.
    """
    if abs(ratio - 1.0) > TOLERANCE:
        bound = 1.0 + math.copysign(TOLERANCE, ratio - 1.0)
        return time_constant * math.log((ratio**-2 - 1.0) / (bound**-2 - 1.0))
    return time_constant * math.log(max(1.0, abs(trend) * time_constant / STILL))


def settle(
    predicted_angle: float,
    predicted_norm: float,
    time_constant: float,
    measured_angle: float,
    measured_norm: float,
    trend: float,
    remaining: int | None = None,
    reason: str = "",
    span: float = math.inf,
    idle: tuple[int, int] = (0, 0),
) -> LayerEquilibrium:
    """Judge one layer by its last recorded steps.

    Settled is a layer whose norm no longer moves: ``|trend|`` times the time constant is at most ``STILL``. The angle
    alone would not do, for it may pass the predicted one on its way; nor is it required, for real gradients are no
    random walk, and a layer may stand still beside the prediction (at most ``STILL / 3``). ``ratio`` then says how far.

    Args:
        predicted_angle: RMS angle per step in equilibrium, in radians; NaN where unknown.
        predicted_norm: norm in equilibrium; informs only, so that NaN leaves the state known.
        time_constant: in optimizer steps; NaN where unknown.
        measured_angle: RMS angle per step over the last recorded steps, in radians. Gradients of real networks come in
            bursts: take about a time constant of steps. With a tenth of it, layers in equilibrium seem to be in motion
            half of the time.
        measured_norm: norm over the same steps.
        trend: mean change of ``log r`` per step (``radius_growth``) over the same steps.
        remaining: optimizer steps that are left in the run. ``None`` where unknown: no layer is then out of reach.
        reason: why there is no prediction, if there is none; the state is then unknown.
        span: steps over which angle and trend were taken. What they say is of half of them ago, and a norm that stands
            still beside the prediction for less than half a time constant may be about to move.
        idle: how many groups had no gradient, and how many there are.

    Returns:
        The layer's state; ``unknown`` with a reason where any number but ``predicted_norm`` and ``measured_norm`` is
        not finite or the weights did not turn.
    """

    def result(state: State, ratio: float, to_go: float, reason: str = "") -> LayerEquilibrium:
        return LayerEquilibrium(
            state,
            ratio,
            measured_angle,
            predicted_angle,
            measured_norm,
            predicted_norm,
            time_constant,
            to_go,
            reason,
            remaining,
            *idle,
        )

    if not reason:
        reason = _missing(predicted_angle, time_constant, measured_angle, trend)
    if reason:
        return result("unknown", math.nan, math.nan, reason)
    ratio = measured_angle / predicted_angle
    agrees = abs(ratio - 1.0) <= TOLERANCE
    if abs(trend) * time_constant <= (STILL if agrees else STILL / 3.0) and (agrees or span >= time_constant / 2):
        return result("settled", ratio, 0.0)
    ago = span / 2 if math.isfinite(span) else 0.0
    to_go = steps_to_go(ratio, trend, time_constant)
    to_go = max(min(1.0, to_go), to_go - ago)
    return result("transient" if remaining is None or to_go <= remaining else "out of reach", ratio, to_go)


def _missing(predicted_angle: float, time_constant: float, measured_angle: float, trend: float) -> str:
    """What keeps a state from being known; empty where nothing does."""
    if not (0.0 < predicted_angle < math.inf and 0.0 < time_constant < math.inf):
        return "no prediction"
    if measured_angle == 0.0:
        return "the weights do not turn"
    if not (math.isfinite(measured_angle) and math.isfinite(trend)):
        return "not measured"
    return ""


def degrees(radians: float) -> str:
    """An angle in degrees, to two significant digits."""
    return significant(math.degrees(radians))


def times_of(ratio: float) -> str:
    """A ratio, to two decimals where it is near 1."""
    return f"{ratio:.2f}" if 0.5 < ratio < 2.0 else significant(ratio)


def significant(value: float) -> str:
    """Two significant digits, plain between 0.0001 and a million, thousands grouped; powers of ten otherwise."""
    rounded = float(f"{value:.1e}")
    if rounded == 0.0:
        return "0"
    if not 1e-4 <= rounded < 1e6:
        return f"{value:.1e}"
    digits = max(0, 1 - math.floor(math.log10(rounded)))
    return f"{rounded:,.{digits}f}"


def count(steps: float) -> str:
    """A number of steps to two significant digits, at least 1 and at most ``MOST``, thousands grouped."""
    rounded = max(1, round(float(f"{steps:.1e}")))
    return f"{rounded:,}" if rounded < MOST else f"over {MOST:,}"


def roughly(steps: float) -> str:
    """The same as an estimate, with its unit."""
    number = in_steps(steps)
    return number if number.startswith("over") else f"about {number}"


def in_steps(steps: float) -> str:
    """The same with its unit."""
    number = count(steps)
    return f"{number} step" if number == "1" else f"{number} steps"
