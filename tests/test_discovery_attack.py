"""Networks that an attacker would choose: gradients inside the loss, zeros from many sources, odd losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import measured_invariance
from lightning_sphere.discovery import discover
from measured_invariance import EPS

Read = Callable[[nn.Module, Tensor], Tensor]


class Parts(nn.Module):
    """Some modules and parameters, and a function that uses them."""

    def __init__(self, read: Read, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.read = read
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self, x)


def linear(outputs: int = 8, bias: bool = True, inputs: int = 8) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


def penalized(critic: nn.Module) -> Read:
    """A critic with the penalty on its gradient by the input."""

    def read(model: nn.Module, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        score = model.critic(x)
        (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        return torch.stack([F.softplus(score).mean(), (gradient.flatten(1).norm(dim=1) - 1).square().mean()])

    return read


def critic(norm: nn.Module, activation: nn.Module, bias: bool = True) -> Parts:
    layers = nn.Sequential(linear(6, bias), norm, activation, linear(4, inputs=6), nn.Softplus(), linear(1, inputs=4))
    return Parts(penalized(layers), critic=layers)


def image_critic(norm: nn.Module, activation: nn.Module, pool: nn.Module, groups: int = 1) -> Parts:
    layers = nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Upsample(scale_factor=3), nn.Conv2d(2, 4, 3, bias=False), norm, activation, pool,
        nn.Conv2d(4, 3, 2), nn.LeakyReLU(), nn.Flatten(), nn.Linear(3, 1),
    )  # fmt: skip
    return Parts(penalized(layers), critic=layers)


def shifted(y: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(y[:1]), y[:-1]])


def partly_shifted(y: Tensor) -> Tensor:
    return torch.cat([y[:, :3], F.pad(y[:, 3:], (0, 0, 1, -1))], 1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) / ((a.norm(dim=-1) + EPS) * (b.norm(dim=-1) + EPS))


def ghost(y: Tensor) -> Tensor:
    """A BatchNorm over parts of the batch, as a view: 12 samples of 6 channels are 4 of 18."""
    return F.batch_norm(y.view(4, 18), None, None, training=True, eps=EPS).view(12, 6)


def written(y: Tensor) -> Tensor:
    return torch.zeros(y.shape).copy_(y)


LAYER = {"n": lambda: nn.LayerNorm(6, elementwise_affine=False)}
BATCH = {"n": lambda: nn.BatchNorm1d(6)}

NETS: dict[str, Callable[[], Parts]] = {
    "gradient penalty, layer norm": lambda: critic(nn.LayerNorm(6), nn.LeakyReLU(0.2)),
    "gradient penalty, batch norm": lambda: critic(nn.BatchNorm1d(6), nn.Tanh()),
    "gradient penalty, frozen batch norm": lambda: critic(nn.BatchNorm1d(6).eval(), nn.Tanh()),
    "gradient penalty, no norm": lambda: critic(nn.Identity(), nn.ReLU()),
    "gradient penalty, group norm": lambda: critic(nn.GroupNorm(2, 6), nn.ELU()),
    "gradient penalty, convolutions": lambda: image_critic(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
    "gradient penalty, groups of channels": lambda: image_critic(nn.GroupNorm(2, 4), nn.GELU(), nn.AvgPool2d(2)),
    "gradient by a layer's output": lambda: Parts(
        lambda m, x: (lambda h: torch.autograd.grad(m.n(h).sin().sum(), h, create_graph=True)[0])(m.a(x)),
        a=linear(6), n=nn.LayerNorm(6),
    ),
    "cosine embedding loss": lambda: Parts(
        lambda m, x: F.cosine_embedding_loss(m.a(x), m.b(x), torch.ones(12), margin=0.1, reduction="none"),
        a=linear(6), b=linear(6),
    ),
    "product of two norms, each with an eps": lambda: Parts(
        lambda m, x: cosine(m.a(x), m.b(x)),
        a=linear(), b=linear(),
    ),
    "batch norm of a view": lambda: Parts(lambda m, x: m.o(ghost(m.a(x))), a=linear(6), o=linear(inputs=6)),
    "square weight of its own": lambda: Parts(
        lambda m, x: m.o(m.n(x @ m.weight + m.bias)),
        weight=torch.randn(8, 8), bias=torch.randn(8), n=nn.GroupNorm(4, 8), o=linear(),
    ),
    "projected out": lambda: Parts(
        lambda m, x: m.o(x - F.linear(F.linear(x, m.a.weight) / m.a.weight.square().sum(1), m.a.weight.T)),
        a=linear(3, False), o=linear(),
    ),
    "batch norm of pairs of samples": lambda: Parts(
        lambda m, x: m.o(F.batch_norm(m.a(x.view(4, 3, 8)).reshape(6, 12), None, None, training=True, eps=EPS)),
        a=linear(6), o=linear(inputs=12),
    ),
    "overwritten whole": lambda: Parts(
        lambda m, x: m.o(m.n(written(m.a(x)))),
        a=linear(6), n=nn.BatchNorm1d(6), o=linear(inputs=6),
    ),
    "recurrence that begins with zeros": lambda: Parts(
        lambda m, x: m.o(m.n(m.r(x.view(4, 3, 8))[0])),
        r=nn.RNN(8, 6, nonlinearity="relu", bias=False, batch_first=True), n=nn.LayerNorm(6), o=linear(inputs=6),
    ),
    "product of two layers with bias": lambda: Parts(
        lambda m, x: m.o(F.layer_norm(m.a(x) @ m.b(x.flip(0)).T, (12,), eps=EPS)),
        a=linear(6), b=linear(6), o=linear(inputs=12),
    ),
    "shift by concatenated zeros": lambda: Parts(
        lambda m, x: m.o(m.n((lambda y: y + shifted(y))(m.a(x)))),
        a=linear(6, False), n=nn.LayerNorm(6), o=linear(inputs=6),
    ),
    "shift by concatenated ones": lambda: Parts(
        lambda m, x: m.o(F.rms_norm((lambda y: y + torch.cat([torch.ones(1, 6), y[:-1]]))(m.a(x)), (6,), eps=EPS)),
        a=linear(6, False), o=linear(inputs=6),
    ),
    "shift by padding": lambda: Parts(
        lambda m, x: m.o(m.n((lambda y: y + F.pad(y, (0, 0, 1, 0))[:-1])(m.a(x)))),
        a=linear(6, False), n=nn.LayerNorm(6), o=linear(inputs=6),
    ),
    "sum of what a mask leaves": lambda: Parts(
        lambda m, x: m.o(m.n(m.a(x).masked_fill(x[:, :1] < 0, 0).view(4, 3, 6).sum(1))),
        a=linear(6, False), n=nn.LayerNorm(6), o=linear(inputs=6),
    ),
    "largest of what a mask leaves": lambda: Parts(
        lambda m, x: m.o(m.n(m.a(x).masked_fill((x[:, :1] < x[:1, :1]), -1e9).amax(0, keepdim=True))),
        a=linear(6), n=nn.LayerNorm(6), o=linear(inputs=6),
    ),
    "shift by padding with ones": lambda: Parts(
        lambda m, x: m.o(m.n((lambda y: y + y.flip(0))(F.pad(m.a(x), (0, 0, 1, 0), value=1)[:-1]))),
        a=linear(6, False), n=nn.RMSNorm(6), o=linear(inputs=6),
    ),
    "shift of some channels": lambda: Parts(
        lambda m, x: m.o(m.n(partly_shifted(m.a(x)))), a=linear(6, False), n=nn.LayerNorm(6), o=linear(inputs=6),
    ),
    "sum of what a mask makes one": lambda: Parts(
        lambda m, x: m.o(F.rms_norm(m.a(x).masked_fill(x[:, :1] < 0, 1).view(4, 3, 6).sum(1), (6,), eps=EPS)),
        a=linear(6, False), o=linear(inputs=6),
    ),
    "sorted along positions": lambda: Parts(
        lambda m, x: m.o(F.layer_norm(m.a(x).view(3, 4, 6).sort(1)[0].transpose(1, 2), (4,), eps=EPS)),
        a=linear(6), o=linear(inputs=4),
    ),
    "rows copied by index": lambda: Parts(
        lambda m, x: m.o(m.n(torch.zeros(15, 6).index_copy(0, torch.arange(12).flip(0) + 2, m.a(x)))),
        a=linear(6, False), n=nn.BatchNorm1d(6), o=linear(inputs=6),
    ),
    "softmax of shifted logits": lambda: Parts(
        lambda m, x: m.o((lambda s: s / s.std(-1, keepdim=True))(m.a(x) @ m.b(x).T).softmax(-1) @ x),
        a=linear(6), b=linear(6), o=linear(),
    ),
    "angle of complex numbers": lambda: Parts(
        lambda m, x: m.o(torch.angle(torch.complex(x, x.flip(0)) @ torch.view_as_complex(m.a))),
        a=torch.randn(8, 6, 2), o=linear(inputs=6),
    ),
    "convolution written into complex zeros": lambda: Parts(
        lambda m, x: m.o(m.n(spectrum(m, x))), a=torch.randn(8, 3, 2), n=nn.LayerNorm(5), o=linear(inputs=5),
    ),
    "penalty on the weights": lambda: Parts(
        lambda m, x: m.o(m.n(m.a(x))) + m.a.weight.square().sum(), a=linear(6), n=nn.BatchNorm1d(6), o=linear(inputs=6),
    ),
}  # fmt: skip


def spectrum(model: nn.Module, x: Tensor) -> Tensor:
    result = torch.zeros(12, 5, dtype=torch.complex128)
    result[:, :3] = x.to(torch.complex128) @ torch.view_as_complex(model.a)
    return torch.view_as_real(result).square().sum(-1)


@pytest.fixture
def in_double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("name", NETS)
def test_as_measured(name: str) -> None:
    torch.manual_seed(0)
    model = measured_invariance.prepare(NETS[name]())
    if "frozen" in name:
        model.critic[1].eval()

    def loss(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        result = model(torch.randn(12, 8, generator=generator))
        return F.mse_loss(result, torch.randn(result.shape, generator=generator))

    measured = measured_invariance.measure(model, loss)
    _, table, names = measured_invariance.joint_members(model, loss)
    with measured_invariance.InDouble():
        discovery = discover(loss(0), model)
    wrong = measured_invariance.disagreements(discovery, measured)
    assert wrong + measured_invariance.check_joint_sets(discovery, table, names) == []
    assert measured_invariance.left_out(discovery, table, names) == []
