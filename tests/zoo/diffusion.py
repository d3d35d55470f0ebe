"""Denoising networks of diffusion models."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import Case, normal, weighted


def time_embedding(steps: Tensor, width: int) -> Tensor:
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = steps[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


class ResBlock(nn.Module):
    """GroupNorm, SiLU, convolution; the time is added between, or scales and shifts (``adaptive``)."""

    def __init__(self, inputs: int, outputs: int, adaptive: bool = False) -> None:
        super().__init__()
        self.adaptive = adaptive
        self.norm1, self.conv1 = nn.GroupNorm(2, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(8, outputs * (2 if adaptive else 1))
        self.norm2, self.conv2 = nn.GroupNorm(2, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        time = self.time(F.silu(time))[:, :, None, None]
        if self.adaptive:
            scale, shift = time.chunk(2, 1)
            y = self.norm2(y) * (1 + scale) + shift
        else:
            y = self.norm2(y + time)
        return self.conv2(F.silu(y)) + self.skip(x)


class AttentionBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = (
            nn.GroupNorm(2, width),
            nn.Conv1d(width, 3 * width, 1),
            nn.Conv1d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        q, k, v = self.qkv(self.norm(flat)).chunk(3, 1)
        weights = torch.einsum("bct,bcs->bts", q * q.shape[1] ** -0.25, k * q.shape[1] ** -0.25).softmax(-1)
        return (flat + self.proj(torch.einsum("bts,bcs->bct", weights, v))).view(x.shape)


class DiffusionUNet(nn.Module):
    def __init__(self, adaptive: bool) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8))
        self.first, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.res1, self.res2 = ResBlock(8, 8, adaptive), ResBlock(8, 12, adaptive)
        self.attention, self.res3 = AttentionBlock(12), ResBlock(20, 8, adaptive)
        self.up, self.norm, self.last = (
            nn.Conv2d(12, 12, 3, padding=1),
            nn.GroupNorm(2, 8),
            nn.Conv2d(8, 3, 3, padding=1),
        )

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        time = self.embed(time_embedding(steps, 8))
        high = self.res1(self.first(x), time)
        low = self.attention(self.res2(self.down(high), time))
        up = self.up(F.interpolate(low, scale_factor=2, mode="nearest"))
        return self.last(F.silu(self.norm(self.res3(torch.cat([up, high], 1), time))))


def diffusion_case(model: nn.Module) -> Case:
    def loss(number: int) -> Tensor:
        x = normal(number, 4, 3, 4, 4)
        steps = normal(number + 3, 4).abs() * 100
        return weighted(number, model(x, steps))

    return model, loss


def diffusion_unet() -> Case:
    return diffusion_case(DiffusionUNet(False))


def diffusion_unet_adaptive() -> Case:
    return diffusion_case(DiffusionUNet(True))


class DiTBlock(nn.Module):
    """Diffusion transformer: LayerNorm without parameters, modulated by the time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(approximate="tanh"), nn.Linear(2 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(8, 6 * width))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time).unsqueeze(1).chunk(6, 2)
        y = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(y, y, y, need_weights=False)[0]
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patch, self.positions = nn.Conv2d(3, width, 2, 2), nn.Parameter(torch.randn(1, 4, width) * 0.02)
        self.embed = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8))
        self.blocks = nn.ModuleList([DiTBlock(width) for _ in range(2)])
        self.norm, self.final = nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, 12)

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        time = self.embed(time_embedding(steps, 8))
        x = self.patch(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x, time)
        x = self.final(self.norm(x)).view(-1, 2, 2, 2, 2, 3)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(-1, 3, 4, 4)


def dit() -> Case:
    return diffusion_case(DiT())
