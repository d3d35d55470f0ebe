"""The reference optimizers AdamS and AdamSRT: their formulas, and what they promise about geometry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Adam, Optimizer

from lightning_sphere import discover
from lightning_sphere.optim import AdamGStar, AdamS, AdamSRT
from nets import conv_net, digits
from optim_cases import (
    LAYOUTS,
    SHAPES,
    Layer,
    arrays,
    bits,
    both_ways,
    cosines,
    every_kind,
    invariant_net,
    put_gradients,
    rows,
    same,
    scale_groups,
    stepped,
    tensors,
    train,
)
from optim_oracle import SlowAdam, layout_of
from test_joint_groups import Transformer

# -- the formulas ----------------------------------------------------------------------------------------------------


def assert_like_oracle(
    kind: type[AdamS],
    layers: Sequence[Layer],
    shapes: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float64,
    relative: float = 1e-11,
    steps: int = 6,
    maximize: bool = False,
    foreach: bool | None = None,
    **options: Any,
) -> None:
    parameters = tensors(dtype, shapes=shapes)
    optimizer = kind(
        parameters.items(), groups=scale_groups(layers), maximize=maximize, foreach=foreach, lr=0.05, **options
    )
    slow = SlowAdam(arrays(parameters), layout_of(shapes, layers), lr=0.05, transport=kind is AdamSRT, **options)
    grouped = {name for parts, _, _ in layers for name, _ in parts}
    for step in range(steps):
        put_gradients(parameters, step)
        grads = arrays({name: parameter.grad for name, parameter in parameters.items()})  # type: ignore[misc]
        optimizer.step()
        slow.step({name: -grad if maximize else grad for name, grad in grads.items()})
        for name, parameter in parameters.items():
            state = optimizer.state[parameter]
            expected = {"exp_avg": slow.m[name], "exp_avg_sq": slow.v[name]}
            if name in grouped:
                expected["divisor"] = slow.b[name]
            assert set(state) == {"step", *expected}
            assert float(state["step"]) == step + 1
            for key, value in {**expected, "weights": slow.weights[name]}.items():
                actual = (parameter if key == "weights" else state[key]).detach()
                np.testing.assert_allclose(
                    actual.to(torch.float64).expand(parameter.shape).numpy(),
                    value,
                    rtol=relative,
                    atol=relative,
                    err_msg=f"{key} of {name} after step {step + 1}",
                )


@pytest.mark.parametrize("layers", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
@pytest.mark.parametrize("kind", [AdamS, AdamSRT])
def test_adams_and_adamsrt_are_their_formulas(kind: type[AdamS], foreach: bool, layers: list[Layer]) -> None:
    assert_like_oracle(kind, layers, SHAPES, foreach=foreach)
    assert_like_oracle(
        kind, layers, SHAPES, foreach=foreach, betas=(0.7, 0.9), eps=0.1, weight_decay=0.3, maximize=True
    )


@pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
@pytest.mark.parametrize("kind", [AdamS, AdamSRT])
def test_single_precision_errs_by_rounding(kind: type[AdamS], foreach: bool) -> None:
    layers = [*LAYOUTS["some blocks with bias"], ([("free", 0)], 2, None)]
    assert_like_oracle(kind, layers, SHAPES, foreach=foreach, dtype=torch.float32, relative=2e-6)


@st.composite
def any_layers(draw: st.DrawFn) -> tuple[dict[str, tuple[int, ...]], list[Layer]]:
    """Tensors of random shapes, cut along random axes into random blocks, some together, some in part."""
    shapes: dict[str, tuple[int, ...]] = {}
    layers: list[Layer] = []
    for number in range(draw(st.integers(1, 3))):
        blocks = draw(st.integers(1, 4))
        parts = []
        for part in range(draw(st.integers(1, 2))):
            name = f"{number}.{part}"
            shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
            axis = draw(st.integers(0, len(shape) - 1))
            shape[axis] *= blocks
            shapes[name] = tuple(shape)
            parts.append((name, axis))
        some = draw(st.none() | st.sets(st.integers(0, blocks - 1), min_size=1))
        layers.append((parts, blocks, None if some is None else sorted(some)))
    return shapes, layers


@settings(max_examples=40, deadline=None)
@given(any_layers(), st.sampled_from([AdamS, AdamSRT]), st.booleans(), st.sampled_from([0.0, 0.1]))
def test_any_layout_is_stepped_by_the_formulas(
    drawn: tuple[dict[str, tuple[int, ...]], list[Layer]], kind: type[AdamS], foreach: bool, decay: float
) -> None:
    shapes, layers = drawn
    assert_like_oracle(kind, layers, shapes, foreach=foreach, weight_decay=decay, steps=3, relative=1e-9)


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("kind", [AdamS, AdamSRT])
def test_without_groups_it_is_adam_bit_by_bit(
    kind: type[AdamS], decay: float, maximize: bool, foreach: bool | None
) -> None:
    def trained(optimizer_of: Callable[..., Optimizer]) -> list[Tensor]:
        model = conv_net()
        optimizer = optimizer_of(model.parameters(), 0.01, (0.8, 0.99), 1e-6, decay, foreach=foreach, maximize=maximize)
        train(model, optimizer, 5)
        return bits(model.parameters())

    assert same(trained(kind), trained(Adam))


@pytest.mark.parametrize("kind", [AdamS, AdamSRT, AdamGStar])
def test_param_groups_may_say_what_is_invariant(kind: Any) -> None:
    one, other = tensors(), tensors()
    layers: list[Layer] = [([("conv", 0)], 6, None), ([("turned", 0)], 1, None), ([("scale", 0)], 1, None)]
    by_name = kind(one.items(), lr=0.1, groups=scale_groups(layers))
    by_option = kind(
        [
            {"params": [other["conv"]], "invariant": "row"},
            {"params": [other["turned"], other["scale"]], "invariant": "whole"},
            {"params": [other["bias"], other["free"]]},
        ],
        lr=0.1,
    )
    for step in range(3):
        put_gradients(one, step)
        put_gradients(other, step)
        by_name.step()
        by_option.step()
    assert same(bits(one.values()), bits(other.values()))
    assert not torch.equal(one["conv"], tensors()["conv"])


@every_kind
def test_all_tensors_at_once_step_as_one_after_the_other(kind: Any) -> None:
    found = []
    for foreach in (False, True):
        model = conv_net()
        images, classes = digits()
        discovery = discover(cross_entropy(model(images[:32]), classes[:32]), model)
        optimizer = kind(model.named_parameters(), lr=0.02, weight_decay=0.1, groups=discovery, foreach=foreach)
        train(model, optimizer, 10)
        found.append(bits(model.parameters()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@both_ways
@pytest.mark.parametrize("kind", [AdamS, AdamSRT])
def test_a_group_may_lie_in_several_param_groups(kind: type[AdamS], foreach: bool) -> None:
    """With one lr and decay for the weight and others for its bias: the oracle steps both, and takes one of each."""
    layers = LAYOUTS["rows with bias"]
    parameters = tensors()
    x = arrays(parameters)
    optimizer = kind(
        [
            {"params": [("conv", parameters["conv"])], "weight_decay": 0.3},
            {"params": [("bias", parameters["bias"])], "lr": 0.2},
        ],
        lr=0.05,
        groups=scale_groups(layers),
        foreach=foreach,
    )
    put_gradients(parameters, 0)
    g = arrays({name: parameters[name].grad for name in ("conv", "bias")})  # type: ignore[misc]
    g["conv"] += 0.3 * x["conv"]
    optimizer.step()
    for row in range(6):
        weight, bias = x["conv"][row].ravel(), x["bias"][row]
        slope, slope_b = g["conv"][row].ravel(), g["bias"][row]
        size = np.sqrt((slope @ slope + slope_b**2) / 7) + 1e-8
        new, new_b = weight - 0.05 * slope / size, bias - 0.2 * slope_b / size
        np.testing.assert_allclose(parameters["conv"][row].detach().numpy().ravel(), new, rtol=1e-12)
        np.testing.assert_allclose(parameters["bias"][row].item(), new_b, rtol=1e-12)
        m, m_b = 0.1 * slope, 0.1 * slope_b
        if kind is AdamSRT:
            after = new @ new + new_b**2
            kept = (weight @ new + bias * new_b) / after
            along = (m @ new + m_b * new_b) / after
            m, m_b = m * kept - weight * along, m_b * kept - bias * along
        state, state_b = optimizer.state[parameters["conv"]], optimizer.state[parameters["bias"]]
        np.testing.assert_allclose(state["exp_avg"][row].numpy().ravel(), m, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(state_b["exp_avg"][row].item(), m_b, rtol=1e-9, atol=1e-12)
        assert torch.equal(state["exp_avg_sq"].flatten(), state_b["exp_avg_sq"])


# -- what they promise about geometry --------------------------------------------------------------------------------


def test_adams_does_not_turn_a_step_away_from_its_momentum() -> None:
    def largest_turn(kind: Any, **options: Any) -> float:
        model, discovery = invariant_net()
        optimizer = kind(model.named_parameters(), lr=0.01, **(options or {"groups": discovery}))
        largest = 0.0
        for before in stepped(model, optimizer, 10):
            weight, x = model[0].weight, rows(before[0])
            directions = []
            for vector in (rows(optimizer.state[weight]["exp_avg"]), x - rows(weight)):
                tangent = vector - (vector * x).sum(1, keepdim=True) / x.square().sum(1, keepdim=True) * x
                directions.append(tangent / tangent.norm(dim=1, keepdim=True))
            largest = max(largest, float((directions[0] - directions[1]).norm(dim=1).max()))
        return largest

    assert largest_turn(AdamS) < 1e-12
    assert largest_turn(Adam, betas=(0.9, 0.999)) > 0.1


def test_adamsrt_moments_are_tangent_at_the_new_point() -> None:
    def largest_cosine(kind: Any) -> float:
        model, discovery = invariant_net()
        optimizer = kind(model.named_parameters(), lr=0.01, groups=discovery)
        found = [
            cosines(optimizer.state[weight]["exp_avg"], weight).abs().max()
            for _ in stepped(model, optimizer, 10)
            for weight in (model[0].weight, model[3].weight)
        ]
        return float(max(found))

    assert largest_cosine(AdamSRT) < 1e-12
    assert largest_cosine(AdamS) > 1e-3


def test_adamsrt_steps_have_no_radial_part() -> None:
    model, discovery = invariant_net()
    optimizer = AdamSRT(model.named_parameters(), lr=0.01, groups=discovery)
    for before in stepped(model, optimizer, 10):
        weight, x = model[0].weight, before[0]
        assert cosines(weight.detach() - x, x).abs().max() < 1e-12  # the momentum of this step was tangent to x
        divisor = optimizer.state[weight]["divisor"]
        growth = rows(weight).norm(dim=1) / rows(x).norm(dim=1)
        assert divisor.shape == (8, 1, 1, 1)
        v = optimizer.state[weight]["exp_avg_sq"].flatten() * growth**2  # as it was before it was taken along
        t = float(optimizer.state[weight]["step"])
        torch.testing.assert_close((v / (1 - 0.999**t)).sqrt() + 1e-8, divisor.flatten(), rtol=1e-12, atol=0)


# -- real networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "lr", "least"), [(AdamS, 1e-2, 0.9), (AdamSRT, 1e-2, 0.9), (AdamGStar, 3.0, 0.9)])
def test_digits_are_learned(kind: Any, lr: float, least: float) -> None:
    images, classes = digits()
    model = conv_net(16)
    discovery = discover(cross_entropy(model(images[:32]), classes[:32]), model)
    optimizer = kind(model.named_parameters(), lr=lr, groups=discovery)
    train(model, optimizer, 150, size=64)
    assert optimizer.state[model[0].weight]["divisor"].shape == (16, 1, 1, 1)
    with torch.no_grad():
        accuracy = (model.eval()(images).argmax(1) == classes).float().mean()
    assert accuracy > least


@every_kind
def test_joint_sets_of_a_discovery_are_stepped_together(kind: Any) -> None:
    model = Transformer()
    tokens, targets = torch.arange(10).reshape(2, 5), torch.arange(10).reshape(2, 5).flip(1)
    found = discover(cross_entropy(model(tokens), targets), model)
    optimizer = kind(model.named_parameters(), lr=0.01, groups=[*found.groups, *found.joint_groups])
    cross_entropy(model(tokens), targets).backward()
    optimizer.step()
    (names,) = found.joint_sets
    named = dict(model.named_parameters())
    divisors = torch.stack([optimizer.state[named[name]]["divisor"].flatten()[0] for name in names])
    assert bool((divisors == divisors[0]).all())
    if kind is AdamS:
        squares = torch.cat([named[name].grad.flatten() for name in names]).square()  # type: ignore[union-attr]
        torch.testing.assert_close(divisors[0], squares.mean().sqrt() + 1e-8)


def test_names_of_compiled_models_are_those_of_the_discovery() -> None:
    model, discovery = invariant_net()
    named = [(f"_orig_mod.{name}", value) for name, value in model.named_parameters()]
    optimizer = AdamS(named, groups=discovery)
    for _ in stepped(model, optimizer, 1):
        pass
    assert "divisor" in optimizer.state[model[0].weight]
