"""Networks with convolutions and attention, and gated MLPs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import CLASSES, Case, ConvNorm, Head, classifier
from .tokens import Block, MeanHead, Patches


class LinearNorm(nn.Module):
    """LeViT: linear layer and BatchNorm over the flattened tokens."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.c, self.bn = nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(x)
        return self.bn(x.flatten(0, 1)).reshape_as(x)


class LeViTAttention(nn.Module):
    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads, self.key, self.value = heads, 2, 4
        self.qkv, self.proj = LinearNorm(width, heads * 8), nn.Sequential(nn.Hardswish(), LinearNorm(heads * 4, width))
        self.biases = nn.Parameter(torch.zeros(heads, tokens))
        positions = torch.arange(tokens)
        self.index = (positions[:, None] - positions).abs()

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, self.heads, -1).split([self.key, self.key, self.value], 3)
        q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
        scores = (q @ k * self.key**-0.5 + self.biases[:, self.index]).softmax(-1)
        return x + self.proj((scores @ v).transpose(1, 2).reshape(batch, tokens, -1))


class LeViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Sequential(ConvNorm(3, 6, 3, 2, act=nn.Hardswish), ConvNorm(6, 8, 3, 2, act=None))
        self.attention, self.mlp = (
            LeViTAttention(8, 2, 16),
            nn.Sequential(LinearNorm(8, 16), nn.Hardswish(), LinearNorm(16, 8)),
        )
        self.bn, self.head = nn.BatchNorm1d(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(self.patch(x).flatten(2).transpose(1, 2))
        return self.head(self.bn((x + self.mlp(x)).mean(1)))


def levit() -> Case:
    return classifier(LeViT())


class BoTAttention(nn.Module):
    """BoTNet: attention over all positions, with learned relative rows and columns, and BatchNorm behind."""

    def __init__(self, width: int, size: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.qkv = heads, nn.Conv2d(width, 3 * width, 1, bias=False)
        self.height = nn.Parameter(torch.randn(size, 1, width // heads))
        self.width = nn.Parameter(torch.randn(1, size, width // heads))
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.reshape(len(x), self.heads, -1, x[0, 0].numel()).transpose(2, 3) for y in self.qkv(x).chunk(3, 1))
        position = (self.height + self.width).flatten(0, 1)
        scores = torch.einsum("bhid,bhjd->bhij", q, k) + torch.einsum("bhid,jd->bhij", q, position)
        y = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v).transpose(2, 3).reshape(x.shape)
        return F.relu(self.bn(y))


def botnet() -> Case:
    return classifier(nn.Sequential(ConvNorm(3, 8, 3, 2), BoTAttention(8, 8), ConvNorm(8, 8, 1), Head(8)))


class ConvProjection(nn.Module):
    """CvT: depthwise convolution and BatchNorm make queries, keys and values, before linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList([ConvNorm(width, width, 3, 1, width, act=None) for _ in range(3)])
        self.linears = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        side = int(x.shape[1] ** 0.5)
        image = x.transpose(1, 2).reshape(len(x), -1, side, side)
        q, k, v = (
            linear(conv(image).flatten(2).transpose(1, 2)).view(len(x), -1, 2, x.shape[2] // 2).transpose(1, 2)
            for conv, linear in zip(self.projections, self.linears, strict=True)
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


def cvt() -> Case:
    return classifier(nn.Sequential(Patches(8), nn.LayerNorm(8), Block(8, ConvProjection(8)), MeanHead(8)))


class SpatialReduction(nn.Module):
    """PVT: keys and values from a strided convolution and a LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.sr, self.norm = nn.Conv2d(width, width, 2, 2), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        side = int(tokens**0.5)
        q = self.q(x).reshape(batch, tokens, 2, width // 2).permute(0, 2, 1, 3)
        small = self.sr(x.permute(0, 2, 1).reshape(batch, width, side, side)).reshape(batch, width, -1).permute(0, 2, 1)
        k, v = self.kv(self.norm(small)).reshape(batch, -1, 2, 2, width // 2).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * (width // 2) ** -0.5
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width))


def pvt() -> Case:
    return classifier(nn.Sequential(Patches(8), nn.LayerNorm(8), Block(8, SpatialReduction(8)), MeanHead(8)))


class CrossCovariance(nn.Module):
    """XCiT: attention between channels; queries and keys are normalized along the tokens."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.temperature = heads, nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 4, 1).unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        scores = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(-1)
        return self.proj((scores @ v).permute(0, 3, 1, 2).reshape(batch, tokens, width))


class LocalPatches(nn.Module):
    """XCiT's local patch interaction: two depthwise convolutions with a BatchNorm between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        side = int(x.shape[1] ** 0.5)
        y = x.permute(0, 2, 1).reshape(len(x), -1, side, side)
        return self.conv2(self.bn(F.gelu(self.conv1(y)))).flatten(2).permute(0, 2, 1)


def xcit() -> Case:
    blocks = [Block(8, CrossCovariance(8), scale=True), Block(8, LocalPatches(8))]
    return classifier(nn.Sequential(Patches(8), *blocks, MeanHead(8)))


class MobileViTBlock(nn.Module):
    """Convolution, attention between the same places of all patches, and fusion by concatenation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.enter = ConvNorm(width, width, act=nn.SiLU), nn.Conv2d(width, 12, 1, bias=False)
        layer = nn.TransformerEncoderLayer(12, 2, 16, 0.0, F.silu, batch_first=True, norm_first=True)
        self.layers, self.norm = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.LayerNorm(12)
        self.leave, self.fuse = ConvNorm(12, width, 1, act=nn.SiLU), ConvNorm(2 * width, width, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        y = self.enter(self.conv(x))
        y = y.reshape(batch * 12 * height // 2, 2, width // 2, 2).transpose(1, 2)
        y = y.reshape(batch, 12, -1, 4).transpose(1, 3).reshape(batch * 4, -1, 12)
        y = self.norm(self.layers(y)).contiguous().view(batch, 4, -1, 12).transpose(1, 3)
        y = y.reshape(batch * 12 * height // 2, width // 2, 2, 2).transpose(1, 2).reshape(batch, 12, height, width)
        return self.fuse(torch.cat((x, self.leave(y)), 1))


def mobilevit() -> Case:
    return classifier(nn.Sequential(ConvNorm(3, 6, 3, 2, act=nn.SiLU), MobileViTBlock(6), Head(6)), 3, 8, 8)


class SpatialGate(nn.Module):
    """gMLP: one half of the channels gates the other half across tokens."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm0, self.proj1 = nn.LayerNorm(width), nn.Linear(width, 12)
        self.norm, self.spatial, self.proj2 = nn.LayerNorm(6), nn.Conv1d(tokens, tokens, 1), nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.proj1(self.norm0(x))).chunk(2, -1)
        return x + self.proj2(u * self.spatial(self.norm(v)))


def gmlp() -> Case:
    return classifier(nn.Sequential(Patches(8), SpatialGate(8, 16), SpatialGate(8, 16), MeanHead(8)))


class FocalModulation(nn.Module):
    """FocalNet: gated sums of convolutions of growing size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f, self.h, self.proj = nn.Linear(width, 2 * width + 3), nn.Conv2d(width, width, 1), nn.Linear(width, width)
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(width, width, k, 1, k // 2, groups=width, bias=False), nn.GELU()) for k in (3, 5)]
        )

    def forward(self, x: Tensor) -> Tensor:
        side = int(x.shape[1] ** 0.5)
        y = self.f(x.view(len(x), side, side, -1)).permute(0, 3, 1, 2)
        q, context, gates = torch.split(y, (x.shape[2], x.shape[2], 3), 1)
        total = torch.zeros_like(q)
        for level, layer in enumerate(self.layers):
            context = layer(context)
            total = total + context * gates[:, level : level + 1]
        total = total + F.gelu(context.mean((2, 3), keepdim=True)) * gates[:, 2:]
        return self.proj((q * self.h(total)).flatten(2).transpose(1, 2))


def focalnet() -> Case:
    return classifier(
        nn.Sequential(Patches(8), Block(8, FocalModulation(8), post=True), Block(8, FocalModulation(8)), MeanHead(8))
    )


class DETR(nn.Module):
    """Convolutions with fixed BatchNorm, a projection, positions, and nn.Transformer with norms behind the sums."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.proj = nn.Sequential(ConvNorm(3, 6, 3, 2), ConvNorm(6, 8, 3, 2)), nn.Conv2d(8, 8, 1)
        self.transformer = nn.Transformer(8, 2, 1, 1, 12, 0.0, batch_first=True)
        self.queries, self.rows, self.columns = (nn.Parameter(torch.rand(n, w)) for n, w in ((3, 8), (4, 4), (4, 4)))
        self.classes, self.boxes = nn.Linear(8, CLASSES), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        y = self.proj(self.backbone(x)).flatten(2).permute(0, 2, 1)
        position = torch.cat([self.rows.repeat(4, 1), self.columns.repeat_interleave(4, 0)], 1)
        y = self.transformer(position + 0.1 * y, self.queries.expand(len(x), -1, -1))
        return self.classes(y).mean(1) + self.boxes(y).sigmoid().mean((1, 2))[:, None]


def detr() -> Case:
    return classifier(DETR())
