"""Classifiers from VGG to DenseNet and Inception."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import CLASSES, Case, ConvNorm, Head, classifier


def vgg_bn() -> Case:
    layers: list[nn.Module] = []
    inputs = 3
    for width in (8, "M", 8, 12, "M"):
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(inputs, int(width), 3, padding=1), nn.BatchNorm2d(int(width)), nn.ReLU(inplace=True)]
            inputs = int(width)
    head = [
        nn.Linear(12 * 4, 16),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(16, 16),
        nn.ReLU(True),
        nn.Linear(16, CLASSES),
    ]
    return classifier(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), *head))


def alexnet_bn() -> Case:
    return classifier(
        nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.MaxPool2d(3, 2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 12, 3, padding=1, groups=2), nn.ReLU(), nn.BatchNorm2d(12), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES),
        ),
        3, 16, 16,
    )  # fmt: skip


class Basic(nn.Module):
    """Basic block; the shortcut is a convolution with BatchNorm, or pooling with zero channels (option A)."""

    def __init__(self, inputs: int, width: int, stride: int = 1, zero_pad: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.zero_pad = width - inputs if zero_pad else 0
        plain = (stride == 1 and inputs == width) or zero_pad
        self.downsample = None if plain else ConvNorm(inputs, width, 1, stride, act=None)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.zero_pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.zero_pad))
        return F.relu(y + x)


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.reduce, self.conv = ConvNorm(inputs, width, 1), ConvNorm(width, width, 3, stride, groups)
        self.expand = ConvNorm(width, outputs, 1, act=None)
        self.skip = ConvNorm(inputs, outputs, 1, stride, act=None) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.expand(self.conv(self.reduce(x))) + self.skip(x))


def stem(width: int) -> nn.Module:
    return nn.Sequential(ConvNorm(3, width, 7, 2), nn.MaxPool2d(3, 2, 1))


def resnet_basic() -> Case:
    return classifier(nn.Sequential(stem(8), Basic(8, 8), Basic(8, 12, 2), Head(12)))


def resnet_option_a() -> Case:
    return classifier(nn.Sequential(ConvNorm(3, 8), Basic(8, 8), Basic(8, 12, 2, zero_pad=True), Head(12)))


def resnet_bottleneck() -> Case:
    return classifier(
        nn.Sequential(stem(8), Bottleneck(8, 4, 16), Bottleneck(16, 4, 16), Bottleneck(16, 6, 24, 2), Head(24))
    )


def resnext() -> Case:
    return classifier(nn.Sequential(stem(8), Bottleneck(8, 8, 16, 1, 4), Bottleneck(16, 12, 24, 2, 4), Head(24)))


class PreActivation(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.drop = nn.Dropout(dropout)
        self.short = nn.Conv2d(inputs, width, 1, stride, bias=False) if stride > 1 or inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        x = x if self.short is None else self.short(y)
        return self.conv2(self.drop(F.relu(self.bn2(self.conv1(y))))) + x


def preactivation_resnet() -> Case:
    blocks = [PreActivation(8, 8), PreActivation(8, 12, 2), PreActivation(12, 12)]
    return classifier(
        nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), *blocks, nn.BatchNorm2d(12), nn.ReLU(), Head(12))
    )


def wide_resnet() -> Case:
    blocks = [PreActivation(4, 8, 1, 0.3), PreActivation(8, 16, 2, 0.3)]
    return classifier(nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), *blocks, nn.BatchNorm2d(16), nn.ReLU(), Head(16)))


class Res2(nn.Module):
    """Res2Net: parts of the channels, each with the sum of the part before."""

    def __init__(self, width: int, scale: int = 4) -> None:
        super().__init__()
        self.part = width // scale
        self.reduce, self.expand = ConvNorm(width, width, 1), ConvNorm(width, width, 1, act=None)
        self.convs = nn.ModuleList([nn.Conv2d(self.part, self.part, 3, 1, 1, bias=False) for _ in range(scale - 1)])
        self.bns = nn.ModuleList([nn.BatchNorm2d(self.part) for _ in range(scale - 1)])

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.reduce(x), self.part, 1)
        out, y = [], parts[0]
        for index, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            y = parts[index] if index == 0 else y + parts[index]
            y = F.relu(bn(conv(y)))
            out.append(y)
        return F.relu(self.expand(torch.cat([*out, parts[-1]], 1)) + x)


def res2net() -> Case:
    return classifier(nn.Sequential(stem(8), Res2(8), Res2(8), Head(8)))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        y = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(y)))


class DenseBlock(nn.ModuleList):
    def __init__(self, layers: int, inputs: int, growth: int) -> None:
        super().__init__(DenseLayer(inputs + i * growth, growth) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self:
            features.append(layer(features))
        return torch.cat(features, 1)


def densenet() -> Case:
    first = [nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    transition = [nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Conv2d(16, 8, 1, bias=False), nn.AvgPool2d(2, 2)]
    last = [DenseBlock(2, 8, 4), nn.BatchNorm2d(16), nn.ReLU(), Head(16)]
    return classifier(nn.Sequential(*first, DenseBlock(2, 8, 4), *transition, *last))


class Fire(nn.Module):
    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze, self.bn = nn.Conv2d(inputs, squeeze, 1), nn.BatchNorm2d(squeeze)
        self.one, self.three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(2 * expand)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.squeeze(x)))
        return F.relu(self.bn2(torch.cat([self.one(x), self.three(x)], 1)))


def squeezenet_bn() -> Case:
    last = [nn.Dropout(), nn.Conv2d(16, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    first = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)]
    return classifier(nn.Sequential(*first, Fire(8, 4, 8), Fire(16, 4, 8), *last))


class InceptionBlock(nn.Module):
    """Four branches, with factorized convolutions and a pooling branch."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one = ConvNorm(inputs, 4, 1)
        self.two = nn.Sequential(ConvNorm(inputs, 4, 1), ConvNorm(4, 6, 3), ConvNorm(6, 6, 3))
        self.row, self.column = nn.Conv2d(4, 4, (1, 7), padding=(0, 3)), nn.Conv2d(4, 4, (7, 1), padding=(3, 0))
        self.bn_row, self.bn_column = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.pool = ConvNorm(inputs, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        factorized = F.relu(self.bn_column(self.column(F.relu(self.bn_row(self.row(one))))))
        return torch.cat(
            [one, self.two(x), factorized, self.pool(F.avg_pool2d(x, 3, 1, 1)), F.max_pool2d(x, 3, 1, 1)], 1
        )


class GoogLeNet(nn.Module):
    """Inception with an auxiliary head in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = stem(6), InceptionBlock(6), InceptionBlock(24)
        self.aux = nn.Sequential(
            nn.AdaptiveAvgPool2d(2),
            ConvNorm(24, 4, 1),
            nn.Flatten(),
            nn.Linear(16, 8),
            nn.ReLU(),
            nn.Linear(8, CLASSES),
        )
        self.head = Head(42)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.one(self.stem(x))
        return self.head(self.two(x)), self.aux(x)


def googlenet() -> Case:
    return classifier(GoogLeNet())


class Separable(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        depthwise = nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False)
        super().__init__(depthwise, nn.Conv2d(inputs, outputs, 1, bias=False))


class XceptionBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.skip = ConvNorm(inputs, outputs, 1, 2, act=None)
        self.body = nn.Sequential(
            nn.ReLU(), Separable(inputs, outputs), nn.BatchNorm2d(outputs),
            nn.ReLU(), Separable(outputs, outputs), nn.BatchNorm2d(outputs), nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.skip(x)


def xception() -> Case:
    return classifier(nn.Sequential(ConvNorm(3, 6, 3), XceptionBlock(6, 8), XceptionBlock(8, 8), Head(8)))


class LocalResponse(nn.Sequential):
    """The first AlexNet: its local response normalization is none."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(),
            nn.LocalResponseNorm(3), nn.Flatten(), nn.Linear(8 * 25, CLASSES),
        )  # fmt: skip


def alexnet_lrn() -> Case:
    return classifier(LocalResponse())
