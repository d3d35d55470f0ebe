"""Quantities that need memory beyond one flush: where each weight has been, and what its gradients were like."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_sphere.balance import Balance, GroupSteps, condense, why_unpredicted
from lightning_sphere.directions import Direction
from lightning_sphere.equilibrium import Prediction
from lightning_sphere.geometry import angle_between, tiles
from lightning_sphere.groups import ScaleGroup
from lightning_sphere.measurement.collect import Collected
from lightning_sphere.settling import LayerEquilibrium
from lightning_sphere.statistics import Array, LayerGroups

FADE = 0.99
"""Weight, in the mean square of gradients, of a recorded step against the one after it."""

MEASURED = ("angular_step", "gradient_norm", "radius_growth")
"""Formulas of :mod:`lightning_sphere.geometry` that are followed."""


class _Memory:
    """What is remembered of some layers, one after another; arrays are float64 ``[groups]``.

    Args:
        layers: the layers.
        every_n_steps: measured steps are so many steps apart.
    """

    def __init__(self, layers: Sequence[ScaleGroup], every_n_steps: int) -> None:
        self.layers, self.places = tuple(layers), LayerGroups(layers)
        invariant = np.array([layer.invariant for layer in layers], dtype=bool)
        self.claimed = self.places.counting & self.places.per_group(invariant)
        """Which groups are invariant, bool."""
        count = self.places.count
        self.path = np.zeros(count)
        self.begun = np.zeros(count, dtype=bool)
        """Whether the path has begun."""
        self.fourth = np.full(count, np.nan)
        """The norm to the fourth that follows from the gradients; NaN before the first step."""
        self.square, self.weight = np.zeros(count), np.zeros(count)
        """Weighted sum of ``|x|^2 |g|^2``, and the sum of the weights."""
        self.balances = [Balance(every_n_steps) for _ in layers]

    def take_over(self, index: int, other: _Memory, there: int) -> None:
        """Remember of a layer what another memory does, if it is cut into the same groups there."""
        one, known = self.layers[index], other.layers[there]
        if (one.parts, one.blocks) == (known.parts, known.blocks):
            for name in ("path", "begun", "fourth", "square", "weight"):
                getattr(self, name)[self.places.of(index)] = getattr(other, name)[other.places.of(there)]
            self.balances[index] = other.balances[there]


class _DiffersError(Exception):
    """A number is not the same for all groups."""


class _Numbers(Mapping[str, Tensor]):
    """An optimizer's numbers at some steps, made when they are read.

    Args:
        numbers: float64 ``[steps, layers]`` by name.
        steps: which.
        layer: each group's layer, int64 ``[groups]``, for numbers of shape ``[steps, groups]``. ``None`` for the shape
            ``[steps, 1]``, and :class:`_DiffersError` for a number that differs.
    """

    def __init__(self, numbers: Mapping[str, Tensor], steps: slice, layer: Array | None) -> None:
        self._numbers, self._steps, self._layer = numbers, steps, layer

    def __getitem__(self, name: str) -> Tensor:
        values = self._numbers[name].numpy()[self._steps]
        if self._layer is not None:
            return torch.from_numpy(np.take(values, self._layer, axis=1))
        if not _same(values):
            raise _DiffersError(name)
        return torch.from_numpy(values[:, :1].copy())

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def _same(values: Array) -> bool:
    """Whether all layers have the same numbers, ``[steps, layers]``."""
    return np.array_equal(values, np.broadcast_to(values[:, :1], values.shape), equal_nan=True)


class Running:
    """Follows all layers from flush to flush.

    Args:
        every_n_steps: measured steps are so many steps apart.
        from_start: whether drift is measured from where the path begins.
    """

    def __init__(self, *, every_n_steps: int = 1, from_start: bool = True) -> None:
        self._every, self._from_start = every_n_steps, from_start
        self._places: dict[str, tuple[_Memory, int]] = {}

    @np.errstate(all="ignore")
    def take(
        self,
        collected: Collected,
        layers: Sequence[ScaleGroup],
        direction: Direction,
        optimizer: str,
        measured: Mapping[str, Array],
    ) -> dict[str, Array]:
        """Add recorded steps.

        Args:
            collected: the steps.
            layers: whose groups come first in it.
            direction: of the optimizer.
            optimizer: its name, for people.
            measured: what the formulas named in ``MEASURED`` give of these steps and groups, ``[steps, groups]``.

        Returns:
            By name of the quantity: float64 ``[steps, groups]`` of ``equilibrium_ratio``, its predictions
            ``equilibrium_angle`` and ``equilibrium_norm``, ``adam_equivalence`` and ``path_length``; ``[measured steps,
            groups]`` of ``drift``, ``straightness`` and ``lost_update``.
        """
        memory = self._memory(layers)
        total = memory.places.count
        theta, slope, growth = (measured[name][:, :total] for name in MEASURED)
        xx, gg = (values[:, :total].numpy() for values in (collected.products.xx, collected.products.gg))

        known = ~np.isnan(theta)
        begun = np.logical_or.accumulate(np.concatenate([memory.begun[None], known]))
        # Each angle counts for the steps that were left out since the one before.
        apart = collected.apart.numpy()[:, None]
        turned = np.where(known, theta, 0.0) * np.where(begun[:-1], apart, 1)
        path = memory.path + turned.cumsum(0)
        memory.path, memory.begun = path[-1].copy(), begun[-1].copy()

        mean_square, memory.square, memory.weight = _faded(memory.square, memory.weight, xx * gg)
        layer = memory.places.per_group(np.arange(len(layers)))
        predicted = _predicted(direction, collected, layer, mean_square)

        ratio = theta / predicted.angle.numpy()
        equivalence = np.full_like(theta, np.nan)
        if direction.radius is not None and self._every == 1:
            after = xx * np.exp(2.0 * growth)
            gain, decay = (values.numpy() for values in direction.radius(collected.numbers))
            keep, rate = (
                values[:, :1] if _same(values) else np.take(values, layer, axis=1)
                for values in (1.0 - gain * decay, gain)
            )
            anew = apart[:, 0] > 1
            equivalence, memory.fourth = _follow(memory.fourth, xx, after, keep, rate, slope, anew)
        balanced = {"equilibrium_angle": predicted.angle.numpy(), "equilibrium_norm": predicted.norm.numpy()}
        for values in (ratio, equivalence, *balanced.values()):
            values[:, ~memory.claimed] = np.nan

        reference = collected.reference.sums[..., :total]
        drift = angle_between(*reference.unbind(1)).numpy()
        rows = list(collected.reference.rows)
        straightness = drift / path[rows] if self._from_start else np.full_like(drift, np.nan)
        asked, unmoved, *_ = collected.asked.sums[..., :total].numpy().swapaxes(0, 1)
        lost = unmoved / asked
        steps = GroupSteps(theta, predicted, xx, growth, gg, lost)
        for index, last, state in condense(steps, memory.places, memory.claimed):
            reason = ""
            if math.isnan(state.time_constant):
                numbers = {name: float(values[last, index]) for name, values in collected.numbers.items()}
                reason = why_unpredicted(direction, optimizer, numbers)
            memory.balances[index].take(state, reason)
        path[~known] = np.nan
        return {
            "equilibrium_ratio": ratio,
            "adam_equivalence": equivalence,
            "path_length": path,
            "drift": drift,
            "straightness": straightness,
            "lost_update": lost,
            **balanced,
        }

    def equilibrium(self, name: str, remaining: int | None) -> LayerEquilibrium | None:
        """How far a layer is from its equilibrium; ``None`` for one that was not measured or is not invariant.

        Args:
            name: of the layer.
            remaining: optimizer steps left in the run, if that is known.
        """
        if name not in self._places:
            return None
        memory, index = self._places[name]
        return memory.balances[index].judge(remaining) if memory.layers[index].invariant else None

    def _memory(self, layers: Sequence[ScaleGroup]) -> _Memory:
        """The memory of just these layers, with what is known of any of them."""
        known = self._places.get(layers[0].name)
        if known is not None and len(known[0].layers) == len(layers):  # noqa: SIM102
            if all(one is other for one, other in zip(known[0].layers, layers, strict=True)):
                return known[0]
        memory = _Memory(layers, self._every)
        for index, layer in enumerate(layers):
            if layer.name in self._places:
                memory.take_over(index, *self._places[layer.name])
            self._places[layer.name] = memory, index
        return memory


def _predicted(direction: Direction, collected: Collected, layer: Array, mean_square: Array) -> Prediction:
    """The equilibrium of all groups at all steps.

    Args:
        direction: of the optimizer.
        collected: the steps.
        layer: each group's layer, int64 ``[groups]``.
        mean_square: of the gradients on the sphere, ``[steps, groups]``.
    """
    shape = mean_square.shape
    found = Prediction(*(torch.full(shape, torch.nan, dtype=torch.float64, device="cpu") for _ in range(3)))
    if direction.equilibrium is None:
        return found
    size, square = collected.products.size[: len(layer)], torch.from_numpy(mean_square)
    for rows, some in tiles(*shape):
        rest = size[some], square[rows, some]
        try:
            own = direction.equilibrium(_Numbers(collected.numbers, rows, None), *rest)
        except _DiffersError:
            own = direction.equilibrium(_Numbers(collected.numbers, rows, layer[some]), *rest)
        found.angle[rows, some] = own.angle
        found.norm[rows, some] = own.norm
        found.time_constant[rows, some] = own.time_constant
    return found


def _faded(total: Array, weight: Array, values: Array) -> tuple[Array, Array, Array]:
    """The exponentially weighted mean after each of some steps; unknown values count for nothing.

    Args:
        total: the weighted sum so far, ``[groups]``.
        weight: the sum of the weights so far.
        values: ``[steps, groups]``.

    Returns:
        The mean, ``[steps, groups]``, and both sums after the last step.
    """
    known = np.isfinite(values)
    counted = np.where(known, values, 0.0)
    mean = np.empty_like(values)
    total, weight = total.copy(), weight.copy()
    with np.errstate(invalid="ignore", divide="ignore"):
        for step in range(len(values)):
            total *= FADE
            total += counted[step]
            weight *= FADE
            weight += known[step]
            np.divide(total, weight, out=mean[step])
    return mean, total, weight


def _follow(
    fourth: Array, before: Array, after: Array, keep: Array, rate: Array, slope: Array, anew: Array
) -> tuple[Array, Array]:
    """``r'^4`` against the norm to the fourth that follows from the gradients (Roburin et al., SGD as AdamG*).

    ``R <- keep^4 R + 2 keep^2 turn^2`` with ``keep = 1 - lr wd`` and ``turn = lr |grad L(u)|``; exact up to ``lr^4``.
    Where the rate is unknown, so is the ratio.

    Args:
        fourth: ``R`` so far, ``[groups]``; NaN where it begins with the first known norm.
        before: ``r^2`` before each step, ``[steps, groups]``.
        after: ``r'^2``.
        keep: see above, ``[steps, groups]`` or ``[steps, 1]``.
        rate: the learning rate, the same.
        slope: ``|grad L(u)|``; NaN where a step had no gradient, and the optimizer took none.
        anew: at which steps ``R`` begins again, for the steps before are not known; bool ``[steps]``.

    Returns:
        The ratio, ``[steps, groups]``, and ``R`` after the last step.
    """
    kept, idle = np.square(keep), np.isnan(slope)
    factor, gained = np.square(kept), 2.0 * kept * np.square(rate * slope)
    if idle.any():
        factor, gained = np.where(idle, 1.0, factor), np.where(idle, 0.0, gained)
    start, fourth = np.square(before), fourth.copy()
    ratios = np.square(after)
    for step in range(len(before)):
        np.copyto(fourth, start[step], where=np.isnan(fourth) | anew[step])
        fourth *= factor[step]
        fourth += gained[step]
        ratios[step] /= fourth
    return ratios, fourth
