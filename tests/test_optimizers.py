"""Every optimizer of torch, and others: what its formula asks for is what it does, and every number follows from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from lightning_sphere import SphereTracker, read_run
from lightning_sphere.directions import asked_displacement
from nets import batches
from optimizer_watch import BALANCE, Group, Watch, assert_all_recorded, histories, rms, statistics
from optimizer_zoo import ALL, FORMULA, FROM_STATE, KNOWN, MUONS, SGDS, Factory, needs_muon, net, train
from oracle import layer_index

CORE = (
    "norm",
    "angular_step",
    "effective_lr",
    "spherical_lr",
    "gradient_norm",
    "radial_fraction",
    "radius_growth",
    "invariance_residual",
    "second_moment",
    "equilibrium_ratio",
    "path_length",
    "drift",
    "straightness",
    "adam_equivalence",
    "lost_update",
)

pytestmark = pytest.mark.usefixtures("copies")
PHENOMENA = ("deformation_angle", "momentum_radial_fraction")
CONTEXT = ("lr", "equilibrium_angle", "equilibrium_norm")


def gradients(shape: Sequence[int], count: int, dtype: torch.dtype) -> list[Tensor]:
    """Gradients of very different sizes, as those of different steps are."""
    generator = torch.Generator().manual_seed(sum(shape))
    return [
        (torch.randn(*shape, generator=generator, dtype=torch.float64) * 10.0 ** (-(step % 3))).to(dtype)
        for step in range(count)
    ]


SHAPES = ((5, 3, 3, 3), (7, 4), (4, 7), (6,))


def alone(factory: Factory, shapes: Sequence[Sequence[int]], dtype: torch.dtype, steps: int) -> Watch:
    """Steps with made-up gradients, nothing of the package around."""
    model = nn.ParameterList([nn.Parameter(torch.randn(*shape, dtype=dtype)) for shape in shapes])
    optimizer = factory(model.parameters())
    watch = Watch(model, optimizer)
    for step in range(steps):
        for p in model:
            p.grad = gradients(p.shape, steps, dtype)[step]
        watch.before()
        optimizer.step()
        watch.after()
    return watch


def equal(watch: Watch, relative: float, absolute: float) -> None:
    """The oracle asks for the displacements that were seen."""
    for parameter in watch.steps[0]:
        for seen, update in zip(watch.steps, watch.updates(parameter), strict=True):
            assert update is not None
            assert seen[parameter].after is not None
            moved = seen[parameter].after - seen[parameter].moment.x
            np.testing.assert_allclose(
                update.displacement(seen[parameter].moment.x), moved, rtol=relative, atol=absolute
            )


@pytest.mark.parametrize("name", KNOWN)
def test_the_oracle_is_the_formula_that_the_optimizer_follows(name: str) -> None:
    """In float64, where nothing is rounded, before anything else is compared with it."""
    torch.manual_seed(0)
    watch = alone(KNOWN[name], SHAPES, torch.float64, steps=15)
    rounded = "nadam" in name  # torch keeps its product of momenta in float32
    equal(watch, 1e-6 if rounded else 1e-10, 1e-13)


@needs_muon
@pytest.mark.parametrize("name", MUONS)
def test_the_oracle_is_muons_formula_up_to_its_bfloat16(name: str) -> None:
    torch.manual_seed(0)
    watch = alone(MUONS[name], [(7, 4), (4, 7), (5, 5)], torch.float64, steps=15)
    for parameter in watch.steps[0]:
        for seen, update in zip(watch.steps, watch.updates(parameter), strict=True):
            assert update is not None
            moved, asked = (
                seen[parameter].after - seen[parameter].moment.x,
                update.displacement(seen[parameter].moment.x),
            )
            assert np.linalg.norm(asked - moved) < 0.1 * np.linalg.norm(moved)


def test_both_branches_of_radam_and_the_clipping_of_adafactor_are_seen() -> None:
    torch.manual_seed(0)
    watch = alone(KNOWN["radam"], SHAPES, torch.float64, steps=15)
    plain = [bool((update.b == 1).all()) for update in watch.updates("0") if update is not None]
    assert plain == [True] * 5 + [False] * 10
    watch = alone(KNOWN["adafactor clipping"], SHAPES, torch.float64, steps=15)
    clipped = [rms(update.a / update.b) for update in watch.updates("0") if update is not None]
    assert max(clipped) == pytest.approx(1.0)  # no direction is longer than d = 1, and some would have been


UNTABLED = ("nadam", "radam", "rmsprop", "adagrad", "adamax", "adafactor", "amsgrad", "muon")
"""What the theory's table of equilibria does not have: a prediction for them is checked elsewhere, if there is one."""


def without(name: str) -> tuple[str, ...]:
    return BALANCE if any(word in name for word in UNTABLED) else ()


def unheard_of(name: str) -> set[str]:
    """Quantities that an optimizer does not have: unknown, or not recorded at all."""
    return set() if name in SGDS else {"adam_equivalence"}


@pytest.mark.parametrize("name", KNOWN)
def test_every_quantity_of_every_optimizer_equals_the_oracle(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    watch = train(model, [KNOWN[name](model.parameters())], log_dir=tmp_path, quantities="full")
    record = read_run(tmp_path)
    assert not caplog.messages
    assert {*record.quantities} | unheard_of(name) == {*CORE, *PHENOMENA, *CONTEXT}
    rounding = 5e-5 if "radam" in name else 1e-5  # RAdam's first steps are small against the weights' last place
    assert_all_recorded(record, watch, ALL, loose=FROM_STATE | FORMULA, of_direction=rounding, without=without(name))


@needs_muon
@pytest.mark.parametrize("name", MUONS)
def test_every_quantity_of_muon_equals_the_oracle(name: str, tmp_path: Path) -> None:
    """Its directions are known to a few percent only: torch computes them in bfloat16."""
    model = net()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizers = [MUONS[name](matrices), optim.SGD(others, lr=0.05)]
    watch = train(model, optimizers, log_dir=tmp_path, quantities="full")
    record = read_run(tmp_path)
    assert_all_recorded(record, watch, ALL, without=[*without(name), *FORMULA])
    assert_all_recorded(record, watch, ALL, relative=0.2, absolute=0.05, of_direction=0.05, without=without(name))


def of_formula(group: Group) -> dict[str, float]:
    """Section 2 of the theory: rate, angle and radius from what the formula asks for, not from what moved."""
    assert group.a is not None
    assert group.b is not None
    assert group.asked is not None
    x, d = group.x, len(group.x)
    r = np.linalg.norm(x)
    u = x / r
    nu = r * np.linalg.norm(group.b) / np.sqrt(d)
    shrink = -(group.asked + group.rate * group.a / group.b) @ x / r**2
    c = nu * (group.a / group.b + shrink / group.rate * x)
    radial = 1 - group.rate * (c @ u) / (r * nu)
    effective = group.rate / (r * nu) / radial
    turned = effective * np.linalg.norm(c - (c @ u) * u)
    return {
        "effective_lr": float(effective),
        "angular_step": float(np.arctan(turned)),
        "radius_growth": float(np.log(radial * np.sqrt(1 + turned**2))),
        "radial_fraction": float(c @ u / np.linalg.norm(c)),
    }


@pytest.mark.parametrize("name", KNOWN)
def test_rate_angle_and_radius_satisfy_the_exact_identities(name: str, tmp_path: Path) -> None:
    """To 1e-4, and to what rounding the weights to float32 leaves of the formula's displacement."""
    model = net()
    watch = train(model, [KNOWN[name](model.parameters())], log_dir=tmp_path)
    record = read_run(tmp_path)
    for parameter in ALL:
        rows = [[of_formula(group) for group in history if group] for history in histories(record, watch, parameter)]
        layer = layer_index(record, parameter)
        for quantity in rows[0][0]:
            wanted = np.array([statistics([row[step][quantity] for row in rows]) for step in range(len(watch.steps))])
            actual = record.values[:, layer, record.quantities.index(quantity)]
            absolute = {"radius_growth": 1e-7, "radial_fraction": 5e-5}.get(quantity, 0.0)
            np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=absolute, err_msg=f"{quantity} of {parameter}")


@pytest.mark.parametrize("name", [*KNOWN, *MUONS])
def test_what_the_formula_asks_for_is_what_moves(name: str) -> None:
    """Up to the last place of a float32 weight, and of the state that the formula reads."""
    model = net()
    parameters = [p for p in model.parameters() if p.dim() == 2 or name not in MUONS]
    optimizer = (KNOWN | MUONS)[name](parameters)
    watch = Watch(model, optimizer)
    for images, classes in batches(8):
        model.zero_grad()
        cross_entropy(model(images), classes).backward()
        watch.before()
        before = [p.detach().clone() for p in parameters]
        gradients = [p.grad.clone() for p in parameters if p.grad is not None]
        optimizer.step()
        watch.after()
        for p, x, g in zip(parameters, before, gradients, strict=True):
            asked = asked_displacement(optimizer, p, x, g)
            assert asked is not None
            assert asked.dtype == torch.float64
            moved = p.detach().double() - x.double()
            half_a_place = torch.finfo(torch.float32).eps * torch.maximum(x.abs(), p.detach().abs()).double()
            assert ((asked - moved).abs() <= 1.5 * half_a_place + 1e-5 * moved.abs()).all()
            assert (asked - moved).norm() <= 1e-5 * moved.norm() + half_a_place.norm()
    if name in KNOWN:
        equal(watch, 1e-4, 3e-7)


@pytest.mark.parametrize("name", ["sgd", "sgd nesterov", "lion decay"])
def test_what_is_divided_by_nothing_is_not_deformed(name: str, tmp_path: Path) -> None:
    """However small the step is against the last place of the weights."""
    model = net()
    optimizer = KNOWN[name](model.parameters())
    for group in optimizer.param_groups:
        group["lr"] = 1e-6
    train(model, [optimizer], 3, log_dir=tmp_path, quantities="full")
    np.testing.assert_allclose(read_run(tmp_path)["deformation_angle"], 0.0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("factory", [optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.RMSprop, optim.Adamax])
def test_capturable_optimizers_with_a_rate_on_the_device(factory: Callable[..., Optimizer], tmp_path: Path) -> None:
    model = net().cuda()
    optimizer = factory(model.parameters(), lr=torch.tensor(1e-2, device="cuda"), capturable=True)
    watch = Watch(model, optimizer)
    with SphereTracker(model, optimizer, log_dir=tmp_path, strict=True, quantities="full"):
        for images, classes in batches(12):
            model.zero_grad()
            cross_entropy(model(images.cuda()), classes.cuda()).backward()
            watch.before()
            optimizer.step()
            watch.after()
    assert_all_recorded(read_run(tmp_path), watch, ALL, relative=1e-4, without=BALANCE)
