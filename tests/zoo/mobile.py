"""Networks made for phones: depthwise convolutions, gates, channel shuffles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import CLASSES, Case, ConvNorm, Head, classifier


def mobilenet_v1() -> Case:
    blocks = [ConvNorm(3, 6, 3, 2)]
    for inputs, outputs, stride in ((6, 8, 1), (8, 12, 2)):
        blocks += [ConvNorm(inputs, inputs, 3, stride, inputs), ConvNorm(inputs, outputs, 1)]
    return classifier(nn.Sequential(*blocks, Head(12)))


class Gate(nn.Module):
    """Squeeze and excitation, with convolutions of size 1."""

    def __init__(self, width: int, squeezed: int, act: type[nn.Module] = nn.ReLU, gate: type[nn.Module] = nn.Sigmoid):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.act(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    """Inverted residual of MobileNetV2, V3, MnasNet and EfficientNet, with stochastic depth where asked."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        act: type[nn.Module] = nn.ReLU6,
        gate: nn.Module | None = None,
        survive: float = 1.0,
    ) -> None:
        super().__init__()
        hidden = 2 * inputs
        self.body = nn.Sequential(
            ConvNorm(inputs, hidden, 1, act=act), ConvNorm(hidden, hidden, 3, stride, hidden, act=act),
            gate or nn.Identity(), ConvNorm(hidden, outputs, 1, act=None),
        )  # fmt: skip
        self.residual, self.survive = stride == 1 and inputs == outputs, survive

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.survive < 1:
            noise = torch.empty(len(x), 1, 1, 1, dtype=x.dtype).bernoulli_(self.survive)
            y = y * noise.div_(self.survive)
        return x + y if self.residual else y


def mobilenet_v2() -> Case:
    blocks = [Inverted(6, 8, 2), Inverted(8, 8)]
    return classifier(
        nn.Sequential(ConvNorm(3, 6, 3, 2, act=nn.ReLU6), *blocks, ConvNorm(8, 16, 1, act=nn.ReLU6), Head(16))
    )


def mobilenet_v3() -> Case:
    one = Inverted(6, 8, 2, nn.ReLU, Gate(12, 4, gate=nn.Hardsigmoid))
    two = Inverted(8, 8, 1, nn.Hardswish, Gate(16, 4, gate=nn.Hardsigmoid))
    tail = [
        ConvNorm(8, 12, 1, act=nn.Hardswish),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 8),
        nn.Hardswish(),
    ]
    return classifier(nn.Sequential(ConvNorm(3, 6, 3, 2, act=nn.Hardswish), one, two, *tail, nn.Linear(8, CLASSES)))


def mnasnet() -> Case:
    first = [ConvNorm(3, 6, 3, 2), ConvNorm(6, 6, 3, 1, 6), ConvNorm(6, 6, 1, act=None)]
    return classifier(nn.Sequential(*first, Inverted(6, 8, 2, nn.ReLU), Inverted(8, 8, 1, nn.ReLU), Head(8)))


def efficientnet() -> Case:
    one = Inverted(6, 8, 2, nn.SiLU, Gate(12, 2, nn.SiLU))
    two = Inverted(8, 8, 1, nn.SiLU, Gate(16, 2, nn.SiLU), survive=0.8)
    return classifier(
        nn.Sequential(ConvNorm(3, 6, 3, 2, act=nn.SiLU), one, two, ConvNorm(8, 16, 1, act=nn.SiLU), Head(16))
    )


def shuffled(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).contiguous().view(x.shape)


class ShuffleV1(nn.Module):
    def __init__(self, width: int, stride: int, groups: int = 3) -> None:
        super().__init__()
        self.reduce = ConvNorm(width, width // 2, 1, 1, groups)
        self.depth = ConvNorm(width // 2, width // 2, 3, stride, width // 2, act=None)
        self.expand = ConvNorm(width // 2, width, 1, 1, groups, act=None)
        self.stride, self.groups = stride, groups

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.depth(shuffled(self.reduce(x), self.groups)))
        return F.relu(x + y) if self.stride == 1 else F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))


def shufflenet_v1() -> Case:
    return classifier(nn.Sequential(ConvNorm(3, 12, 3, 2), ShuffleV1(12, 2), ShuffleV1(24, 1), Head(24)))


class RawShuffle(nn.Module):
    """A shuffle between a grouped convolution and its norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.point = nn.Conv2d(width, width, 3, 1, 1, groups=2), nn.Conv2d(width, width, 1, groups=2)
        self.shuffle, self.norm = nn.ChannelShuffle(2), nn.GroupNorm(2, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(shuffled(self.point(self.shuffle(F.relu(self.conv(x)))), 4)))


def shuffle_before_norm() -> Case:
    return classifier(nn.Sequential(ConvNorm(3, 8), RawShuffle(8), Head(8)), 3, 8, 8)


class ShuffleV2(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half, self.stride = outputs // 2, stride
        source = inputs if stride > 1 else half
        self.left = nn.Sequential(ConvNorm(inputs, inputs, 3, 2, inputs, act=None), ConvNorm(inputs, half, 1))
        self.left = self.left if stride > 1 else nn.Sequential()
        depth = ConvNorm(half, half, 3, stride, half, act=None)
        self.right = nn.Sequential(ConvNorm(source, half, 1), depth, ConvNorm(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            left, right = x.chunk(2, 1)
            return shuffled(torch.cat((left, self.right(right)), 1), 2)
        return shuffled(torch.cat((self.left(x), self.right(x)), 1), 2)


def shufflenet_v2() -> Case:
    stem = nn.Sequential(ConvNorm(3, 6, 3, 2), nn.MaxPool2d(3, 2, 1))
    return classifier(nn.Sequential(stem, ShuffleV2(6, 8, 2), ShuffleV2(8, 8, 1), ConvNorm(8, 12, 1), Head(12)))


class RegNetY(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = ConvNorm(inputs, outputs, 1), ConvNorm(outputs, outputs, 3, stride, outputs // 4)
        self.se, self.c = Gate(outputs, 2), ConvNorm(outputs, outputs, 1, act=None)
        self.proj = ConvNorm(inputs, outputs, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.proj(x) + self.c(self.se(self.b(self.a(x)))))


def regnet() -> Case:
    return classifier(nn.Sequential(ConvNorm(3, 8, 3, 2), RegNetY(8, 8, 2), RegNetY(8, 16, 2), Head(16)))


class Ghost(nn.Module):
    def __init__(self, inputs: int, outputs: int, relu: bool = True) -> None:
        super().__init__()
        act = nn.ReLU if relu else None
        half = (outputs + 1) // 2
        self.outputs = outputs
        self.primary, self.cheap = ConvNorm(inputs, half, 1, act=act), ConvNorm(half, half, 3, 1, half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], 1)[:, : self.outputs]


class GhostBottleneck(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.one, self.two, self.se = Ghost(inputs, hidden), Ghost(hidden, outputs, False), Gate(hidden, 2)
        self.depth = ConvNorm(hidden, hidden, 3, 2, hidden, act=None)
        self.short = nn.Sequential(
            ConvNorm(inputs, inputs, 3, 2, inputs, act=None), ConvNorm(inputs, outputs, 1, act=None)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.se(self.depth(self.one(x)))) + self.short(x)


def ghostnet() -> Case:
    return classifier(nn.Sequential(ConvNorm(3, 6, 3, 2), GhostBottleneck(6, 10, 7), Head(7)))
