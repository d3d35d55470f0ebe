"""What a test sees of a real run, and every quantity that must be recorded of it: slow, float64, from definitions.

Divisors and directions come from :mod:`optimizer_oracle`, fed with the weights and gradients of the real run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from optimizer_oracle import ORACLES, Array, Moment, Update, predicted_angle, predicted_norm
from oracle import cut_of, layer_index, quantities

NEAR_ZERO = ("radial_fraction", "radius_growth", "invariance_residual", "lost_update")
"""Differences of large terms, which need an absolute tolerance."""
DIRECTIONS = ("deformation_angle", "momentum_radial_fraction")
BALANCE = ("equilibrium_ratio", "equilibrium_angle", "equilibrium_norm")
OF_INVARIANT = ("adam_equivalence", *BALANCE)
"""Unknown for weights that are not invariant."""
SPARSE = ("drift", "straightness", "lost_update")
"""Recorded every few steps only."""


@dataclass(frozen=True)
class Seen:
    """One parameter around one step."""

    kind: str
    """The optimizer's class."""
    moment: Moment
    """Its gradient is all NaN where there is none."""
    after: Array | None = None


def double(tensor: Tensor) -> Array:
    array: Array = tensor.detach().to_dense().to(torch.float64).cpu().numpy().copy()
    return array


def number(value: Any) -> Any:
    """Numbers as they are, tensors of one number as a number, pairs of either as pairs."""
    if isinstance(value, tuple):
        return tuple(number(item) for item in value)
    return float(value) if isinstance(value, Tensor) else value


class Watch:
    """Copies of everything around each step. Call ``before`` when gradients are final, ``after`` after the step."""

    def __init__(self, model: nn.Module, *optimizers: Optimizer) -> None:
        self.model, self.optimizers = model, optimizers
        self.past: list[dict[str, Seen]] = []
        """Steps of which nothing was recorded, as the tracker had not come yet."""
        self.steps: list[dict[str, Seen]] = []

    def forget(self) -> None:
        """From now on it is recorded."""
        self.past, self.steps = self.past + self.steps, []

    def before(self) -> None:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        seen: dict[str, Seen] = {}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                h = {key: number(value) for key, value in group.items() if key != "params"}
                h.setdefault("decoupled_weight_decay", isinstance(optimizer, AdamW))
                for p in group["params"]:
                    g = np.full(p.shape, np.nan) if p.grad is None else double(p.grad)
                    moment = Moment(double(p), g, h, torch.finfo(p.dtype).eps)
                    seen[names[p]] = Seen(type(optimizer).__name__, moment)
        self.steps.append(seen)

    def after(self) -> None:
        parameters = dict(self.model.named_parameters())
        self.steps[-1] = {name: replace(seen, after=double(parameters[name])) for name, seen in self.steps[-1].items()}

    def updates(self, name: str) -> list[Update | None]:
        """What the formula asks for at every step; None at steps without a gradient, or of an unknown optimizer."""
        steps = [*self.past, *self.steps]
        moves = [name in seen and not np.isnan(seen[name].moment.g).all() for seen in steps]
        moving = [seen[name] for seen, moved in zip(steps, moves, strict=True) if moved]
        oracle = ORACLES.get(moving[0].kind) if moving else None
        asked = iter(oracle([seen.moment for seen in moving]) if oracle else ())
        return [next(asked, None) if moved else None for moved in moves][len(self.past) :]


@dataclass(frozen=True)
class Group:
    """One group (filter, block, whole weight) at one step, as vectors."""

    x: Array
    after: Array
    g: Array | None
    kind: str
    h: Mapping[str, Any]
    a: Array | None
    b: Array | None
    rate: float
    asked: Array | None
    """The displacement that the formula asks for."""


def cut_out(array: Array, cut: Mapping[str, Any], index: int) -> Array:
    blocks = np.moveaxis(array, cut["axis"], 0).reshape(cut["blocks"], -1)
    return blocks[index]


def group_of(seen: Seen, update: Update | None, cut: Mapping[str, Any], index: int) -> Group:
    assert seen.after is not None
    x, after, g = (cut_out(array, cut, index) for array in (seen.moment.x, seen.after, seen.moment.g))
    known = None if np.isnan(g).all() else g
    if update is None:  # a known optimizer without a gradient has no divisor; an unknown one has 1
        b = None if seen.kind in ORACLES and seen.kind != "SGD" else np.ones_like(x)
        return Group(x, after, known, seen.kind, seen.moment.h, None, b, seen.moment.h["lr"], None)
    a, b, asked = (cut_out(array, cut, index) for array in (update.a, update.b, update.displacement(seen.moment.x)))
    return Group(x, after, known, seen.kind, seen.moment.h, a, b, update.rate, asked)


def angle_between(first: Array, second: Array) -> float:
    """Kahan's: exact for small angles and for those near pi."""
    first, second = first / np.linalg.norm(first), second / np.linalg.norm(second)
    return float(2 * np.arctan2(np.linalg.norm(first - second), np.linalg.norm(first + second)))


def tangential(vector: Array, x: Array) -> Array:
    u = x / np.linalg.norm(x)
    once: Array = vector - (vector @ u) * u
    return once


def of_one_step(group: Group) -> dict[str, float]:
    """Every quantity that needs no other step."""
    result = quantities(group.x, group.after, group.g, group.b, group.rate)
    r = np.linalg.norm(group.x)
    result |= dict.fromkeys(("deformation_angle", "momentum_radial_fraction", "lost_update"), np.nan)
    if group.a is not None and group.b is not None and group.a.any():
        divided = group.a if (group.b == group.b[0]).all() else group.a / group.b
        result["deformation_angle"] = angle_between(tangential(group.a, group.x), tangential(divided, group.x))
        result["momentum_radial_fraction"] = float(group.a @ group.x / (np.linalg.norm(group.a) * r))
    if group.asked is not None and group.asked.any():
        asked = np.abs(group.asked)
        result["lost_update"] = float(asked[group.after == group.x].sum() / asked.sum())
    return result


def of_a_history(history: Sequence[Group | None], elsewhere: Array | None = None) -> list[dict[str, float]]:
    """Every quantity of one group at every step, those that add up over steps included.

    Drift is counted from the first weights, or from ``elsewhere``; from there the path is not known.
    """
    rows: list[dict[str, float]] = []
    start = elsewhere
    path = weights = squares = 0.0
    followed: float | None = None
    for group in history:
        if group is None:
            rows.append({})
            continue
        row = of_one_step(group)
        start = group.x if start is None else start
        path += row["angular_step"]
        row |= {"path_length": path, "drift": angle_between(start, group.after), "adam_equivalence": np.nan}
        row["straightness"] = row["drift"] / path if path and elsewhere is None else np.nan
        if group.g is not None:  # about a hundred steps count
            squares = 0.99 * squares + float(row["norm"] * np.linalg.norm(group.g)) ** 2
            weights = 0.99 * weights + 1.0
        mean_square = squares / weights if weights else np.nan
        row["lr"] = group.h["lr"]
        row["equilibrium_angle"] = predicted_angle(group.kind, group.h, len(group.x), mean_square)
        row["equilibrium_norm"] = predicted_norm(group.kind, group.h, len(group.x), mean_square)
        row["equilibrium_ratio"] = row["angular_step"] / row["equilibrium_angle"]
        if group.kind == "SGD" and group.g is not None:
            momentum = group.h["momentum"]
            lr = group.h["lr"] * ((1 - group.h["dampening"]) / (1 - momentum) if momentum else 1.0)
            shrunk = 1 - lr * group.h["weight_decay"]
            followed = row["norm"] ** 4 if followed is None else followed
            followed = shrunk**4 * followed + 2 * lr**2 * shrunk**2 * row["gradient_norm"] ** 2
            row["adam_equivalence"] = float(np.linalg.norm(group.after) ** 4 / followed)
        rows.append(row)
    return rows


def histories(record: Any, watch: Watch, parameter: str) -> list[list[Group | None]]:
    """Of every group of a parameter's layer, what it was at every step (None where no optimizer has it)."""
    cut = cut_of(record, parameter, watch)
    updates = watch.updates(parameter)
    members = range(cut["blocks"]) if cut["members"] is None else cut["members"]
    return [
        [
            group_of(seen[parameter], update, cut, index) if parameter in seen else None
            for seen, update in zip(watch.steps, updates, strict=True)
        ]
        for index in members
    ]


def statistics(rows: Sequence[float]) -> list[float]:
    values = np.array(rows, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return [np.nan] * 4
    return [*np.quantile(values, [0.1, 0.5, 0.9]), rms(values)]


def rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))


def expected(
    record: Any, watch: Watch, parameter: str, start: Mapping[str, Tensor] | None = None
) -> npt.NDArray[np.float64]:
    """``[steps, quantities, 4]`` of the layer of one parameter, for the quantities that were recorded."""
    cut = cut_of(record, parameter, watch)
    starts = [None if start is None else cut_out(double(start[parameter]), cut, i) for i in range(cut["blocks"])]
    members = range(cut["blocks"]) if cut["members"] is None else cut["members"]
    per_group = [
        of_a_history(history, starts[index])
        for index, history in zip(members, histories(record, watch, parameter), strict=True)
    ]
    invariant = record.invariant[layer_index(record, parameter)]
    table = np.full((len(watch.steps), len(record.quantities), 4), np.nan)
    for step in range(len(watch.steps)):
        for column, name in enumerate(record.quantities):
            if name in OF_INVARIANT and not invariant:
                continue
            table[step, column] = statistics([rows[step].get(name, np.nan) for rows in per_group])
    return table


def assert_all_recorded(
    record: Any,
    watch: Watch,
    parameters: Sequence[str],
    *,
    relative: float = 1e-6,
    loose: Mapping[str, float] | None = None,
    absolute: float = 1e-14,
    of_direction: float = 1e-5,
    without: Sequence[str] = (),
    start: Mapping[str, Tensor] | None = None,
) -> None:
    """Every recorded quantity and statistic of the named parameters equals the oracle's.

    ``loose`` gives quantities a tolerance of their own, ``of_direction`` is the absolute one of angles and shares of
    directions, which a displacement of float32 weights does not tell any better. Of quantities that are recorded every
    few steps, the known ones are compared, and the first step must be known.
    """
    np.testing.assert_array_equal(record.steps, np.arange(len(watch.steps)))
    for parameter in parameters:
        wanted = expected(record, watch, parameter, start)
        actual = record.values[:, layer_index(record, parameter)].astype(np.float64)
        for column, name in enumerate(record.quantities):
            if name in without:
                continue
            got, want = actual[:, column], wanted[:, column]
            if name in SPARSE:
                known = ~np.isnan(got[:, 1])
                assert known[0] or np.isnan(want[0, 1]), f"{name} of {parameter} is unknown at the first step"
                got, want = got[known], want[known]
            np.testing.assert_allclose(
                got,
                want,
                rtol=(loose or {}).get(name, relative),
                atol=of_direction if name in DIRECTIONS else absolute if name in NEAR_ZERO else 0.0,
                err_msg=f"{name} of {parameter}, [steps, {', '.join(record.stats)}]",
            )
