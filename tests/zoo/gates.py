"""Attention gates inside convolutional networks, and other variants of the block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import Case, ConvNorm, Head, classifier


class SE(nn.Module):
    """SENet's gate with linear layers."""

    def __init__(self, width: int, bias: bool = False) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(width, 4, bias=bias), nn.ReLU(True), nn.Linear(4, width, bias=bias), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3))).view(*x.shape[:2], 1, 1).expand_as(x)


class CBAM(nn.Module):
    """Channel attention from mean and maximum, then spatial attention with BatchNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, width))
        self.spatial = ConvNorm(2, 1, 7, act=None)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.mlp(F.avg_pool2d(x, x.shape[2])) + self.mlp(F.max_pool2d(x, x.shape[2]))
        x = x * torch.sigmoid(scale)[:, :, None, None]
        pooled = torch.cat([x.max(1)[0].unsqueeze(1), x.mean(1).unsqueeze(1)], 1)
        return x * torch.sigmoid(self.spatial(pooled))


class ECA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
        return x * self.conv(y).transpose(-1, -2).unsqueeze(-1).sigmoid().expand_as(x)


class SelectiveKernel(nn.Module):
    """SK-Net: two kernels, weighted by a softmax over them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([ConvNorm(width, width, 3, 1, 2), ConvNorm(width, width, 3, 1, 2, dilation=2)])
        self.fc = nn.Sequential(nn.Conv2d(width, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.select = nn.Conv2d(4, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.stack([conv(x) for conv in self.convs], 1)
        weights = self.select(self.fc(parts.sum(1).mean((2, 3), keepdim=True)))
        return (parts * weights.view(len(x), 2, -1, 1, 1).softmax(1)).sum(1)


class NonLocal(nn.Module):
    """Self-attention between positions; theta and phi meet in a softmax, or are divided by the number of positions."""

    def __init__(self, width: int, softmax: bool) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(width, 4, 1) for _ in range(3))
        self.out, self.bn, self.softmax = nn.Conv2d(4, width, 1), nn.BatchNorm2d(width), softmax

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = (f(x).flatten(2) for f in (self.theta, self.phi, self.g))
        scores = theta.transpose(1, 2) @ phi
        scores = scores.softmax(-1) if self.softmax else scores / scores.shape[-1]
        y = (scores @ g.transpose(1, 2)).transpose(1, 2).contiguous().view(len(x), 4, *x.shape[2:])
        return x + self.bn(self.out(y))


class Gated(nn.Module):
    """A residual block with a gate at the end of its branch."""

    def __init__(self, width: int, gate: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2, self.gate = ConvNorm(width, width), ConvNorm(width, width, act=None), gate

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.gate(self.conv2(self.conv1(x))))


class GateBeforeNorm(nn.Module):
    """A gate computed from, and multiplied to, a convolution that a norm follows only afterwards."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.gate, self.bn = nn.Conv2d(width, width, 3, 1, 1, bias=False), SE(width), nn.BatchNorm2d(width)
        self.raw, self.other, self.bn2 = nn.Conv2d(width, width, 1), SE(width, True), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.other(torch.ones_like(x)) * self.other.fc(x.mean((2, 3)))[:, :, None, None]
        return F.relu(self.bn(self.gate(self.conv(x)))) + F.relu(self.bn2(self.raw(x) * gate))


def gated(width: int, *gates: nn.Module) -> Case:
    return classifier(nn.Sequential(ConvNorm(3, width, 3, 2), *(Gated(width, gate) for gate in gates), Head(width)))


def se_resnet() -> Case:
    return gated(8, SE(8), SE(8, True))


def cbam() -> Case:
    return gated(8, CBAM(8))


def eca() -> Case:
    return gated(8, ECA())


def sknet() -> Case:
    return gated(8, SelectiveKernel(8))


def nonlocal_net() -> Case:
    return classifier(nn.Sequential(ConvNorm(3, 8, 3, 2), NonLocal(8, True), NonLocal(8, False), Head(8)))


def gate_before_norm() -> Case:
    return classifier(nn.Sequential(ConvNorm(3, 8, 3, 2), GateBeforeNorm(8), Head(8)))


class RepVGGBlock(nn.Module):
    """Three normalized branches, or three branches and one norm."""

    def __init__(self, width: int, together: bool) -> None:
        super().__init__()
        self.together = together
        self.three = ConvNorm(width, width, 3, act=None)
        self.one = ConvNorm(width, width, 1, act=None)
        self.identity, self.bn = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        if self.together:
            return F.relu(self.bn(self.three[0](x) + self.one[0](x)))
        return F.relu(self.three(x) + self.one(x) + self.identity(x))


def repvgg() -> Case:
    return classifier(nn.Sequential(ConvNorm(3, 8, 3, 2), RepVGGBlock(8, False), RepVGGBlock(8, True), Head(8)))


class Blur(nn.Module):
    """Antialiased pooling: a fixed depthwise filter behind reflection padding."""

    filt: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("filt", (row[:, None] * row / 16)[None, None].repeat(width, 1, 1, 1))
        self.pad = nn.ReflectionPad2d((1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.pad(x), self.filt, stride=2, groups=x.shape[1])


def blurpool() -> Case:
    body = [nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2, 1), Blur(8), nn.BatchNorm2d(8), nn.ReLU()]
    more = [nn.Conv2d(8, 8, 3, 1, 1), Blur(8), nn.BatchNorm2d(8), nn.ReLU()]
    return classifier(nn.Sequential(*body, *more, Head(8)))


class CoordConv(nn.Module):
    """Coordinates as two more channels, before a convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs + 2, outputs, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        line = torch.linspace(-1, 1, x.shape[2], dtype=x.dtype)
        rows = line.view(1, 1, -1, 1).expand(len(x), 1, len(line), len(line))
        return self.conv(torch.cat([x, rows, rows.transpose(2, 3)], 1))


def coordconv() -> Case:
    raw = nn.Conv2d(8, 8, 1, bias=False)  # coordinates are concatenated to its output: it is not invariant
    body = [CoordConv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), raw, CoordConv(8, 8), nn.BatchNorm2d(8), nn.ReLU()]
    return classifier(nn.Sequential(*body, Head(8)), 3, 8, 8)


class Activations(nn.Module):
    """Maxout, CReLU, PReLU, RReLU and others between convolutions and norms."""

    def __init__(self) -> None:
        super().__init__()
        self.maxout, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(8)
        self.crelu, self.bn2 = nn.Conv2d(8, 4, 3, 1, 1), nn.BatchNorm2d(8)
        self.prelu, self.act, self.bn3 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.PReLU(8), nn.BatchNorm2d(8)
        self.leaky, self.bn4 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.elu, self.bn5 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.squared, self.bn6 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.maxout(x)
        x = self.bn1(y.view(len(y), 2, 8, *y.shape[2:]).max(1).values)
        x = self.bn2(torch.cat([F.relu(self.crelu(x)), F.relu(-self.crelu(x))], 1))
        x = self.bn3(self.act(self.prelu(x)))
        x = self.bn4(F.leaky_relu(self.leaky(x), 0.1))
        x = self.bn5(F.elu(self.elu(x)))
        return self.head(self.bn6(F.relu(self.squared(x)).square()))


def activations() -> Case:
    return classifier(Activations(), 3, 8, 8)
