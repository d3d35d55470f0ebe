"""Norms of all sizes, Fourier transforms, mixtures of experts, checkpoints, own functions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .net import EPS, IMAGE, ROWS, SEQUENCE, batch, case, columns, conv, layer, linear, matrix


@case(SEQUENCE, a=linear(6, 6), ln=layer(6))
def fourier_mixing(m: Any, x: Tensor) -> Tensor:
    return m.ln(torch.fft.fft(torch.fft.fft(m.a(x), dim=-1), dim=-2).real)


@case(SEQUENCE, a=linear(6, 6), w=matrix(3, 6, 2), ln=layer(6))
def spectral_filter(m: Any, x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(m.a(x), dim=1, norm="ortho") * torch.view_as_complex(m.w)
    return m.ln(torch.fft.irfft(spectrum, n=4, dim=1, norm="ortho"))


@case(IMAGE, a=conv(3, 4), bn=batch(4))
def unfolded_and_folded(m: Any, x: Tensor) -> Tensor:
    patches = F.unfold(m.a(x), 2, stride=2)
    return m.bn(F.fold(patches, (6, 6), 2, stride=2))


@case(IMAGE, a=conv(3, 8), bn=batch(2))
def pixel_shuffled(m: Any, x: Tensor) -> Tensor:
    return m.bn(F.pixel_shuffle(m.a(x), 2))


@case(IMAGE, a=conv(3, 4), bn=batch(16))
def pixel_unshuffled(m: Any, x: Tensor) -> Tensor:
    return m.bn(F.pixel_unshuffle(m.a(x), 2))


@case(IMAGE, a=conv(3, 4), bn=batch(4))
def grid_sampled(m: Any, x: Tensor) -> Tensor:
    grid = torch.linspace(-0.9, 0.9, 4 * 5 * 5 * 2, dtype=x.dtype).view(4, 5, 5, 2)
    return m.bn(F.grid_sample(m.a(x), grid, align_corners=False))


@case(IMAGE, a=conv(3, 4), b=conv(4, 4, bias=True), ln=lambda: nn.LayerNorm((4, 6, 6)))
def layer_norm_over_images(m: Any, x: Tensor) -> Tensor:
    return m.ln(m.b(F.relu(m.a(x))))


@case(
    SEQUENCE, a=lambda: nn.Conv1d(4, 8, 3), bn=columns(8), b=lambda: nn.Conv1d(8, 4, 1), i=lambda: nn.InstanceNorm1d(4)
)
def one_dimension(m: Any, x: Tensor) -> Tensor:
    return m.i(m.b(F.relu(m.bn(m.a(x)))))


@case((2, 2, 4, 4, 4), a=lambda: nn.Conv3d(2, 4, 3), i=lambda: nn.InstanceNorm3d(4), b=lambda: nn.Conv3d(4, 4, 1))
def three_dimensions(m: Any, x: Tensor) -> Tensor:
    return F.max_pool3d(m.i(m.b(F.relu(m.i(m.a(x))))), 2)


@case(ROWS, a=linear(6, 8, True), gn=lambda: nn.GroupNorm(2, 8))
def group_norm_of_rows(m: Any, x: Tensor) -> Tensor:
    return m.gn(m.a(x))


@case(
    ROWS,
    a=linear(6, 8, True),
    ln=lambda: nn.LayerNorm(8, elementwise_affine=False),
    b=linear(8, 4),
    n=lambda: nn.RMSNorm(4),
)
def plain_norms(m: Any, x: Tensor) -> Tensor:
    return m.n(m.b(F.relu(m.ln(m.a(x)))))


@case(ROWS, a=linear(6, 8, True), bn=lambda: nn.SyncBatchNorm(8))
def sync_batch_norm(m: Any, x: Tensor) -> Tensor:
    return F.batch_norm(m.a(x), None, None, m.bn.weight, m.bn.bias, True, eps=EPS)


@case(ROWS, bag=lambda: nn.EmbeddingBag(7, 8, mode="sum"), table=lambda: nn.Embedding(7, 4), bn=columns(8), ln=layer(4))
def embeddings(m: Any, x: Tensor) -> Tensor:
    index = (x.abs() * 3).long().clamp(max=6)
    return torch.cat([m.bn(m.bag(index)), m.ln(m.table(index)).mean(1)], 1)


@case((9, 6), gate=linear(6, 3), w=matrix(3, 8, 6), ln=layer(8))
def experts_by_index(m: Any, x: Tensor) -> Tensor:
    best, which = m.gate(x).softmax(-1).max(-1)
    return m.ln(torch.bmm(m.w[which], x[..., None])[..., 0]) * best[:, None]


@case((9, 6), gate=linear(6, 3), e0=linear(6, 8), e1=linear(6, 8), e2=linear(6, 8), ln=layer(8))
def experts_by_index_add(m: Any, x: Tensor) -> Tensor:
    weights, out = m.gate(x).softmax(-1), x.new_zeros(9, 8)
    for number, expert in enumerate((m.e0, m.e1, m.e2)):
        rows = torch.arange(9)[number::3]
        out.index_add_(0, rows, expert(x[rows]) * weights[rows, number, None])
    return m.ln(out)


@case((9, 6), e0=linear(6, 8), e1=linear(6, 8), ln=layer(8))
def experts_by_mask(m: Any, x: Tensor) -> Tensor:
    out, mask = x.new_zeros(9, 8), torch.arange(9) % 2 == 0
    out[mask] = m.ln(m.e0(x[mask]))
    out[~mask] = m.ln(m.e1(x[~mask]))
    return out


@case(ROWS, a=linear(6, 8, True), bn=columns(8))
def checkpointed(m: Any, x: Tensor) -> Tensor:
    return checkpoint(lambda v: m.bn(m.a(v)), x, use_reentrant=False)


@case(ROWS, a=linear(6, 8), bn=columns(8), b=linear(6, 8))
def checkpointed_reentrant_with_a_second_use(m: Any, x: Tensor) -> Tensor:
    hidden = checkpoint(lambda v: m.a(v).sigmoid(), m.b(x)[:, :6], use_reentrant=True)
    return m.bn(m.a(x)) + hidden


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


@case(ROWS, a=linear(6, 8), bn=columns(8), b=linear(8, 4), c=columns(4))
def own_function(m: Any, x: Tensor) -> Tensor:
    return m.c(m.b(m.bn(Double.apply(m.a(x)))))
