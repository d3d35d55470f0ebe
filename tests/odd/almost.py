"""Nets that look almost like others: buffers that are filled, or only in part."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .net import IMAGE, ROWS, batch, case, columns, conv, layer, linear, matrix
from .scatters import SOURCE, TARGET


@case(IMAGE, a=conv(3, 4), bn=batch(8))
def half_filled_ones(m: Any, x: Tensor) -> Tensor:
    y = x.new_ones(4, 8, 6, 6)
    y[:, :4] = m.a(x)
    return m.bn(y)


@case(ROWS, a=linear(6, 4), ln=layer(8))
def half_filled_ones_ln(m: Any, x: Tensor) -> Tensor:
    y = x.new_ones(5, 8)
    y[:, :4] = m.a(x)
    return m.ln(y)


@case(ROWS, a=linear(6, 4), ln=layer(8))
def half_filled_zeros_ln(m: Any, x: Tensor) -> Tensor:
    y = x.new_zeros(5, 8)
    y[:, :4] = m.a(x)
    return m.ln(y)


@case(ROWS, a=linear(6, 4), rn=lambda: nn.RMSNorm(8))
def half_filled_zeros_rms(m: Any, x: Tensor) -> Tensor:
    y = x.new_zeros(5, 8)
    y[:, 2:6] = m.a(x)
    return m.rn(y)


@case(ROWS, a=linear(6, 4, True), b=linear(6, 4, True), bn=columns(8))
def filled_with_bias(m: Any, x: Tensor) -> Tensor:
    y = x.new_zeros(5, 8)
    y[:, :4] = m.a(x)
    y[:, 4:] = m.b(x)
    return m.bn(y)


@case(ROWS, a=linear(6, 4, True), b=linear(6, 4, True), ln=layer(8))
def filled_with_bias_ln(m: Any, x: Tensor) -> Tensor:
    y = x.new_zeros(5, 8)
    y[:, :4] = m.a(x)
    y[:, 4:] = m.b(x)
    return m.ln(y)


@case(ROWS, a=linear(6, 8), ln=layer(8))
def overwritten_rows(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[0] = x.mean()
    y[1] = y[2]
    return m.ln(y)


@case(ROWS, a=linear(6, 8), bn=columns(8))
def overwritten_rows_bn(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[0] = x[0, 0]
    return m.bn(y)


@case(ROWS, a=linear(6, 8), bn=columns(8))
def copied_rows_bn(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[0] = y[2]
    y[:, 0] = y[:, 1]
    return m.bn(y)


@case(ROWS, a=linear(6, 8), b=linear(8, 8), ln=layer(8))
def relu_in_place_on_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    F.relu(y[:, :4], inplace=True)
    return m.ln(y)


@case(ROWS, a=linear(6, 8), ln=layer(8))
def clamp_in_place_on_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[:, :4].clamp_(max=0.3)
    return m.ln(y)


@case(ROWS, a=linear(6, 8), ln=layer(8))
def sigmoid_in_place_on_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[:, :4].sigmoid_()
    return m.ln(y)


@case(ROWS, a=linear(6, 8), ln=layer(8))
def add_number_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[:, :4].add_(1.0)
    return m.ln(y)


@case(ROWS, a=linear(6, 8), ln=layer(8))
def copy_data_into_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[:, :4].copy_(x[:, :4])
    return m.ln(y)


@case(ROWS, a=linear(6, 8), b=linear(6, 8), ln=layer(8))
def two_scatters(m: Any, x: Tensor) -> Tensor:
    return m.ln(
        torch.zeros(5, 8, dtype=x.dtype).index_add(0, TARGET, m.a(x)[SOURCE]).index_add(0, SOURCE, m.b(x)[TARGET])
    )


@case(ROWS, a=linear(6, 8), b=linear(6, 8), ln=layer(8))
def disjoint_then_overlap(m: Any, x: Tensor) -> Tensor:
    y = torch.zeros(5, 8, dtype=x.dtype)
    i = torch.tensor([0, 1])
    j = torch.tensor([1, 2, 3, 4])
    y = y.index_add(0, i, m.a(x)[:2]).index_add(0, j, m.b(x)[:4])
    return m.ln(y)


@case(ROWS, a=linear(6, 8), ln=layer(8))
def ones_scatter(m: Any, x: Tensor) -> Tensor:
    return m.ln(torch.ones(5, 8, dtype=x.dtype).index_add(0, TARGET, m.a(x)[SOURCE]))


@case(ROWS, a=linear(6, 8), bn=columns(8))
def ones_scatter_add(m: Any, x: Tensor) -> Tensor:
    return m.bn(
        torch.arange(40.0, dtype=x.dtype).view(5, 8).scatter_add(0, TARGET[:, None].expand(8, 8), m.a(x)[SOURCE])
    )


@case(ROWS, a=linear(6, 8), bn=columns(8))
def data_put_acc(m: Any, x: Tensor) -> Tensor:
    return m.bn(torch.cat([x, x], 1)[:, :8].index_put((TARGET,), m.a(x)[SOURCE], accumulate=True))


@case(ROWS, a=linear(6, 6), bn=columns(6), c=linear(6, 6))
def gin_with_index_add_on_x(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.c(F.relu(x.index_add(0, TARGET, m.a(x)[SOURCE]))))


@case(ROWS, a=linear(6, 8), bn=columns(8))
def scatter_max_relu(m: Any, x: Tensor) -> Tensor:
    return m.bn(
        torch.zeros(5, 8, dtype=x.dtype).scatter_reduce(0, TARGET[:, None].expand(8, 8), m.a(x)[SOURCE], "amax")
    )


@case(ROWS, a=linear(6, 8), bn=columns(8))
def scatter_max_on_ones(m: Any, x: Tensor) -> Tensor:
    return m.bn(torch.ones(5, 8, dtype=x.dtype).scatter_reduce(0, TARGET[:, None].expand(8, 8), m.a(x)[SOURCE], "amax"))


@case(ROWS, a=linear(6, 8), bn=columns(8))
def scatter_mean_including_ones(m: Any, x: Tensor) -> Tensor:
    return m.bn(torch.ones(5, 8, dtype=x.dtype).scatter_reduce(0, TARGET[:, None].expand(8, 8), m.a(x)[SOURCE], "mean"))


@case(ROWS, t=matrix(7, 8), bn=columns(8), h=linear(8, 7))
def table_partly_read(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.t[torch.tensor([0, 1, 1, 3, 0])]) + x.mean()


@case(ROWS, t=matrix(6, 8), ln=layer(8))
def table_sliced(m: Any, x: Tensor) -> Tensor:
    return m.ln(m.t[:4])[:, :6].mean(0) * x


@case(ROWS, t=matrix(6, 8), ln=layer(8))
def table_sliced_and_used(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.ln(m.t[:2]), m.t[2:4]])[:, :6].mean(0) * x


@case(ROWS, t=matrix(6, 8), ln=layer(8))
def table_index_and_used(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.ln(m.t[torch.tensor([0, 1])]), m.t[2:4]])[:, :6].mean(0) * x
