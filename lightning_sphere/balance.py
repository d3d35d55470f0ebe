"""What is remembered of one layer to tell whether it is in equilibrium: its angles and its norm, flush by flush."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lightning_sphere.directions import Direction
from lightning_sphere.settling import LayerEquilibrium, settle

RECENT_STEPS = 50
"""Recorded steps, at least, over which angles are compared with the equilibrium's and the norm's trend is taken: one
time constant where that is longer, for real gradients come in bursts, but no further back than..."""

ALIKE = 0.25
"""... the predicted angle differs from the present one by so much: under a schedule, what was is no longer."""

LOST = 0.5
"""Share of the updates that rounding discards, above which no equilibrium can be told: decay is discarded as well."""

KEPT = 200
"""Entries of a history, beyond which every other one of the older ones is dropped."""


@dataclass(frozen=True)
class LayerSteps:
    """Some recorded steps of one layer's invariant groups; float64 ``[steps, groups]``."""

    angle: Float64[Tensor, "steps groups"]
    predicted_angle: Float64[Tensor, "steps groups"]
    predicted_norm: Float64[Tensor, "steps groups"]
    time_constant: Float64[Tensor, "steps groups"]
    square: Float64[Tensor, "steps groups"]
    """Square of the norm before each step."""
    growth: Float64[Tensor, "steps groups"]
    """Change of the norm's logarithm by each step."""
    gradient_square: Float64[Tensor, "steps groups"]
    lost: Float64[Tensor, "measured groups"]
    """Share of the update lost, at the steps where that was measured, if any."""


@dataclass(frozen=True)
class _Entry:
    """One flush."""

    start: int
    """Recorded steps before it."""
    steps: int
    log_norm: float
    """Mean over the groups, before the first step."""
    angle_square: float
    """Mean over steps and groups."""
    predicted_square: float


class Balance:
    """Follows one layer.

    Args:
        every_n_steps: measured steps are so many steps apart.
    """

    def __init__(self, every_n_steps: int) -> None:
        self._every = every_n_steps
        self._recorded = 0
        self._history: list[_Entry] = []
        self._norm = self._log_norm = math.nan
        self._predicted_norm = self._time_constant = math.nan
        self._reason = ""
        self._lost = math.nan

    def take(self, steps: LayerSteps, reason: str) -> None:
        """Add recorded steps.

        Args:
            steps: at least one, none of them skipped.
            reason: why no equilibrium is predicted, if none is.
        """
        log_norm = 0.5 * torch.where(steps.square > 0, steps.square.log(), torch.nan)
        alive = steps.gradient_square > 0  # decay alone shrinks a dead filter for ever
        entry = _Entry(
            self._recorded,
            len(steps.angle),
            _mean(log_norm[0]),
            _mean(torch.where(alive, steps.angle.square(), torch.nan)),
            _mean(torch.where(alive, steps.predicted_angle.square(), torch.nan)),
        )
        self._history.append(entry)
        if len(self._history) > KEPT:
            older, newer = self._history[:-RECENT_STEPS], self._history[-RECENT_STEPS:]
            self._history = older[::2] + newer
        self._recorded += entry.steps
        self._norm = math.exp(_mean(log_norm[-1]))
        self._log_norm = _mean(log_norm[-1] + steps.growth[-1])
        self._predicted_norm = float(steps.predicted_norm[-1].nanmedian())
        self._time_constant = float(steps.time_constant[-1].nanmedian())
        self._reason = reason if math.isnan(self._time_constant) else ""
        if len(steps.lost):
            self._lost = _mean(steps.lost[-1])

    def judge(self, remaining: int | None) -> LayerEquilibrium | None:
        """How far the layer is from its equilibrium; ``None`` before the first step.

        Args:
            remaining: optimizer steps left in the run, if that is known.
        """
        if not self._history:
            return None
        time = 0.0 if math.isnan(self._time_constant) else self._time_constant
        recent = self._last(max(RECENT_STEPS, time / self._every))
        known = [entry for entry in recent if not math.isnan(entry.angle_square + entry.predicted_square)] or recent
        steps = sum(entry.steps for entry in known)
        measured = sum(entry.angle_square * entry.steps for entry in known) / steps
        predicted = sum(entry.predicted_square * entry.steps for entry in known) / steps
        passed = (self._recorded - recent[0].start) * self._every
        return settle(
            math.sqrt(predicted),
            self._predicted_norm,
            self._time_constant,
            math.sqrt(measured),
            self._norm,
            (self._log_norm - recent[0].log_norm) / passed,
            remaining,
            self._reason or (f"rounding discards {self._lost:.0%} of its updates" if self._lost > LOST else ""),
            span=passed,
        )

    def _last(self, steps: float) -> list[_Entry]:
        """The latest entries that cover so many recorded steps, or all that are alike."""
        index = len(self._history) - 1
        present = math.sqrt(self._history[index].predicted_square)
        while index > 0 and (covered := self._recorded - self._history[index].start) < steps:
            before = math.sqrt(self._history[index - 1].predicted_square)
            if covered >= RECENT_STEPS and abs(before / present - 1.0) > ALIKE:
                break
            index -= 1
        return self._history[index:]


def why_unpredicted(direction: Direction, optimizer: str, numbers: Mapping[str, float]) -> str:
    """What keeps an equilibrium from being predicted; empty where nothing does.

    Args:
        direction: of the optimizer.
        optimizer: its name.
        numbers: the layer's, of one step; NaN where its tensors have different ones.
    """
    if direction.equilibrium is None:
        return f"no prediction is known for {optimizer}"
    for name, what, differs in (
        ("lr", "learning rate", "learning rates"),
        ("weight_decay", "weight decay", "weight decay"),
    ):
        value = numbers.get(name, math.nan)
        if math.isnan(value):
            return f"its tensors have different {differs}"
        if value == 0.0:
            return f"no {what}"
    return "no prediction is known with amsgrad" if numbers.get("amsgrad") else ""


def _mean(values: Tensor) -> float:
    return float(values.nanmean())
