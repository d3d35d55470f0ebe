"""What discovery says about each weight: true, short, and in the names of the user's modules."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_sphere import Discovery, discover


def said(model: nn.Module, output: Tensor) -> dict[str, str]:
    """The reasons by parameter, for a loss that no output may be scaled in."""
    rows = discover(output.flatten(1).logsumexp(1).mean(), model).table()
    return {row["parameter"]: row["reason"] for row in rows}


def chain(*layers: nn.Module, x: Tensor | None = None) -> dict[str, str]:
    torch.manual_seed(0)
    model = nn.Sequential(*layers)
    return said(model, model(torch.randn(4, 3, 8, 8) if x is None else x))


def conv(inputs: int = 3, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, 8, 3, padding=1, bias=bias)


VECTORS = torch.randn(4, 8)


class Net(nn.Module):
    """Layers by name, and a function of them."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def net(forward: Callable[..., Tensor], x: Tensor = VECTORS, **layers: nn.Module) -> dict[str, str]:
    torch.manual_seed(0)
    model = Net(forward, **layers)
    return said(model, model(x))


# -- invariant -------------------------------------------------------------------------------------------------------


def test_a_norm_that_follows() -> None:
    assert chain(conv(), nn.BatchNorm2d(8))["0.weight"] == "invariant per filter: BatchNorm `1` follows"
    through = chain(conv(bias=True), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(8))["0.weight"]
    assert through == "invariant per filter together with its bias: BatchNorm `3` follows, through ReLU and max-pooling"
    assert chain(conv(), nn.GroupNorm(2, 8))["0.weight"] == "invariant per block of 4 filters: GroupNorm `1` follows"
    linear = chain(nn.Linear(8, 8), nn.LayerNorm(8), x=VECTORS)["0.weight"]
    assert linear == "invariant as a whole together with its bias: LayerNorm `1` follows"


def test_up_to_three_norms_are_named() -> None:
    def four(count: int) -> str:
        norms = nn.ModuleList(nn.BatchNorm1d(8) for _ in range(count))
        return net(
            lambda m, x: sum(torch.sin(norm(m.a(x))) for norm in m.norms), a=nn.Linear(8, 8, bias=False), norms=norms
        )["a.weight"]

    assert four(2) == "invariant per row: BatchNorm `norms.0` and `norms.1` follow"
    assert four(3) == "invariant per row: BatchNorm `norms.0`, `norms.1` and `norms.2` follow"
    assert four(5) == "invariant per row: BatchNorm `norms.0`, `norms.1`, `norms.2` and 2 more follow"


class MyNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def standardized(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()


def test_norms_written_out_by_hand() -> None:
    def after(norm: Callable[[Tensor], Tensor]) -> str:
        more = {"norm": norm} if isinstance(norm, nn.Module) else {}
        inner = Net(lambda m, x: m.b(norm(m.a(x))), a=nn.Linear(8, 8, bias=False), b=nn.Linear(8, 8), **more)
        return net(lambda m, x: m.block(x), block=inner)["block.a.weight"]

    start = "invariant as a whole: "
    assert after(rms) == f"{start}RMS norm in `block` follows"
    assert after(standardized) == f"{start}standardization in `block` follows"
    assert after(lambda x: F.normalize(x, dim=-1)) == f"{start}L2 normalization in `block` follows"
    assert after(lambda x: F.layer_norm(x, (8,))) == f"{start}LayerNorm in `block` follows"
    assert after(MyNorm()) == f"{start}MyNorm `block.norm` follows"


def test_norms_of_the_weight_itself() -> None:
    table = chain(parametrizations.weight_norm(conv(bias=True)), nn.GELU())
    assert table["0.parametrizations.weight.original1"] == "invariant per filter: weight norm is applied to it"
    assert table["0.parametrizations.weight.original0"] == "not invariant: no normalization follows before GELU"
    table = chain(parametrizations.spectral_norm(conv()), nn.GELU())
    assert table["0.parametrizations.weight.original"] == "invariant as a whole: spectral norm is applied to it"
    cosine = net(lambda m, x: x @ F.normalize(m.a.weight, dim=-1).T, a=nn.Linear(8, 4, bias=False))
    assert cosine["a.weight"] == "invariant per row: weight norm is applied to it"


def test_queries_and_keys_but_not_values() -> None:
    def attention(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        return m.proj(F.scaled_dot_product_attention(m.q_norm(q), m.k_norm(k), v).transpose(1, 2).flatten(2))

    layers = {"qkv": nn.Linear(8, 24, bias=False), "proj": nn.Linear(8, 8)}
    table = net(attention, torch.randn(2, 5, 8), q_norm=nn.RMSNorm(4), k_norm=nn.RMSNorm(4), **layers)
    assert table["qkv.weight"] == (
        "invariant per block of 4 rows, blocks 0-3 of 6 only (queries and keys, not values): "
        "RMSNorm `q_norm` and `k_norm` follow"
    )


# -- not invariant ---------------------------------------------------------------------------------------------------


def test_what_reads_it_instead_of_a_norm() -> None:
    table = chain(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3), x=VECTORS)
    assert table["0.weight"] == "not invariant: it reaches GELU through `2` without normalization"
    assert table["2.weight"] == "not invariant: no normalization follows before GELU"
    layers = {"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "norm": nn.LayerNorm(8)}
    table = net(lambda m, x: m.norm(x + m.b(F.relu(m.a(x)))), **layers)
    assert table["a.weight"] == "not invariant: `b` reads it and adds a bias"
    model = nn.Linear(8, 3)
    loss = F.cross_entropy(model(VECTORS), torch.tensor([0, 1, 2, 0]))
    (row,) = discover(loss, model).table()
    assert row["reason"] == "not invariant: no normalization follows before the softmax of the loss"
    (row,) = discover(F.mse_loss(model(VECTORS), torch.zeros(4, 3)), model).table()
    assert row["reason"] == "not invariant: no normalization follows before the loss"


def test_softmax_of_attention_fused_and_composed() -> None:
    def composed(m: nn.Module, x: Tensor) -> Tensor:
        return F.dropout((m.q(x) @ m.k(x).mT).softmax(-1), 0.1) @ m.v(x)

    def fused(m: nn.Module, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x))

    for attention in (composed, fused):
        table = net(attention, torch.randn(2, 5, 8), q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8))
        assert table["q.weight"] == "not invariant: no normalization follows before the softmax of attention"
        assert table["v.weight"] == "not invariant: no normalization follows before Logsumexp"
    gate = net(lambda m, x: m.a(x).softmax(-1) * m.b(x), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    assert gate["a.weight"] == "not invariant: no normalization follows before softmax"


class MyFlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


def test_unknown_operations_have_the_users_name() -> None:
    layers = {"a": nn.Linear(8, 8, bias=False), "b": nn.Linear(8, 8), "norm": nn.LayerNorm(8)}
    table = net(lambda m, x: m.norm(MyFlashAttention.apply(m.b(m.a(x)))), **layers)
    assert table["b.weight"] == "unknown operation `MyFlashAttention` reads it"
    assert table["a.weight"] == "unknown operation `MyFlashAttention` reads it, through `b`"


def test_recurrent_layers_are_named() -> None:
    layers = {"tokens": nn.Embedding(8, 8), "lstm": nn.LSTM(8, 8), "norm": nn.LayerNorm(8)}
    table = net(lambda m, x: m.norm(m.lstm(m.tokens(x))[0]), torch.arange(8).view(2, 4), **layers)
    assert set(table.values()) == {"not invariant: no normalization follows before the gates of `lstm`"}


def test_evaluation_mode() -> None:
    expected = "not invariant: BatchNorm `1` is in evaluation mode: an affine map, no normalization"
    assert chain(conv(), nn.BatchNorm2d(8).eval(), nn.ReLU())["0.weight"] == expected
    assert chain(conv(bias=True), nn.BatchNorm2d(8).eval(), nn.GELU())["0.weight"] == expected


def test_several_uses() -> None:
    shared = net(lambda m, x: m.a(F.gelu(m.n(m.a(x)))).tanh(), a=nn.Linear(8, 8, bias=False), n=nn.BatchNorm1d(8))
    assert shared["a.weight"] == "not invariant: BatchNorm `n` normalizes one of its 2 uses, tanh reads another"
    beside = net(lambda m, x: m.n(m.a(x)).sin() + m.a(x).detach() + 0, a=nn.Linear(8, 8), n=nn.BatchNorm1d(8))
    assert beside["a.weight"] == "invariant per row: BatchNorm `n` follows"

    def tied(m: nn.Module, ids: Tensor) -> Tensor:
        x = m.norm(m.tokens(ids) + m.places(ids))
        return m.head(x).log_softmax(-1)

    model = Net(tied, tokens=nn.Embedding(8, 8), places=nn.Embedding(8, 8), norm=nn.LayerNorm(8), head=nn.Linear(8, 8))
    model.head.weight = model.tokens.weight
    loss = F.nll_loss(model(torch.arange(8)), torch.arange(8))
    reasons = {row["parameter"]: row["reason"] for row in discover(loss, model).table()}
    assert reasons["tokens.weight"] == (
        "not invariant: tied to `head`; one of its 2 uses reaches the softmax of the loss without normalization"
    )
    assert reasons["places.weight"] == (
        "not invariant: its output is added to the output of `tokens` before LayerNorm `norm` reads it"
    )


def test_constants_and_frozen_biases() -> None:
    table = net(lambda m, x: m.norm(m.a(x) + x), a=nn.Linear(8, 8), norm=nn.LayerNorm(8))
    expected = "not invariant: its output is added to a constant or data before LayerNorm `norm` reads it"
    assert table["a.weight"] == expected
    layer = conv(bias=True)
    layer.bias.requires_grad_(False)  # type: ignore[union-attr]
    reason = chain(layer, nn.ReLU(), nn.BatchNorm2d(8))["0.weight"]
    assert reason == "not invariant: its output is added to a constant, a frozen bias, before BatchNorm `2` reads it"


def test_post_norm_names_the_other_summand() -> None:
    layers = {"a": nn.Linear(8, 8), "n": nn.LayerNorm(8), "b": nn.Linear(8, 8), "m": nn.LayerNorm(8)}

    def post(m: nn.Module, x: Tensor) -> Tensor:
        x = m.n(m.a(x))
        return m.m(x + F.gelu(m.b(x)) + m.b(x))

    table = net(post, **layers)
    assert table["a.weight"] == "invariant as a whole together with its bias: LayerNorm `n` follows"
    assert table["b.weight"] == "not invariant: no normalization follows before GELU"
    table = net(lambda m, x: m.m((y := m.n(m.a(x))) + m.b(y)), **layers)
    assert table["b.weight"] == (
        "not invariant: its output is added to the output of LayerNorm `n` before LayerNorm `m` reads it"
    )


# -- joint -----------------------------------------------------------------------------------------------------------


def test_small_sets_name_their_members() -> None:
    def bare() -> nn.Module:
        return nn.Linear(8, 8, bias=False)

    table = net(lambda m, x: m.n(m.a(x) + m.b(x)), a=bare(), b=bare(), n=nn.BatchNorm1d(8))
    start = "not invariant alone; jointly with"
    assert table["a.weight"] == f"{start} `b.weight`, which meets it before BatchNorm `n` reads it"
    assert table["b.weight"] == f"{start} `a.weight`, which meets it before BatchNorm `n` reads it"
    table = net(lambda m, x: m.n(torch.cat([m.a(x), m.b(x)], -1)), a=bare(), b=bare(), n=nn.LayerNorm(16))
    assert table["a.weight"] == f"{start} `b.weight`, which meets it before LayerNorm `n` reads it"


class PreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(self.norm(x))))


def stream() -> tuple[nn.Module, Discovery]:
    torch.manual_seed(0)
    blocks = nn.Sequential(*(PreNorm() for _ in range(4)))
    model = nn.Sequential(nn.Embedding(20, 8), blocks, nn.LayerNorm(8), nn.Flatten(0, 1), nn.Linear(8, 20))
    ids = torch.randint(20, (4, 6))
    return model, discover(F.cross_entropy(model(ids), ids.flatten()), model)


def test_the_residual_stream() -> None:
    _, found = stream()
    reasons = {row["parameter"]: row["reason"] for row in found.table()}
    jointly = "not invariant alone; jointly with 8 others that write to the residual stream, which LayerNorm"
    assert len(found.joint_sets[0]) == 9
    assert reasons["0.weight"] == f"{jointly} `1.1.norm` reads"
    assert reasons["1.0.down.weight"] == f"{jointly} `1.1.norm` reads"
    assert reasons["1.3.down.weight"] == f"{jointly} `2` reads"
    assert reasons["1.0.up.weight"] == "not invariant: `1.0.down` reads it and adds a bias"


def test_a_stream_that_is_not_one_set() -> None:
    """Data is part of it, so nothing can be scaled; still it is the residual stream that people know."""
    model = nn.Sequential(PreNorm(), PreNorm(), PreNorm(), nn.LayerNorm(8))
    table = said(model, model(VECTORS))
    start = "not invariant: its output is added to"
    assert table["0.down.weight"] == f"{start} a constant or data before LayerNorm `1.norm` reads it"
    assert table["1.down.weight"] == f"{start} the residual stream before LayerNorm `2.norm` reads it"


# -- all of them -----------------------------------------------------------------------------------------------------


def collected() -> list[str]:
    """The reasons of many small networks."""
    layers = [
        [conv(bias=True), nn.BatchNorm2d(8), nn.SiLU(), conv(8), nn.InstanceNorm2d(8), nn.Flatten(), nn.Linear(512, 3)],
        [nn.ConvTranspose2d(3, 8, 2), nn.Hardswish(), nn.Conv2d(8, 8, 3, groups=4), nn.GroupNorm(2, 8)],
        [parametrizations.weight_norm(conv(bias=True)), nn.ELU(), nn.AvgPool2d(2), conv(8), nn.LayerNorm([8, 4, 4])],
        [nn.Flatten(2), nn.LSTM(64, 8)],
        [nn.Flatten(2), nn.TransformerEncoderLayer(64, 4, 8, batch_first=True)],
        [nn.Flatten(2), nn.TransformerEncoderLayer(64, 4, 8, batch_first=True, norm_first=True), nn.LayerNorm(64)],
    ]
    reasons: list[str] = []
    for model in (nn.Sequential(*found) for found in layers):
        output = torch.randn(4, 3, 8, 8)
        for layer in model:
            output = layer(output)
            output = output[0] if isinstance(output, tuple) else output
        reasons += said(model, output).values()
    return [*reasons, *(row["reason"] for row in stream()[1].table())]


STARTS = ("invariant ", "not invariant: ", "not invariant alone; jointly with ", "unknown operation `", "frozen: ")


def test_every_reason_is_one_short_sentence() -> None:
    for reason in collected():
        assert reason.startswith(STARTS) or reason == "not part of this loss", reason
        assert len(reason) <= 110, reason
        assert "Backward" not in reason
        assert reason.count("`") % 2 == 0
        assert not re.search(r"  | ,|\bNone\b|``|[.;:]$", reason), reason


def test_an_explanation_that_fails_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = stream()
    monkeypatch.setattr("lightning_sphere.discovery.walks.Walks.way", lambda *_: 1 / 0)
    _, bare = stream()
    assert {row["reason"] for row in bare.table()} == {"not invariant"}
    assert bare.joint_sets == whole.joint_sets
