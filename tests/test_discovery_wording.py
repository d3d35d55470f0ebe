"""Reasons, names and refusals that readers stumbled over once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_sphere import discover
from test_discovery_reasons import net, said


def test_where_a_skip_connection_is_concatenated() -> None:
    def up(m: nn.Module, x: Tensor) -> Tensor:
        return m.bn(m.c(torch.cat([m.up(x), x], 1)))

    for bias in (False, True):
        layers = {"up": nn.Conv2d(3, 4, 3, padding=1), "c": nn.Conv2d(7, 5, 3, bias=bias), "bn": nn.BatchNorm2d(5)}
        table = net(up, torch.randn(2, 3, 8, 8), **layers)
        expected = "not invariant: its output is concatenated with other outputs before `c` reads it"
        assert table["up.weight"] == expected


def test_a_penalty_on_the_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    loss = model(torch.randn(8, 4)).exp().sum() + sum(p.pow(2).sum() for p in model.parameters())
    reasons = {row["reason"] for row in discover(loss, model).table()}
    assert reasons == {"not invariant: the loss also reads the weight itself, as a penalty on it does"}


def test_norms_without_gains_have_their_own_names() -> None:
    for norm, name in ((nn.InstanceNorm2d(4), "InstanceNorm"), (nn.BatchNorm2d(4, affine=False), "BatchNorm")):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), nn.Linear(144, 3))
        reason = discover(model(torch.randn(2, 1, 8, 8)).exp().sum(), model).table()[0]["reason"]
        assert reason == f"invariant per filter: {name} before `3` follows"


def test_rows_are_called_what_they_are() -> None:
    by_input = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 3), dim=1)
    reasons = said(by_input, by_input(torch.randn(2, 3, 8)))
    assert reasons["parametrizations.weight.original1"] == "invariant per input channel: weight norm is applied to it"


class Decays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.A_log.exp()


def test_a_layer_has_its_modules_name_only_for_its_weight() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Decays())
    assert [layer.name for layer in discover(model(torch.randn(3, 4)).sum(), model).layers] == ["0", "1.A_log"]


def test_wrong_arguments_are_named() -> None:
    model = nn.Linear(4, 3)
    loss = model(torch.randn(2, 4)).sum()
    with pytest.raises(TypeError, match=r"model takes a torch\.nn\.Module, got 3"):
        discover(loss, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="loss takes a tensor, tensors in sequences or mappings, or a function, got 3"):
        discover(3, model)  # type: ignore[arg-type]


def test_a_freed_graph_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    loss = model(torch.randn(2, 4)).exp().sum()
    assert discover(loss, model).groups
    loss.backward(retain_graph=True)
    assert discover(loss, model).groups
    loss.backward()
    with pytest.raises(ValueError, match="freed by a backward pass"):
        discover(loss, model)
