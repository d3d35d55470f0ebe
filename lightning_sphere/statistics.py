"""From numbers per group to numbers per layer, and from layers to one summary curve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sphere.groups import ScaleGroup

QUANTILES: tuple[float, ...] = (0.1, 0.5, 0.9)


def spread(values: Float[Tensor, "*axes n"]) -> Float[Tensor, "*axes 3"]:
    """10th, 50th and 90th percentile along the last axis, NaN left out.

    Args:
        values: floating point of shape ``[..., n]``.

    Returns:
        Shape ``[..., 3]``, linearly interpolated; NaN where every value is.
    """
    ordered = values.sort(dim=-1).values  # NaN goes last
    position = (values.isnan().logical_not().sum(-1, keepdim=True) - 1).clamp_min(0) * values.new_tensor(QUANTILES)
    below = position.floor().long()
    above = position.ceil().long()
    low, high = ordered.gather(-1, below), ordered.gather(-1, above)
    return torch.where(low == high, low, torch.lerp(low, high, position - below))  # also for infinite values


def rms(values: Float[Tensor, "*axes n"]) -> Float[Tensor, " *axes"]:
    """Root mean square along the last axis, NaN left out; NaN where every value is."""
    return values.square().nanmean(-1).sqrt()


def per_layer(
    values: Float[Tensor, "quantities steps groups"], layers: Sequence[ScaleGroup]
) -> Float[Tensor, "steps layers quantities stats"]:
    """Statistics over the groups of each layer.

    Args:
        values: float64 ``[quantities, steps, groups]``, the groups of all layers one after another.
        layers: the layers, in the same order. Where only some blocks of a layer are invariant, only they count.

    Returns:
        float64 ``[steps, layers, quantities, 4]``, the last axis as in :data:`lightning_sphere.quantities.STATS`.
    """
    result = values.new_full((values.shape[1], len(layers), values.shape[0], len(QUANTILES) + 1), torch.nan)
    by_count: dict[int, list[int]] = {}
    indices: list[Tensor] = []
    start = 0
    for number, layer in enumerate(layers):
        members = torch.tensor(range(layer.blocks) if layer.members is None else layer.members, device=values.device)
        indices.append(members + start)
        start += layer.blocks
        by_count.setdefault(len(members), []).append(number)
    for numbers in by_count.values():  # layers of equally many groups share one call
        groups = values[..., torch.stack([indices[number] for number in numbers])]  # [quantities, steps, layers, n]
        stats = torch.cat([spread(groups), rms(groups).unsqueeze(-1)], dim=-1)
        result[:, numbers] = stats.permute(1, 2, 0, 3)
    return result
