"""Networks that predict maps: segmentation, detection, points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import CLASSES, Case, ConvNorm, classifier, generator_case
from .classic import Basic


class HRNet(nn.Module):
    """Two resolutions that exchange sums; the coarse one is brought up by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = ConvNorm(3, 6, 3, 2), ConvNorm(6, 12, 3, 2)
        self.high, self.low = Basic(6, 6), Basic(12, 12)
        self.to_high = nn.Sequential(ConvNorm(12, 6, 1, act=None), nn.Upsample(scale_factor=2, mode="nearest"))
        self.to_low = ConvNorm(6, 12, 3, 2, act=None)
        self.raw, self.raw_up = nn.Conv2d(6, 8, 1), nn.Conv2d(12, 8, 1)  # interpolated and summed before one norm
        self.norm, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.stem(x)
        low = self.low(self.down(high))
        high = self.high(high)
        high, low = F.relu(high + self.to_high(low)), F.relu(low + self.to_low(high))
        up = F.interpolate(self.raw_up(low), size=high.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(F.relu(self.norm(self.raw(high) + up)))


def hrnet() -> Case:
    return generator_case(HRNet(), 3, 16, 16)


class UNet(nn.Module):
    """Transposed convolutions with bias, concatenated with the skip connection."""

    def __init__(self, bilinear: bool) -> None:
        super().__init__()
        self.down1, self.down2 = self.twice(3, 4), self.twice(4, 8)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear") if bilinear else nn.ConvTranspose2d(8, 4, 2, 2)
        self.norm_up = nn.BatchNorm2d(8 if bilinear else 4)
        self.merge, self.out = self.twice(12 if bilinear else 8, 4), nn.Conv2d(4, CLASSES, 1)

    @staticmethod
    def twice(inputs: int, outputs: int) -> nn.Sequential:
        first = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        return nn.Sequential(*first, nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(True))

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        up = self.norm_up(self.up(self.down2(F.max_pool2d(one, 2))))
        up = F.pad(up, [0, one.shape[3] - up.shape[3], 0, one.shape[2] - up.shape[2]])
        return self.out(self.merge(torch.cat([one, up], 1)))


def unet() -> Case:
    return classifier(UNet(False), 3, 8, 8, per_pixel=True)


def unet_bilinear() -> Case:
    return classifier(UNet(True), 3, 9, 9, per_pixel=True)


class ConcatenatedUp(nn.Module):
    """A skip connection concatenated before the norm, with a transposed convolution and its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.skip, self.up = nn.Conv2d(3, 4, 3, 1, 1), nn.ConvTranspose2d(6, 4, 4, 2, 1)
        self.down, self.bn, self.gn = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.GroupNorm(2, 8)
        self.grouped, self.norm = nn.ConvTranspose2d(8, 6, 3, groups=2), nn.InstanceNorm2d(6)
        self.head = nn.Conv2d(6, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.skip(x), self.up(F.relu(self.bn(self.down(x))))], 1)
        return self.head(F.silu(self.norm(self.grouped(F.silu(self.gn(both))))))


def concatenated_up() -> Case:
    return generator_case(ConcatenatedUp(), 3, 8, 8)


class FPN(nn.Module):
    """Feature pyramid: lateral convolutions, summed top-down; heads shared by all levels, with GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = ConvNorm(3, 6, 3, 2), ConvNorm(6, 8, 3, 2), ConvNorm(8, 8, 3, 2)
        self.inner = nn.ModuleList([nn.Conv2d(width, 8, 1) for width in (6, 8, 8)])
        self.layer = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)])
        self.tower = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU())
        self.normed = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.boxes = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.one(x)]
        features += [self.two(features[0])]
        features += [self.three(features[1])]
        last = self.inner[2](features[2])
        levels = [self.layer[2](last)]
        for index in (1, 0):
            lateral = self.inner[index](features[index])
            last = lateral + F.interpolate(last, size=lateral.shape[-2:], mode="nearest")
            levels.append(self.layer[index](last))
        return [self.boxes(self.normed(self.tower(level))) for level in levels]


def fpn() -> Case:
    return generator_case(FPN(), 3, 16, 16)


class ASPP(nn.Module):
    """DeepLab: dilated branches and one of global pooling, concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = ConvNorm(3, width, 3, 2)
        self.branches = nn.ModuleList(
            [ConvNorm(width, 4, 1), ConvNorm(width, 4, dilation=2), ConvNorm(width, 4, dilation=3)]
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNorm(width, 4, 1))
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.low, self.head = ConvNorm(3, 4, 1), nn.Sequential(ConvNorm(12, 8), nn.Conv2d(8, CLASSES, 1))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        pooled = F.interpolate(self.pool(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        x = self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], 1))
        x = F.interpolate(x, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(torch.cat([x, self.low(image)], 1))


def deeplab() -> Case:
    return classifier(ASPP(8), 3, 12, 12, per_pixel=True)


class PSP(nn.Module):
    """Pyramid pooling: pooled to several sizes, brought back up, and concatenated before one norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 6)
        self.convs = nn.ModuleList([nn.Conv2d(6, 3, 1, bias=size < 3) for size in (1, 2, 3)])
        self.bn, self.head = nn.BatchNorm2d(15), nn.Conv2d(15, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = [conv(F.adaptive_avg_pool2d(x, size)) for size, conv in zip((1, 2, 3), self.convs, strict=True)]
        up = [F.interpolate(y, size=x.shape[-2:], mode="bicubic", align_corners=True) for y in pooled]
        return self.head(F.relu(self.bn(torch.cat([x, *up], 1))))


def pspnet() -> Case:
    return classifier(PSP(), 3, 6, 6, per_pixel=True)


class CSP(nn.Module):
    """YOLO's C3 block."""

    def __init__(self, inputs: int, outputs: int, shortcut: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1, self.cv2 = ConvNorm(inputs, half, 1, act=nn.SiLU), ConvNorm(inputs, half, 1, act=nn.SiLU)
        self.m = nn.Sequential(ConvNorm(half, half, 1, act=nn.SiLU), ConvNorm(half, half, act=nn.SiLU))
        self.cv3, self.shortcut = ConvNorm(outputs, outputs, 1, act=nn.SiLU), shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv1(x)
        y = y + self.m(y) if self.shortcut else self.m(y)
        return self.cv3(torch.cat((y, self.cv2(x)), 1))


class SPPF(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvNorm(width, width // 2, 1, act=nn.SiLU), ConvNorm(2 * width, width, 1, act=nn.SiLU)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        one = self.m(x := self.cv1(x))
        two = self.m(one)
        return self.cv2(torch.cat((x, one, two, self.m(two)), 1))


class YOLO(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.focus = nn.Sequential(ConvNorm(12, 8, act=nn.SiLU), CSP(8, 8, True))
        self.deep = nn.Sequential(ConvNorm(8, 8, 3, 2, act=lambda: nn.LeakyReLU(0.1)), SPPF(8), CSP(8, 8, False))
        self.merge, self.up = CSP(16, 8, False), nn.Upsample(scale_factor=2)
        self.detect = nn.ModuleList([nn.Conv2d(8, 2 * 7, 1) for _ in range(2)])

    def forward(self, x: Tensor) -> list[Tensor]:
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        shallow = self.focus(x)
        deep = self.deep(shallow)
        merged = self.merge(torch.cat([self.up(deep), shallow], 1))
        out = []
        for head, y in zip(self.detect, (merged, deep), strict=True):
            y = head(y)
            y = y.view(len(y), 2, 7, *y.shape[2:]).permute(0, 1, 3, 4, 2).contiguous()
            xy, wh, conf = y.sigmoid().split((2, 2, 3), 4)
            out.append(torch.cat((xy * 2 - 0.5, (wh * 2) ** 2, conf), 4))
        return out


def yolo() -> Case:
    return generator_case(YOLO(), 3, 16, 16)


class TNet(nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.conv1, self.bn1 = nn.Conv1d(k, 8, 1), nn.BatchNorm1d(8)
        self.conv2, self.bn2 = nn.Conv1d(8, 12, 1), nn.BatchNorm1d(12)
        self.fc1, self.bn3, self.fc2 = nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, k * k)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        x = torch.max(x, 2, keepdim=True)[0].view(-1, 12)
        x = self.fc2(F.relu(self.bn3(self.fc1(x))))
        return (x + torch.eye(self.k, dtype=x.dtype).flatten()).view(-1, self.k, self.k)


class PointNet(nn.Module):
    """Points turned by learned matrices; the maximum over points before and after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stn, self.fstn = TNet(3), TNet(8)
        self.conv1, self.bn1 = nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8)
        self.conv2, self.bn2 = nn.Conv1d(8, 12, 1), nn.BatchNorm1d(12)
        self.fc1, self.bn3, self.fc2 = nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.bmm(x.transpose(2, 1), self.stn(x)).transpose(2, 1)
        x = F.relu(self.bn1(self.conv1(x)))
        x = torch.bmm(x.transpose(2, 1), self.fstn(x)).transpose(2, 1)
        x = self.bn2(torch.max(self.conv2(x), 2)[0])
        return self.fc2(F.relu(self.bn3(self.fc1(x))))


def pointnet() -> Case:
    return classifier(PointNet(), 3, 20)


class EdgeConv(nn.Module):
    """DGCNN: differences to the nearest neighbours, maximum over them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)
        )

    def forward(self, x: Tensor) -> Tensor:
        near = torch.cdist(x.detach().transpose(1, 2), x.detach().transpose(1, 2)).topk(4, largest=False).indices
        points = x.transpose(1, 2)
        neighbours = points[torch.arange(len(x))[:, None, None], near]
        centre = points[:, :, None].expand_as(neighbours)
        return self.conv(torch.cat([neighbours - centre, centre], 3).permute(0, 3, 1, 2)).max(-1)[0]


def dgcnn() -> Case:
    return classifier(
        nn.Sequential(EdgeConv(3, 6), EdgeConv(6, 8), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(8, CLASSES)),
        3,
        12,
    )
