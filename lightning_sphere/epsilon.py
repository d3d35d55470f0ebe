"""How large a norm's ``eps`` is against the variance: the evidence that tells a small residue from a wrong claim.

The share ``s = eps / (var + eps)`` of what a norm divides by is 0 in the ideal and 1 where nothing is normalized.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lightning_sphere.groups import ScaleGroup

Array: TypeAlias = npt.NDArray[Any]


class Pending(Protocol):
    """Tensors on their way to the host."""

    def result(self) -> Sequence[Tensor]:
        """The tensors on the host, in order; waits for them."""


ToHost: TypeAlias = Callable[[Sequence[Tensor]], Pending]


class Norms:
    """The norms that follow some layers, found once.

    Args:
        layers: the claims; they name the norms' modules.
        modules: the network's modules by name.
    """

    def __init__(self, layers: Sequence[ScaleGroup], modules: Mapping[str, nn.Module]) -> None:
        named = ((index, layer.blocks, _name_of(layer)) for index, layer in enumerate(layers))
        self._norms = [(index, blocks, modules[name]) for index, blocks, name in named if name in modules]

    def with_variance(self) -> list[tuple[int, nn.Module, Tensor]]:
        """Index of the layer, norm and running variance, where that has as many channels as the layer has groups."""
        found = ((index, blocks, norm, getattr(norm, "running_var", None)) for index, blocks, norm in self._norms)
        return [
            (index, norm, variance)
            for index, blocks, norm, variance in found
            if isinstance(variance, Tensor)
            and variance.numel() == blocks
            and isinstance(getattr(norm, "eps", None), float)
        ]


def _name_of(layer: ScaleGroup) -> str:
    """Name of the module that normalizes a layer; a space, which is no name, where it is not one."""
    names = re.findall(r"`([^`]+)`", layer.norm or "")
    return names[0] if len(names) == 1 and not (layer.norm or "").endswith(" more") else " "


@dataclass(frozen=True)
class _Told:
    """What one BatchNorm tells besides its variance."""

    layer: int
    """Index of the layer."""
    channels: int
    eps: float
    momentum: float | None
    """``None`` where what remains of the variance that it was born with is not known."""


@dataclass(frozen=True)
class NormStatistics:
    """Running variances as they were at one moment, of all layers whose norm has one."""

    _told: tuple[_Told, ...]
    _pending: Pending | None
    """Per kind of tensor, one after another: variances, then counts of batches where there is a momentum."""

    @classmethod
    def take(cls, norms: Norms, to_host: ToHost) -> NormStatistics:
        """Copy what the norms hold now, without waiting for the device.

        Args:
            norms: those of all layers.
            to_host: sends tensors, which nobody else holds, to the host.
        """
        kinds: dict[tuple[torch.device, torch.dtype], tuple[list[_Told], list[Tensor], list[Tensor]]] = {}
        for index, norm, variance in norms.with_variance():
            batches: Any = getattr(norm, "num_batches_tracked", None)
            momentum: Any = getattr(norm, "momentum", None)
            counted = isinstance(batches, Tensor) and isinstance(momentum, float) and batches.device == variance.device
            told, variances, counts = kinds.setdefault((variance.device, variance.dtype), ([], [], []))
            told.append(_Told(index, variance.numel(), cast(float, norm.eps), momentum if counted else None))
            variances.append(variance.detach().reshape(-1))
            if counted:
                counts.append(batches.detach())
        if not kinds:
            return cls((), None)
        tensors: list[Tensor] = []
        for _, variances, counts in kinds.values():
            tensors.append(torch.cat(variances))
            tensors.append(torch.stack(counts) if counts else variances[0].new_empty(0))
        return cls(tuple(told for some, _, _ in kinds.values() for told in some), to_host(tensors))

    def shares(self) -> dict[int, Array]:
        """The share of ``eps`` in each channel, float64 ``[groups]`` by index of the layer. It waits for the device."""
        if self._pending is None:
            return {}
        tensors = self._pending.result()
        variances = np.concatenate([each.to(torch.float64).numpy() for each in tensors[::2]])
        counts = iter([count for each in tensors[1::2] for count in each.tolist()])
        found, start = {}, 0
        for told in self._told:
            variance = variances[start : start + told.channels]
            start += told.channels
            born = 0.0 if told.momentum is None else (1.0 - told.momentum) ** int(next(counts))
            found[told.layer] = share_of(variance, told.eps, born)
        return found


def share_of(variance: Array, eps: float, born: float) -> Array:
    """The share of ``eps`` beside a running variance.

    Args:
        variance: float64 ``[channels]``.
        eps: of the norm.
        born: what remains in it of the variance 1 that it was born with.
    """
    rest = variance - born
    if 0.0 < born < 1.0 and bool((rest >= -1e-3 * born).all()):  # else it was loaded, and not born with 1
        variance = rest / (1.0 - born)
    return np.asarray(eps / (np.maximum(variance, 0.0) + eps))


@np.errstate(all="ignore")
def rescaled_share(share: Array, square: Array, square_then: Array) -> Array:
    """The share now, from the one when the loss was read: the variance goes with the square of the weight's norm.

    Args:
        share: when the loss was read, float64 ``[groups]``; 0 where it is not known.
        square: squared norms of the groups now.
        square_then: the same when the loss was read.
    """
    growth = np.where(square_then > 0, square / square_then, 1.0)
    return np.where(share < 1.0, share / (share + (1.0 - share) * growth), 1.0)
