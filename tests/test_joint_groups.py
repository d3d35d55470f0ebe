"""Sets of tensors that are invariant only together are measured as one group, beside their members."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu
from torch.optim import SGD, AdamW, Optimizer

from lightning_sphere import Discovery, GroupPart, ScaleGroup, SphereTracker, discover, read_run
from lightning_sphere.measurement.plan import CHUNK_ELEMENTS, Plan
from oracle import Watch, assert_recorded

pytestmark = pytest.mark.usefixtures("copies")


class Block(nn.Module):
    """A pre-norm block: attention without heads, and an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.out = nn.Linear(width, 2 * width), nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn(self.ln_1(x)).chunk(3, dim=-1)
        x = x + self.proj((q @ k.transpose(1, 2)).softmax(-1) @ v)
        return x + self.out(gelu(self.fc(self.ln_2(x))))


class Transformer(nn.Module):
    """Like GPT-2, with a head of its own: all that writes to the residual stream is invariant together."""

    def __init__(self, width: int = 8, layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.wpe = nn.Embedding(11, width), nn.Embedding(5, width)
        self.h = nn.ModuleList([Block(width) for _ in range(layers)])
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, 11, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        logits: Tensor = self.head(self.ln_f(x))
        return logits.transpose(1, 2)


class Summed(nn.Module):
    """Two convolutions summed before a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3, bias=False), nn.Conv2d(1, 6, 3, bias=False)
        self.bn, self.head = nn.BatchNorm2d(6), nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn(self.conv1(images) + self.conv2(images.flip(2)))
        logits: Tensor = self.head(x.relu().mean((2, 3)))
        return logits


def tokens(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(11, (6, 5), generator=generator), torch.randint(11, (6, 5), generator=generator)


def images(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 1, 6, 6, generator=generator), torch.randint(10, (16,), generator=generator)


STREAM = "residual stream, 8 tensors"
MEMBERS = (
    *("wte.weight", "wpe.weight", "h.0.proj.weight", "h.0.proj.bias", "h.0.out.weight"),
    *("h.1.proj.weight", "h.1.proj.bias", "h.1.out.weight"),
)
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": partial(SGD, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adamw": partial(AdamW, lr=1e-2, weight_decay=0.1),
}


def run(
    model: nn.Module, data: Callable[[int], tuple[Tensor, Tensor]], folder: Path, *optimizers: Optimizer, **options: Any
) -> tuple[Any, Watch, SphereTracker]:
    watch = Watch(model, *optimizers)
    with SphereTracker(model, optimizers, folder, strict=True, flush_every_n_steps=7, **options) as tracker:
        for step in range(20):
            inputs, classes = data(step)
            model.zero_grad()
            cross_entropy(model(inputs), classes).backward()
            watch.before()
            for optimizer in optimizers:
                optimizer.step()
            watch.after()
    return read_run(folder), watch, tracker


@pytest.mark.parametrize("limit", [None, 7])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_residual_stream_is_one_group_and_every_number_equals_the_oracle(
    name: str, limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit is not None:  # tensors in many pieces
        monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", limit)
    model = Transformer()
    record, watch, tracker = run(model, tokens, tmp_path, OPTIMIZERS[name](model.parameters()))
    assert record.layers[-1] == STREAM
    assert record.invariant == (*[False] * (len(record.layers) - 1), True)
    row = record.groups[-1]
    assert (row["layer"], row["kind"], row["axis"], row["blocks"], row["members"]) == (STREAM, "whole", 0, 1, None)
    assert (row["parameter"], *row["joint_with"]) == MEMBERS
    assert row["reason"].startswith("invariant only together: 8 tensors write to the sums that LayerNorm `h.0.ln_1`")
    assert row["verdict"] == "verified"
    assert sum(row["parameter"] == "wte.weight" for row in record.groups) == 2
    measured = [STREAM, "h.0.attn.weight", "h.1.out.weight", "head.weight"]
    assert_recorded(record, watch, measured, adam=name == "adamw", absolute=1e-12)
    last = tracker.summary().layers[-1]
    assert (last.layer, last.kind, last.tensors) == (STREAM, "joint", 8)


@pytest.mark.parametrize(("scale", "outcome"), [(1.0, "verified"), (1e-3, "eps dominates")])
def test_a_residual_stream_that_drowns_in_eps_is_told_apart_from_a_wrong_claim(
    scale: float, outcome: str, tmp_path: Path
) -> None:
    model = Transformer()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= scale if name in MEMBERS else 1.0
    _, _, tracker = run(model, tokens, tmp_path, SGD(model.parameters(), 1e-12))
    assert tracker.verdicts[STREAM].outcome == outcome


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_convolutions_that_are_summed_are_one_group(name: str, tmp_path: Path) -> None:
    model = Summed()
    record, watch, _ = run(model, images, tmp_path, OPTIMIZERS[name](model.parameters()))
    assert record.layers == ("conv1", "conv2", "head", "conv1 + conv2")
    assert record.invariant == (False, False, False, True)
    assert_recorded(record, watch, ["conv1 + conv2", "conv1.weight", "conv2.weight"], adam=name == "adamw")
    assert record["invariance_residual"][:, 3].max() < 1e-3 < record["invariance_residual"][:, :2].min()


def test_no_tensor_is_read_twice() -> None:
    model = Transformer()
    logits, classes = model(tokens(0)[0]), tokens(0)[1]
    found = discover(cross_entropy(logits, classes), model)
    parameters = dict(model.named_parameters())
    alone = Plan(found.layers, parameters, dict.fromkeys(parameters, 0))
    both = Plan((*found.layers, *found.joint_groups), parameters, dict.fromkeys(parameters, 0))
    biases = [slot for slot in both.slots if slot.parameter.dim() == 1]
    assert len(both.slots) == len(alone.slots) + 2 == len({id(slot.parameter) for slot in both.slots})
    assert [id(slot.parameter) for slot in biases] == [id(parameters[f"h.{i}.proj.bias"]) for i in (0, 1)]
    segments, groups = both.pairs
    elements = torch.zeros(both.first_group[-1], dtype=torch.float64)
    elements.index_add_(0, groups, both.size_of_segment[segments])
    assert elements[-1] == sum(parameters[name].numel() for name in MEMBERS)
    assert elements[:-1].tolist() == [
        parameters[layer.parameter].numel() / layer.blocks for layer in found.layers for _ in range(layer.blocks)
    ]


def test_cuts_along_different_axes_do_not_share_their_sums() -> None:
    layers = [ScaleGroup(f"axis {axis}", (GroupPart("w", axis),), 4, "row") for axis in (0, 1)]
    plan = Plan(
        [*layers, ScaleGroup("all", (GroupPart("w", 1),), 1, "whole")], {"w": nn.Parameter(torch.ones(4, 4))}, {"w": 0}
    )
    assert [(slot.axis, slot.blocks) for slot in plan.slots] == [(0, 4), (1, 4)]
    assert [use.slot for use in plan.uses] == [0, 1, 0]


def test_different_rates_leave_the_rate_unknown_with_the_reason(tmp_path: Path) -> None:
    model = Summed()
    groups = [{"params": [model.conv1.weight], "lr": 0.2}, {"params": [*model.parameters()][1:]}]
    record, watch, _ = run(model, images, tmp_path, SGD(groups, lr=0.1))
    assert_recorded(record, watch, ["conv1 + conv2"], adam=False)
    assert np.isnan(record["effective_lr"][:, 3]).all()
    assert np.isfinite(record["angular_step"]).all()
    assert record.groups[-1]["reason"].endswith("; effective_lr unknown: its tensors have different learning rates")
    assert "unknown" not in record.groups[0]["reason"]


def test_of_several_optimizers_no_set_is_measured_and_the_table_says_why(tmp_path: Path) -> None:
    model = Summed()
    optimizers = SGD([model.conv1.weight], 0.1), SGD([*model.parameters()][1:], 0.1)
    record, _, tracker = run(model, images, tmp_path, *optimizers)
    assert record.layers == ("conv1", "conv2", "head")
    assert record.groups[-1]["reason"].endswith("; not measured as one: several optimizers step it")
    assert record.groups[-1]["verdict"] is None
    assert tracker.verdicts == {}


@pytest.mark.parametrize("options", [{"exclude": "conv2"}, {"include": ["conv1", "head"]}])
def test_a_set_with_a_member_that_is_left_out_is_not_measured(options: dict[str, Any], tmp_path: Path) -> None:
    record, _, tracker = run(model := Summed(), images, tmp_path, SGD(model.parameters(), 0.1), **options)
    assert record.layers == ("conv1", "head")
    assert record.groups[-1]["layer"] == "conv1 + conv2"
    assert record.groups[-1]["reason"].endswith("; not measured as one: conv2.weight is left out")
    assert all(row.kind != "joint" for row in tracker.summary().layers)


def test_a_set_with_a_member_that_is_frozen_in_mid_run_is_none_from_then_on(tmp_path: Path) -> None:
    model = Summed()
    optimizer = SGD(model.parameters(), 0.1)
    with SphereTracker(model, optimizer, tmp_path, strict=True) as tracker:
        for step in range(6):
            if step == 3:
                model.conv2.requires_grad_(False)
            inputs, classes = images(step)
            optimizer.zero_grad()
            cross_entropy(model(inputs), classes).backward()
            optimizer.step()
    record = read_run(tmp_path)
    norm = record["norm"][:, record.layers.index("conv1 + conv2")]
    assert np.isfinite(norm[:3]).all()
    assert np.isnan(norm[3:]).all()
    assert [row["kind"] for row in record.groups] == ["none"] * 3
    assert tracker.verdicts == {}


def test_a_member_that_no_optimizer_steps_is_named(tmp_path: Path) -> None:
    model = Summed()
    record, _, _ = run(model, images, tmp_path, SGD([model.conv1.weight, *model.head.parameters()], 0.1))
    assert record.groups[-1]["reason"].endswith("; not measured as one: no optimizer steps conv2.weight")


def layer(name: str, blocks: int = 4) -> ScaleGroup:
    return ScaleGroup(name, (GroupPart(f"{name}.weight"),), blocks, "none", (4, 4), reason="")


def test_names_are_what_people_say_and_unique() -> None:
    layers = [layer(f"a.b.{name}") for name in ("x", "y", "z", "u", "v")]
    layers += [layer("e1", 1), layer("e2", 1), layer("stem"), layer("down.0"), layer("down.1 + stem")]
    sets = (
        ("a.b.x.weight", "a.b.y.weight"),
        ("e1.weight", "e2.weight", "other"),
        ("a.b.x.weight", "a.b.y.weight", "a.b.z.weight", "a.b.u.weight", "a.b.v.weight"),
        ("a.b.x.weight", "a.b.y.weight", "a.b.z.weight", "a.b.u.weight"),
        ("a.b.x.weight", "a.b.z.weight"),
        ("a.b.u.weight", "a.b.v.weight"),
        ("down.0.weight", "stem.weight"),
    )
    facts: tuple[tuple[tuple[str, ...], float | None], ...] = (
        (("N `n`",), 0.5),
        (("N `n`",), None),
        (("N `n`",), None),
        (("N `n`", "N `m`"), None),
        (("N `p`", "N `q`"), None),
        (("N `r`", "N `s`"), None),
    )
    groups = Discovery(layers=tuple(layers), joint_sets=sets, joint_facts=facts).joint_groups
    assert [group.name for group in groups] == [
        "a.b: x + y",
        "embeddings (3 tensors)",
        "a.b.x and 4 tensors more",
        "residual stream, 4 tensors",
        "residual stream, 2 tensors, N `p` and 1 more",
        "residual stream, 2 tensors, N `r` and 1 more",
        "down.0 + stem",
    ]
    assert groups[0].eps_share == 0.5
    assert all((group.kind, group.blocks, group.joint, group.shape) == ("whole", 1, True, ()) for group in groups)
    taken = Discovery(layers=(layer("p"), layer("q"), layer("p + q")), joint_sets=(("p.weight", "q.weight"),))
    assert taken.joint_groups[0].name == "p + q (2)"
