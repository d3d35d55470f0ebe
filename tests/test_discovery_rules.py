"""Discovery on many small nets: expected groups, and every claim checked by rescaling in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_sphere.discovery import Discovery, discover

EPS = 1e-30


class Net(nn.Module):
    """Modules by name, and a function that joins them."""

    def __init__(self, forward: Callable[..., Tensor], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def prepare(model: nn.Module) -> nn.Module:
    """Double precision, tiny eps, no parameter at a special value."""
    model.double()
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = EPS
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    """A loss that no scaling of the output leaves alone."""
    y = model(x)
    weights = torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype).view_as(y[0])
    return (F.gelu(y) * weights).flatten(1).sum(1).logsumexp(0)


def relative_change(model: nn.Module, x: Tensor, scaled: list[tuple[str, int, list[int]]]) -> float:
    """How much the loss changes when rows (parameter, axis, indices) grow by 1.7."""
    parameters = dict(model.named_parameters())
    before = loss_of(model, x).item()
    backup = {name: parameters[name].detach().clone() for name, _, _ in scaled}
    with torch.no_grad():
        for name, axis, rows in scaled:
            index = torch.tensor(rows)
            parameters[name].index_copy_(axis, index, backup[name].index_select(axis, index) * 1.7)
        after = loss_of(model, x).item()
        for name, value in backup.items():
            parameters[name].copy_(value)
    return abs(after - before) / max(abs(before), 1e-3)


def worst_claim(model: nn.Module, x: Tensor, discovery: Discovery) -> tuple[float, str]:
    """The largest change of the loss under a rescaling that should not change it."""
    worst = (0.0, "")
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for layer in discovery.groups:
        for block in layer.members if layer.members is not None else range(layer.blocks):
            scaled = []
            for part in layer.parts:
                size = shapes[part.parameter][part.axis] // layer.blocks
                scaled.append((part.parameter, part.axis, list(range(block * size, (block + 1) * size))))
            worst = max(worst, (relative_change(model, x, scaled), f"{layer.name}[{block}]"))
    for names in discovery.joint_sets:
        change = relative_change(model, x, [(name, 0, list(range(shapes[name][0]))) for name in names])
        worst = max(worst, (change, str(names)))
    return worst


def image_net(forward: Callable[..., Tensor], **modules: nn.Module | nn.Parameter) -> tuple[Net, Tensor]:
    return Net(forward, **modules), torch.randn(4, 3, 8, 8).double()


def sequence_net(forward: Callable[..., Tensor], **modules: nn.Module | nn.Parameter) -> tuple[Net, Tensor]:
    return Net(forward, **modules), torch.randn(3, 5, 12).double()


def conv(inputs: int, outputs: int, bias: bool = False, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias, **options)


def fused_qkv(m: Net, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).view(3, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    q, k = m.qn(q), m.kn(k)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(3, 5, 8)


def composed_attention(m: Net, x: Tensor) -> Tensor:
    q, k, v = (layer(x).view(3, 5, 2, 4).transpose(1, 2) for layer in (m.q, m.k, m.v))
    scores = F.normalize(q, dim=-1, eps=EPS) @ F.normalize(k, dim=-1, eps=EPS).transpose(-1, -2)
    return m.ln((scores.softmax(-1) @ v).transpose(1, 2).reshape(3, 5, 8))


def standardized(m: Net, x: Tensor) -> Tensor:
    w = m.c.weight
    w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + EPS)
    return F.conv2d(x, w)


def layer_norm_by_hand(m: Net, x: Tensor) -> Tensor:
    x = m.l(x)
    centred = x - x.mean(-1, keepdim=True)
    return m.g * (centred / (centred.pow(2).mean(-1, keepdim=True) + EPS).sqrt())


def batch_norm_by_hand(m: Net, x: Tensor) -> Tensor:
    x = m.c(x)
    variance, mean = torch.var_mean(x, (0, 2, 3), keepdim=True)
    return (x - mean) * torch.rsqrt(variance + EPS)


def squeeze_excite(m: Net, x: Tensor) -> Tensor:
    x = m.c(x)
    return m.bn(x * m.fc2(F.relu(m.fc1(m.bn(x).mean((2, 3))))).sigmoid()[:, :, None, None])


def dense_block(m: Net, x: Tensor) -> Tensor:
    a = m.c1(x)
    b = m.c2(F.relu(m.bn1(a)))
    return m.bn2(torch.cat([a, b], 1))


def channel_shuffle(m: Net, x: Tensor) -> Tensor:
    x = m.c1(x).view(4, 2, 4, 8, 8).transpose(1, 2).flatten(1, 2)
    return m.bn(m.c2(x))


def pre_activation(m: Net, x: Tensor) -> Tensor:
    x = m.stem(x)
    x = x + m.c2(F.relu(m.bn1(x)))
    return m.bn2(x)


def rms_stream(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    x = x + m.o(F.silu(m.g(m.n1(x))) * m.u(m.n1(x)))
    return m.n2(x)


def glu_before_norm(m: Net, x: Tensor) -> Tensor:
    return m.ln(m.down(m.gate(x).sigmoid() * m.up(x)))


EXPECTED: dict[str, tuple[Callable[[], tuple[Net, Tensor]], dict[str, object]]] = {
    "depthwise then pointwise": (
        lambda: image_net(
            lambda m, x: m.bn2(m.p(F.relu(m.bn1(m.d(m.s(x)))))),
            s=conv(3, 8), d=conv(8, 8, groups=8), bn1=nn.BatchNorm2d(8), p=nn.Conv2d(8, 6, 1, bias=False),
            bn2=nn.BatchNorm2d(6),
        ),
        {"s": ("row", 0, 8), "d": ("row", 0, 8), "p": ("row", 0, 6)},
    ),
    "grouped convolution joins its group's inputs": (
        lambda: image_net(
            lambda m, x: m.bn(m.g(F.relu(m.s(x)))), s=conv(3, 8), g=conv(8, 8, groups=4), bn=nn.BatchNorm2d(8)
        ),
        {"s": ("group", 0, 4), "g": ("row", 0, 8)},
    ),
    "transposed grouped convolution": (
        lambda: image_net(
            lambda m, x: m.bn(m.t(m.bn0(m.s(x)))), s=conv(3, 8), bn0=nn.BatchNorm2d(8),
            t=nn.ConvTranspose2d(8, 6, 3, groups=2), bn=nn.BatchNorm2d(6),
        ),
        {"s": ("row", 0, 8), "t": ("row", 1, 3)},
    ),
    "max-pooling carries the bias to the norm": (
        lambda: image_net(lambda m, x: m.bn(F.max_pool2d(m.c(x), 2)), c=conv(3, 8, True), bn=nn.BatchNorm2d(8)),
        {"c": ("row", 0, 8)},
    ),
    "a linear map without padding carries the bias": (
        lambda: image_net(
            lambda m, x: m.bn(m.p(m.c(x))), c=conv(3, 8, True), p=nn.Conv2d(8, 6, 1), bn=nn.BatchNorm2d(6)
        ),
        {"c": ("whole", 0, 1), "p": ("row", 0, 6)},
    ),
    "padding makes the bias matter": (
        lambda: image_net(
            lambda m, x: m.bn(m.p(m.c(x))), c=conv(3, 8, True), p=conv(8, 6, True), bn=nn.BatchNorm2d(6)
        ),
        {"c": ("whole", 0, 1, "c.bias"), "p": ("row", 0, 6)},
    ),
    "flatten before a vector BatchNorm": (
        lambda: image_net(
            lambda m, x: m.bn2(m.l(F.relu(m.bn(m.c(x))).flatten(1))), c=conv(3, 4), bn=nn.BatchNorm2d(4),
            l=nn.Linear(256, 5), bn2=nn.BatchNorm1d(5),
        ),
        {"c": ("row", 0, 4), "l": ("row", 0, 5)},
    ),
    "flatten before LayerNorm": (
        lambda: image_net(lambda m, x: m.ln(m.c(x).flatten(1)), c=conv(3, 4), ln=nn.LayerNorm(256)),
        {"c": ("whole", 0, 1)},
    ),
    "channels-last LayerNorm": (
        lambda: image_net(lambda m, x: m.ln(m.c(x).permute(0, 2, 3, 1)), c=conv(3, 4, True), ln=nn.LayerNorm(4)),
        {"c": ("whole", 0, 1, "c.bias")},
    ),
    "GroupNorm with one channel per group drops the bias": (
        lambda: image_net(lambda m, x: m.gn(m.c(x)), c=conv(3, 4, True), gn=nn.GroupNorm(4, 4)),
        {"c": ("row", 0, 4)},
    ),
    "InstanceNorm without gain": (
        lambda: image_net(lambda m, x: m.n(m.c(x)), c=conv(3, 4, True), n=nn.InstanceNorm2d(4)),
        {"c": ("row", 0, 4)},
    ),
    "three dimensions": (
        lambda: image_net(
            lambda m, x: m.bn(m.c(x[:, :, None].repeat(1, 1, 2, 1, 1))), c=nn.Conv3d(3, 4, 2), bn=nn.BatchNorm3d(4)
        ),
        {"c": ("row", 0, 4)},
    ),
    "one dimension": (
        lambda: image_net(lambda m, x: m.bn(m.c(x.flatten(2))), c=nn.Conv1d(3, 4, 2), bn=nn.BatchNorm1d(4)),
        {"c": ("row", 0, 4)},
    ),
    "both readers normalize": (
        lambda: image_net(
            lambda m, x: m.bn1(m.c(x)) + m.bn2(F.relu(m.c(x))), c=conv(3, 4), bn1=nn.BatchNorm2d(4),
            bn2=nn.BatchNorm2d(4),
        ),
        {"c": ("row", 0, 4)},
    ),
    "BatchNorm in eval mode before one in train mode": (
        lambda: image_net(
            lambda m, x: m.bn2(m.bn1(m.c(x))), c=conv(3, 4), bn1=nn.BatchNorm2d(4).eval(), bn2=nn.BatchNorm2d(4)
        ),
        {"c": ("row", 0, 4)},
    ),
    "BatchNorm in eval mode and ReLU before one in train mode": (
        lambda: image_net(
            lambda m, x: m.bn2(F.relu(m.bn1(m.c(x)))), c=conv(3, 4), bn1=nn.BatchNorm2d(4).eval(),
            bn2=nn.BatchNorm2d(4),
        ),
        {"c": None},
    ),
    "weight standardization": (
        lambda: image_net(standardized, c=conv(3, 4)),
        {"c": ("row", 0, 4)},
    ),
    "spectral norm": (
        lambda: image_net(lambda m, x: m.c(x), c=nn.utils.parametrizations.spectral_norm(conv(3, 4)).eval()),
        {"c.parametrizations.weight.original": ("whole", 0, 1)},
    ),
    "LayerNorm by hand": (
        lambda: sequence_net(layer_norm_by_hand, l=nn.Linear(12, 8), g=nn.Parameter(torch.ones(8))),
        {"l": ("whole", 0, 1, "l.bias")},
    ),
    "BatchNorm by hand": (
        lambda: image_net(batch_norm_by_hand, c=conv(3, 4, True)),
        {"c": ("row", 0, 4)},
    ),
    "fused qkv, values not normalized": (
        lambda: sequence_net(
            fused_qkv, qkv=nn.Linear(12, 24, bias=False), qn=nn.RMSNorm(4), kn=nn.RMSNorm(4)
        ),
        {"qkv": ("group", 0, 6, (0, 1, 2, 3))},
    ),
    "cosine attention, composed": (
        lambda: sequence_net(
            composed_attention, q=nn.Linear(12, 8), k=nn.Linear(12, 8, bias=False), v=nn.Linear(12, 8, bias=False),
            ln=nn.LayerNorm(8),
        ),
        {"q": ("group", 0, 2, "q.bias"), "k": ("group", 0, 2), "v": ("whole", 0, 1)},
    ),
    "einsum": (
        lambda: sequence_net(
            lambda m, x: m.ln(torch.einsum("bsi,oi->bso", x, m.w)), w=nn.Parameter(torch.randn(8, 12)),
            ln=nn.LayerNorm(8),
        ),
        {"w": ("whole", 0, 1)},
    ),
    "squeeze-excitation": (
        lambda: image_net(
            squeeze_excite, c=conv(3, 8), bn=nn.BatchNorm2d(8), fc1=nn.Linear(8, 4), fc2=nn.Linear(4, 8)
        ),
        {"c": ("row", 0, 8), "fc1": None, "fc2": None},
    ),
    "dense block": (
        lambda: image_net(
            dense_block, c1=conv(3, 4), bn1=nn.BatchNorm2d(4), c2=conv(4, 6), bn2=nn.BatchNorm2d(10)
        ),
        {"c1": ("row", 0, 4), "c2": ("row", 0, 6)},
    ),
    "channel shuffle": (
        lambda: image_net(
            channel_shuffle, c1=conv(3, 8), c2=conv(8, 8, groups=8), bn=nn.BatchNorm2d(8)
        ),
        {"c1": ("row", 0, 8), "c2": ("row", 0, 8)},
    ),
    "gated unit before a norm": (
        lambda: sequence_net(
            glu_before_norm, gate=nn.Linear(12, 8), up=nn.Linear(12, 8), down=nn.Linear(8, 6), ln=nn.LayerNorm(6)
        ),
        {"gate": None, "up": None, "down": ("whole", 0, 1, "down.bias")},
    ),
    "pre-activation residual stream": (
        lambda: image_net(
            pre_activation, stem=conv(3, 4), bn1=nn.BatchNorm2d(4), c2=conv(4, 4), bn2=nn.BatchNorm2d(4)
        ),
        {"stem": None, "c2": None, "joint": (("stem.weight", "c2.weight"),)},
    ),
    "RMSNorm residual stream": (
        lambda: sequence_net(
            rms_stream, a=nn.Linear(12, 8), n1=nn.RMSNorm(8), g=nn.Linear(8, 6), u=nn.Linear(8, 6), o=nn.Linear(6, 8),
            n2=nn.RMSNorm(8),
        ),
        {"a": None, "g": None, "u": None, "o": None, "joint": (("a.weight", "a.bias", "o.weight", "o.bias"),)},
    ),
    "reentrant-free checkpointing": (
        lambda: image_net(
            lambda m, x: checkpoint(lambda y: m.bn(F.relu(m.c(y))), x, use_reentrant=False), c=conv(3, 4),
            bn=nn.BatchNorm2d(4),
        ),
        {"c": ("row", 0, 4)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_expected_groups(name: str) -> None:
    torch.manual_seed(0)
    build, expected = EXPECTED[name]
    model, x = build()
    prepare(model)
    discovery = discover(loss_of(model, x), model)
    found = {layer.name: layer for layer in discovery.layers}
    for layer_name, claim in expected.items():
        if layer_name == "joint":
            assert discovery.joint_sets == claim
            continue
        layer = found[layer_name]
        if claim is None:
            assert layer.kind == "none", layer
        else:
            assert isinstance(claim, tuple)
            assert (layer.kind, layer.axis, layer.blocks) == claim[:3], layer
            extra = claim[3] if len(claim) > 3 else None
            assert layer.joint_with == ((extra,) if isinstance(extra, str) else ())
            assert layer.members == (extra if isinstance(extra, tuple) else None)
    change, where = worst_claim(model, x, discovery)
    assert change < 1e-9, where
