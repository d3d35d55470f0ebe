"""Vision transformers and their relatives without attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import CLASSES, Case, ConvNorm, Head, classifier


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm over channels last, inverted bottleneck; LayerScale, or GRN in version 2."""

    def __init__(self, width: int, version: int) -> None:
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        if version == 1:
            self.layer_scale = nn.Parameter(1e-6 * torch.ones(width))
        else:
            self.gamma, self.beta = (
                nn.Parameter(torch.zeros(1, 1, 1, 4 * width)),
                nn.Parameter(torch.zeros(1, 1, 1, 4 * width)),
            )
        self.version, self.eps = version, 1e-6

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.pwconv1(self.norm(self.dwconv(x).permute(0, 2, 3, 1))))
        if self.version == 2:
            length = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
            y = self.gamma * (y * (length / (length.mean(-1, keepdim=True) + self.eps))) + self.beta + y
        y = self.pwconv2(y)
        y = self.layer_scale * y if self.version == 1 else y
        return x + y.permute(0, 3, 1, 2)


class ChannelsFirstNorm(nn.Module):
    """ConvNeXt's LayerNorm over dimension 1, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        spread = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(spread + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


def convnext_net(version: int) -> Case:
    stem = [nn.Conv2d(3, 6, 4, 4), ChannelsFirstNorm(6)]
    down = [ChannelsFirstNorm(6), nn.Conv2d(6, 8, 2, 2)]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, CLASSES)]
    return classifier(nn.Sequential(*stem, ConvNeXtBlock(6, version), *down, ConvNeXtBlock(8, version), *tail))


def convnext() -> Case:
    return convnext_net(1)


def convnext_v2() -> Case:
    return convnext_net(2)


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp_tokens = nn.Sequential(nn.Linear(tokens, 6), nn.GELU(), nn.Linear(6, tokens))
        self.mlp_channels = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class Patches(nn.Module):
    def __init__(self, width: int, patch: int = 4) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class MeanHead(nn.Module):
    def __init__(self, width: int, norm: bool = True) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(width) if norm else nn.Identity(), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x).mean(1))


def mlp_mixer() -> Case:
    return classifier(nn.Sequential(Patches(8), MixerBlock(16, 8), MixerBlock(16, 8), MeanHead(8)))


class Affine(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.ones(1, 1, width)), nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, x)


class ResMLPBlock(nn.Module):
    """No norm at all, only affine maps: nothing is invariant."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.affine1, self.affine2, self.tokens = Affine(width), Affine(width), nn.Linear(tokens, tokens)
        self.ls1, self.ls2 = nn.Parameter(1e-4 * torch.ones(width)), nn.Parameter(1e-4 * torch.ones(width))
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1 * self.tokens(self.affine1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.ls2 * self.mlp(self.affine2(x))


def resmlp() -> Case:
    return classifier(nn.Sequential(Patches(8), ResMLPBlock(16, 8), MeanHead(8, norm=False)))


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def convmixer() -> Case:
    def block() -> list[nn.Module]:
        depth = Residual(nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, padding="same"), nn.GELU(), nn.BatchNorm2d(8)))
        return [depth, nn.Conv2d(8, 8, 1), nn.GELU(), nn.BatchNorm2d(8)]

    return classifier(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.BatchNorm2d(8), *block(), *block(), Head(8)))


class PoolFormerBlock(nn.Module):
    """Pooling in place of attention; GroupNorm with one group."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.mlp = nn.Sequential(nn.Conv2d(width, 16, 1), nn.GELU(), nn.Conv2d(16, width, 1))
        self.ls1, self.ls2 = nn.Parameter(1e-5 * torch.ones(width)), nn.Parameter(1e-5 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.ls1[:, None, None] * (self.pool(y) - y)
        return x + self.ls2[:, None, None] * self.mlp(self.norm2(x))


def poolformer() -> Case:
    tail = [nn.GroupNorm(1, 8), Head(8)]
    return classifier(nn.Sequential(nn.Conv2d(3, 8, 7, 4, 2), PoolFormerBlock(8), PoolFormerBlock(8), *tail))


class Attention(nn.Module):
    """Fused qkv; fused or composed softmax; norms per head on q and k where asked."""

    def __init__(self, width: int, heads: int, fused: bool = False, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """Pre-norm block; with LayerScale for CaiT, with the norm behind the branch for ``post``."""

    def __init__(self, width: int, attention: nn.Module, scale: bool = False, post: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attn, self.post = nn.LayerNorm(width), nn.LayerNorm(width), attention, post
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, width))
        self.gamma1 = nn.Parameter(1e-5 * torch.ones(width)) if scale else 1.0
        self.gamma2 = nn.Parameter(1e-5 * torch.ones(width)) if scale else 1.0

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = x + self.norm1(self.attn(x))
            return x + self.norm2(self.mlp(x))
        x = x + self.gamma1 * self.attn(self.norm1(x))
        return x + self.gamma2 * self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Class token (and distillation token), learned positions."""

    def __init__(self, *blocks: nn.Module, width: int = 8, extra: int = 1, gap: bool = False) -> None:
        super().__init__()
        self.patch, self.blocks, self.norm = Patches(width, 8), nn.Sequential(*blocks), nn.LayerNorm(width)
        self.cls_token = nn.Parameter(torch.randn(1, extra, width) * 0.02) if extra else None
        self.pos_embed = nn.Parameter(torch.randn(1, 4 + extra, width) * 0.02)
        self.heads = nn.ModuleList([nn.Linear(width, CLASSES) for _ in range(max(extra, 1))])
        self.gap = gap

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patch(x)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        x = self.norm(self.blocks(x + self.pos_embed))
        return [head(x.mean(1) if self.gap else x[:, index]) for index, head in enumerate(self.heads)]


def vit() -> Case:
    return classifier(ViT(Block(8, Attention(8, 2)), Block(8, Attention(8, 2, fused=True))))


def vit_qk_norm() -> Case:
    return classifier(
        ViT(Block(8, Attention(8, 2, True, True)), Block(8, Attention(8, 2, False, True)), extra=0, gap=True)
    )


def vit_residual_post_norm() -> Case:
    return classifier(ViT(Block(8, Attention(8, 2), post=True), Block(8, Attention(8, 2, True), post=True)))


def deit_distilled() -> Case:
    return classifier(ViT(Block(8, Attention(8, 2, fused=True)), Block(8, Attention(8, 2)), extra=2))


class ClassAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.q, self.k, self.v = heads, *(nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.reshape(len(y), -1, self.heads, y.shape[-1] // self.heads).permute(0, 2, 1, 3)

        y = F.scaled_dot_product_attention(split(self.q(x[:, :1])), split(self.k(x)), split(self.v(x)))
        return self.proj(y.transpose(1, 2).reshape(len(x), 1, -1))


class TalkingHeads(Attention):
    """CaiT: linear maps over heads, before and after the softmax."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.proj_l, self.proj_w = nn.Linear(heads, heads), nn.Linear(heads, heads)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = self.proj_l((q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        scores = self.proj_w(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.proj((scores @ v).transpose(1, 2).reshape(batch, tokens, width))


class CaiT(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patch, self.pos = Patches(width, 8), nn.Parameter(torch.randn(1, 4, width) * 0.02)
        self.block, self.cls = Block(width, TalkingHeads(width, 2), scale=True), nn.Parameter(torch.randn(1, 1, width))
        self.norm1, self.attn, self.norm = nn.LayerNorm(width), ClassAttention(width, 2), nn.LayerNorm(width)
        self.head, self.stem = nn.Linear(width, CLASSES), ConvNorm(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.patch(self.stem(x)) + self.pos)
        cls = self.cls.expand(len(x), -1, -1)
        cls = cls + self.attn(self.norm1(torch.cat((cls, x), 1)))
        return self.head(self.norm(torch.cat((cls, x), 1))[:, 0])


def cait() -> Case:
    return classifier(CaiT())
