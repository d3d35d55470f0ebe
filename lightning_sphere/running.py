"""Quantities that need memory beyond one flush: where each weight has been, and what its gradients were like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_sphere.balance import Balance, LayerSteps, why_unpredicted
from lightning_sphere.directions import Direction
from lightning_sphere.equilibrium import Prediction
from lightning_sphere.geometry import angle_between, angular_step, gradient_norm, radius_growth
from lightning_sphere.groups import ScaleGroup
from lightning_sphere.measurement.collect import Collected
from lightning_sphere.settling import LayerEquilibrium

FADE = 0.99
"""Weight, in the mean square of gradients, of a recorded step against the one after it."""


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
    balance: Balance


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
        lost = unmoved / asked
        why = partial(why_unpredicted, direction, optimizer)
        self._balance(states, collected, theta, predicted, lost, claimed, why)
        return {
            "equilibrium_ratio": torch.where(claimed, theta / predicted.angle, torch.nan),
            "adam_equivalence": torch.where(claimed, equivalence, torch.nan),
            "path_length": torch.where(theta.isnan(), torch.nan, path),
            "drift": drift,
            "straightness": straightness,
            "lost_update": lost,
        }

    def equilibrium(self, name: str, remaining: int | None) -> LayerEquilibrium | None:
        """How far a layer is from its equilibrium; ``None`` for one that was not measured or is not invariant.

        Args:
            name: of the layer.
            remaining: optimizer steps left in the run, if that is known.
        """
        state = self._layers.get(name)
        return state.balance.judge(remaining) if state is not None and state.cut.invariant else None

    def _state(self, layer: ScaleGroup) -> _Layer:
        known = self._layers.get(layer.name)
        if known is None or (known.cut.parts, known.cut.blocks) != (layer.parts, layer.blocks):
            zeros = torch.zeros(layer.blocks, dtype=torch.float64, device="cpu")
            known = _Layer(layer, zeros, zeros + torch.nan, zeros, zeros, zeros > 0, Balance(self._every))
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

    def _balance(
        self,
        states: Sequence[_Layer],
        collected: Collected,
        theta: Tensor,
        predicted: Prediction,
        lost: Tensor,
        claimed: Tensor,
        why: Callable[[Mapping[str, float]], str],
    ) -> None:
        """Note what tells whether each layer is in equilibrium."""
        products, stop = collected.products, 0
        growth = radius_growth(products)
        steps = (theta, predicted.angle, predicted.norm, predicted.time_constant, products.xx, growth, products.gg)
        for index, state in enumerate(states):
            start, stop = stop, stop + state.cut.blocks
            members = torch.arange(start, stop, device="cpu")[claimed[start:stop]]
            taken = (~products.xx[:, start:stop].isnan().all(1)).nonzero()
            if len(taken) and len(members):
                last = int(taken[-1])
                numbers = {name: float(values[last, index]) for name, values in collected.numbers.items()}
                mine = [*(values[taken, members] for values in steps), lost[:, members]]
                state.balance.take(LayerSteps(*mine), why(numbers))


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
