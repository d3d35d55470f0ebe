"""A slow float64 oracle of everything that is recorded: from the definitions, sharing no code with the package.

``Watch`` keeps weights, gradients and optimizer state around each step. ``layer_table`` computes, block by block, what
a run's table must hold. Symbols: x weights before, D their displacement, g gradient used, b divisor of the update, d
its length; u = x/|x|, c = -(nu/lr) D, nu = |x| |b| / sqrt(d).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

Vector = npt.NDArray[np.float64]
NEAR_ZERO = ("radial_fraction", "radius_growth", "invariance_residual")
KNOWN = (*NEAR_ZERO, "norm", "angular_step", "second_moment", "effective_lr", "gradient_norm", "spherical_lr")
"""What this oracle computes; other tests hold the other quantities."""


@dataclass
class Seen:
    """One parameter around one optimizer step; gradient and second moment are None where there are none."""

    before: Tensor
    gradient: Tensor | None
    lr: float
    eps: float
    beta2: float
    amsgrad: bool
    after: Tensor | None = None
    second_moment: Tensor | None = None
    count: float = 0.0


class Watch:
    """Copies of everything around each step. Call ``before`` when gradients are final, ``after`` after the step."""

    def __init__(self, model: nn.Module, *optimizers: Optimizer) -> None:
        self.model, self.optimizers = model, optimizers
        self.steps: list[dict[str, Seen]] = []

    def before(self) -> None:
        seen: dict[str, Seen] = {}
        for name, parameter in self.model.named_parameters():
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    if any(parameter is other for other in group["params"]):
                        gradient = parameter.grad
                        seen[name] = Seen(
                            parameter.detach().clone(),
                            None if gradient is None else gradient.detach().to_dense().clone(),
                            float(group["lr"]),
                            float(group["eps"]) if isinstance(optimizer, Adam) else 0.0,
                            float(group["betas"][1]) if isinstance(optimizer, Adam) else 0.0,
                            bool(group.get("amsgrad", False)),
                        )
        self.steps.append(seen)

    def after(self) -> None:
        parameters = dict(self.model.named_parameters())
        for name, seen in self.steps[-1].items():
            seen.after = parameters[name].detach().clone()
            for optimizer in self.optimizers:
                state = optimizer.state.get(parameters[name], {})
                if isinstance(optimizer, Adam) and "exp_avg_sq" in state:
                    seen.second_moment = state["max_exp_avg_sq" if seen.amsgrad else "exp_avg_sq"].clone()
                    seen.count = float(state["step"])


def blocks_of(tensor: Tensor, axis: int, blocks: int) -> Vector:
    """``[blocks, d]`` in float64: equal consecutive slices along the axis, each as one long vector."""
    array = np.moveaxis(tensor.to(torch.float64).numpy(), axis, 0)
    return array.reshape(blocks, -1)


def quantities(x: Vector, x_after: Vector, g: Vector | None, b: Vector | None, lr: float) -> dict[str, float]:
    """Every quantity of one group; NaN where it is not defined. ``b`` is None where the divisor is not known."""
    r, displacement = np.linalg.norm(x), x_after - x
    u, u_after = x / r, x_after / np.linalg.norm(x_after)
    cosine = u_after @ u
    turn = u_after - u  # its tangential part is that of u_after, and exactly 0 where nothing moved
    theta = np.arctan2(np.linalg.norm(turn - (turn @ u) * u), cosine)
    result = {
        "norm": r,
        "angular_step": theta,
        "radius_growth": np.log(np.linalg.norm(x_after) / r),
        "radial_fraction": -(displacement @ u) / np.linalg.norm(displacement) if displacement.any() else np.nan,
        "second_moment": np.nan,
        "effective_lr": np.nan,
        "gradient_norm": np.nan,
        "spherical_lr": np.nan,
        "invariance_residual": np.nan,
    }
    if b is not None:
        nu = r * np.linalg.norm(b) / np.sqrt(len(b))
        result["second_moment"] = nu
        if g is not None:
            c = -(nu / lr) * displacement
            result["effective_lr"] = lr / (r * nu) / (1.0 - lr * (c @ u) / (r * nu))
    if g is not None:
        result["gradient_norm"] = r * np.linalg.norm(g - (g @ u) * u)
        if g.any():
            result["invariance_residual"] = abs(g @ x) / (np.linalg.norm(g) * r)
            result["spherical_lr"] = np.tan(theta) / result["gradient_norm"]
    return {name: float(value) for name, value in result.items()}


def divisor(seen: Seen, adam: bool) -> Tensor | None:
    """``b``, element by element: 1, or Adam's sqrt(v_hat) + eps."""
    if not adam:
        return torch.ones_like(seen.before, dtype=torch.float64)
    if seen.second_moment is None:
        return None
    v_hat = seen.second_moment.to(torch.float64) / (1.0 - seen.beta2**seen.count)
    return v_hat.sqrt() + seen.eps


def joined(parts: Sequence[Tensor | None], cut: Mapping[str, Any]) -> Vector | None:
    """``[blocks, d]``: blocks of the weight, each with the same block of its partners; None where one is unknown."""
    axes = [cut["axis"], *[0] * len(cut["joint_with"])]
    vectors = [blocks_of(part, axis, cut["blocks"]) for part, axis in zip(parts, axes, strict=True) if part is not None]
    return np.concatenate(vectors, axis=1) if len(vectors) == len(parts) else None


def layer_table(
    steps: Sequence[Mapping[str, Seen]], cut: Mapping[str, Any], names: Sequence[str], adam: bool
) -> npt.NDArray[np.float64]:
    """``[steps, quantities, 4]`` of one layer, cut as ``parameter, axis, blocks, members, joint_with`` say."""
    table = np.full((len(steps), len(names), 4), np.nan)
    members = range(cut["blocks"]) if cut["members"] is None else cut["members"]
    for index, seen in enumerate(steps):
        if cut["parameter"] not in seen:
            continue
        parts = [seen[name] for name in (cut["parameter"], *cut["joint_with"])]
        lr = parts[0].lr if all(part.lr == parts[0].lr for part in parts) else np.nan
        x, after, g, b = (
            joined([read(part) for part in parts], cut)
            for read in (lambda s: s.before, lambda s: s.after, lambda s: s.gradient, lambda s: divisor(s, adam))
        )
        assert x is not None
        assert after is not None
        rows = [
            quantities(x[i], after[i], None if g is None else g[i], None if b is None else b[i], lr) for i in members
        ]
        for column, name in enumerate(names):
            values = np.array([row[name] for row in rows])
            if not np.isnan(values).all():
                table[index, column, :3] = np.nanquantile(values, [0.1, 0.5, 0.9])
                table[index, column, 3] = np.sqrt(np.nanmean(values**2))
    return table


def cut_of(record: Any, parameter: str, watch: Watch) -> dict[str, Any]:
    """How the record says that a parameter (or a joint set, by its layer's name) is cut; one that nothing normalizes is
    cut into its rows."""
    row = next(dict(row) for row in record.groups if parameter in (row["parameter"], row["layer"]))
    if row["blocks"] is None:
        row |= {"axis": 0, "blocks": dict(watch.model.named_parameters())[parameter].shape[0], "members": None}
    return row


def layer_index(record: Any, parameter: str) -> int:
    """Where a parameter's layer is in the record: it goes by the module's name or the parameter's."""
    (index,) = (i for i, name in enumerate(record.layers) if name in (parameter, parameter.rpartition(".")[0]))
    return index


def assert_recorded(
    record: Any,
    watch: Watch,
    parameters: Sequence[str],
    *,
    adam: bool,
    steps: Sequence[int] | None = None,
    relative: float = 1e-6,
    absolute: float = 1e-14,
) -> None:
    """Every known quantity and statistic of the named parameters equals the oracle, and no other step was recorded.

    The promise is 1e-4. Inner products in float64 are good to 1e-14, the table is stored in float32 (6e-8), so 1e-6
    must hold on the CPU; only that makes a forgotten eps visible. Quantities near zero are differences of large terms:
    the products of two float32 are exact in float64, so that a sum over d entries errs by about sqrt(d) 1e-16 of
    |a| |b|: 1e-14 is the absolute tolerance needed beside the relative one of the storage, and no more.
    """
    expected_steps = range(len(watch.steps)) if steps is None else steps
    np.testing.assert_array_equal(record.steps, list(expected_steps))
    seen = [watch.steps[step] for step in expected_steps]
    for parameter in parameters:
        names = [name for name in record.quantities if name in KNOWN]
        expected = layer_table(seen, cut_of(record, parameter, watch), names, adam)
        actual = record.values[:, layer_index(record, parameter)]
        for column, name in enumerate(names):
            np.testing.assert_allclose(
                actual[:, record.quantities.index(name)],
                expected[:, column],
                rtol=relative,
                atol=absolute if name in NEAR_ZERO else 0.0,
                err_msg=f"{name} of {parameter}, [steps, {', '.join(record.stats)}]",
            )
