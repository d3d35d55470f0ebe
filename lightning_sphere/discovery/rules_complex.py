"""Rules for complex numbers and Fourier transforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lightning_sphere.discovery.degrees import Value, constant
from lightning_sphere.discovery.registry import Context, rule
from lightning_sphere.discovery.rules_choose import choose
from lightning_sphere.discovery.rules_pointwise import settled_operands


@rule("ViewAsComplex")
def view_as_complex(ctx: Context) -> Value:
    """Pairs in the last dimension become numbers: what multiplies these mixes the two."""
    last = len(ctx.shape)
    pairs = ctx.uniform(ctx.source(), [last])
    return pairs.map(lambda rows: rows.squeeze(last), ctx.shape, lambda flags: flags[:last])


@rule("ViewAsReal")
def view_as_real(ctx: Context) -> Value:
    """Complex numbers become pairs in a new last dimension."""
    return ctx.source().map(lambda rows: np.expand_dims(rows, -1), ctx.shape, lambda flags: (*flags, True))


@rule("Complex")
def complex_of(ctx: Context) -> Value | Sequence[Value]:
    """Real and imaginary part: both must scale equally."""
    return choose(ctx)


@rule("Polar")
def polar(ctx: Context) -> Value:
    """Absolute value and angle; the angle must not scale."""
    ctx.zero(ctx.inputs[1])
    return replace(ctx.settle(ctx.source()), shape=ctx.shape, varies=(True,) * len(ctx.shape))


@rule("FftC2C", "FftR2C", "FftC2R")
def fourier(ctx: Context) -> Value:
    """A linear map along some dimensions."""
    value = ctx.settle(ctx.source())
    value = ctx.uniform(value, ctx.dims("dim", len(value.shape)))
    return replace(value, shape=ctx.shape, varies=(True,) * len(ctx.shape))


@rule("Atan2", "Angle")
def angle(ctx: Context) -> Value:
    """It does not scale if both coordinates scale alike."""
    settled = settled_operands(ctx, len(ctx.inputs))
    degree = settled[0].degree
    if len(settled) == 2:
        degree = ctx.system.equal(degree, settled[1].degree, ctx.cause("added", degree, settled[1].degree))
    ctx.system.reset(degree, "an angle", settled[0].via)
    return constant(ctx.shape)
