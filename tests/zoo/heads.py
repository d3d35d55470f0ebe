"""Heads, losses, and ways to treat weights: projections, cosines, standardized and frozen weights."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import CLASSES, Case, ConvNorm, Head, classifier, labels, normal
from .classic import Basic, stem


def encoder(width: int = 8) -> nn.Sequential:
    return nn.Sequential(stem(width), Basic(width, width), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def bn1d_head() -> Case:
    middle = [nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 8, bias=False)]
    return classifier(nn.Sequential(encoder(), *middle, nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)))


def simclr() -> Case:
    head = nn.Sequential(nn.Linear(8, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 6, bias=False))
    model = nn.Sequential(encoder(), head, nn.BatchNorm1d(6, affine=False))

    def loss(number: int) -> Tensor:
        z = F.normalize(model(normal(number, 8, 3, 16, 16)), dim=1)
        similarity = z @ z.t() / 0.5
        similarity = similarity.masked_fill(torch.eye(8, dtype=torch.bool), float("-inf"))
        return F.cross_entropy(similarity, (torch.arange(8) + 4) % 8)

    return model, loss


def contrastive_plain() -> Case:
    """A projection without norm before F.normalize: weight and bias are invariant together."""
    model = nn.Sequential(encoder(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 6))

    def loss(number: int) -> Tensor:
        z = F.normalize(model(normal(number, 8, 3, 16, 16)), dim=-1)
        return F.cross_entropy(F.cosine_similarity(z[:, None], z[None], dim=-1) / 0.1, (torch.arange(8) + 4) % 8)

    return model, loss


class BYOL(nn.Module):
    """Online network, predictor, and a target that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(encoder(), self.mlp(8))
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.predictor = self.mlp(6)

    @staticmethod
    def mlp(inputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inputs, 10), nn.BatchNorm1d(10), nn.ReLU(inplace=True), nn.Linear(10, 6))


def byol() -> Case:
    model = BYOL()

    def loss(number: int) -> Tensor:
        one, two = normal(number, 6, 3, 16, 16), normal(number + 70, 6, 3, 16, 16)
        total = torch.zeros((), dtype=torch.float64)
        for first, second in ((one, two), (two, one)):
            p = F.normalize(model.predictor(model.online(first)), dim=-1, p=2)
            with torch.no_grad():
                z = F.normalize(model.target(second), dim=-1, p=2)
            total = total + (2 - 2 * (p * z).sum(-1)).mean()
        return total

    return model, loss


def simsiam() -> Case:
    model = BYOL()

    def loss(number: int) -> Tensor:
        one, two = (model.online(normal(number + shift, 6, 3, 16, 16)) for shift in (0, 70))
        p, q = model.predictor(one), model.predictor(two)
        similarity = (
            F.cosine_similarity(p, two.detach(), dim=1).mean() + F.cosine_similarity(q, one.detach(), dim=1).mean()
        )
        return -0.5 * similarity

    return model, loss


def barlow_twins() -> Case:
    model = nn.ModuleDict({"encoder": encoder(), "head": nn.Sequential(nn.Linear(8, 10, bias=False), nn.BatchNorm1d(10),
                          nn.ReLU(), nn.Linear(10, 6)), "norm": nn.BatchNorm1d(6, affine=False)})  # fmt: skip

    def loss(number: int) -> Tensor:
        a, b = (model["norm"](model["head"](model["encoder"](normal(number + i, 6, 3, 16, 16)))) for i in (0, 70))
        c = a.T @ b / len(a)
        on = torch.diagonal(c).add(-1).pow(2).sum()
        off = (c - torch.diag(torch.diagonal(c))).pow(2).sum()
        return on + 0.1 * off

    return model, loss


class ArcFace(nn.Module):
    """Cosine classifier with an angular margin."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.fc, self.bn = encoder(), nn.Linear(8, 6), nn.BatchNorm1d(6)
        self.weight = nn.Parameter(torch.randn(CLASSES, 6))


def arcface() -> Case:
    model = ArcFace()

    def loss(number: int) -> Tensor:
        features = model.bn(model.fc(model.encoder(normal(number, 6, 3, 16, 16))))
        cosine = F.linear(F.normalize(features), F.normalize(model.weight))
        sine = torch.sqrt(1.0 - torch.pow(cosine, 2))
        margin = cosine * 0.9 - sine * 0.3
        target = labels(number, 6)
        one_hot = torch.zeros_like(cosine).scatter_(1, target.view(-1, 1), 1)
        return F.cross_entropy((one_hot * margin + (1 - one_hot) * cosine) * 8.0, target)

    return model, loss


def cosface() -> Case:
    model = ArcFace()

    def loss(number: int) -> Tensor:
        features = model.fc(model.encoder(normal(number, 6, 3, 16, 16)))
        norm = features.norm(p=2, dim=1, keepdim=True)
        logits = (features / norm) @ F.normalize(model.weight, dim=1).T
        target = labels(number, 6)
        logits[torch.arange(6), target] -= 0.2
        return F.cross_entropy(16 * logits, target)

    return model, loss


def triplet() -> Case:
    model = nn.Sequential(encoder(), nn.Linear(8, 6))

    def loss(number: int) -> Tensor:
        anchor, positive, negative = (F.normalize(model(normal(number + i, 6, 3, 16, 16))) for i in (0, 60, 120))
        return F.triplet_margin_loss(anchor, positive, negative, margin=2.0)

    return model, loss


class StdConv(nn.Conv2d):
    """BiT: each filter's weight gets mean 0 and variance 1."""

    eps = 1e-10

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        weight = (self.weight - mean) / torch.sqrt(variance + self.eps)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class BatchNormConv(nn.Conv2d):
    """timm's spelling of weight standardization: a batch norm over the weight."""

    eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=self.eps).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class BiTBlock(nn.Module):
    def __init__(self, width: int, conv: type[nn.Conv2d]) -> None:
        super().__init__()
        self.gn1, self.conv1 = nn.GroupNorm(2, width), conv(width, width, 1, bias=False)
        self.gn2, self.conv2 = nn.GroupNorm(2, width), conv(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.gn2(self.conv1(F.relu(self.gn1(x))))))


def bit_resnet() -> Case:
    root = [StdConv(3, 8, 3, 2, 1, bias=False), nn.ConstantPad2d(1, 0), nn.MaxPool2d(3, 2)]
    tail = [nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, CLASSES, 1), nn.Flatten()]
    return classifier(nn.Sequential(*root, BiTBlock(8, StdConv), BiTBlock(8, BatchNormConv), *tail))


class ScaledStdConv(nn.Conv2d):
    """NFNet: standardized weight times a gain per filter."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        self.gain, self.eps = nn.Parameter(torch.ones(outputs, 1, 1, 1)), 1e-4

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        var = self.weight.var((1, 2, 3), keepdim=True)
        fan_in = self.weight[0].numel()
        scale = torch.rsqrt(torch.clamp(var * fan_in, min=self.eps)) * self.gain
        return F.conv2d(x, self.weight * scale - mean * scale, self.bias, padding=self.padding)


class NFBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.skip_gain = (
            ScaledStdConv(width, width, 3),
            ScaledStdConv(width, width, 3),
            nn.Parameter(torch.zeros(())),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.gelu(self.conv1(F.gelu(x) * 1.7)) * 1.7)
        return x + 0.2 * self.skip_gain * y


def nfnet() -> Case:
    return classifier(nn.Sequential(ScaledStdConv(3, 8, 3), NFBlock(8), NFBlock(8), nn.GELU(), Head(8)), 3, 8, 8)


def partly_eval() -> Case:
    """The stem's BatchNorm has fixed statistics, as in detection."""
    model = nn.Sequential(stem(8), Basic(8, 8), Basic(8, 8), Head(8))
    case, loss = classifier(model)

    def fixed(number: int) -> Tensor:
        for block in (model[0], model[1]):
            for module in block.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return loss(number)

    return case, fixed


def frozen() -> Case:
    """A pretrained trunk without gradients, then BatchNorm whose gain and bias are frozen too."""
    model = nn.Sequential(
        stem(8), Basic(8, 8), ConvNorm(8, 8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), Head(8)
    )
    for module in (model[0], model[1], model[4], model[2][1]):
        module.requires_grad_(False)
    model[3].bias.requires_grad_(False)
    return classifier(model)


class GroupNormOne(nn.Module):
    """GroupNorm with one group, LayerNorm over all of a sample, and frozen biases."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.gn1 = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(1, 8)
        self.two, self.ln = nn.Conv2d(8, 6, 3, padding=1), nn.LayerNorm([6, 8, 8])
        self.three, self.gn2 = nn.Conv2d(6, 8, 1, bias=False), nn.GroupNorm(8, 8)
        self.four, self.gn3, self.head = nn.Conv2d(8, 8, 1), nn.GroupNorm(4, 8, affine=False), Head(8)
        self.four.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.ln(self.two(F.relu(self.gn1(self.one(x))))))
        return self.head(F.relu(self.gn3(self.four(F.relu(self.gn2(self.three(x)))))))


def group_norms() -> Case:
    return classifier(GroupNormOne(), 3, 8, 8)
