"""Gates, functions of one tensor, attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .net import EPS, IMAGE, ROWS, SEQUENCE, batch, case, columns, conv, layer, linear, matrix


@case(SEQUENCE, a=linear(6, 16), b=linear(8, 6), ln=layer(6))
def swiglu(m: Any, x: Tensor) -> Tensor:
    gate, value = m.a(x).chunk(2, -1)
    return m.ln(m.b(F.silu(gate) * value))


@case(SEQUENCE, a=linear(6, 16), b=linear(8, 6), ln=layer(6))
def glu(m: Any, x: Tensor) -> Tensor:
    return m.ln(m.b(F.glu(m.a(x))))


@case(SEQUENCE, a=linear(6, 16), ln=layer(8))
def reglu(m: Any, x: Tensor) -> Tensor:
    gate, value = m.a(x).chunk(2, -1)
    return m.ln(F.relu(gate) * value)


@case(ROWS, a=linear(6, 16), bn=columns(8))
def maxout(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x).view(5, 8, 2).amax(2))


@case(ROWS, a=linear(6, 8), bn=columns(8))
def squared_relu(m: Any, x: Tensor) -> Tensor:
    return m.bn(F.relu(m.a(x)).square())


@case(ROWS, a=linear(6, 8), bn=columns(8))
def magnitude(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x).abs())


@case(ROWS, a=linear(6, 8), bn=columns(8))
def threshold_at_zero(m: Any, x: Tensor) -> Tensor:
    return m.bn(F.threshold(m.a(x), 0.0, 0.0))


@case(ROWS, a=linear(6, 8), bn=columns(8))
def threshold_at_one(m: Any, x: Tensor) -> Tensor:
    return m.bn(F.threshold(m.a(x), 0.5, 0.1))


@case(ROWS, a=linear(6, 8), bn=columns(8))
def threshold_to_one(m: Any, x: Tensor) -> Tensor:
    return m.bn(F.threshold(m.a(x), 0.0, 1.0))


@case(ROWS, a=linear(6, 8), bn=columns(8))
def hardtanh(m: Any, x: Tensor) -> Tensor:
    return m.bn(F.hardtanh(9 * m.a(x)))


@case(ROWS, a=linear(6, 8), bn=columns(8))
def sign_times_root(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.bn(y.sign() * y.abs().sqrt())


@case(ROWS, a=linear(6, 8), ln=layer(8))
def hypotenuse(m: Any, x: Tensor) -> Tensor:
    return m.ln(torch.hypot(m.a(x), m.a(x.flip(0))))


@case(ROWS, a=linear(6, 8, True), bn=columns(8))
def halved_with_bias(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x) * 0.5)


@case(ROWS, a=linear(6, 8, True), bn=columns(8))
def divided_with_bias(m: Any, x: Tensor) -> Tensor:
    return m.bn(2.0 * (m.a(x) / 3.0))


@case(ROWS, a=linear(6, 8, True), bn=columns(8))
def channels_scaled_with_bias(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x) * torch.arange(1.0, 9.0, dtype=x.dtype))


@case(ROWS, a=linear(6, 8, True), bn=columns(8))
def samples_scaled_with_bias(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x) * torch.arange(1.0, 6.0, dtype=x.dtype)[:, None])


@case(ROWS, a=linear(6, 8), bn=columns(8))
def one_added(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x) + 1.0)


@case(ROWS, a=linear(6, 8), bn=columns(8))
def one_subtracted_from(m: Any, x: Tensor) -> Tensor:
    return m.bn(1.0 - m.a(x))


@case(SEQUENCE, a=linear(6, 6), ln=layer(6))
def positions_added(m: Any, x: Tensor) -> Tensor:
    return m.ln(m.a(x) + torch.linspace(0, 1, 24, dtype=x.dtype).view(4, 6))


@case(SEQUENCE, a=linear(6, 6), position=matrix(4, 6), ln=layer(6))
def learned_positions_added(m: Any, x: Tensor) -> Tensor:
    return m.ln(m.a(x) + m.position)


@case(SEQUENCE, a=linear(6, 6), ln=layer(6))
def drop_path(m: Any, x: Tensor) -> Tensor:
    keep = torch.tensor([1.0, 0.0, 1.0], dtype=x.dtype).view(3, 1, 1)
    return m.ln(m.a(x).div(0.5) * keep + m.a(x.flip(0)))


@case(IMAGE, a=conv(3, 8), bn=batch(8), d=lambda: nn.Dropout2d(0.5))
def feature_dropout(m: Any, x: Tensor) -> Tensor:
    return m.bn(F.dropout2d(m.a(x), 0.3))


@case(ROWS, a=linear(6, 8), bn=columns(8))
def alpha_dropout(m: Any, x: Tensor) -> Tensor:
    return m.bn(F.alpha_dropout(m.a(x), 0.3, True))


@case(ROWS, a=linear(6, 8), bn=columns(8))
def dropout(m: Any, x: Tensor) -> Tensor:
    return m.bn(F.dropout(m.a(x), 0.3))


@case(SEQUENCE, q=linear(6, 6), k=linear(6, 6), v=linear(6, 6), ln=layer(6))
def linear_attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = F.elu(m.q(x)) + 1, F.elu(m.k(x)) + 1, m.v(x)
    return m.ln(q @ (k.transpose(1, 2) @ v) / (q @ k.sum(1)[..., None] + EPS))


@case(SEQUENCE, q=linear(6, 6), k=linear(6, 6), v=linear(6, 6), ln=layer(6))
def relu_attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = F.relu(m.q(x)), F.relu(m.k(x)), m.v(x)
    return m.ln(q @ (k.transpose(1, 2) @ v) / (q @ k.sum(1)[..., None] + EPS))


@case(SEQUENCE, q=linear(6, 6), k=linear(6, 6), v=linear(6, 6))
def relu_attention_padded(m: Any, x: Tensor) -> Tensor:
    q, k, v = F.relu(m.q(x)), F.relu(m.k(x)), F.pad(m.v(x), (0, 1), value=1.0)
    out = q @ (k.transpose(1, 2) @ v)
    return out[..., :-1] / (out[..., -1:] + 1e-20)


@case(SEQUENCE, q=linear(6, 6), k=linear(6, 6), v=linear(6, 6), ln=layer(6))
def masked_attention(m: Any, x: Tensor) -> Tensor:
    scores = F.normalize(m.q(x), dim=-1, eps=EPS) @ F.normalize(m.k(x), dim=-1, eps=EPS).mT
    scores = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), float("-inf"))
    return m.ln(scores.softmax(-1) @ m.v(x))


@case(SEQUENCE, q=linear(6, 6), k=linear(6, 6), v=linear(6, 6), ln=layer(6))
def sigmoid_attention(m: Any, x: Tensor) -> Tensor:
    return m.ln((m.q(x) @ m.k(x).mT).sigmoid() @ m.v(x))
