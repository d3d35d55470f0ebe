"""Discovery against measured invariance, on small nets with unusual graphs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_sphere.discovery import discover
from measured_invariance import check_joint_sets, disagreements, joint_members, measure, prepare
from odd import CASES, Net

NUMBERS = pytest.mark.skipif(
    not hasattr(torch._C._autograd.SavedTensor, "unpack_hook"),
    reason="this PyTorch does not tell whether a hook would run, so that no saved tensor is read",
)

MISSED = {
    "own_function": "what a custom function does is not known",
    "channels_added_to_a_convolution": "data that is added is looked at only for being a single number",
    "ones_scatter": "the same for a buffer that is added to",
    "scan_sum_then_gate": "nothing saved a sum in which the first state, zero, is a term",
    "region_add": "that the buffer holds zeros is not known, since `+=` to a slice hides it",
    "overlap_add": "the same",
    "slice_multiplied_by_another": "autograd hides in-place operations on views; this one is not told from others",
    "cumulated_product": "every element scales by another power",
    "diag_zero": "nothing saved the weight after it was changed, so that it holds zeros is not known",
    "diag_embed": "there is no rule for it",
    "table_index_and_used": "of a table that is read by index, all rows or none are claimed",
}
"""Nets with invariances that discovery does not see, and why."""


def prepared(name: str) -> Net:
    torch.manual_seed(0)
    net = CASES[name]()
    prepare(net)
    return net


@NUMBERS
@pytest.mark.parametrize("name", CASES)
def test_every_parameter_as_measured(name: str) -> None:
    net = prepared(name)
    discovery = discover(net.loss(0), net)
    lines = disagreements(discovery, measure(net, net.loss))
    assert [line for line in lines if not line.startswith("MISSED")] == []
    assert bool(lines) == (name in MISSED), lines
    if discovery.joint_sets:
        _, table, names = joint_members(net, net.loss)
        assert check_joint_sets(discovery, table, names) == []


@pytest.mark.parametrize("name", CASES)
def test_the_graph_is_left_as_it_was(name: str) -> None:
    results = []
    for looked_at in (False, True):
        net = prepared(name)
        torch.manual_seed(1)
        loss = net.loss(0)
        if looked_at:
            discover(loss, net)
        loss.backward()
        results.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys()
    for parameter, gradient in results[0].items():
        assert torch.equal(gradient, results[1][parameter]), parameter


@NUMBERS
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_slices_of_every_precision_and_layout(kind: torch.dtype, channels_last: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 40, 1), nn.Conv2d(3, 40, 1), nn.BatchNorm2d(80)).to(kind)
    x = torch.randn(2, 3, 16, 16, dtype=kind)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    y = torch.empty(2, 80, 16, 16, dtype=kind)
    y[:, ::2] = net[0](x)
    y[:, 1::2] = net[1](x).float()  # cast by the assignment
    for row in discover(F.gelu(net[2](y)).sum(), net).table():
        assert (row["kind"], row["blocks"], row["joint_with"]) == ("row", 40, ()), row


def test_hooks_are_not_run_for_indices_and_slices() -> None:
    def refuse(_: object) -> Tensor:
        raise AssertionError("a hook was run")

    net = nn.ModuleList([nn.Embedding(5, 6), nn.Linear(6, 8), nn.LayerNorm(8)])
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, refuse):
        y = net[1](net[0](torch.tensor([0, 1, 2]))).clone()
        y[:, :4] *= 2
        y[:, torch.tensor([5, 6])] = y[:, torch.tensor([1, 2])]
        loss = F.gelu(net[2](y)).sum()
    discover(loss, net)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_second_use_inside_a_checkpoint_is_not_overlooked(reentrant: bool) -> None:
    net = nn.ModuleList([nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 6)])
    x = torch.randn(5, 6)
    normal = net[1](net[0](x))
    other = checkpoint(lambda v: net[0](v).sigmoid(), net[2](x), use_reentrant=reentrant)
    rows = {row["parameter"]: row["kind"] for row in discover(F.gelu(normal + other).sum(), net).table()}
    assert rows["0.weight"] == "none"


def test_a_custom_function_is_named() -> None:
    net = prepared("own_function")
    (row,) = [r for r in discover(net.loss(0), net).table() if r["parameter"] == "a.weight"]
    assert row["kind"] == "none"
    assert "Double" in row["reason"]
