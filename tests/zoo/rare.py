"""Volumes and signals, convolutions with unusual weights, unusual norms, flows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, weight_norm

from .case import CLASSES, Case, ConvNorm, Head, classifier, generator_case


def video_net() -> Case:
    """R(2+1)D: convolutions in space and in time, without and with a norm between."""
    body = [
        nn.Conv3d(3, 6, (1, 3, 3), padding=(0, 1, 1), bias=False), nn.BatchNorm3d(6), nn.ReLU(),
        nn.Conv3d(6, 6, (3, 1, 1), padding=(1, 0, 0), bias=False), nn.BatchNorm3d(6), nn.ReLU(),
        nn.MaxPool3d((1, 2, 2)),
        nn.Conv3d(6, 8, (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0), groups=4),
        nn.BatchNorm3d(8), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    ]  # fmt: skip
    return classifier(nn.Sequential(*body), 3, 4, 6, 6)


class Temporal(nn.Module):
    """TCN: causal dilated convolutions with weight norm, or with a norm behind."""

    def __init__(self, inputs: int, outputs: int, dilation: int, weight: bool) -> None:
        super().__init__()
        conv = nn.Conv1d(inputs, outputs, 3, dilation=dilation)
        self.conv, self.dilation = weight_norm(conv) if weight else conv, dilation
        self.norm, self.skip = nn.Identity() if weight else nn.GroupNorm(2, outputs), nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(F.pad(x, (2 * self.dilation, 0))))) + self.skip(x)


def tcn() -> Case:
    layers = [Temporal(3, 6, 1, True), Temporal(6, 6, 2, False), Temporal(6, 8, 4, True)]
    return classifier(nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, CLASSES)), 3, 12)


class BiFPN(nn.Module):
    """EfficientDet: fusion with learned positive weights that are normalized by their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.high, self.low = ConvNorm(3, 6, 3, 2), ConvNorm(6, 6, 3, 2)
        self.weights, self.eps = nn.Parameter(torch.rand(2, 2)), 1e-4
        self.convs = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1, groups=6, bias=False), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
                for _ in range(2)
            ]
        )
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        high = self.high(x)
        low = self.low(high)
        weights = F.relu(self.weights)
        weights = weights / (weights.sum(1, keepdim=True) + self.eps)
        up = weights[0, 0] * high + weights[0, 1] * F.interpolate(low, scale_factor=2)
        high = F.silu(self.convs[0](up))
        down = weights[1, 0] * low + weights[1, 1] * F.max_pool2d(high, 2)
        return self.head(F.silu(self.convs[1](down)))


def bifpn() -> Case:
    return classifier(BiFPN())


class CondConv(nn.Module):
    """A mixture of kernels, chosen for each sample, before a norm."""

    def __init__(self, width: int, experts: int = 3) -> None:
        super().__init__()
        self.weight, self.routing = (
            nn.Parameter(torch.randn(experts, width, width, 3, 3) * 0.2),
            nn.Linear(width, experts),
        )
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        routes = torch.sigmoid(self.routing(x.mean((2, 3))))
        weight = (routes @ self.weight.flatten(1)).view(-1, x.shape[1], 3, 3)
        y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight, padding=1, groups=len(x)).view(x.shape)
        return F.relu(self.bn(y))


def condconv() -> Case:
    return classifier(nn.Sequential(ConvNorm(3, 6, 3, 2), CondConv(6), Head(6)))


class Octave(nn.Module):
    """Two frequencies; each output is the sum of two convolutions, one of them pooled or interpolated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hh, self.hl, self.lh, self.ll = (nn.Conv2d(width, width, 3, 1, 1, bias=False) for _ in range(4))
        self.bn_h, self.bn_l = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        low = F.avg_pool2d(x, 2)
        high = self.bn_h(self.hh(x) + F.interpolate(self.lh(low), scale_factor=2, mode="nearest"))
        low = self.bn_l(self.ll(low) + self.hl(F.avg_pool2d(x, 2)))
        return torch.cat([F.relu(high), F.interpolate(F.relu(low), scale_factor=2)], 1)


def octave() -> Case:
    return classifier(nn.Sequential(ConvNorm(3, 6, 3, 2), Octave(6), Head(12)))


class Involution(nn.Module):
    """A kernel made at each position, applied to unfolded neighbours."""

    def __init__(self, width: int, groups: int = 2) -> None:
        super().__init__()
        self.reduce, self.span, self.groups = ConvNorm(width, 4, 1), nn.Conv2d(4, 9 * groups, 1), groups
        self.value, self.bn = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, _ = x.shape
        kernel = self.span(self.reduce(x)).view(batch, self.groups, 9, height, height).unsqueeze(2)
        patches = F.unfold(self.value(x), 3, padding=1).view(
            batch, self.groups, width // self.groups, 9, height, height
        )
        return F.relu(self.bn((kernel * patches).sum(3).view(x.shape)))


def involution() -> Case:
    return classifier(nn.Sequential(ConvNorm(3, 6, 3, 2), Involution(6), Head(6)))


class GatedConv(nn.Module):
    """Inpainting: features times a gate, both from convolutions; and a mask channel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.feature, self.gate = nn.Conv2d(inputs, outputs, 3, 1, 1), nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.norm = nn.InstanceNorm2d(outputs, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.leaky_relu(self.feature(x), 0.2) * torch.sigmoid(self.gate(x)))


def gated_conv() -> Case:
    return generator_case(nn.Sequential(GatedConv(3, 6), GatedConv(6, 4), nn.Conv2d(4, 3, 1)), 3, 6, 6)


class MaskedConv(nn.Conv2d):
    """PixelCNN: part of the kernel is zero."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones_like(self.weight)
        mask[:, :, 1, 1:] = 0
        mask[:, :, 2:] = 0
        return F.conv2d(x, self.weight * mask, self.bias, padding=1)


def pixelcnn() -> Case:
    body = [
        MaskedConv(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        MaskedConv(6, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
    ]
    return generator_case(nn.Sequential(*body, nn.Conv2d(6, 3, 1)), 3, 6, 6)


class ResponseNorm(nn.Module):
    """Filter response norm and thresholded unit: no mean is subtracted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta, self.tau = (nn.Parameter(torch.ones(1, width, 1, 1)) for _ in range(3))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean((2, 3), keepdim=True) + abs(self.eps))
        return torch.max(self.gamma * x + self.beta, self.tau)


def response_norm() -> Case:
    body = [nn.Conv2d(3, 6, 3, 1, 1), ResponseNorm(6), nn.Conv2d(6, 8, 3, 1, 1, bias=False), ResponseNorm(8)]
    return classifier(nn.Sequential(*body, Head(8)), 3, 8, 8)


class Switchable(nn.Module):
    """Switchable norm: learned mixtures of the statistics of instance, layer and batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1, width, 1, 1)), nn.Parameter(torch.zeros(1, width, 1, 1))
        self.mean_weight, self.var_weight, self.eps = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3)), 1e-5

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(*x.shape[:2], -1)
        mean_in, var_in = flat.mean(-1, keepdim=True), flat.var(-1, keepdim=True)
        square = var_in + mean_in**2
        mean_ln, mean_bn = mean_in.mean(1, keepdim=True), mean_in.mean(0, keepdim=True)
        var_ln, var_bn = square.mean(1, keepdim=True) - mean_ln**2, square.mean(0, keepdim=True) - mean_bn**2
        a, b = self.mean_weight.softmax(0), self.var_weight.softmax(0)
        mean = a[0] * mean_in + a[1] * mean_ln + a[2] * mean_bn
        var = b[0] * var_in + b[1] * var_ln + b[2] * var_bn
        return ((flat - mean) / (var + self.eps).sqrt()).view(x.shape) * self.weight + self.bias


def switchable_norm() -> Case:
    body = [
        nn.Conv2d(3, 6, 3, 1, 1),
        Switchable(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, 1, 1, bias=False),
        Switchable(6),
        nn.ReLU(),
    ]
    return classifier(nn.Sequential(*body, Head(6)), 3, 8, 8)


class Divisive(nn.Module):
    """Generalized divisive normalization of learned compression: its constant is learned, so it is no norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.beta, self.gamma = nn.Parameter(torch.ones(width)), nn.Parameter(0.1 * torch.eye(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(F.conv2d(x**2, self.gamma.abs()[:, :, None, None], self.beta.abs()))


def compression() -> Case:
    body = [nn.Conv2d(3, 6, 5, 2, 2), Divisive(6), nn.Conv2d(6, 6, 5, 2, 2), nn.ConvTranspose2d(6, 3, 5, 2, 2, 1)]
    return generator_case(nn.Sequential(*body), 3, 8, 8)


def orthogonal_net() -> Case:
    """Weights made orthogonal by a parametrization."""
    body = [
        orthogonal(nn.Linear(12, 8)),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 8, bias=False),
        nn.BatchNorm1d(8),
        nn.ReLU(),
    ]
    return classifier(nn.Sequential(*body, nn.Linear(8, CLASSES)), 12)
