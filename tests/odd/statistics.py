"""Nets that look almost like others: constants beside statistics, parts of tensors, scans."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .net import EPS, IMAGE, ROWS, SEQUENCE, batch, case, columns, conv, layer, linear, matrix


@case(ROWS, a=linear(6, 8), bn=columns(8))
def one_minus(m: Any, x: Tensor) -> Tensor:
    return m.bn(1 - m.a(x))


@case(SEQUENCE, q=linear(6, 6), k=linear(6, 6), v=linear(6, 6))
def linear_att_eps(m: Any, x: Tensor) -> Tensor:
    q, k, v = F.relu(m.q(x)), F.relu(m.k(x)), m.v(x)
    return q @ (k.mT @ v) / (q @ k.sum(1)[..., None] + 1.0)


@case(ROWS, a=linear(6, 8), bn=columns(8))
def dead_sign(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.bn(y.sign() * (y.abs() + 1))


@case(ROWS, a=linear(6, 8), g=matrix(8), rn=lambda: nn.RMSNorm(8))
def pow_stat(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return y / (y.pow(2).mean(-1, keepdim=True).pow(0.25))


@case(ROWS, a=linear(6, 8))
def softsign_of_norm(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    n = y.norm(dim=-1, keepdim=True)
    return y / n * (n / (1 + n))


@case(ROWS, a=linear(6, 8))
def frn(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)[:, :, None]
    nu = y.pow(2).mean(1, keepdim=True)
    return (y * torch.rsqrt(nu + 1e-6 * 0))[:, :, 0]


@case(IMAGE, a=conv(3, 4), bn=batch(4))
def strided_overlap(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.bn(y.as_strided((4, 4, 6, 5), (144, 36, 6, 1)))


@case(IMAGE, a=conv(3, 4), bn=batch(4))
def diag_write(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y.diagonal(dim1=2, dim2=3).mul_(2.0)
    return m.bn(y)


@case(IMAGE, a=conv(3, 4), bn=batch(4))
def diag_fill(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y.diagonal(dim1=2, dim2=3).fill_(2.0)
    return m.bn(y)


@case(ROWS, w=matrix(6, 6), ln=layer(6))
def diag_zero(m: Any, x: Tensor) -> Tensor:
    w = m.w.clone()
    w.fill_diagonal_(0.0)
    return m.ln(x @ w)


@case(ROWS, w=matrix(6, 6), ln=layer(6))
def diag_one(m: Any, x: Tensor) -> Tensor:
    w = m.w.clone()
    w.fill_diagonal_(1.0)
    return m.ln(x @ w)


@case(ROWS, w=matrix(6, 6), ln=layer(6))
def diag_embed(m: Any, x: Tensor) -> Tensor:
    return m.ln(x @ torch.diag_embed(m.w.diagonal()))


@case(SEQUENCE, w=matrix(4, 4), a=linear(6, 6), ln=layer(6))
def toeplitz(m: Any, x: Tensor) -> Tensor:
    return m.ln(m.w.tril() @ m.a(x))


@case(ROWS, a=linear(6, 8, True), bn=columns(8))
def index_bias(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x)[:, torch.tensor([1, 0, 2, 3, 5, 4, 7, 6])])


@case(ROWS, a=linear(6, 8, True), bn=columns(8))
def put_bias(m: Any, x: Tensor) -> Tensor:
    y = x.new_zeros(5, 8)
    y[:, torch.tensor([1, 0, 2, 3, 5, 4, 7, 6])] = m.a(x)
    return m.bn(y)


@case(ROWS, a=linear(6, 8, True), bn=columns(8))
def masked_bias(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x).masked_fill(torch.eye(5, 8) > 0, 0.0))


@case((9, 6), a=linear(6, 8, True), bn=columns(8))
def batch_index_bias(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x)[torch.tensor([1, 0, 2, 3, 5, 4, 7, 6])])


@case(ROWS, w=matrix(3, 6, 8), ln=layer(8))
def stacked(m: Any, x: Tensor) -> Tensor:
    return m.ln(torch.stack([x @ w for w in m.w]).sum(0))


@case(ROWS, w=matrix(3, 6, 8), ln=layer(8))
def stacked_sep(m: Any, x: Tensor) -> Tensor:
    return torch.stack([m.ln(x @ w) for w in m.w.unbind()]).sum(0)


@case(ROWS, w=matrix(6, 8), ln=layer(8))
def prod_all(m: Any, x: Tensor) -> Tensor:
    return m.ln(x @ m.w) * m.ln(x @ m.w).prod(1, keepdim=True)


@case(SEQUENCE, a=linear(6, 5), bn=columns(5))
def scan_sum_then_gate(m: Any, x: Tensor) -> Tensor:
    h = torch.zeros(3, 5, dtype=x.dtype)
    outs = []
    for t in range(4):
        h = h * 0.9 + m.a(x[:, t])
    outs.append(h)
    return m.bn(torch.stack(outs, 2))


@case(SEQUENCE, a=linear(6, 5), bn=columns(5))
def scan_from_ones(m: Any, x: Tensor) -> Tensor:
    h = torch.ones(3, 5, dtype=x.dtype)
    outs = []
    for t in range(4):
        h = h * x[:, t, :1] + m.a(x[:, t])
    outs.append(h)
    return m.bn(torch.stack(outs, 2))


@case(IMAGE, a=conv(3, 4, bias=True), bn=batch(4))
def region_add(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    z = torch.zeros_like(y)
    z[:, :, 1:5, 1:5] += y[:, :, 1:5, 1:5]
    return m.bn(z)


@case(IMAGE, a=conv(3, 4), bn=batch(4))
def overlap_add(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    z = torch.zeros_like(y)
    for i in range(3):
        z[:, :, i : i + 4] += y[:, :, i : i + 4]
    return m.bn(z)


@case(IMAGE, a=conv(3, 4), bn=batch(4))
def shift_tsm(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    out = torch.zeros_like(y)
    out[:-1, :1] = y[1:, :1]
    out[1:, 1:2] = y[:-1, 1:2]
    out[:, 2:] = y[:, 2:]
    return m.bn(out)


@case(ROWS, a=linear(6, 8), b=linear(6, 8), ln=layer(8))
def lerp(m: Any, x: Tensor) -> Tensor:
    return m.ln(torch.lerp(m.a(x), m.b(x), 0.3))


@case(ROWS, a=linear(6, 8), b=linear(6, 8), ln=layer(8))
def addcmul(m: Any, x: Tensor) -> Tensor:
    return m.ln(torch.addcmul(m.a(x), m.a(x), torch.ones(5, 8, dtype=x.dtype) * 2))


@case(ROWS, a=linear(6, 8), bn=columns(8))
def addcdiv(m: Any, x: Tensor) -> Tensor:
    return m.bn(torch.addcdiv(m.a(x), m.a(x), x.abs().sum(1, keepdim=True)))


@case(ROWS, a=linear(6, 8), bn=columns(8))
def std_plus(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return (y - y.mean(0)) / (y.std(0) + EPS)


@case(ROWS, a=linear(6, 8))
def l1(m: Any, x: Tensor) -> Tensor:
    return F.normalize(m.a(x), p=1, dim=1, eps=EPS)


@case(ROWS, a=linear(6, 8))
def linf(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return y / y.abs().max(dim=1, keepdim=True)[0].clamp_min(EPS)


@case(ROWS, a=linear(6, 8))
def minmax(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return (y - y.amin(1, keepdim=True)) / (y.amax(1, keepdim=True) - y.amin(1, keepdim=True) + EPS)


@case(ROWS, a=linear(6, 8, True))
def minmax_bias(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return (y - y.amin(0, keepdim=True)) / (y.amax(0, keepdim=True) - y.amin(0, keepdim=True) + EPS)


@case(ROWS, a=linear(6, 8))
def sum_norm(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.a(x))
    return y / (y.sum(1, keepdim=True) + EPS)


@case(ROWS, a=linear(6, 8))
def cosine_plus(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return F.cosine_similarity(y, x[:, :1].expand(5, 8), dim=1, eps=EPS)[:, None]


@case(IMAGE, a=conv(3, 4, bias=True), b=conv(3, 4, 1), bn=batch(4))
def python_sum(m: Any, x: Tensor) -> Tensor:
    return m.bn(sum([m.a(x), m.b(x), m.b(x.flip(2))]))


@case(IMAGE, a=conv(3, 4, groups=1, stride=2), bn=batch(4))
def python_sum_of_one(m: Any, x: Tensor) -> Tensor:
    return m.bn(sum([m.a(x)]) * 2)


@case(IMAGE, a=conv(3, 6), b=conv(6, 6, 3, groups=3, dilation=2), bn=batch(6))
def one_added_to_a_convolution(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.b(F.relu(m.bn(m.a(x) + 1.0))) - 2.0)


@case(IMAGE, a=conv(3, 3), bn=batch(3))
def data_added_to_a_convolution(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x) + x)


@case(IMAGE, a=conv(3, 3), bn=batch(3))
def channels_added_to_a_convolution(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x) + torch.arange(3.0, dtype=x.dtype).view(3, 1, 1))


@case(SEQUENCE, a=linear(6, 6), b=linear(6, 6), ln=layer(6))
def sum_of_branches(m: Any, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for branch in (m.a, m.b):
        out = out + branch(x)
    return m.ln(out)
