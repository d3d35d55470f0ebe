"""The interface of discovery: what it returns, and what it leaves alone."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import time
import weakref
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sphere.discovery import Discovery, discover, interpret, merge
from lightning_sphere.discovery.partition import Partition
from test_discovery_rules import EXPECTED, loss_of, prepare


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8)


def found(model: nn.Module, loss: Tensor) -> dict[str, dict[str, Any]]:
    return {row["parameter"]: row for row in discover(loss, model).table()}


def test_table_groups_and_layers() -> None:
    model = small_net()
    discovery = discover(model(images()).logsumexp(1).mean(), model)
    assert discovery.table() == [
        {
            "parameter": "0.weight",
            "kind": "row",
            "axis": 0,
            "blocks": 8,
            "members": None,
            "joint_with": (),
            "norm": "BatchNorm `1`",
            "reason": "invariant per filter: BatchNorm `1` follows",
        },
        {
            "parameter": "4.weight",
            "kind": "none",
            "axis": None,
            "blocks": None,
            "members": None,
            "joint_with": (),
            "norm": None,
            "reason": "not invariant: no normalization follows before Logsumexp",
        },
    ]
    assert [layer.name for layer in discovery.layers] == ["0", "4"]
    assert discovery.groups == discovery.layers[:1]
    assert (discovery.layers[1].blocks, discovery.layers[1].axis, discovery.layers[1].shape) == (5, 0, (5, 288))
    assert discovery.joint_sets == ()


def test_weights_without_invariance_are_cut_for_measuring() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.t = nn.Embedding(7, 4), nn.ConvTranspose1d(4, 6, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.t(self.e(ids).mT).exp().sum()

    model = Model()
    table, transposed = discover(model(torch.tensor([[1, 2, 3]])), model).layers
    assert (table.kind, table.blocks, table.axis) == ("none", 1, 0)
    assert (transposed.kind, transposed.blocks, transposed.axis) == ("none", 6, 1)


def test_frozen_parameters_are_listed_but_not_measured() -> None:
    model = small_net()
    model[0].weight.requires_grad_(False)
    discovery = discover(model(images()).logsumexp(1).mean(), model)
    assert [layer.name for layer in discovery.layers] == ["4"]
    row = discovery.table()[0]
    assert (row["parameter"], row["kind"], row["reason"]) == ("0.weight", "none", "frozen: it gets no gradient")


def test_frozen_bias_and_frozen_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.BatchNorm2d(8))
    for parameter in (model[0].bias, model[1].weight, model[1].bias, model[2].bias):
        parameter.requires_grad_(False)
    table = found(model, model(images()).exp().sum())
    assert table["0.weight"]["kind"] == "row"
    assert table["2.weight"]["kind"] == "none", "its frozen bias does not scale with it"
    assert "constant" in table["2.weight"]["reason"]


def test_parameters_outside_the_loss() -> None:
    model = nn.ModuleDict({"used": small_net(), "unused": nn.Linear(3, 2)})
    table = found(model, model["used"](images()).logsumexp(1).mean())
    assert table["unused.weight"]["reason"] == "not part of this loss"
    assert table["unused.weight"]["kind"] == "none"


def test_tied_weights_have_one_row_under_the_first_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.n, self.b.weight = nn.LayerNorm(6), self.a.weight

        def forward(self, x: Tensor, normed: bool) -> Tensor:
            x = self.n(self.a(x)).tanh()
            return self.n(self.b(x)).exp().sum() if normed else self.b(x).exp().sum()

    model = Tied()
    rows = found(model, model(torch.randn(3, 6), True))
    assert list(rows) == ["a.weight"]
    assert rows["a.weight"]["kind"] == "whole"
    assert found(model, model(torch.randn(3, 6), False))["a.weight"]["kind"] == "none"


def test_embedding_tied_with_the_output_is_not_invariant() -> None:
    table, norm = nn.Embedding(9, 4), nn.LayerNorm(4)
    model = nn.ModuleList([table, norm])
    loss = F.linear(norm(table(torch.tensor([[1, 2], [3, 4]]))), table.weight).logsumexp(-1).sum()
    assert found(model, loss)["0.weight"]["kind"] == "none"


@pytest.mark.parametrize(
    ("summed", "kind"), [(lambda x: x, "row"), (lambda x: x.sum(1), "whole"), (lambda x: x + 1, "none")]
)
def test_embedding_rows_that_were_not_seen_follow_those_that_were(summed: Any, kind: str) -> None:
    model = nn.ModuleList([nn.Embedding(9, 4), nn.LayerNorm(4)])
    loss = model[1](summed(model[0](torch.tensor([[1, 2], [3, 4]])))).exp().sum()
    assert found(model, loss)["0.weight"]["kind"] == kind


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], gradients[0]


def test_an_unknown_operation_is_named_and_claims_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.LayerNorm(6))
    hidden = nn.Linear(6, 6, bias=False)
    model.append(hidden)
    before = Opaque.apply(model[0](torch.randn(3, 4)), hidden.weight)
    table = found(model, model[1](before).exp().sum())
    assert table["0.weight"]["kind"] == "none"
    assert table["0.weight"]["reason"] == "unknown operation `Opaque` reads it"
    assert table["2.weight"]["reason"] == "unknown operation `Opaque` reads it"


@pytest.mark.parametrize("broken", ["Convolution", "NativeBatchNorm", "Relu", "View"])
def test_a_rule_that_fails_is_an_unknown_operation(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> Any:
        raise RuntimeError("not foreseen")

    monkeypatch.setitem(interpret.RULES, broken, fail)
    model = small_net()
    for row in discover(model(images()).logsumexp(1).mean(), model).table():
        assert row["kind"] == "none" or broken in ("Relu", "View")


def test_no_rule_fails_on_any_known_net(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(context: Any) -> Any:
        raise AssertionError(context.graph.names[context.position])

    monkeypatch.setattr(interpret, "unknown", refuse)
    for build, _ in EXPECTED.values():
        torch.manual_seed(0)
        model, x = build()
        prepare(model)
        discover(loss_of(model, x), model)


def test_outputs_in_place_of_a_loss() -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.LayerNorm(6))
    y = model(torch.randn(3, 4))
    assert discover(y, model).groups[0].kind == "whole"
    assert discover({"logits": y, "more": [model[0](torch.randn(3, 4))]}, model).groups == ()
    assert discover([y, torch.zeros(())], model).groups[0].kind == "whole"


def test_a_loss_without_graph_is_an_error() -> None:
    model = small_net()
    with torch.no_grad():
        loss = model(images()).sum()
    with pytest.raises(ValueError, match="before backward"):
        discover(loss, model)


def test_a_parameter_as_loss_and_parameters_of_the_root() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(2, 3))

    model = Root()
    assert [layer.name for layer in discover([model.w, model.v.exp()], model).layers] == ["w", "v"]


def test_names_of_parametrized_and_of_several_weights() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.MultiheadAttention(4, 2))
    y = model[0](torch.randn(3, 4))
    layers = discover(model[1](y, y, y)[0].exp().sum(), model).layers
    assert [layer.name for layer in layers] == [
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
        "1",
        "1.out_proj",
    ]
    assert [layer.kind for layer in layers[:2]] == ["none", "row"]


def test_autocast_and_eval_mode() -> None:
    model = small_net()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images()).float().logsumexp(1).mean() * 1024
    assert found(model, loss)["0.weight"]["kind"] == "row"
    model.eval()
    assert found(model, model(images()).logsumexp(1).mean())["0.weight"]["kind"] == "none"


def test_nothing_is_touched() -> None:
    model = small_net()
    loss = model(images()).logsumexp(1).mean()
    state = copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    discover(loss, model)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_saved_tensors_stay_packed() -> None:
    def unpack(_: Any) -> Tensor:
        raise AssertionError("unpacked")

    for name, (build, _) in EXPECTED.items():
        if "checkpoint" in name:
            continue
        model, x = build()
        prepare(model)
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
            loss = loss_of(model, x)
        discover(loss, model)


def test_no_reference_is_kept() -> None:
    model = small_net()
    loss = model(images()).logsumexp(1).mean()
    references = [weakref.ref(item) for item in (loss, *model.parameters(), model)]
    discovery = discover(loss, model)
    pickle.loads(pickle.dumps(discovery))
    gc.disable()
    try:
        del loss, model
        alive = [reference() for reference in references]
    finally:
        gc.enable()
    if any(item is not None for item in alive):  # modules may hold cycles of their own
        del alive
        gc.collect()
    assert all(reference() is None for reference in references)
    assert discovery.groups


def test_the_result_is_frozen() -> None:
    discovery = Discovery()
    with pytest.raises(FrozenInstanceError):
        discovery.layers = ()  # type: ignore[misc]


def two_heads() -> tuple[nn.ModuleDict, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.ModuleDict({
        "a": nn.Conv2d(3, 4, 3, bias=False), "b": nn.Conv2d(3, 4, 3, bias=False), "bn": nn.BatchNorm2d(4),
        "gn": nn.GroupNorm(2, 4), "shared": nn.Conv2d(3, 4, 3, bias=False),
    })  # fmt: skip
    x = images()
    first = model["bn"](model["a"](x)).exp().sum() + model["bn"](model["shared"](x)).exp().sum()
    second = model["b"](x).exp().sum() + model["gn"](model["shared"](x)).exp().sum()
    return model, first, second


def test_merging_losses() -> None:
    model, first, second = two_heads()
    one, two = discover(first, model), discover(second, model)
    assert found(model, first)["shared.weight"]["kind"] == "row"
    table = {row["parameter"]: (row["kind"], row["blocks"]) for row in merge([one, two]).table()}
    assert table == {"a.weight": ("row", 4), "b.weight": ("none", None), "shared.weight": ("group", 2)}
    for other in (merge([two, one]), discover([first, second], model)):
        assert {row["parameter"]: (row["kind"], row["blocks"]) for row in other.table()} == table
    assert merge([one]) == one
    kinds = [layer.kind for layer in merge([one, discover(model["a"](images()).exp().sum(), model)]).layers]
    assert kinds == ["none", "none", "row"]


def test_merging_needs_results_of_one_model() -> None:
    model, first, _ = two_heads()
    with pytest.raises(ValueError, match="at least one"):
        merge([])
    with pytest.raises(ValueError, match="same model"):
        merge([discover(first, model), Discovery()])


def test_deep_graphs_need_no_recursion() -> None:
    model = nn.Linear(4, 4)
    y = model(torch.randn(2, 4))
    for _ in range(5000):
        y = y.relu()
    assert discover(y.sum(), model).groups == ()


def test_discovery_is_cheap() -> None:
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(width, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
                nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
                nn.Conv2d(64, width, 1, bias=False), nn.BatchNorm2d(width),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.body(x))

    model = nn.Sequential(nn.Conv2d(3, 256, 3, bias=False), nn.BatchNorm2d(256), *(Block(256) for _ in range(17)))
    loss = model(images()[:, :, :5, :5]).mean((2, 3)).logsumexp(1).mean()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        discovery = discover(loss, model)
        times.append(time.perf_counter() - start)
    assert len(discovery.groups) == 52
    assert min(times) < 0.05


def test_blocks_of_a_partition() -> None:
    rows = np.arange(1, 13)
    partition = Partition(12)
    assert partition.blocks() == (12, None)
    partition.join_along(rows.reshape(4, 3), [1])
    assert partition.blocks() == (4, None)
    partition.join_all(np.array([0, 4]))
    assert partition.blocks() == (4, (0, 2, 3))
    partition.join_pairs(np.array([1]), np.array([7]))
    assert partition.blocks() is None, "classes that are not consecutive blocks can not be told"
    partition = Partition(12)
    partition.join_along(rows.reshape(3, 4), [0])
    assert partition.blocks() == (1, None)


def test_discovery_imports_nothing_heavy() -> None:
    heavy = "('lightning', 'pytorch_lightning', 'tensorboard')"
    code = f"import sys, lightning_sphere.discovery; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
