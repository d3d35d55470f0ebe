"""The formulas against vectors, for any geometry: every inner product is taken from float64 vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_sphere import geometry
from lightning_sphere.geometry import InnerProducts
from lightning_sphere.quantities import CONTEXT, QUANTITIES

SETTINGS = settings(deadline=None, max_examples=200, derandomize=True)


def products(x: Tensor, displacement: Tensor, g: Tensor, b: Tensor, lr: float) -> InnerProducts:
    """Inner products of one step and one group."""
    one = lambda value: value.reshape(1, 1)  # noqa: E731
    return InnerProducts(
        xx=one(x @ x),
        xd=one(x @ displacement),
        dd=one(displacement @ displacement),
        gx=one(g @ x),
        gg=one(g @ g),
        bb=one(b @ b),
        lr=torch.full((1, 1), lr, dtype=torch.float64),
        size=torch.tensor([float(len(x))], dtype=torch.float64),
    )


@st.composite
def steps(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """Weights, displacement, gradient, divisor and learning rate, over many orders of magnitude."""
    size = draw(st.integers(2, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x, displacement, g = torch.randn(3, size, generator=generator, dtype=torch.float64)
    b = torch.rand(size, generator=generator, dtype=torch.float64) + 0.01
    x = x * 10 ** draw(st.floats(-4, 4))
    displacement = displacement * x.norm() * 10 ** draw(st.floats(-7, 0.5))
    return x, displacement, g * 10 ** draw(st.floats(-6, 6)), b, 10 ** draw(st.floats(-6, 1))


@SETTINGS
@given(steps())
def test_angle_and_radius_are_those_of_the_vectors(step: tuple[Tensor, Tensor, Tensor, Tensor, float]) -> None:
    x, displacement, *_ = step
    s = products(*step)
    after = x + displacement
    u, v = x / x.norm(), after / after.norm()
    angle = 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))  # Kahan: accurate for all angles
    assert float(geometry.angular_step(s)) == pytest.approx(angle, rel=1e-6)
    assert float(geometry.radius_growth(s)) == pytest.approx(math.log(after.norm() / x.norm()), rel=1e-5, abs=1e-14)
    assert float(geometry.norm(s)) == pytest.approx(float(x.norm()), rel=1e-12)


@SETTINGS
@given(steps())
def test_the_exact_identities_of_the_generic_step_hold(step: tuple[Tensor, Tensor, Tensor, Tensor, float]) -> None:
    x, displacement, _, b, lr = step
    s = products(*step)
    r, nu = x.norm(), x.norm() * b.norm() / math.sqrt(len(x))
    c = -(nu / lr) * displacement
    u = x / r
    radial = float(c @ u)
    shrink = float(1 - lr * radial / (r * nu))
    assume(shrink > 1e-3)
    c_perp = float((c - radial * u).norm())
    rate = float(geometry.effective_lr(s))
    assert rate == pytest.approx(float(lr / (r * nu)) / shrink, rel=1e-9)
    assert float(geometry.angular_step(s)) == pytest.approx(math.atan(rate * c_perp), rel=1e-6)
    growth = shrink * math.sqrt(1 + (rate * c_perp) ** 2)
    assert float(geometry.radius_growth(s)) == pytest.approx(math.log(growth), rel=1e-5, abs=1e-13)
    assert float(geometry.radial_fraction(s)) == pytest.approx(radial / float(c.norm()), rel=1e-9, abs=1e-12)
    assert float(geometry.second_moment(s)) == pytest.approx(float(nu), rel=1e-9)


@SETTINGS
@given(steps())
def test_gradient_quantities_are_those_of_the_vectors(step: tuple[Tensor, Tensor, Tensor, Tensor, float]) -> None:
    x, displacement, g, _, _ = step
    s = products(*step)
    u = x / x.norm()
    tangential = float((g - (g @ u) * u).norm() * x.norm())
    assert float(geometry.gradient_norm(s)) == pytest.approx(tangential, rel=1e-6)
    assert float(geometry.invariance_residual(s)) == pytest.approx(abs(float(g @ u / g.norm())), rel=1e-6, abs=1e-14)
    after = x + displacement
    tangent = float((after - (after @ u) * u).norm() / (after @ u))
    assert float(geometry.spherical_lr(s)) == pytest.approx(tangent / tangential, rel=1e-5)


@SETTINGS
@given(st.integers(2, 50), st.floats(-5, 0), st.floats(0, 0.5), st.integers(0, 2**31))
def test_sgd_has_the_table_rate_and_both_rates_agree(size: int, exponent: float, decay: float, seed: int) -> None:
    """SGD: eta / r^2; SGD + L2: eta / (r^2 (1 - eta lambda)); the spherical rate is the same for a tangent gradient."""
    generator = torch.Generator().manual_seed(seed)
    x, g = torch.randn(2, size, generator=generator, dtype=torch.float64)
    g = g - (g @ x) / (x @ x) * x
    assume(float(g.norm()) > 1e-3)
    lr = 10**exponent
    s = products(x, -lr * (g + decay * x), g, torch.ones(size, dtype=torch.float64), lr)
    expected = lr / (float(x @ x) * (1 - lr * decay))
    assert float(geometry.effective_lr(s)) == pytest.approx(expected, rel=1e-10)
    assert float(geometry.spherical_lr(s)) == pytest.approx(expected, rel=1e-6)


def test_small_angles_are_not_lost() -> None:
    """The arccos of a cosine gives 0 below 1e-8 rad; here angles down to 1e-12 are right."""
    x = torch.tensor([3.0, 4.0], dtype=torch.float64)
    tangent = torch.tensor([-0.8, 0.6], dtype=torch.float64)
    for angle in 10.0 ** np.arange(-12, 0):
        s = products(x, 5 * angle * tangent, x, x, 1.0)
        assert float(geometry.angular_step(s)) == pytest.approx(math.atan(angle), rel=1e-9)


def test_a_radial_step_has_an_angle_of_zero_up_to_its_floor() -> None:
    x = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = products(x, -0.01 * x, x, x, 0.1)
    assert 0 <= float(geometry.angular_step(s)) < 1e-9
    assert float(geometry.radial_fraction(s)) == pytest.approx(1.0)
    assert float(geometry.radius_growth(s)) == pytest.approx(math.log(0.99))


def test_unknown_stays_unknown() -> None:
    x = torch.ones(4, dtype=torch.float64)
    zero, nothing = torch.zeros(4, dtype=torch.float64), torch.full((4,), torch.nan, dtype=torch.float64)
    without_gradient = products(x, zero, nothing, x, 0.1)
    assert float(geometry.angular_step(without_gradient)) == 0.0
    for name in ("effective_lr", "spherical_lr", "gradient_norm", "invariance_residual", "radial_fraction"):
        assert math.isnan(float(geometry.FORMULAS[name](without_gradient))), name
    zero_gradient = products(x, zero, zero, x, 0.1)
    for name in ("spherical_lr", "invariance_residual"):
        assert math.isnan(float(geometry.FORMULAS[name](zero_gradient))), name


def test_formulas_and_quantities_are_the_same_list() -> None:
    followed = {"equilibrium_ratio", "adam_equivalence", "path_length", "drift", "straightness", "lost_update"}
    followed |= {quantity.name for quantity in CONTEXT}
    assert list(geometry.FORMULAS) == [name for name in QUANTITIES if name not in followed]
    assert followed < set(QUANTITIES)


def test_each_formula_reads_only_the_sums_that_its_table_row_names() -> None:
    """A sum that is NaN must not reach a quantity that does not need it."""
    of = {**{n: n for n in ("xx", "xd", "dd", "gx", "gg", "bb")}, "aa": "aa", "ax": "aa", "ad": "aa"}
    names = ("xx", "xd", "dd", "gx", "gg", "bb", "aa", "ax", "ad")
    for quantity in map(QUANTITIES.__getitem__, geometry.FORMULAS):
        known = {"xx": 2.0, **dict.fromkeys(names[1:], 0.5), "aa": 1.0}
        values = {n: torch.full((1, 1), known[n] if of[n] in quantity.sums else torch.nan).double() for n in names}
        s = InnerProducts(**values, lr=torch.ones(1, 1).double(), size=torch.ones(1).double())
        assert not geometry.FORMULAS[quantity.name](s).isnan().any(), quantity.name
        for needed in names[:-2] if "aa" not in quantity.sums else ("xx", "aa", "ax"):
            if of[needed] not in quantity.sums:
                continue
            broken = {**values, needed: torch.full((1, 1), torch.nan).double()}
            s = InnerProducts(**broken, lr=torch.ones(1, 1).double(), size=torch.ones(1).double())
            assert geometry.FORMULAS[quantity.name](s).isnan().all(), (quantity.name, needed)
