"""Swin transformers: attention in shifted windows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import CLASSES, Case, classifier


def partition(x: Tensor, size: int) -> Tensor:
    batch, height, width, channels = x.shape
    x = x.view(batch, height // size, size, width // size, size, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size * size, channels)


def unpartition(x: Tensor, size: int, height: int, width: int) -> Tensor:
    x = x.view(-1, height // size, width // size, size, size, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, height, width, x.shape[-1])


class WindowAttention(nn.Module):
    """Relative position bias from a table, or (version 2) cosine attention with a bias made by a small network."""

    index: Tensor
    coordinates: Tensor

    def __init__(self, width: int, size: int, heads: int, version: int) -> None:
        super().__init__()
        self.heads, self.version = heads, version
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
        relative = (grid[:, :, None] - grid[:, None]).permute(1, 2, 0) + size - 1
        self.register_buffer("index", relative[..., 0] * (2 * size - 1) + relative[..., 1])
        if version == 1:
            self.table = nn.Parameter(torch.randn((2 * size - 1) ** 2, heads) * 0.02)
        else:
            self.logit_scale = nn.Parameter(torch.log(10 * torch.ones(heads, 1, 1)))
            self.cpb_mlp = nn.Sequential(nn.Linear(2, 6), nn.ReLU(True), nn.Linear(6, heads, bias=False))
            axis = torch.linspace(-1, 1, 2 * size - 1, dtype=torch.float64)
            self.register_buffer("coordinates", torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 2))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        windows, tokens, width = x.shape
        qkv = self.qkv(x).reshape(windows, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if self.version == 1:
            scores = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)
            bias = self.table[self.index.view(-1)].view(tokens, tokens, -1).permute(2, 0, 1).contiguous()
        else:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
            scores = scores * torch.clamp(self.logit_scale, max=math.log(100.0)).exp()
            bias = self.cpb_mlp(self.coordinates)[self.index.view(-1)].view(tokens, tokens, -1)
            bias = 16 * torch.sigmoid(bias.permute(2, 0, 1).contiguous())
        scores = scores + bias.unsqueeze(0)
        if mask is not None:
            scores = scores.view(-1, len(mask), self.heads, tokens, tokens) + mask[None, :, None]
            scores = scores.view(-1, self.heads, tokens, tokens)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(windows, tokens, width))


class SwinBlock(nn.Module):
    def __init__(self, width: int, shift: int, version: int, size: int = 2) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attn = (
            nn.LayerNorm(width),
            nn.LayerNorm(width),
            WindowAttention(width, size, 2, version),
        )
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.shift, self.size, self.version = shift, size, version

    def window(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        mask = None
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
            region = torch.arange(height * width, dtype=x.dtype).view(1, height, width, 1).div(3).floor()
            region = partition(region, self.size).squeeze(-1)
            mask = (region[:, None] - region[:, :, None]).ne(0).to(x.dtype) * -100.0
        x = unpartition(self.attn(partition(x, self.size), mask), self.size, height, width)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x

    def forward(self, x: Tensor) -> Tensor:
        if self.version == 1:
            x = x + self.window(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = x + self.norm1(self.window(x))
        return x + self.norm2(self.mlp(x))


class PatchMerging(nn.Module):
    """Four neighbours to one; the norm is before the reduction in version 1, behind it in version 2."""

    def __init__(self, width: int, version: int) -> None:
        super().__init__()
        self.version = version
        self.norm, self.reduction = (
            nn.LayerNorm(width * (4 if version == 1 else 2)),
            nn.Linear(4 * width, 2 * width, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.reduction(self.norm(x)) if self.version == 1 else self.norm(self.reduction(x))


class Swin(nn.Module):
    def __init__(self, version: int, width: int = 8) -> None:
        super().__init__()
        self.patch, self.norm0 = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)
        self.blocks = nn.Sequential(SwinBlock(width, 0, version), SwinBlock(width, 1, version))
        self.merge, self.last = PatchMerging(width, version), SwinBlock(2 * width, 0, version)
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm0(self.patch(x).permute(0, 2, 3, 1))
        return self.head(self.norm(self.last(self.merge(self.blocks(x)))).mean((1, 2)))


def swin() -> Case:
    return classifier(Swin(1))


def swin_v2() -> Case:
    return classifier(Swin(2))
