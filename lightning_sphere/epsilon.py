"""How large a norm's ``eps`` is against the variance: the evidence that tells a small residue from a wrong claim.

The share ``s = eps / (var + eps)`` of what a norm divides by is 0 in the ideal and 1 where nothing is normalized.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from lightning_sphere.groups import ScaleGroup


def running_share(layer: ScaleGroup, modules: Mapping[str, nn.Module]) -> Float64[Tensor, " groups"] | None:
    """The share now in each channel of a BatchNorm, from its running variance.

    Args:
        layer: the claim; it names the norm's module.
        modules: the network's modules by name.

    Returns:
        One number per group; ``None`` where the norm has no running variance with as many channels.
    """
    names = re.findall(r"`([^`]+)`", layer.norm or "")
    norm = modules.get(names[0]) if len(names) == 1 and not (layer.norm or "").endswith(" more") else None
    variance, eps = getattr(norm, "running_var", None), getattr(norm, "eps", None)
    if not isinstance(variance, Tensor) or variance.numel() != layer.blocks or not isinstance(eps, float):
        return None
    variance = variance.detach().to("cpu", torch.float64)
    batches, momentum = getattr(norm, "num_batches_tracked", None), getattr(norm, "momentum", None)
    if isinstance(batches, Tensor) and isinstance(momentum, float):
        born = (1.0 - momentum) ** int(batches)  # what remains of the variance 1 that it was born with
        rest = variance - born
        if 0.0 < born < 1.0 and bool((rest >= -1e-3 * born).all()):  # else it was loaded, and not born with 1
            variance = rest / (1.0 - born)
    return eps / (variance.clamp_min(0.0) + eps)


def rescaled_share(
    share: float | None, square: Float64[Tensor, " groups"], square_then: Float64[Tensor, " groups"]
) -> Float64[Tensor, " groups"]:
    """The share now, from the one when the loss was read: the variance goes with the square of the weight's norm.

    Args:
        share: when the loss was read; ``None``, if it is not known, gives 0.
        square: squared norms of the groups now.
        square_then: the same when the loss was read.
    """
    start = torch.full_like(square, share or 0.0)
    growth = torch.where(square_then > 0, square / square_then, 1.0)
    return torch.where(start < 1.0, start / (start + (1.0 - start) * growth), 1.0)
