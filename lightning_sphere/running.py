"""Quantities that need memory beyond one flush: where each weight has been, and what its gradients were like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_sphere.directions import Direction
from lightning_sphere.equilibrium import Prediction
from lightning_sphere.geometry import angle_between, angular_step, gradient_norm, radius_growth
from lightning_sphere.groups import ScaleGroup
from lightning_sphere.measurement.collect import Collected
from lightning_sphere.settling import LayerEquilibrium, settle

FADE = 0.99
"""Weight, in the mean square of gradients, of a recorded step against the one after it."""

RECENT_STEPS = 50
"""Recorded steps, at least, over which angles are compared with the equilibrium's and the norm's trend is taken: one
time constant where that is longer, for real gradients come in bursts."""

KEPT = 200
"""Entries of a layer's history, beyond which every other one is dropped."""


@dataclass
class _Entry:
    """One flush of one layer."""

    start: int
    """Recorded steps before it."""
    steps: int
    log_norm: float
    """Mean over the groups, before the first step."""
    square: float
    """Mean square of the angle, over steps and groups."""
    predicted: float
    """Mean square of the predicted angle."""


@dataclass
class _Layer:
    """What is remembered of one layer; tensors are float64 ``[blocks]``."""

    cut: ScaleGroup
    path: Tensor
    fourth: Tensor
    """The norm to the fourth that follows from the gradients; NaN before the first step."""
    square: Tensor
    """Weighted sum of ``|x|^2 |g|^2``, and the sum of the weights."""
    weight: Tensor
    begun: Tensor
    """Whether the path has begun, bool."""
    recorded: int = 0
    history: list[_Entry] = field(default_factory=list)
    norm: float = math.nan
    log_norm: float = math.nan
    """Mean after the last step."""
    predicted_norm: float = math.nan
    time_constant: float = math.nan
    reason: str = ""


class Running:
    """Follows all layers from flush to flush.

    Args:
        every_n_steps: measured steps are so many steps apart.
        from_start: whether drift is measured from where the path begins.
    """

    def __init__(self, *, every_n_steps: int = 1, from_start: bool = True) -> None:
        self._every, self._from_start = every_n_steps, from_start
        self._layers: dict[str, _Layer] = {}

    def take(
        self, collected: Collected, layers: Sequence[ScaleGroup], direction: Direction, optimizer: str
    ) -> dict[str, Tensor]:
        """Add recorded steps.

        Args:
            collected: the steps.
            layers: whose groups come first in it.
            direction: of the optimizer.
            optimizer: its name, for people.

        Returns:
            By name of the quantity: float64 ``[steps, groups]`` of ``equilibrium_ratio``, ``adam_equivalence`` and
            ``path_length``, ``[measured steps, groups]`` of ``drift``, ``straightness`` and ``lost_update``.
        """
        states = [self._state(layer) for layer in layers]
        blocks = torch.tensor([layer.blocks for layer in layers], device="cpu")
        total = int(blocks.sum())
        claimed = torch.cat([_claimed(layer) for layer in layers])
        products = collected.products

        def cat(name: str) -> Tensor:
            return torch.cat([getattr(state, name) for state in states])

        def keep(name: str, values: Tensor) -> None:
            for state, part in zip(states, torch.split(values, blocks.tolist()), strict=True):
                setattr(state, name, part.clone())

        def per_group(values: Tensor) -> Tensor:
            return values[:, : len(layers)].repeat_interleave(blocks, dim=1)

        theta = angular_step(products)[:, :total]
        known = ~theta.isnan()
        begun = torch.cat([cat("begun").unsqueeze(0), known]).cumsum(0) > 0
        # Each angle counts for the steps that were left out since the one before.
        path = cat("path") + torch.where(known, theta, 0.0).mul(torch.where(begun[:-1], self._every, 1)).cumsum(0)
        keep("path", path[-1])
        keep("begun", begun[-1])

        square, weight = _faded(cat("square"), cat("weight"), (products.xx * products.gg)[:, :total])
        keep("square", square[-1])
        keep("weight", weight[-1])
        numbers = {name: per_group(values) for name, values in collected.numbers.items()}
        predicted = self._predict(direction, numbers, products.size[:total], square / weight, theta)
        self._remember(states, collected, theta, predicted, claimed, direction, optimizer)

        fourth = cat("fourth")
        if direction.radius is not None and self._every == 1:
            grad = gradient_norm(products)[:, :total]
            gain, decay = direction.radius(numbers)
            before = products.xx[:, :total]
            after = before * torch.exp(2.0 * radius_growth(products)[:, :total])
            equivalence, fourth = _follow(fourth, before, after, 1.0 - gain * decay, gain, grad)
            keep("fourth", fourth)
        else:
            equivalence = torch.full_like(theta, torch.nan)

        reference = collected.reference.sums[..., :total]
        drift = angle_between(*reference.unbind(1))
        rows = list(collected.reference.rows)
        straightness = drift / path[rows] if self._from_start else torch.full_like(drift, torch.nan)
        asked, unmoved, *_ = collected.asked.sums[..., :total].unbind(1)
        return {
            "equilibrium_ratio": torch.where(claimed, theta / predicted.angle, torch.nan),
            "adam_equivalence": torch.where(claimed, equivalence, torch.nan),
            "path_length": torch.where(theta.isnan(), torch.nan, path),
            "drift": drift,
            "straightness": straightness,
            "lost_update": unmoved / asked,
        }

    def equilibrium(self, name: str, remaining: int | None) -> LayerEquilibrium | None:
        """How far a layer is from its equilibrium; ``None`` for one that was not measured or is not invariant.

        Args:
            name: of the layer.
            remaining: optimizer steps left in the run, if that is known.
        """
        state = self._layers.get(name)
        if state is None or not state.cut.invariant or not state.history:
            return None
        span = max(RECENT_STEPS, 0.0 if math.isnan(state.time_constant) else state.time_constant / self._every)
        recent = _last(state.history, state.recorded, span)
        known = [entry for entry in recent if not math.isnan(entry.square + entry.predicted)] or recent
        steps = sum(entry.steps for entry in known)
        square = sum(entry.square * entry.steps for entry in known) / steps
        predicted = sum(entry.predicted * entry.steps for entry in known) / steps
        passed = (state.recorded - recent[0].start) * self._every
        return settle(
            math.sqrt(predicted),
            state.predicted_norm,
            state.time_constant,
            math.sqrt(square),
            state.norm,
            (state.log_norm - recent[0].log_norm) / passed,
            remaining,
            state.reason,
            age=passed / 2,
        )

    def _state(self, layer: ScaleGroup) -> _Layer:
        known = self._layers.get(layer.name)
        if known is None or (known.cut.parts, known.cut.blocks) != (layer.parts, layer.blocks):
            zeros = torch.zeros(layer.blocks, dtype=torch.float64, device="cpu")
            known = _Layer(layer, zeros, torch.full_like(zeros, torch.nan), zeros, zeros, zeros > 0)
            self._layers[layer.name] = known
        known.cut = layer
        return known

    def _predict(
        self, direction: Direction, numbers: dict[str, Tensor], size: Tensor, mean_square: Tensor, like: Tensor
    ) -> Prediction:
        if direction.equilibrium is None:
            unknown = torch.full_like(like, torch.nan)
            return Prediction(unknown, unknown, unknown)
        return direction.equilibrium(numbers, size, mean_square)

    def _remember(
        self,
        states: Sequence[_Layer],
        collected: Collected,
        theta: Tensor,
        predicted: Prediction,
        claimed: Tensor,
        direction: Direction,
        optimizer: str,
    ) -> None:
        """Note what tells whether each layer is in equilibrium."""
        products, stop = collected.products, 0
        growth = radius_growth(products)
        for index, state in enumerate(states):
            start, stop = stop, stop + state.cut.blocks
            mine = slice(start, stop)
            members = claimed[mine]
            taken = ~products.xx[:, mine].isnan().all(1)
            if not taken.any() or not members.any():
                continue
            angle, wanted = theta[taken, mine][:, members], predicted.angle[taken, mine][:, members]
            alive = products.gg[taken, mine][:, members] > 0  # decay alone shrinks a dead filter for ever
            square = products.xx[taken, mine][:, members]
            log_norm = 0.5 * torch.where(square > 0, square.log(), torch.nan)
            entry = _Entry(
                state.recorded,
                int(taken.sum()),
                _mean(log_norm[0]),
                _mean(torch.where(alive, angle.square(), torch.nan)),
                _mean(torch.where(alive, wanted.square(), torch.nan)),
            )
            state.history.append(entry)
            if len(state.history) > KEPT:
                state.history = state.history[:-RECENT_STEPS][::2] + state.history[-RECENT_STEPS:]
            state.recorded += entry.steps
            state.log_norm = _mean(log_norm[-1] + growth[taken, mine][-1, members])
            state.norm = math.exp(_mean(log_norm[-1]))
            last = int(taken.nonzero()[-1])
            state.predicted_norm = float(predicted.norm[last, mine][members].nanmedian())
            state.time_constant = float(predicted.time_constant[last, mine][members].nanmedian())
            numbers = {name: float(values[last, index]) for name, values in collected.numbers.items()}
            state.reason = _why_unknown(direction, optimizer, numbers) if math.isnan(state.time_constant) else ""


def _why_unknown(direction: Direction, optimizer: str, numbers: dict[str, float]) -> str:
    """What keeps an equilibrium from being predicted; empty where nothing does."""
    if direction.equilibrium is None:
        return f"no prediction is known for {optimizer}"
    for name, what in (("lr", "learning rate"), ("weight_decay", "weight decay")):
        value = numbers.get(name, math.nan)
        if math.isnan(value):
            return f"its tensors have different {what}s" if name == "lr" else f"its tensors have different {what}"
        if value == 0.0:
            return f"no {what}"
    return "no prediction is known with amsgrad" if numbers.get("amsgrad") else ""


def _claimed(layer: ScaleGroup) -> Tensor:
    """Which groups of a layer are invariant, bool ``[blocks]``."""
    if layer.members is None or not layer.invariant:
        return torch.full((layer.blocks,), layer.invariant, device="cpu")
    return torch.zeros(layer.blocks, dtype=torch.bool, device="cpu").index_fill_(
        0, torch.tensor(layer.members, dtype=torch.int64, device="cpu"), True
    )


def _faded(total: Tensor, weight: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """An exponentially weighted sum and its weight after each of some steps; unknown values count for nothing.

    Args:
        total: the sum so far, ``[groups]``.
        weight: its weight so far.
        values: ``[steps, groups]``.

    Returns:
        Sum and weight, ``[steps, groups]``: their ratio is the mean.
    """
    totals, weights = [], []
    known = values.isfinite()
    for value, counts in zip(torch.where(known, values, 0.0), known, strict=True):
        total, weight = FADE * total + value, FADE * weight + counts
        totals.append(total)
        weights.append(weight)
    return torch.stack(totals), torch.stack(weights)


def _follow(
    fourth: Tensor, before: Tensor, after: Tensor, keep: Tensor, rate: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """``r'^4`` against the norm to the fourth that follows from the gradients (Roburin et al., SGD as AdamG*).

    ``R <- keep^4 R + 2 keep^2 turn^2`` with ``keep = 1 - lr wd`` and ``turn = lr |grad L(u)|``; exact up to ``lr^4``.
    Where the rate is unknown, so is the ratio.

    Args:
        fourth: ``R`` so far, ``[groups]``; NaN where it begins with the first known norm.
        before: ``r^2`` before each step, ``[steps, groups]``.
        after: ``r'^2``.
        keep: see above.
        rate: the learning rate.
        slope: ``|grad L(u)|``; NaN where a step had no gradient, and the optimizer took none.

    Returns:
        The ratio, ``[steps, groups]``, and ``R`` after the last step.
    """
    ratios = torch.empty_like(before)
    for step in range(len(before)):
        fourth = torch.where(fourth.isnan(), before[step].square(), fourth)
        kept = keep[step].square()
        moved = kept.square() * fourth + 2.0 * kept * (rate[step] * slope[step]).square()
        fourth = torch.where(slope[step].isnan(), fourth, moved)
        ratios[step] = after[step].square() / fourth
    return ratios, fourth


def _last(history: Sequence[_Entry], recorded: int, steps: float) -> list[_Entry]:
    """The latest entries that cover so many steps, or all."""
    index = len(history) - 1
    while index > 0 and recorded - history[index].start < steps:
        index -= 1
    return list(history[index:])


def _mean(values: Tensor) -> float:
    return float(values.nanmean())
