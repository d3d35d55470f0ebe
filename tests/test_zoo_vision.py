"""Discovery against measured invariance, on small instances of real vision architectures."""

from __future__ import annotations

import pytest
import torch

from lightning_sphere.discovery import discover
from measured_invariance import check_joint_sets, disagreements, joint_members, measure, prepare
from zoo import ARCHITECTURES
from zoo.case import Case


def prepared(name: str) -> Case:
    torch.manual_seed(0)
    model, loss = ARCHITECTURES[name]()
    return prepare(model), loss


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_and_joint_set_as_measured(name: str) -> None:
    model, loss = prepared(name)
    measured = measure(model, loss)
    discovery = discover(loss(0), model)
    assert not disagreements(discovery, measured)
    if discovery.joint_sets:
        _, table, names = joint_members(model, loss)
        assert not check_joint_sets(discovery, table, names)


def with_bias(*modules: str) -> set[str]:
    return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


JOINT_SETS: dict[str, list[set[str]]] = {
    "preactivation_resnet": [{"0.weight", "1.conv2.weight"}, {"2.conv2.weight", "2.short.weight", "3.conv2.weight"}],
    "repvgg": [{"2.three.0.weight", "2.one.0.weight"}],
    "hrnet": [{"raw.weight", "raw_up.weight"}],
    "octave": [{"1.hh.weight", "1.lh.weight"}, {"1.hl.weight", "1.ll.weight"}],
    "concatenated_up": [],
    "diffusion_unet": [
        with_bias("first", "res1.conv2", "res2.conv2", "attention.proj", "res3.conv2")
        | {"down.bias", "res2.skip.bias", "res3.skip.bias", "up.bias"},
        *(with_bias(f"res{number}.conv1", f"res{number}.time") for number in (1, 2, 3)),
    ],
    "dit": [
        {"positions"}
        | with_bias(
            "patch", *(f"blocks.{number}.{layer}" for number in (0, 1) for layer in ("attention.out_proj", "mlp.2"))
        )
    ],
    "convnext": [with_bias("4") | {"5.layer_scale", "5.dwconv.bias"}],
    "shuffle_before_norm": [with_bias("1.conv") | {"1.point.bias"}],
    "poolformer": [with_bias("0") | {f"{block}.ls{part}" for block in (1, 2) for part in (1, 2)}],
    "vit": [
        {"patch.proj.weight", "patch.proj.bias", "cls_token", "pos_embed"}
        | with_bias(*(f"blocks.{number}.{layer}" for number in (0, 1) for layer in ("attn.proj", "mlp.3")))
    ],
    "cait": [{"pos", "cls", "block.gamma1", "block.gamma2"} | with_bias("patch.proj", "attn.proj")],
    "swin": [
        with_bias("norm0", *(f"blocks.{number}.{layer}" for number in (0, 1) for layer in ("attn.proj", "mlp.2"))),
        {"merge.reduction.weight"} | with_bias("last.attn.proj", "last.mlp.2"),
    ],
    "swin_v2": [],
    "vit_residual_post_norm": [],
}
"""Sets that discovery must name, the writers of sums that only normalizations read; none where there are none."""


@pytest.mark.parametrize("name", JOINT_SETS)
def test_joint_sets(name: str) -> None:
    model, loss = prepared(name)
    found = [set(members) for members in discover(loss(0), model).joint_sets]
    wanted = JOINT_SETS[name]
    assert [members for members in wanted if members not in found] == []
    assert wanted or not found
