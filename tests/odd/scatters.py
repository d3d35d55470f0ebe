"""Graph networks: sums over neighbours."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .net import EPS, ROWS, SEQUENCE, case, columns, layer, linear, matrix

SOURCE, TARGET = torch.tensor([0, 1, 2, 3, 4, 0, 2, 1]), torch.tensor([1, 2, 3, 4, 0, 2, 4, 3])


def gathered(x: Tensor) -> Tensor:
    """Sum over the neighbours of each node."""
    return torch.zeros_like(x).index_add(0, TARGET, x[SOURCE])


@case(ROWS, a=linear(6, 8), bn=columns(8), b=linear(8, 4), ln=layer(4))
def gcn(m: Any, x: Tensor) -> Tensor:
    degrees = torch.zeros(5, dtype=x.dtype).index_add(0, TARGET, torch.ones(8, dtype=x.dtype)).clamp(min=1)
    h = m.a(x)
    norm = (degrees[SOURCE] * degrees[TARGET]).rsqrt()[:, None]
    h = F.relu(m.bn(torch.zeros(5, 8, dtype=x.dtype).index_add(0, TARGET, h[SOURCE] * norm)))
    return m.ln(gathered(m.b(h)))


@case(ROWS, a=linear(6, 8, True), bn=columns(8), b=linear(8, 4, True), ln=layer(4))
def gin(m: Any, x: Tensor) -> Tensor:
    h = F.relu(m.bn(m.a(1.1 * x + gathered(x))))
    return m.ln(m.b(h + gathered(h)))


@case(ROWS, a=linear(6, 8), b=linear(6, 8), bn=columns(8))
def sage(m: Any, x: Tensor) -> Tensor:
    index = TARGET[:, None].expand(8, 6)
    mean = torch.zeros_like(x).scatter_reduce(0, index, x[SOURCE], "mean", include_self=False)
    return m.bn(m.a(mean) + m.b(x))


@case(ROWS, a=linear(6, 8), bn=columns(24))
def pna(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)[SOURCE]
    index = TARGET[:, None].expand(8, 8)
    zero = torch.zeros(5, 8, dtype=x.dtype)
    return m.bn(
        torch.cat([zero.scatter_reduce(0, index, h, r, include_self=False) for r in ("mean", "amax", "sum")], 1)
    )


@case(ROWS, a=linear(6, 8), ln=layer(8))
def scatter_added(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)[SOURCE]
    return m.ln(torch.zeros(5, 8, dtype=x.dtype).scatter_add(0, TARGET[:, None].expand(8, 8), h))


@case(ROWS, a=linear(6, 8), bn=columns(8))
def put_with_accumulation(m: Any, x: Tensor) -> Tensor:
    y = torch.zeros(5, 8, dtype=x.dtype)
    return m.bn(y.index_put((TARGET,), m.a(x)[SOURCE], accumulate=True))


@case(ROWS, a=linear(6, 6), bn=columns(6))
def added_to_data_by_index(m: Any, x: Tensor) -> Tensor:
    return m.bn(x.index_add(0, TARGET, m.a(x)[SOURCE]))


@case(ROWS, a=linear(6, 8), weight=matrix(8), bias=matrix(8), shift=matrix(8))
def graph_norm(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    graphs = torch.tensor([0, 0, 0, 1, 1])
    count = torch.tensor([[3.0], [2.0]], dtype=x.dtype)
    mean = torch.zeros(2, 8, dtype=x.dtype).index_add(0, graphs, h) / count
    out = h - mean[graphs] * m.shift
    variance = torch.zeros(2, 8, dtype=x.dtype).index_add(0, graphs, out.pow(2)) / count
    return m.weight * out / (variance + EPS).sqrt()[graphs] + m.bias


@case(ROWS, a=linear(6, 8), att=matrix(8, 1), bn=columns(8))
def gat(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    score = F.leaky_relu(h[SOURCE] @ m.att + h[TARGET] @ m.att).exp()
    total = torch.zeros(5, 1, dtype=x.dtype).index_add(0, TARGET, score)[TARGET]
    return m.bn(torch.zeros(5, 8, dtype=x.dtype).index_add(0, TARGET, h[SOURCE] * (score / total)))


@case(SEQUENCE, a=linear(6, 8), bn=columns(8))
def dense_adjacency(m: Any, x: Tensor) -> Tensor:
    adjacency = torch.softmax(torch.arange(16.0).view(4, 4), -1).to(x.dtype)
    return m.bn((adjacency @ m.a(x)).transpose(1, 2))


@case(ROWS, a=linear(6, 8), bn=columns(8))
def sparse_adjacency(m: Any, x: Tensor) -> Tensor:
    adjacency = torch.eye(5, dtype=x.dtype).roll(1, 0).to_sparse()
    return m.bn(torch.sparse.mm(adjacency, m.a(x)))
