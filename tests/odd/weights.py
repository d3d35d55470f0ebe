"""Weights made of other tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from .net import EPS, IMAGE, ROWS, case, columns, conv, layer, linear, matrix


@case(ROWS, a=lambda: parametrizations.weight_norm(nn.Linear(6, 8)), ln=layer(8))
def weight_norm_parametrized(m: Any, x: Tensor) -> Tensor:
    return m.ln(m.a(x))


@case(IMAGE, a=lambda: torch.nn.utils.weight_norm(nn.Conv2d(3, 8, 3)))
def weight_norm_old(m: Any, x: Tensor) -> Tensor:
    return m.a(x)


@case(ROWS, a=lambda: torch.nn.utils.weight_norm(nn.Linear(6, 8), dim=None))
def weight_norm_of_all(m: Any, x: Tensor) -> Tensor:
    return m.a(x)


@case(ROWS, a=lambda: parametrizations.spectral_norm(nn.Linear(6, 8), eps=EPS))
def spectral_norm_parametrized(m: Any, x: Tensor) -> Tensor:
    return m.a(x)


@case(IMAGE, a=lambda: torch.nn.utils.spectral_norm(nn.Conv2d(3, 8, 3), eps=EPS))
def spectral_norm_old(m: Any, x: Tensor) -> Tensor:
    return m.a(x)


@case(ROWS, a=lambda: parametrizations.orthogonal(nn.Linear(6, 6)), ln=layer(6))
def orthogonal(m: Any, x: Tensor) -> Tensor:
    return m.ln(m.a(x))


class Unit(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w / w.norm()


class UnitRows(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return F.normalize(w.flatten(1), dim=1, eps=EPS).view_as(w)


class Standardized(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        flat = w.flatten(1)
        return ((flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + EPS)).view_as(w)


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).transpose(-1, -2)


def parametrized(module: Callable[[], nn.Module], how: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: parametrize.register_parametrization(module(), "weight", how())


@case(ROWS, a=parametrized(linear(6, 8), Unit))
def unit_weight(m: Any, x: Tensor) -> Tensor:
    return m.a(x)


@case(IMAGE, a=parametrized(conv(3, 8), UnitRows))
def unit_filters(m: Any, x: Tensor) -> Tensor:
    return m.a(x)


@case(IMAGE, a=parametrized(conv(3, 8), Standardized))
def weight_standardization(m: Any, x: Tensor) -> Tensor:
    return m.a(x)


@case(ROWS, a=parametrized(linear(6, 6), Symmetric), ln=layer(6))
def symmetric_weight(m: Any, x: Tensor) -> Tensor:
    return m.ln(m.a(x))


@case(ROWS, u=matrix(8, 3), v=matrix(3, 6), ln=layer(8))
def low_rank(m: Any, x: Tensor) -> Tensor:
    return m.ln(F.linear(x, m.u @ m.v))


@case(ROWS, v=matrix(8, 6), g=matrix(8, 1))
def exponential_gain(m: Any, x: Tensor) -> Tensor:
    return F.linear(x, m.g.exp() * m.v / m.v.norm(dim=1, keepdim=True))


@case(ROWS, u=matrix(8, 6), v=matrix(8, 6), bn=columns(8))
def sum_of_two_weights(m: Any, x: Tensor) -> Tensor:
    return m.bn(F.linear(x, m.u + m.v))


@case(ROWS, a=lambda: prune.random_unstructured(nn.Linear(6, 8, bias=False), "weight", 0.4), bn=columns(8))
def pruned(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x))


@case(ROWS, a=linear(6, 8), bn=columns(8))
def tied_and_transposed(m: Any, x: Tensor) -> Tensor:
    return F.linear(m.bn(m.a(x)), m.a.weight.t())


@case(ROWS, a=linear(6, 8), bn=columns(8), ln=layer(6))
def tied_and_normalized_twice(m: Any, x: Tensor) -> Tensor:
    return m.ln(F.linear(m.bn(m.a(x)), m.a.weight.t()))


def frozen(module: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: module().requires_grad_(False)


@case(ROWS, a=linear(6, 8), down=linear(6, 2), up=linear(2, 8), bn=columns(8))
def lora(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x) + 0.5 * m.up(m.down(x)))


@case(ROWS, a=frozen(linear(6, 8)), down=linear(6, 2), up=linear(2, 8), bn=columns(8))
def lora_on_frozen(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x) + m.up(m.down(x)))


@case(ROWS, down=linear(6, 2), up=linear(2, 8), bn=columns(8))
def factors_before_a_norm(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.up(m.down(x)))


@case(ROWS, flat=matrix(76), bn=columns(8))
def weights_in_a_flat_buffer(m: Any, x: Tensor) -> Tensor:
    return F.linear(m.bn(F.linear(x, m.flat[:48].view(8, 6))), m.flat[48:72].view(3, 8))


@case(ROWS, flat=matrix(2, 48), bn=columns(8), ln=layer(8))
def weights_in_a_buffer_of_two(m: Any, x: Tensor) -> Tensor:
    return m.bn(F.linear(x, m.flat[0].view(8, 6))) + m.ln(F.linear(x, m.flat[1].view(8, 6)))


@case(ROWS, make=linear(6, 48), bn=columns(8))
def hypernetwork(m: Any, x: Tensor) -> Tensor:
    w = m.make(x.mean(0)).view(8, 6)
    return m.bn(F.linear(x, w))


@case(ROWS, make=linear(6, 48), ln=layer(8))
def hypernetwork_per_sample(m: Any, x: Tensor) -> Tensor:
    w = m.make(x).view(5, 8, 6)
    return m.ln(torch.bmm(w, x.unsqueeze(2)).squeeze(2))
