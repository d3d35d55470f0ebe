"""Assignments to slices and in-place operations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .net import IMAGE, ROWS, SEQUENCE, batch, case, columns, conv, layer, linear, matrix


@case(IMAGE, a=conv(3, 4), b=conv(3, 4), bn=batch(8))
def slices_assigned(m: Any, x: Tensor) -> Tensor:
    y = x.new_zeros(4, 8, 6, 6)
    y[:, :4] = m.a(x)
    y[:, 4:] = m.b(x)
    return m.bn(y)


@case(IMAGE, a=conv(3, 4), b=conv(3, 4), bn=batch(8))
def strided_slices_assigned(m: Any, x: Tensor) -> Tensor:
    y = x.new_empty(4, 8, 6, 6)
    y[:, 0::2] = m.a(x)
    y[:, 1::2] = m.b(x)
    return m.bn(y)


@case(ROWS, a=linear(6, 4), b=linear(6, 4), ln=layer(8))
def slices_assigned_before_layer_norm(m: Any, x: Tensor) -> Tensor:
    y = x.new_empty(5, 8)
    y[:, :4] = m.a(x)
    y[:, 4:] = m.b(x)
    return m.ln(y)


@case(IMAGE, a=conv(3, 4), bn=batch(8))
def slice_of_data_overwritten(m: Any, x: Tensor) -> Tensor:
    y = torch.cat([x, x, x], 1)[:, :8].clone()
    y[:, 2:6] = m.a(x)
    return m.bn(y)


@case(ROWS, a=linear(6, 4), ln=layer(6))
def slice_of_data_overwritten_before_layer_norm(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :4] = m.a(x)
    return m.ln(y)


@case(IMAGE, a=conv(3, 6), b=conv(3, 3), bn=batch(6))
def slice_added_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[:, :3] += m.b(x)
    return m.bn(y)


@case(IMAGE, a=conv(3, 4), bn=batch(3))
def added_to_a_slice_of_data(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :2] += m.a(x)[:, :2]
    return m.bn(y)


@case(IMAGE, a=conv(3, 4), bn=batch(3))
def added_to_a_view_of_data(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :2].add_(m.a(x)[:, :2])
    return m.bn(y)


@case(IMAGE, a=conv(3, 6), bn=batch(6))
def slice_halved_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[:, :3] *= 0.5
    return m.bn(y)


@case(IMAGE, a=conv(3, 6), bn=batch(6))
def number_added_to_a_slice(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[:, :, 0] += 1.0
    return m.bn(y)


@case(IMAGE, a=conv(3, 6), bn=batch(6))
def slice_set_to_zero(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[:, :, 0] = 0
    return m.bn(y)


@case(IMAGE, a=conv(3, 6), bn=batch(6))
def slice_set_to_one(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[:, :, 0] = 1.0
    return m.bn(y)


@case(IMAGE, a=conv(3, 6), bn=batch(6))
def channels_set_to_one(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[:, 3:] = 1.0
    return m.bn(y) + x.mean()


@case(ROWS, a=linear(6, 4), ln=layer(4))
def slice_exponentiated(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[:, :2].exp_()
    return m.ln(y)


@case(ROWS, a=linear(6, 4), ln=layer(4))
def slice_made_positive(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[:, :2] = F.relu(y[:, :2])
    return m.ln(y)


@case(ROWS, a=linear(6, 4), b=linear(6, 2), ln=layer(4))
def slice_multiplied_by_another(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[:, :2] *= m.b(x)
    return m.ln(y)


@case(SEQUENCE, a=linear(6, 6), ln=layer(6))
def positions_rotated_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    out = torch.empty_like(y)
    out[..., 0::2] = y[..., 0::2] * 0.8 - y[..., 1::2] * 0.6
    out[..., 1::2] = y[..., 1::2] * 0.8 + y[..., 0::2] * 0.6
    return m.ln(out)


@case(SEQUENCE, a=linear(6, 6), ln=layer(6))
def steps_written_one_by_one(m: Any, x: Tensor) -> Tensor:
    out = x.new_zeros(3, 4, 6)
    for step in range(4):
        out[:, step] = m.a(x[:, step])
    return m.ln(out)


@case(IMAGE, a=conv(3, 6), bn=batch(6))
def transposed_view_written(m: Any, x: Tensor) -> Tensor:
    y = x.new_empty(4, 6, 6, 6)
    y.transpose(2, 3)[:, :, :] = m.a(x)
    return m.bn(y)


@case(ROWS, a=linear(6, 8), ln=layer(8))
def in_place_on_the_whole(m: Any, x: Tensor) -> Tensor:
    return m.ln(F.relu(m.a(x).mul_(2.0), inplace=True))


@case(ROWS, a=linear(6, 8), ln=layer(8))
def mask_assigned(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[y < 0] = 0
    return m.ln(y)


@case(ROWS, a=linear(6, 8), ln=layer(8))
def mask_assigned_one(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[y < 0] = 1.0
    return m.ln(y)


@case(ROWS, a=linear(6, 8), token=matrix(1, 8), ln=layer(8))
def masked_rows_assigned(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[torch.tensor([True, False, True, False, False])] = m.token
    return m.ln(y)


@case(ROWS, a=linear(6, 4), b=linear(6, 4), bn=columns(8))
def columns_assigned_by_index(m: Any, x: Tensor) -> Tensor:
    y = x.new_zeros(5, 8)
    y[:, torch.tensor([0, 3, 5, 6])] = m.a(x)
    y[:, torch.tensor([1, 2, 4, 7])] = m.b(x)
    return m.bn(y)


@case(ROWS, a=linear(6, 8), ln=layer(8))
def rows_filled_by_mask(m: Any, x: Tensor) -> Tensor:
    y = x.new_zeros(5, 8)
    mask = torch.tensor([True, False, True, True, False])
    y[mask] = m.a(x[mask])
    return m.ln(y[mask])


@case(ROWS, a=linear(6, 8), ln=layer(8))
def masked_filled(m: Any, x: Tensor) -> Tensor:
    return m.ln(m.a(x).masked_fill(torch.arange(8) % 3 == 0, 0.0))


@case(ROWS, a=linear(6, 8), ln=layer(8))
def masked_filled_with_one(m: Any, x: Tensor) -> Tensor:
    return m.ln(m.a(x).masked_fill(torch.arange(8) % 3 == 0, 1.0))


@case(ROWS, a=linear(6, 8), ln=layer(8))
def where_zero(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.ln(torch.where(y > 0, y, 0.0))


@case(ROWS, a=linear(6, 8), ln=layer(8))
def where_one(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.ln(torch.where(y > 0, y, 1.0))


@case(ROWS, a=linear(6, 8), bn=columns(8))
def where_columns(m: Any, x: Tensor) -> Tensor:
    return m.bn(torch.where(torch.arange(8) % 2 == 0, m.a(x), -2 * m.a(x)))
