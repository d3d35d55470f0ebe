"""What is remembered of one layer to tell whether it is in equilibrium: its angles and its norm, flush by flush."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_sphere.directions import Direction
from lightning_sphere.equilibrium import Prediction
from lightning_sphere.settling import LayerEquilibrium, settle
from lightning_sphere.statistics import Array, LayerGroups

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
class GroupSteps:
    """Some recorded steps of all groups of some layers; arrays are float64 ``[steps, groups]``."""

    angle: Array
    predicted: Prediction
    square: Array
    """Square of the norm before each step; NaN for a skipped one."""
    growth: Array
    """Change of the norm's logarithm by each step."""
    gradient_square: Array
    lost: Array
    """Share of the update lost, at the steps where that was measured, if any: ``[measured, groups]``."""


@dataclass(frozen=True)
class LayerSteps:
    """The same steps of one layer's invariant groups, as far as the groups had a gradient."""

    steps: int
    """How many were not skipped, at least one."""
    growth: float
    """Sum over the steps of the change of the norm's logarithm, mean over the groups."""
    angle_square: float
    """Means over steps and groups of the angle's square, measured and predicted."""
    predicted_square: float
    norm: float
    """Geometric means over the groups before the last step."""
    predicted_norm: float
    time_constant: float
    """Median over the groups at the last step."""
    lost: float | None
    """Mean share of the update lost where that was last measured; ``None`` where it was not."""
    groups: int
    idle: int
    """Groups without any gradient."""


def condense(
    steps: GroupSteps, places: LayerGroups, claimed: npt.NDArray[np.bool_]
) -> Iterator[tuple[int, int, LayerSteps]]:
    """From groups to layers.

    Args:
        steps: at least one.
        places: where the groups of each layer are.
        claimed: which groups are invariant, bool ``[groups]``.

    Yields:
        Index of a layer that has invariant groups and took a step, its last step, and what there is to know of it.
    """
    taken = places.total(~np.isnan(steps.square)) > 0  # [steps, layers]
    alive = (steps.gradient_square > 0) & claimed
    if not taken.all():
        alive &= places.per_group(taken)
    last = len(taken) - 1 - np.argmax(taken[::-1], axis=0)
    living, row = alive.any(0), places.per_group(last)

    def mean(values: Array) -> Array:
        """Over steps and groups."""
        known = alive & ~np.isnan(values)
        total = places.total(np.add.reduce(values, axis=0, where=known))
        return np.asarray(total / places.total(np.count_nonzero(known, axis=0)))

    def living_mean(values: Array) -> Array:
        """Over the living groups, ``[groups]`` -> ``[layers]``."""
        known = living & ~np.isnan(values)
        return np.asarray(places.total(np.where(known, values, 0.0)) / places.total(known))

    def at_last(values: Array) -> Array:
        return np.asarray(np.take_along_axis(values, row[None], axis=0)[0])

    moved = alive & ~np.isnan(steps.growth)
    growth = places.total(np.where(moved, steps.growth, 0.0)) / places.total(moved)
    time = np.where(living, at_last(steps.predicted.time_constant.numpy()), np.nan)
    columns = (
        taken.sum(0),
        np.nan_to_num(growth, nan=0.0).sum(0),
        mean(np.square(steps.angle)),
        mean(np.square(steps.predicted.angle.numpy())),
        np.exp(living_mean(np.log(np.sqrt(at_last(steps.square))))),
        np.exp(living_mean(np.log(at_last(steps.predicted.norm.numpy())))),
        places.lower_median(time),
        living_mean(steps.lost[-1]) if len(steps.lost) else np.full(len(last), None),
        places.total(claimed),
        places.total(claimed & ~living),
    )
    found = zip(last.tolist(), zip(*(column.tolist() for column in columns), strict=True), strict=True)
    for index, (at, numbers) in enumerate(found):
        state = LayerSteps(*numbers)
        if state.steps and state.groups:
            yield index, at, state


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


def _sum(entries: Sequence[_Entry]) -> _Entry:
    total, *rest = entries
    for entry in rest:
        total += entry
    return total


def _later_half(entries: Sequence[_Entry]) -> Sequence[_Entry]:
    """The latest entries that cover half of the steps, at least."""
    half, covered = sum(entry.steps for entry in entries) / 2, 0
    for index in range(len(entries) - 1, 0, -1):
        covered += entries[index].steps
        if covered >= half:
            return entries[index:]
    return entries


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
            steps: what there is to know of them.
            reason: why no equilibrium is predicted, if none is.
        """
        self._history.append(_Entry(steps.steps, steps.growth, steps.angle_square, steps.predicted_square))
        if len(self._history) > KEPT:
            older, newer = self._history[:-RECENT_STEPS], self._history[-RECENT_STEPS:]
            pairs = zip(older[::2], older[1::2], strict=False)
            self._history = [one + other for one, other in pairs] + older[len(older) // 2 * 2 :] + newer
        self._groups, self._idle = steps.groups, steps.idle
        self._norm, self._predicted_norm = steps.norm, steps.predicted_norm
        self._time_constant = steps.time_constant
        unknown, dead = math.isnan(self._time_constant), steps.idle == steps.groups
        self._reason = (reason or "none of its groups had a gradient" * dead) if unknown else ""
        if steps.lost is not None:
            self._lost = steps.lost

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
        window, later = _sum(known), _sum(_later_half(known))
        # A norm that rises and falls again is where it was, and does not stand still.
        trend = max(window.growth / window.steps, later.growth / later.steps, key=abs)
        return settle(
            math.sqrt(window.predicted_square),
            self._predicted_norm,
            self._time_constant,
            math.sqrt(window.angle_square),
            self._norm,
            trend,
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
