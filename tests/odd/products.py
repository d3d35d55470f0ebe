"""Products, reductions and scans."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .net import EPS, IMAGE, ROWS, SEQUENCE, batch, case, columns, conv, layer, linear, matrix


@case(SEQUENCE, q=linear(6, 8), k=linear(6, 8), v=linear(6, 8), qn=layer(4), kn=layer(4), ln=layer(8))
def attention_by_einsum(m: Any, x: Tensor) -> Tensor:
    q, k, v = (f(x).view(3, 4, 2, 4).transpose(1, 2) for f in (m.q, m.k, m.v))
    scores = torch.einsum("bhqd,bhkd->bhqk", m.qn(q), m.kn(k)).softmax(-1)
    return m.ln(torch.einsum("bhqk,bhkd->bqhd", scores, v).flatten(2))


@case(SEQUENCE, w=matrix(2, 6, 4), ln=layer(4))
def einsum_per_head(m: Any, x: Tensor) -> Tensor:
    return m.ln(torch.einsum("bti,hio->bhto", x, m.w))


@case(ROWS, u=matrix(6, 4), v=matrix(4, 5), w=matrix(5, 3), ln=layer(3))
def einsum_of_four(m: Any, x: Tensor) -> Tensor:
    return m.ln(torch.einsum("bi,ij,jk,kl->bl", x, m.u, m.v, m.w))


@case(ROWS, w=matrix(6, 8), bn=columns(8))
def einsum_with_a_diagonal(m: Any, x: Tensor) -> Tensor:
    return m.bn(torch.einsum("bi,io,o->bo", x, m.w, torch.arange(1.0, 9.0, dtype=x.dtype)))


@case(SEQUENCE, w=matrix(3, 6, 5), bias=matrix(3, 1, 5), ln=layer(5))
def baddbmm(m: Any, x: Tensor) -> Tensor:
    return m.ln(torch.baddbmm(m.bias, x, m.w))


@case(ROWS, w=matrix(6, 8), bias=matrix(8), bn=columns(8))
def addmm(m: Any, x: Tensor) -> Tensor:
    return m.bn(torch.addmm(m.bias, x, m.w))


@case(ROWS, a=lambda: nn.Bilinear(6, 6, 8, bias=False), bn=columns(8))
def bilinear(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x, x.flip(1)))


@case(SEQUENCE, w=matrix(4, 6, 5), ln=layer(5))
def tensordot(m: Any, x: Tensor) -> Tensor:
    return m.ln(torch.tensordot(x, m.w, ([1, 2], [0, 1])))


@case(ROWS, u=matrix(2, 2), v=matrix(4, 3), bn=columns(8))
def kronecker(m: Any, x: Tensor) -> Tensor:
    return m.bn(F.linear(x, torch.kron(m.u, m.v)))


@case(ROWS, a=linear(6, 4), b=linear(6, 3), ln=layer(12))
def outer_product(m: Any, x: Tensor) -> Tensor:
    return m.ln((m.a(x)[:, :, None] * m.b(x)[:, None]).flatten(1))


@case(ROWS, w=matrix(6, 1), a=linear(6, 4), bn=columns(4))
def matrix_vector(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x) * torch.mv(x, m.w[:, 0])[:, None])


@case(ROWS, a=linear(6, 4), p=matrix(3, 4))
def cosine_similarity(m: Any, x: Tensor) -> Tensor:
    return F.cosine_similarity(m.a(x)[:, None], m.p[None], dim=-1, eps=EPS)


@case(ROWS, a=linear(6, 4), p=matrix(3, 4), ln=layer(3))
def distances(m: Any, x: Tensor) -> Tensor:
    return m.ln(torch.cdist(m.a(x), m.p))


@case(SEQUENCE, a=linear(6, 5), ln=layer(5))
def cumulated_sum(m: Any, x: Tensor) -> Tensor:
    return m.ln(m.a(x).cumsum(1))


@case(SEQUENCE, a=linear(6, 5), bn=columns(5))
def cumulated_product(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x).cumprod(1)[:, -1])


@case(SEQUENCE, a=linear(6, 5), bn=columns(5))
def product_of_elements(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x).prod(1))


@case(SEQUENCE, a=linear(6, 5), ln=layer(5))
def log_of_cumulated_exponentials(m: Any, x: Tensor) -> Tensor:
    return m.ln(m.a(x).logcumsumexp(1))


@case(SEQUENCE, a=linear(6, 5), ln=layer(5))
def largest_element(m: Any, x: Tensor) -> Tensor:
    return m.ln(m.a(x).amax(1))


@case(SEQUENCE, a=linear(6, 5), bn=columns(5))
def largest_with_indices(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x).max(1)[0])


@case(SEQUENCE, a=linear(6, 5), bn=columns(5))
def k_largest(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x).topk(2, 1)[0].transpose(1, 2))


@case(SEQUENCE, a=linear(6, 5), bn=columns(5))
def sorted_elements(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x).sort(1)[0].transpose(1, 2))


@case(SEQUENCE, a=linear(6, 5), ln=layer(5))
def median(m: Any, x: Tensor) -> Tensor:
    return m.ln(m.a(x).median(1)[0])


@case(SEQUENCE, a=linear(6, 5), ln=layer(5))
def masked_mean(m: Any, x: Tensor) -> Tensor:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], dtype=x.dtype)[..., None]
    return m.ln((m.a(x) * mask).sum(1) / mask.sum(1))


@case(SEQUENCE, a=linear(6, 5), ln=layer(5))
def neighbours_gathered(m: Any, x: Tensor) -> Tensor:
    index = torch.tensor([3, 1, 0, 2])[None, :, None].expand(3, 4, 5)
    return m.ln(m.a(x).gather(1, index))


@case(SEQUENCE, a=linear(6, 6), bn=columns(6))
def channels_selected(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x).index_select(2, torch.tensor([5, 3, 1, 0, 2, 4])).transpose(1, 2))


@case(IMAGE, a=conv(3, 6), bn=batch(4))
def some_channels_indexed(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x)[:, torch.tensor([5, 3, 1, 0])])


@case(IMAGE, a=conv(3, 6), bn=batch(6))
def channels_flipped(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x).flip(1).roll(2, 1))


@case(ROWS, a=linear(6, 4), bn=columns(8))
def channels_repeated(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.a(x).repeat_interleave(2, 1)) + m.bn(m.a(x).repeat(1, 2))


@case(SEQUENCE, w=matrix(6, 5, 4), ln=layer(5))
def diagonal_of_a_product(m: Any, x: Tensor) -> Tensor:
    return m.ln(torch.einsum("bti,iot->bto", x, m.w))


@case(SEQUENCE, a=linear(6, 16), ln=layer(4))
def diagonal_of_a_square(m: Any, x: Tensor) -> Tensor:
    return m.ln(torch.diagonal(m.a(x).view(3, 4, 4, 4), dim1=1, dim2=3)).flatten(1)


@case(SEQUENCE, a=linear(6, 16), bn=columns(4))
def diagonals_of_squares(m: Any, x: Tensor) -> Tensor:
    return m.bn(
        m.a(x).view(12, 4, 4).diagonal(1, 1, 2).mean(1, keepdim=True).expand(12, 4) + m.a(x)[:, :, :4].flatten(0, 1)
    )
