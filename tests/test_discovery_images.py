"""Pooling, upsampling, padding, shuffles and shifts between a convolution and several norms, as measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sphere.discovery import discover
from measured_invariance import disagreements, measure, prepare

LINE = torch.linspace(-1.3, 1.2, 5, dtype=torch.float64)
GRID = torch.stack(torch.meshgrid(LINE, LINE, indexing="ij"), -1)

OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool_1d": lambda x: F.max_pool1d(x.flatten(2), 2),
    "max_pool_3d": lambda x: F.max_pool3d(x.view(*x.shape[:2], 2, 3, 6), 2),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool2d(x, 2),
    "adaptive_max_pool_1d": lambda x: F.adaptive_max_pool1d(x.flatten(2), 3),
    "fractional_max_pool": lambda x: F.fractional_max_pool2d(
        x, 2, output_size=3, _random_samples=x.new_full((6, 8, 2), 0.3)
    ),
    "average_pool": lambda x: F.avg_pool2d(x, 2),
    "average_pool_padded": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "average_pool_not_counting": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "average_pool_ceil": lambda x: F.avg_pool2d(x, 4, 4, ceil_mode=True),
    "average_pool_divisor": lambda x: F.avg_pool2d(x, 4, 4, ceil_mode=True, divisor_override=3),
    "average_pool_1d": lambda x: F.avg_pool1d(x.flatten(2), 3),
    "adaptive_average_pool": lambda x: F.adaptive_avg_pool2d(x, 4),
    "lp_pool": lambda x: F.lp_pool2d(x, 2, 2),
    "global_average": lambda x: F.adaptive_avg_pool2d(x, 1),
    "average_difference": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x,
    "blurred_difference": lambda x: x - F.interpolate(F.avg_pool2d(x, 2), scale_factor=2),
    "unpool": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest_exact": lambda x: F.interpolate(x, scale_factor=1.5, mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, size=9, mode="bilinear"),
    "bilinear_corners": lambda x: F.interpolate(x, size=9, mode="bilinear", align_corners=True),
    "bilinear_antialias": lambda x: F.interpolate(x, size=4, mode="bilinear", antialias=True),
    "bicubic": lambda x: F.interpolate(x, size=9, mode="bicubic"),
    "linear": lambda x: F.interpolate(x.flatten(2), size=20, mode="linear"),
    "trilinear": lambda x: F.interpolate(x[:, :, None], size=(2, 7, 8), mode="trilinear"),
    "area": lambda x: F.interpolate(x, size=5, mode="area"),
    "pad_reflect": lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"),
    "pad_replicate": lambda x: F.pad(x, (1, 2, 2, 1), mode="replicate"),
    "pad_circular": lambda x: F.pad(x, (1, 2, 2, 1), mode="circular"),
    "pad_zeros": lambda x: F.pad(x, (1, 2, 2, 1)),
    "pad_ones": lambda x: F.pad(x, (1, 0, 0, 0), value=1.0),
    "pad_ones_at_the_end": lambda x: F.pad(x, (0, 0, 0, 2), value=1.0),
    "pad_ones_then_pool": lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), value=1.0), 2),
    "pad_infinity_then_pool": lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=float("-inf")), 3),
    "pad_channels": lambda x: F.pad(x, (0, 0, 0, 0, 0, 8)),
    "crop": lambda x: F.pad(x, (-1, -1, -1, -1)),
    "roll": lambda x: x.roll((1, -2), (2, 3)),
    "roll_channels": lambda x: x.roll(2, 1),
    "roll_flat": lambda x: x.roll(3),
    "flip": lambda x: x.flip(3),
    "flip_channels": lambda x: x.flip(1),
    "roll_difference": lambda x: x - x.roll(1, 2),
    "rotate": lambda x: x.rot90(1, (2, 3)),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 4),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "grid_sample": lambda x: F.grid_sample(x, GRID.expand(6, -1, -1, -1), align_corners=True),
    "grid_sample_border": lambda x: F.grid_sample(x, GRID.expand(6, -1, -1, -1), "bilinear", "border", False),
    "unfold": lambda x: F.unfold(x, 3, stride=3),
    "fold": lambda x: F.fold(x.flatten(2)[..., :9], 6, 2, stride=2),
    "fold_overlapping": lambda x: F.fold(x.flatten(2)[..., :16], 5, 2),
    "patches": lambda x: x.unfold(2, 3, 3).unfold(3, 3, 3).flatten(2),
}
"""Each maps images of 8 channels and 6x6 pixels to something that a norm reads."""

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": lambda width: nn.BatchNorm1d(width, affine=False),
    "instance": lambda width: nn.GroupNorm(width, width, affine=False),
    "group": lambda width: nn.GroupNorm(2, width, affine=False),
    "layer": lambda width: nn.GroupNorm(1, width, affine=False),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_between_a_convolution_and_a_norm(operation: str, norm: str, bias: bool) -> None:
    if operation == "pad_circular" and bias and norm in ("batch", "instance"):
        pytest.skip("that all written parts have the same bias is not followed: it is claimed together with the weight")
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=bias)
    model = prepare(nn.ModuleDict({"conv": conv}))
    after = OPERATIONS[operation](conv(torch.randn(6, 3, 6, 6, dtype=torch.float64)))
    width = after.shape[1]
    if norm == "instance" and after[0, 0].numel() == 1:
        pytest.skip("one number has no norm")
    normalize = prepare(NORMS[norm](width))

    def loss(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(6, 3, 6, 6, generator=generator, dtype=torch.float64)
        y = normalize(OPERATIONS[operation](conv(x)).flatten(2)).sigmoid()
        return (y * torch.randn(y.shape, generator=generator, dtype=torch.float64)).sum()

    assert not disagreements(discover(loss(0), model), measure(model, loss))
