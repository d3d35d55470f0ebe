"""The argument `groups`: the user decides what is invariant; discovery is asked for its opinion only."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_sphere import GroupPart, ScaleGroup, SphereMonitor, SphereTracker, discover, read_run
from lit import LitNet, loader, quiet_trainer
from nets import FIRST, LAST, SECOND, batches, conv_net
from oracle import Watch, assert_recorded
from test_joint_groups import Summed, images


def group(
    parts: Sequence[str | tuple[str, int]],
    blocks: int = 1,
    kind: Any = "whole",
    name: str = "mine",
    members: Any = None,
) -> ScaleGroup:
    pairs = [part if isinstance(part, tuple) else (part, 0) for part in parts]
    return ScaleGroup(name, tuple(GroupPart(*pair) for pair in pairs), blocks, kind, members=members)


def train(model: nn.Module, folder: Path, steps: int = 10, data: Any = None, **options: Any) -> tuple[Any, Watch, Any]:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    watch = Watch(model, optimizer)
    pairs = batches(steps) if data is None else (data(step) for step in range(steps))
    with SphereTracker(model, optimizer, folder, strict=True, **options) as tracker:
        for inputs, classes in pairs:
            optimizer.zero_grad()
            cross_entropy(model(inputs), classes).backward()
            watch.before()
            optimizer.step()
            watch.after()
    return read_run(folder), watch, tracker


def test_exactly_the_groups_given_are_taken_to_be_invariant(tmp_path: Path) -> None:
    given = [
        group([FIRST], 8, "row", "stem"),
        group([(SECOND, 1)], 2, "group", "halves", members=(1,)),
        group([LAST, "9.bias"], 1, "whole", "head"),
    ]
    record, watch, tracker = train(conv_net(), tmp_path, groups=given)
    assert record.layers == ("stem", "halves", "head")
    assert record.invariant == (True, True, True)
    assert record.cuts == ((0, 8), (1, 2), (0, 1))
    for name in record.layers:
        assert_recorded(record, watch, [name], adam=False)
    stem, halves, head = record.groups
    assert stem["reason"] == "given by the user; discovery finds the same"
    assert stem["norm"] == "BatchNorm `1`"
    assert halves["reason"] == "given by the user; discovery says: invariant per filter: BatchNorm `4` follows"
    assert (halves["kind"], halves["axis"], halves["blocks"], halves["members"]) == ("group", 1, 2, (1,))
    assert (
        head["reason"] == "given by the user; discovery says: not invariant: no normalization follows before the loss"
    )
    assert head["joint_with"] == ("9.bias",)
    assert {name: verdict.outcome for name, verdict in tracker.verdicts.items()} == {
        "stem": "verified",
        "halves": "contradicted",
        "head": "contradicted",
    }


def test_all_other_weights_are_none(tmp_path: Path) -> None:
    record, watch, _ = train(conv_net(), tmp_path, groups=[group([SECOND], 11, "row")])
    assert record.layers == ("0", "mine", "9")
    assert record.invariant == (False, True, False)
    assert [row["reason"] for row in record.groups if row["layer"] != "mine"] == ["not among the groups given"] * 2
    assert_recorded(record, watch, [FIRST, "mine", LAST], adam=False)


def test_a_function_makes_the_groups_from_the_model(tmp_path: Path) -> None:
    def convolutions(model: nn.Module) -> list[ScaleGroup]:
        return [
            group([f"{name}.weight"], module.out_channels, "row", name)
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d)
        ]

    record, _, _ = train(conv_net(), tmp_path, groups=convolutions)
    assert record.layers == ("0", "3", "9")
    assert record.invariant == (True, True, False)


def test_discoverys_own_groups_may_be_given(tmp_path: Path) -> None:
    model = conv_net()
    inputs, classes = next(batches(1))
    found = discover(cross_entropy(model(inputs), classes), model)
    record, _, _ = train(model, tmp_path, groups=list(found.groups))
    assert record.layers == ("0", "3", "9")
    assert [row["reason"] for row in record.groups[:2]] == ["given by the user; discovery finds the same"] * 2


@pytest.mark.parametrize("names", [("conv1.weight", "conv2.weight"), ("conv2.weight", "conv1.weight")])
def test_a_joint_set_may_be_given(names: tuple[str, str], tmp_path: Path) -> None:
    record, watch, tracker = train(Summed(), tmp_path, data=images, groups=[group(names, name="both")])
    assert record.layers == ("conv1", "conv2", "head", "both")
    assert record.invariant == (False, False, False, True)
    assert record.groups[0]["reason"] == "not by itself: part of 'both', given by the user"
    assert record.groups[-1]["reason"] == "given by the user; discovery finds the same"
    assert_recorded(record, watch, ["conv1.weight", "both"], adam=False)
    assert [row.kind for row in tracker.summary().layers] == ["none", "none", "none", "joint"]
    assert tracker.verdicts["both"].outcome == "verified"


def test_parts_that_discovery_knows_nothing_of_may_be_given(tmp_path: Path) -> None:
    record, watch, _ = train(conv_net(), tmp_path, groups=[group(["1.weight"], name="gains")])
    assert record.layers == ("0", "gains", "3", "9")
    row = record.groups[1]
    assert (row["parameter"], row["reason"]) == ("1.weight", "given by the user; discovery says nothing of it")
    assert_recorded(record, watch, ["gains"], adam=False)


def test_without_any_loss_the_groups_still_count(tmp_path: Path) -> None:
    model = conv_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with SphereTracker(model, optimizer, tmp_path, strict=True, groups=[group([FIRST], 8, "row")]) as tracker:
        tracker._forward_hook.remove()
        inputs, classes = next(batches(1))
        cross_entropy(model(inputs), classes).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step()
    record = read_run(tmp_path)
    assert record.invariant == (True, False, False)
    assert record.groups[0]["reason"].startswith("given by the user; discovery says: unknown: no loss was seen")


def test_frozen_weights_may_be_given(tmp_path: Path) -> None:
    model = conv_net()
    model[0].weight.requires_grad_(False)
    record, _, tracker = train(model, tmp_path, groups=[group([FIRST], 8, "row"), group([SECOND], 11, "row", "b")])
    assert tracker.verdicts["mine"].outcome == "not yet seen"
    assert tracker.verdicts["b"].outcome == "verified"
    assert record.groups[0]["reason"] == "given by the user; discovery says: frozen: it gets no gradient"


def test_the_callback_takes_groups(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monitor = SphereMonitor(strict=True, groups=[group(["net.9.weight"], 10, "row", "net.9")])
    with caplog.at_level(logging.WARNING, "lightning_sphere"):
        quiet_trainer(tmp_path, callbacks=[monitor]).fit(LitNet(), loader(count=320))
    assert monitor.verdicts["net.9"].outcome == "contradicted"
    assert any("net.9 was taken to be scale-invariant" in record.getMessage() for record in caplog.records)


TAKES = "groups takes a sequence of ScaleGroup, or a function that maps a module to one"
ROW = group([FIRST], 8, "row")
WRONG: list[tuple[Any, type[Exception], str]] = [
    ("conv", TypeError, f"{TAKES}, got 'conv'"),
    (3, TypeError, f"{TAKES}, got 3"),
    ({"a": ROW}, TypeError, f"{TAKES}, got {{"),
    (ScaleGroup, TypeError, f"{TAKES}, got <class"),
    ([ROW, "conv"], TypeError, f"{TAKES}; number 1 is 'conv'"),
    ([], ValueError, "groups takes at least one ScaleGroup (None leaves it to discovery), got none"),
    ([ROW, replace(ROW, parts=(GroupPart(SECOND),))], ValueError, "groups takes each name once, got 'mine' 2 times"),
    ([ROW, replace(ROW, name="b")], ValueError, f"groups takes each parameter once, got '{FIRST}' 2 times"),
    ([group([FIRST, FIRST])], ValueError, f"groups takes each parameter once, got '{FIRST}' 2 times"),
    ([replace(ROW, name="")], ValueError, "groups takes groups with a name, got ScaleGroup(name=''"),
    ([replace(ROW, parts=())], ValueError, "groups: 'mine' takes at least one GroupPart, got none"),
    (
        [replace(ROW, parts=(FIRST,))],
        TypeError,
        "groups: 'mine' takes a tuple of GroupPart as parts, got ('0.weight',)",
    ),
    ([group([(FIRST, -1)])], TypeError, "takes parts with a parameter's name and an axis from 0 on, got GroupPart("),
    ([replace(ROW, kind="rows")], ValueError, "takes one of 'row', 'group', 'whole', 'none' as kind, got 'rows'"),
    ([replace(ROW, blocks=0)], ValueError, "groups: 'mine' takes a positive integer as blocks, got 0"),
    ([replace(ROW, blocks=True)], ValueError, "groups: 'mine' takes a positive integer as blocks, got True"),
    ([group([FIRST], 2)], ValueError, "groups: 'mine' of kind 'whole' takes 1 as blocks, got 2"),
    (
        [replace(ROW, members=(0, 8))],
        ValueError,
        "members a tuple of increasing indices below blocks=8, or None for all;",
    ),
    ([replace(ROW, members=(1, 0))], ValueError, "got (1, 0)"),
    ([replace(ROW, members=())], ValueError, "got ()"),
    ([replace(ROW, norm=["norm"])], TypeError, "groups: 'mine' takes text as reason and as norm, got '' and ['norm']"),
    ([replace(ROW, reason=3)], TypeError, "groups: 'mine' takes text as reason and as norm, got 3 and None"),
    ([replace(ROW, eps_share="x")], TypeError, "groups: 'mine' takes a share as eps_share, or None if unknown"),
    ([replace(ROW, eps_share=float("nan"))], TypeError, "got nan"),
]


@pytest.mark.parametrize(("groups", "error", "message"), WRONG)
def test_what_is_no_group_is_named_at_construction(groups: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        SphereMonitor(groups=groups)
    assert message in str(raised.value)
    model = conv_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(error) as raised:
        SphereTracker(model, optimizer, groups=groups)
    assert message in str(raised.value)
    if not isinstance(groups, type):
        with pytest.raises(error) as raised:
            SphereTracker(model, optimizer, groups=lambda _: groups)
        assert message.removeprefix("groups") in str(raised.value)
        assert str(raised.value).startswith("groups: the function")


UNFIT: list[tuple[ScaleGroup, str]] = [
    (group(["net.0.wieght"]), "takes names of the model's parameters, got 'net.0.wieght'; did you mean 'net.0.weight'"),
    (
        group(["net.0.weight"], 7, "row"),
        "of kind 'row' takes blocks=8, the length of axis 0 of 'net.0.weight' of shape",
    ),
    (
        group(["net.0.weight"], 3, "group"),
        "takes blocks that divide 8, the length of axis 0 of 'net.0.weight' of shape",
    ),
    (group([("net.0.weight", 4)], 8, "row"), "takes an axis of 'net.0.weight' of shape (8, 1, 3, 3), got axis=4"),
    (group([("net.0.weight", 4)]), "takes an axis of 'net.0.weight' of shape (8, 1, 3, 3), got axis=4"),
    (group(["net.9.weight", "net.0.weight"], 10, "row"), "takes blocks=8, the length of axis 0 of 'net.0.weight'"),
    (group(["net.0.weight"], name="net.3"), "takes names that no other layer has, got 'net.3', that of 'net.3.weight'"),
]


def test_an_empty_parameter_has_no_blocks() -> None:
    model = conv_net()
    model.empty = nn.Parameter(torch.empty(0, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="takes blocks that divide 0, the length of axis 0 of 'empty'"):
        SphereTracker(model, optimizer, groups=[group(["empty"], 2, "group")])


@pytest.mark.parametrize(("wrong", "message"), UNFIT)
def test_what_does_not_fit_the_model_is_named(wrong: ScaleGroup, message: str, tmp_path: Path) -> None:
    module = LitNet()
    with pytest.raises(ValueError, match=r"^groups") as raised:
        SphereTracker(module, torch.optim.SGD(module.parameters(), 0.1), groups=[wrong])
    assert message in str(raised.value)
    trainer = quiet_trainer(tmp_path, callbacks=[SphereMonitor(groups=lambda _: [wrong])])
    with pytest.raises(ValueError, match=r"^groups"):
        trainer.fit(module, loader(count=32))
