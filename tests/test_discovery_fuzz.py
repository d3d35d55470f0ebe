"""Random small nets from a grammar of layers: no claim of discovery may be false."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_sphere.discovery import discover
from measured_invariance import disagreements, measure
from test_discovery_rules import Net, loss_of, prepare, relative_change, worst_claim

Step = Callable[[Tensor], Tensor]
TOLERANCE = 1e-6


class Builder:
    """Makes layers for a value with a known number of channels, and owns them."""

    def __init__(self) -> None:
        self.modules: dict[str, nn.Module] = {}

    def add(self, module: nn.Module) -> nn.Module:
        self.modules[f"{type(module).__name__.lower()}{len(self.modules)}"] = module
        return module

    def image(self, program: tuple[object, ...]) -> Step:
        """A step that keeps 8 channels."""
        kind, *rest = program
        if kind == "chain":
            steps = [self.image(part) for part in rest]  # type: ignore[arg-type]

            def chain(x: Tensor) -> Tensor:
                for step in steps:
                    x = step(x)
                return x

            return chain
        if kind in ("residual", "concat", "product", "gate"):
            one, two = self.image(rest[0]), self.image(rest[1])  # type: ignore[arg-type]
            joins: dict[object, Step] = {
                "residual": lambda x: one(x) + two(x) if _alike(one(x), two(x)) else one(x),
                "concat": lambda x: torch.cat([one(x)[:, :4], two(x)[:, 4:]], 1) if _alike(one(x), two(x)) else two(x),
                "product": lambda x: one(x) * two(x) if _alike(one(x), two(x)) else two(x),
                "gate": lambda x: one(x) * two(x).mean((2, 3), keepdim=True).sigmoid(),
            }
            return joins[kind]
        return self.layer(str(kind))

    def layer(self, kind: str) -> Step:
        makers: dict[str, Callable[[], nn.Module]] = {
            "conv": lambda: nn.Conv2d(8, 8, 3, padding=1, bias=False),
            "conv bias": lambda: nn.Conv2d(8, 8, 3, padding=1),
            "conv unpadded": lambda: nn.Conv2d(8, 8, 1),
            "conv grouped": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2),
            "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            "transposed": lambda: nn.ConvTranspose2d(8, 8, 3, padding=1),
            "transposed grouped": lambda: nn.ConvTranspose2d(8, 8, 3, padding=1, groups=2, bias=False),
            "batch": lambda: nn.BatchNorm2d(8),
            "batch eval": lambda: nn.BatchNorm2d(8).eval(),
            "batch plain": lambda: nn.BatchNorm2d(8, affine=False),
            "instance": lambda: nn.InstanceNorm2d(8, affine=True),
            "group": lambda: nn.GroupNorm(4, 8),
            "layer last": lambda: nn.LayerNorm(8),
            "rms last": lambda: nn.RMSNorm(8),
            "linear last": lambda: nn.Linear(8, 8),
            "relu": nn.ReLU,
            "leaky": nn.LeakyReLU,
            "gelu": nn.GELU,
            "prelu": lambda: nn.PReLU(8),
            "max": lambda: nn.MaxPool2d(3, 1, 1),
            "average": lambda: nn.AvgPool2d(3, 1),
            "average padded": lambda: nn.AvgPool2d(3, 1, 1),
        }
        functions: dict[str, Step] = {
            "half": lambda x: x * 0.5,
            "plus one": lambda x: x + 1.0,
            "shuffle": lambda x: x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2),
            "halves": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
            "roll": lambda x: x.roll(1, 1),
            "l2": lambda x: F.normalize(x, dim=1, eps=1e-30),
            "centre": lambda x: x - x.mean((2, 3), keepdim=True),
            "rms by hand": lambda x: x * torch.rsqrt(x.pow(2).mean((1, 2, 3), keepdim=True) + 1e-30),
            "std by hand": lambda x: (x - x.mean((0, 2, 3), keepdim=True)) / (x.std((0, 2, 3), keepdim=True) + 1e-30),
            "flatten": lambda x: x.flatten(2).transpose(1, 2).reshape(x.shape[0], -1, 8).mT.reshape(x.shape),
            "clamp": lambda x: x.clamp(min=0),
            "clamp one": lambda x: x.clamp(max=1.0),
        }
        if kind in functions:
            return functions[kind]
        module = self.add(makers[kind]())
        if kind.endswith(" last"):
            return lambda x: module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return module


LEAVES = [
    "conv", "conv", "conv bias", "conv bias", "conv unpadded", "conv grouped", "depthwise", "transposed",
    "transposed grouped", "batch", "batch", "batch eval", "batch plain", "instance", "group", "group", "layer last",
    "rms last", "linear last", "relu", "relu", "leaky", "gelu", "prelu", "max", "average", "average padded", "half",
    "plus one", "shuffle", "halves", "roll", "l2", "centre", "rms by hand", "std by hand", "flatten", "clamp",
    "clamp one",
]  # fmt: skip


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape


def programs() -> st.SearchStrategy[tuple[object, ...]]:
    leaves = st.sampled_from(LEAVES).map(lambda name: (name,))
    return st.recursive(
        leaves,
        lambda part: st.one_of(
            st.lists(part, min_size=2, max_size=5).map(lambda parts: ("chain", *parts)),
            st.tuples(st.sampled_from(["residual", "concat", "product", "gate"]), part, part),
        ),
        max_leaves=10,
    )


def check(program: tuple[object, ...], seed: int = 0) -> tuple[Net, Tensor]:
    """Build, discover, and rescale every claim."""
    torch.manual_seed(seed)
    builder = Builder()
    stem, step = builder.add(nn.Conv2d(3, 8, 3)), builder.image(program)
    model = Net(lambda m, x: step(stem(x)), **builder.modules)
    prepare(model)
    x = torch.randn(3, 3, 7, 7).double()
    try:
        loss = loss_of(model, x)
    except (ValueError, RuntimeError):  # too few elements are left for a norm, or for a pooling
        reject()
    change, where = worst_claim(model, x, discover(loss, model))
    # Channels that are constant up to rounding are amplified without bound by a norm with an eps of zero.
    noise = relative_noise(model, x)
    assert change < TOLERANCE or noise > TOLERANCE / 100, (where, change, program)
    return model, x


def relative_noise(model: Net, x: Tensor) -> float:
    """How much the loss changes under perturbations at the level of rounding."""
    before = loss_of(model, x).item()
    after = [loss_of(model, x * (1 + 1e-14 * torch.randn_like(x))).item() for _ in range(3)]
    return max(abs(value - before) for value in after) / max(abs(before), 1e-3)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(programs())
def test_no_false_claim(program: tuple[object, ...]) -> None:
    check(program)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(programs())
def test_no_false_claim_in_a_thousand_nets(program: tuple[object, ...]) -> None:
    check(program)


NORMS = ["batch", "batch plain", "instance", "group", "layer last", "rms last", "l2", "std by hand", "rms by hand"]


def normed_programs() -> st.SearchStrategy[tuple[object, ...]]:
    """Nets that end in a norm: many of their weights are invariant."""
    return st.tuples(programs(), st.sampled_from(NORMS)).map(lambda pair: ("chain", pair[0], (pair[1],), ("gelu",)))


@pytest.mark.slow
def test_what_is_invariant_is_found_in_a_thousand_nets() -> None:
    """All but a few in a hundred, exactly; those missed are told a coarser cut, or a bias that they do not need."""
    invariant = inexact = 0

    @settings(
        max_examples=1000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(normed_programs())
    def compare(program: tuple[object, ...]) -> None:
        nonlocal invariant, inexact
        model, x = check(program)

        def loss(number: int) -> Tensor:
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(number))
            return loss_of(model, noise.double())

        if relative_noise(model, x) > 1e-11:
            return  # rounding is amplified so much that nothing can be measured
        measured = measure(model, loss)
        invariant += sum(truth.kind not in ("none", "unknown") for truth in measured.values())
        inexact += len(disagreements(discover(loss(0), model), measured))

    compare()
    assert invariant > 1000
    assert inexact < 0.05 * invariant


def test_the_oracle_sees_a_false_claim() -> None:
    model, x = check(("chain", ("conv bias",), ("relu",), ("batch",)))
    assert relative_change(model, x, [("conv2d1.weight", 0, [0])]) > 1e-6
    rows = [("conv2d1.weight", 0, [0]), ("conv2d1.bias", 0, [0])]
    assert relative_change(model, x, rows) < 1e-12
