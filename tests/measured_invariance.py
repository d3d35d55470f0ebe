"""What is invariant, measured: the slow float64 oracle that discovery is held against.

It looks at numbers only. ``L(a x) = L(x)`` for a group means that its gradient is orthogonal to it, whatever the batch;
so the cosine of the two is taken for every row, every size of block and the whole of each parameter, alone and together
with its module's bias.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linprog
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_sphere.discovery import Discovery

EPS = 1e-30
INVARIANT = 1e-7
"""Cosines below are rounding; of what is not invariant they are above 1e-4 for at least one batch."""
NOISE = 1e-12
"""Gradients that small, compared to the largest one, are rounding: an invariant row of one number has no gradient."""
EPS_NAMES = ("eps", "variance_epsilon", "epsilon", "layer_norm_eps", "rms_norm_eps", "norm_eps", "layer_norm_epsilon")

EPS_FUNCTIONS = {
    function: inspect.signature(function)
    for function in (F.batch_norm, F.group_norm, F.instance_norm, F.layer_norm, F.normalize, F.rms_norm)
}

Loss = Callable[[int], Tensor]
"""A fresh batch for each number, and its loss with the graph."""


@dataclass(frozen=True)
class Measured:
    """What the numbers say of one parameter."""

    kind: str
    """``row``, ``group``, ``whole``, ``none``, or ``unknown`` where no batch gave a gradient."""
    axis: int | None = None
    blocks: int | None = None
    members: tuple[int, ...] | None = None
    joint_with: tuple[str, ...] = ()


class InDouble(TorchFunctionMode):
    """Casts to lower precision, which many norms contain, are left out; functions get an ``eps`` of next to nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.float:
            return args[0].double()
        if func is torch.Tensor.to or "dtype" in kwargs:
            lowered = {torch.float32, torch.float16, torch.bfloat16}
            args = tuple(torch.float64 if isinstance(a, torch.dtype) and a in lowered else a for a in args)
            kwargs = {k: torch.float64 if isinstance(v, torch.dtype) and v in lowered else v for k, v in kwargs.items()}
        if func in EPS_FUNCTIONS:
            given = EPS_FUNCTIONS[func].bind(*args, **kwargs)
            given.arguments["eps"] = EPS
            args, kwargs = given.args, given.kwargs
        return func(*args, **kwargs)


def prepare(model: nn.Module, noise: float = 0.3, seed: int = 0) -> nn.Module:
    """Double precision, no eps to speak of, no dropout, and no parameter at a special value such as 0 or 1.

    A norm written by hand with an ``eps`` in its code must be given :data:`EPS` by the case itself.
    """
    generator = torch.Generator().manual_seed(seed)
    model.double().train()
    for module in model.modules():
        for name in EPS_NAMES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, EPS)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            scale = noise * (parameter.std() if parameter.numel() > 1 and parameter.std() > 0 else torch.tensor(1.0))
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * scale)
    return model


def gradients(model: nn.Module, loss: Loss, batches: int) -> list[dict[str, Tensor]]:
    """Gradients of several batches by name; a parameter that the loss does not reach has none."""
    found = []
    for number in range(batches):
        model.zero_grad(set_to_none=True)
        with InDouble():
            value = loss(number)
        value.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    model.zero_grad(set_to_none=True)
    return found


def measure(model: nn.Module, loss: Loss, batches: int = 3) -> dict[str, Measured]:
    """Measure every trainable parameter of two dimensions or more.

    Args:
        model: as :func:`prepare` leaves it.
        loss: see :data:`Loss`.
        batches: how many batches must agree.
    """
    grads = gradients(model, loss, batches)
    parameters = dict(model.named_parameters())
    scales = [max(_weight(g[name], parameters[name]) for name in g) for g in grads]
    result = {}
    for name, parameter in parameters.items():
        if parameter.dim() < 2 or not parameter.requires_grad:
            continue
        reached = [(g, scale) for g, scale in zip(grads, scales, strict=True) if name in g]
        with_grad = [g for g, scale in reached if _weight(g[name], parameter) > NOISE * scale]
        if not with_grad:
            result[name] = Measured("unknown")
            continue
        module = _owner(name)
        vectors = [n for n, p in parameters.items() if _owner(n) == module and p.dim() == 1]
        candidates = [
            found
            for axis in (0, 1)
            for partner in (None, *(v for v in vectors if parameters[v].numel() == parameter.shape[axis]))
            if (found := _finest(parameters, with_grad, name, axis, partner)) is not None
        ]
        kind = next(type(m).__name__ for n, m in model.named_modules() if n == module)
        output = int("ConvTranspose" in kind or kind == "Conv1D")
        best = max(candidates, key=lambda c: _rank(c, output), default=Measured("none"))
        result[name] = best
    return result


def _weight(gradient: Tensor, parameter: Tensor) -> float:
    """How much a relative change of a parameter may change the loss."""
    return float(gradient.norm() * parameter.detach().norm())


def _owner(name: str) -> str:
    """The module of a parameter, seen through the modules that hold parametrizations."""
    return re.sub(r"(^|\.)parametrizations\.[^.]+$", "", name.rpartition(".")[0])


def _rank(found: Measured, output: int) -> tuple[bool, int, bool, bool]:
    covered = found.blocks if found.members is None else len(found.members)
    return found.members is None, covered or 0, not found.joint_with, found.axis == output


def _finest(
    parameters: dict[str, nn.Parameter], grads: list[dict[str, Tensor]], name: str, axis: int, partner: str | None
) -> Measured | None:
    rows = parameters[name].shape[axis]
    sums = np.zeros((3, len(grads), rows))  # <g,w>, |g|^2, |w|^2
    for batch, grad in enumerate(grads):
        for part, along in ((name, axis), (partner, 0)):
            if part is None:
                continue
            g = grad.get(part, torch.zeros_like(parameters[part])).movedim(along, 0).reshape(rows, -1)
            w = parameters[part].detach().movedim(along, 0).reshape(rows, -1)
            sums[:, batch] += torch.stack([(g * w).sum(1), g.square().sum(1), w.square().sum(1)]).numpy()
    largest = sums[1].sum(1, keepdims=True)
    best: Measured | None = None
    for blocks in (b for b in range(rows, 0, -1) if rows % b == 0):
        gw, gg, ww = sums.reshape(3, len(grads), blocks, -1).sum(-1)
        seen = gg > 1e-22 * largest
        cosine = np.where(seen, np.abs(gw) / np.sqrt(np.where(seen, gg * ww, 1)), 0).max(0)
        alive = seen.any(0)
        good = (cosine < INVARIANT) & alive
        if good.sum() == alive.sum() and alive.any():
            kind = "row" if blocks == rows else "whole" if blocks == 1 else "group"
            return Measured(kind, axis, blocks, None, (partner,) if partner else ())
        if good.any():
            members = tuple(np.flatnonzero(good).tolist())
            covered = best is not None and len(best.members or ()) / (best.blocks or 1) >= len(members) / blocks
            if not covered:
                kind = "row" if blocks == rows else "group"
                best = Measured(kind, axis, blocks, members, (partner,) if partner else ())
    return best


def joint_table(model: nn.Module, loss: Loss, batches: int | None = None) -> tuple[np.ndarray, list[str]]:
    """The matrix ``[batches, parameters]`` of ``<g_p, w_p>``, and the names of its columns."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    grads = gradients(model, loss, batches or len(names) + 8)
    parameters = dict(model.named_parameters())
    zero = torch.zeros(())
    table = [[float((g.get(n, zero) * parameters[n].detach()).sum()) for n in names] for g in grads]
    return np.array(table), names


def joint_members(model: nn.Module, loss: Loss, batches: int | None = None) -> tuple[set[str], np.ndarray, list[str]]:
    """Which whole parameters (vectors included) can be scaled together with others, by linear programming.

    Exponents ``e >= 0`` with ``sum_p e_p <g_p, w_p> = 0`` for every batch are those of a common invariance.

    Returns:
        Names with a positive exponent in some solution; the matrix ``[batches, parameters]`` of ``<g_p, w_p>``; and the
        names of its columns.
    """
    table, names = joint_table(model, loss, batches)
    scale = np.abs(table).max(0)
    free = scale < 1e-13 * max(scale.max(), 1e-300)  # invariant alone, or without gradient
    matrix = table / np.where(free, 1, scale)
    found = set()
    for column, name in enumerate(names):
        if free[column]:
            continue
        bounds = [(0, 0) if free[i] else (0, 1) for i in range(len(names))]
        goal = np.zeros(len(names))
        goal[column] = -1
        # Columns are scaled for the solver; the sign of an exponent is not changed by it.
        solution = linprog(goal, A_eq=matrix, b_eq=np.zeros(len(matrix)), bounds=bounds, method="highs")
        if solution.status == 0 and solution.x[column] > 1e-6:
            found.add(name)
    return found, table, names


def left_out(discovery: Discovery, table: np.ndarray, names: list[str]) -> list[str]:
    """Weights that can be scaled together with others, none of which takes part in anything that was claimed.

    What can stand for a member of a claimed set, such as the values' weight for that of an attention's output, is not
    among them: without the rest of the set it can not be scaled.
    """
    claimed = {name for members in discovery.joint_sets for name in members}
    claimed |= {part.parameter for layer in discovery.groups for part in layer.parts}
    weights = {row["parameter"] for row in discovery.table()}
    scale = np.abs(table).max(0)
    free = scale < 1e-13 * max(scale.max(), 1e-300)
    fixed = [free[i] or name in claimed for i, name in enumerate(names)]
    goal = [-float(not fixed[i] and name in weights) for i, name in enumerate(names)]
    bounds = [(0, 0) if held else (0, 1) for held in fixed]
    matrix = table / np.where(free, 1, scale)
    solution = linprog(goal, A_eq=matrix, b_eq=np.zeros(len(matrix)), bounds=bounds, method="highs")
    if solution.status != 0:
        return []
    return [name for name, e, g in zip(names, solution.x, goal, strict=True) if g and e > 1e-6]


def check_joint_sets(discovery: Discovery, table: np.ndarray, names: list[str]) -> list[str]:
    """Claimed sets whose common gradient is not orthogonal to them."""
    wrong, noise = [], NOISE * np.abs(table).max(initial=0)
    for members in discovery.joint_sets:
        columns = [names.index(member) for member in members if member in names]
        total = np.abs(table[:, columns].sum(1)).max()
        if total > INVARIANT * np.abs(table[:, columns]).max() + noise:
            wrong.append(f"FALSE JOINT SET {members}: {total:.1e}")
    return wrong


def disagreements(discovery: Discovery, measured: dict[str, Measured]) -> list[str]:
    """What discovery says otherwise than the numbers; false claims first, each in one line."""
    table = {row["parameter"]: row for row in discovery.table()}
    false, missed = [], []
    for name, truth in measured.items():
        row = table.get(name)
        if row is None:
            missed.append(f"ABSENT {name}")
            continue
        said = Measured(row["kind"], row["axis"], row["blocks"], row["members"], tuple(row["joint_with"]))
        if said == truth or truth.kind == "unknown":
            continue
        line = f"{name}: said {_short(said)}, measured {_short(truth)} ({row['reason']})"
        if said.kind != "none" and not _implied(said, truth):
            false.append(f"FALSE {line}")
        else:
            missed.append(f"MISSED {line}")
    return false + missed


def _short(m: Measured) -> str:
    if m.kind in ("none", "unknown"):
        return m.kind
    members = f" members {_ranges(m.members)}" if m.members is not None else ""
    return f"{m.kind} axis {m.axis} blocks {m.blocks}{members}" + (
        f" with {', '.join(m.joint_with)}" * bool(m.joint_with)
    )


def _ranges(members: Iterable[int]) -> str:
    listed = list(members)
    return f"{listed[:6]}{'...' if len(listed) > 6 else ''} ({len(listed)})"


def _implied(said: Measured, truth: Measured) -> bool:
    """Whether a claim follows from a finer truth: blocks of invariant rows are invariant too."""
    if truth.kind in ("none", "unknown") or said.joint_with != truth.joint_with:
        return False
    if said.blocks == 1 and truth.members is None:
        return True
    if said.axis != truth.axis or not said.blocks or not truth.blocks or truth.blocks % said.blocks:
        return False
    per = truth.blocks // said.blocks
    claimed = {row for b in (said.members or range(said.blocks)) for row in range(b * per, (b + 1) * per)}
    return claimed <= set(truth.members if truth.members is not None else range(truth.blocks))
