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
"""Entries of a history, beyond which the older ones are added up in pairs."""


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
    """Some consecutive steps, means over the groups that had a gradient."""

    steps: int
    growth: float
    """Sum over the steps of the change of the norm's logarithm."""
    angle_square: float
    predicted_square: float

    def __add__(self, later: _Entry) -> _Entry:
        steps = self.steps + later.steps
        share = self.steps / steps
        return _Entry(
            steps,
            self.growth + later.growth,
            share * self.angle_square + (1.0 - share) * later.angle_square,
            share * self.predicted_square + (1.0 - share) * later.predicted_square,
        )


class Balance:
    """Follows one layer.

    Groups without any gradient, such as dead filters, are left out: decay alone shrinks them for ever.

    Args:
        every_n_steps: measured steps are so many steps apart.
    """

    def __init__(self, every_n_steps: int) -> None:
        self._every = every_n_steps
        self._history: list[_Entry] = []
        self._norm = self._predicted_norm = self._time_constant = self._lost = math.nan
        self._groups = self._idle = 0
        self._reason = ""

    def take(self, steps: LayerSteps, reason: str) -> None:
        """Add recorded steps.

        Args:
            steps: at least one, none of them skipped.
            reason: why no equilibrium is predicted, if none is.
        """
        alive = steps.gradient_square > 0

        def mean(values: Tensor) -> float:
            return float(torch.where(alive, values, torch.nan).nanmean())

        growth = torch.where(alive, steps.growth, torch.nan).nanmean(1).nan_to_num(0.0)
        angle, predicted = mean(steps.angle.square()), mean(steps.predicted_angle.square())
        self._history.append(_Entry(len(alive), float(growth.sum()), angle, predicted))
        if len(self._history) > KEPT:
            older, newer = self._history[:-RECENT_STEPS], self._history[-RECENT_STEPS:]
            pairs = zip(older[::2], older[1::2], strict=False)
            self._history = [one + other for one, other in pairs] + older[len(older) // 2 * 2 :] + newer
        living = alive.any(0)
        self._groups, self._idle = len(living), int((~living).sum())
        self._norm = float(steps.square[-1, living].sqrt().log().nanmean().exp())
        self._predicted_norm = float(steps.predicted_norm[-1, living].log().nanmean().exp())
        self._time_constant = float(steps.time_constant[-1, living].nanmedian())
        unknown = math.isnan(self._time_constant)
        self._reason = (reason or "none of its groups had a gradient" * (not living.any())) if unknown else ""
        if len(steps.lost):
            self._lost = float(steps.lost[-1, living].nanmean())

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
        window = known[0]
        for entry in known[1:]:
            window += entry
        return settle(
            math.sqrt(window.predicted_square),
            self._predicted_norm,
            self._time_constant,
            math.sqrt(window.angle_square),
            self._norm,
            window.growth / window.steps,
            remaining,
            self._reason or (f"rounding discards {self._lost:.0%} of its updates" if self._lost > LOST else ""),
            span=window.steps * self._every,
            idle=(self._idle, self._groups),
        )

    def _last(self, steps: float) -> list[_Entry]:
        """The latest entries that cover so many recorded steps, or all that are alike."""
        index, covered = len(self._history) - 1, self._history[-1].steps
        present = math.sqrt(self._history[-1].predicted_square)
        while index > 0 and covered < steps:
            before = math.sqrt(self._history[index - 1].predicted_square)
            if covered >= RECENT_STEPS and abs(before / present - 1.0) > ALIKE:
                break
            index -= 1
            covered += self._history[index].steps
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
