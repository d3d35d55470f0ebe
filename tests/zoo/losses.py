"""Flows, capsules, self-distillation, images and text: networks known for their losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .case import CLASSES, Case, ConvNorm, classifier, normal


class Coupling(nn.Module):
    """RealNVP and Glow: ActNorm, invertible convolution, affine coupling."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.log_scale, self.shift = (
            nn.Parameter(torch.zeros(1, width, 1, 1)),
            nn.Parameter(torch.zeros(1, width, 1, 1)),
        )
        self.mix = nn.Parameter(torch.linalg.qr(torch.randn(width, width))[0])
        self.net = nn.Sequential(ConvNorm(width // 2, 6), ConvNorm(6, 6, 1), nn.Conv2d(6, width, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = (x + self.shift) * self.log_scale.exp()
        x = F.conv2d(x, self.mix[:, :, None, None])
        a, b = x.chunk(2, 1)
        scale, shift = self.net(a).chunk(2, 1)
        scale = torch.tanh(scale)
        determinant = torch.slogdet(self.mix)[1] * x[0, 0].numel() + self.log_scale.sum() * x[0, 0].numel()
        return torch.cat([a, b * scale.exp() + shift], 1), determinant + scale.flatten(1).sum(1)


def flow() -> Case:
    model = nn.ModuleList([Coupling(4), Coupling(4)])

    def loss(number: int) -> Tensor:
        x = normal(number, 4, 4, 4, 4)
        total = torch.zeros(4, dtype=torch.float64)
        for layer in model:
            x, determinant = layer(x)
            total = total + determinant
        return (0.5 * x.square().flatten(1).sum(1) - total).mean()

    return model, loss


def capsules() -> Case:
    """A convolution behind BatchNorm makes capsules, which are squashed; one linear map per capsule."""
    model = nn.Sequential(ConvNorm(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2))
    model.register_parameter("votes", nn.Parameter(torch.randn(18, CLASSES, 4, 4) * 0.3))

    def loss(number: int) -> Tensor:
        u = model(normal(number, 4, 3, 16, 16)).view(4, 2, 4, 9).permute(0, 1, 3, 2).reshape(4, 18, 4)
        square = u.square().sum(-1, keepdim=True)
        u = square / (1 + square) * u / square.sqrt()
        length = torch.einsum("bic,indc->bnd", u, model.votes).norm(dim=-1)
        return F.cross_entropy(length, torch.arange(4))

    return model, loss


class DinoHead(nn.Module):
    """MLP, F.normalize, and a last layer with weight norm whose gain is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(ConvNorm(3, 6, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.mlp = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 8))
        self.last = weight_norm(nn.Linear(8, CLASSES, bias=False))
        self.last.parametrizations.weight.original0.requires_grad = False
        self.prototypes = nn.Linear(8, CLASSES, bias=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        z = F.normalize(self.mlp(self.encoder(x)), dim=-1, p=2)
        return [self.last(z) / 0.1, F.linear(z, F.normalize(self.prototypes.weight, dim=1)) / 0.1]


def dino() -> Case:
    return classifier(DinoHead())


class CLIP(nn.Module):
    """Two towers, projections without bias, normalized, and a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Sequential(
            ConvNorm(3, 6, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8, bias=False)
        )
        self.tokens, self.norm, self.text = nn.Embedding(20, 6), nn.LayerNorm(6), nn.Parameter(torch.randn(6, 8))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        image = self.visual(x)
        words = self.norm(self.tokens((x.flatten(1)[:, :5].abs() * 5).long().clamp(max=19)).sum(1)) @ self.text
        image, words = (y / y.norm(dim=-1, keepdim=True) for y in (image, words))
        return self.logit_scale.exp() * image @ words.t()[:, :CLASSES]


def clip() -> Case:
    return classifier(CLIP())
