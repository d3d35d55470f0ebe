"""Discovery against measured ground truth: every row of ``data/invariance.csv``."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sphere.discovery import Discovery, discover

ROWS: dict[str, list[dict[str, str]]] = defaultdict(list)
with (Path(__file__).parent / "data" / "invariance.csv").open() as file:
    for line in csv.DictReader(file):
        ROWS[line["model"]].append(line)

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""Rows that discovery does not reach, with the reason; strict: a row here that is right fails the test."""


class Chain(nn.Module):
    """Layers ``m0``, ``m1``, ... and a head behind GELU and pooling."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.depth = len(layers)
        for index, layer in enumerate(layers):
            setattr(self, f"m{index}", layer)
        self.head = nn.Linear(16, 10)

    def features(self, x: Tensor) -> Tensor:
        for index in range(self.depth):
            x = getattr(self, f"m{index}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.features(x))
        return self.head(x.mean((2, 3)) if x.ndim == 4 else x)


class RawSkip(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.bn = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)

    def features(self, x: Tensor) -> Tensor:
        x = self.c(x)
        return self.bn(x) + x


class TwoSummed(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.c2, self.bn = nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16)

    def features(self, x: Tensor) -> Tensor:
        return self.bn(self.c1(x) + self.c2(x))


class TwoConcatenated(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)

    def features(self, x: Tensor) -> Tensor:
        return self.bn(torch.cat([self.a(x), self.b(x)], 1))


class Shared(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.bn = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)

    def features(self, x: Tensor) -> Tensor:
        x = x.repeat(1, 6, 1, 1)[:, :16]
        return self.c(F.gelu(self.bn(self.c(x))))


class TimeEmbedding(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.t, self.gn = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(3, 16), nn.GroupNorm(4, 16)

    def features(self, x: Tensor) -> Tensor:
        return self.gn(self.c(x) + self.t(x.mean((2, 3)))[:, :, None, None])


class EmbeddingNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.ln, self.head = nn.Embedding(64, 16), nn.LayerNorm(16), nn.Linear(16, 64)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.gelu(self.ln(self.e(ids)))).flatten(0, 1)


class HeadNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.norm, self.head = nn.Linear(12, 16, bias=False), nn.RMSNorm(4), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.norm(self.q(x).view(-1, 4, 4)).flatten(1)))


def conv(bias: bool, channels: int = 3) -> nn.Module:
    return nn.Conv2d(channels, 16, 3, padding=1, bias=bias)


MICRO: dict[str, Callable[[], nn.Module]] = {
    "conv_bias_bn": lambda: Chain(conv(True), nn.BatchNorm2d(16)),
    "conv_bias_relu_bn": lambda: Chain(conv(True), nn.ReLU(), nn.BatchNorm2d(16)),
    "conv_nobias_relu_bn": lambda: Chain(conv(False), nn.ReLU(), nn.BatchNorm2d(16)),
    "conv_relu_conv_bn_nobias": lambda: Chain(conv(False), nn.ReLU(), conv(False, 16), nn.BatchNorm2d(16)),
    "linear_bias_ln": lambda: Chain(nn.Linear(12, 16), nn.LayerNorm(16)),
    "linear_nobias_ln": lambda: Chain(nn.Linear(12, 16, bias=False), nn.LayerNorm(16)),
    "linear_bias_rms": lambda: Chain(nn.Linear(12, 16), nn.RMSNorm(16)),
    "ln_linear_prenorm": lambda: Chain(nn.LayerNorm(12), nn.Linear(12, 16)),
    "conv_bias_gn4": lambda: Chain(conv(True), nn.GroupNorm(4, 16)),
    "conv_nobias_gn4": lambda: Chain(conv(False), nn.GroupNorm(4, 16)),
    "conv_bias_instancenorm": lambda: Chain(conv(True), nn.InstanceNorm2d(16, affine=True)),
    "convT_bias_bn": lambda: Chain(nn.ConvTranspose2d(3, 16, 3), nn.BatchNorm2d(16)),
    "conv_bn_plus_raw_skip": RawSkip,
    "two_convs_summed_bn": TwoSummed,
    "two_convs_concat_bn": TwoConcatenated,
    "shared_conv_one_normed": Shared,
    "bn_frozen_running_stats": lambda: Chain(conv(True), nn.BatchNorm2d(16).eval()),
    "embedding_ln": EmbeddingNorm,
    "weight_norm_conv": lambda: Chain(nn.utils.parametrizations.weight_norm(conv(True))),
    "head_rms_qknorm": HeadNorm,
    "conv_plus_temb_gn": TimeEmbedding,
}


def micro(name: str) -> tuple[nn.Module, Tensor]:
    model = MICRO[name]()
    if name == "embedding_ln":
        ids = torch.randint(0, 60, (4, 16))
        return model, F.cross_entropy(model(ids), ids.flatten())
    vectors = isinstance(getattr(model, "m0", None), (nn.Linear, nn.LayerNorm)) or name == "head_rms_qknorm"
    x = torch.randn(8, 12) if vectors else torch.randn(8, 3, 8, 8)
    return model, F.cross_entropy(model(x), torch.randint(0, 10, (8,)))


def transformer(name: str) -> tuple[nn.Module, Tensor]:
    transformers = pytest.importorskip("transformers")
    ids = torch.randint(0, 60, (2, 16))
    common = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    decoder = {**common, "num_key_value_heads": 2, "intermediate_size": 48, "tie_word_embeddings": False}
    dropless = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if name == "bert_postln":
        config = transformers.BertConfig(
            **common, **dropless, intermediate_size=64, max_position_embeddings=16, tie_word_embeddings=False
        )
        model = transformers.BertForMaskedLM(config)
    elif name == "gpt2_preln_untied":
        config = transformers.GPT2Config(
            vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=16, tie_word_embeddings=False
        )
        model = transformers.GPT2LMHeadModel(config)
    elif name == "llama_rms":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**decoder))
    elif name == "qwen3_rms_qknorm":
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**decoder, head_dim=8))
    else:
        config = transformers.Wav2Vec2Config(
            vocab_size=10, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
            conv_dim=(16, 16), conv_stride=(5, 2), conv_kernel=(10, 4), num_feat_extract_layers=2,
            num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
        )  # fmt: skip
        model = transformers.Wav2Vec2ForCTC(config)
        labels = torch.randint(1, 10, (2, 4))
        return model, model(input_values=torch.randn(2, 400), labels=labels).loss
    model.train()
    return model, model(input_ids=ids, labels=ids).loss


def solved(name: str) -> tuple[nn.Module, Discovery]:
    torch.manual_seed(0)
    model, loss = micro(name.removeprefix("micro_")) if name.startswith("micro_") else transformer(name)
    return model, discover(loss, model)


def said(row: dict[str, object]) -> tuple[str, int | None, int | None]:
    """What discovery says of a parameter, in the words of the ground truth."""
    kind = f"joint_{row['kind']}" if row["joint_with"] else str(row["kind"])
    return kind, row["axis"], row["blocks"]  # type: ignore[return-value]


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_row_of_the_ground_truth(name: str) -> None:
    model, discovery = solved(name)
    table = {row["parameter"]: row for row in discovery.table()}
    shapes = {key: "x".join(map(str, value.shape)) for key, value in model.named_parameters()}
    wrong = []
    for row in ROWS[name]:
        parameter = row["param"]
        if parameter.startswith("JOINT"):
            prefix = row["module"].split("+")  # long lists are cut in the file
            right = any(
                all(any(p == member or (p is prefix[-1] and member.startswith(p)) for member in names) for p in prefix)
                and len(names) == int(row["rows"])
                for names in discovery.joint_sets
            )
            found: object = discovery.joint_sets
        else:
            assert shapes[parameter] == row["shape"], "the test's model is not the measured one"
            found = said(table[parameter])
            none = row["cls"] == "none"
            expected = ("none", None, None) if none else (row["cls"], int(row["out_dim"]), int(row["granularity"]))
            right = found == expected and table[parameter]["members"] is None
        if right == ((name, parameter) in EXCEPTIONS):
            wrong.append((parameter, row["cls"], row["granularity"], found))
    assert not wrong


def test_the_models_have_no_other_joint_sets() -> None:
    for name in ("micro_conv_bias_bn", "micro_conv_bias_gn4", "micro_linear_bias_ln", "wav2vec2_gn_weightnormpos"):
        assert solved(name)[1].joint_sets == ()
