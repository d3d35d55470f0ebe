"""The arguments of the reference optimizers: what is refused, and with which words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_sphere import GroupPart, ScaleGroup, discover
from lightning_sphere.optim import AdamGStar, AdamS, AdamSRT
from optim_cases import (
    LAYOUTS,
    every_kind,
    invariant_net,
    put_gradients,
    scale_groups,
    tensors,
)


def one_group(name: str = "conv", blocks: int = 6, axis: int = 0) -> list[ScaleGroup]:
    return [ScaleGroup("layer", (GroupPart(name, axis),), blocks, "row")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr takes a number from 0 on, or a tensor of one, got -1.0"),
        ({"lr": "fast"}, r"lr takes .* got 'fast'"),
        ({"lr": float("nan")}, r"lr takes .* got nan"),
        ({"lr": torch.ones(2)}, r"lr takes .* tensor of one"),
        ({"weight_decay": -0.1}, r"weight_decay takes a number from 0 on, got -0.1"),
        ({"foreach": "yes"}, r"foreach takes True, False or None, got 'yes'"),
        ({"maximize": 1}, r"maximize takes True or False, got 1"),
        ({"groups": 3}, r"groups takes a Discovery or a sequence of ScaleGroup, got 3"),
        ({"groups": "conv"}, r"groups takes a Discovery .* got 'conv'"),
        ({"groups": ["conv"]}, r"groups takes .* number 0 is 'conv'"),
        ({"groups": []}, r"groups takes at least one invariant group"),
        ({"groups": one_group("convv")}, r"got 'convv'; did you mean 'conv'"),
        ({"groups": one_group(blocks=5)}, r"takes blocks=6"),
        ({"groups": one_group(axis=3)}, r"takes an axis of 'conv'"),
        ({"groups": one_group() + one_group()}, r"groups takes each name once"),
    ],
)
@every_kind
def test_wrong_arguments_are_refused_at_construction(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        kind(tensors().items(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"betas": (0.9, 1.0)}, r"betas takes two numbers from 0 to below 1, got \(0.9, 1.0\)"),
        ({"betas": (0.9,)}, r"betas takes two numbers"),
        ({"betas": 0.9}, r"betas takes two numbers"),
        ({"eps": -1e-8}, r"eps takes a number from 0 on, got -1e-08"),
    ],
)
@pytest.mark.parametrize("kind", [AdamS, AdamSRT])
def test_wrong_arguments_of_adam_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        kind(tensors().items(), **options)


def test_too_much_decay_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight_decay takes less than 1 / lr, got 2.0 with lr=0.5"):
        AdamGStar(tensors().values(), 0.5, 2.0)


@every_kind
def test_contradictions_of_params_and_groups_are_refused(kind: Any) -> None:
    parameters, groups = tensors(), scale_groups(LAYOUTS["rows with bias"])
    with pytest.raises(ValueError, match=r"pass model.named_parameters\(\) as params, got tensors without names"):
        kind(parameters.values(), groups=groups)
    with pytest.raises(ValueError, match="both say what is invariant: give one"):
        kind([{"params": parameters.items(), "invariant": "row"}], groups=groups)
    with pytest.raises(ValueError, match="invariant takes one of None, 'row', 'whole', got 'filter'"):
        kind([{"params": parameters.values(), "invariant": "filter"}])
    key, values = ("lr", (0.1, 0.2)) if kind is AdamGStar else ("betas", ((0.9, 0.9), (0.9, 0.99)))
    split = [{"params": [(name, parameters[name])], key: v} for name, v in zip(("conv", "bias"), values, strict=True)]
    with pytest.raises(ValueError, match=f"params takes one {key} for all tensors of 'layer 0', which groups says"):
        kind(split, groups=groups)


@every_kind
def test_discoveries_that_do_not_fit_are_refused(kind: Any) -> None:
    model, discovery = invariant_net()
    with pytest.raises(ValueError, match=r"'net.0.weight'; none of its own, such as '0.weight', is one of them"):
        kind([(f"net.{name}", value) for name, value in model.named_parameters()], groups=discovery)
    normed = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    found = discover(cross_entropy(normed(torch.randn(5, 4)), torch.zeros(5, dtype=torch.long)), normed)
    assert found.groups[0].joint_with == ("0.bias",)
    with pytest.raises(ValueError, match=r"invariant only together with '0.bias'; params takes all of its tensors"):
        kind([(name, value) for name, value in normed.named_parameters() if "bias" not in name], groups=found)
    nothing = nn.Linear(4, 2)
    with pytest.raises(ValueError, match="groups takes at least one invariant group"):
        kind(
            nothing.named_parameters(),
            groups=discover(cross_entropy(nothing(torch.randn(5, 4)), torch.zeros(5, dtype=torch.long)), nothing),
        )


@every_kind
def test_groups_that_are_not_invariant_are_left_out(kind: Any) -> None:
    parameters = tensors()
    free = ScaleGroup("free", (GroupPart("free"),), 2, "none")
    optimizer = kind(parameters.items(), groups=[*one_group(), free])
    put_gradients(parameters, 0)
    optimizer.step()
    assert "divisor" in optimizer.state[parameters["conv"]]
    assert "divisor" not in optimizer.state[parameters["free"]]
    with pytest.raises(ValueError, match="groups takes at least one invariant group"):
        kind(parameters.items(), groups=[free])
