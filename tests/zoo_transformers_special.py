"""Architectures of `transformers` with inputs, sizes or parts of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from zoo.case import Case, normal, seeded
from zoo_transformers import TINY, VOCABULARY, build, case, ids, images, labelled, transformers


def part(name: str) -> dict[str, Any]:
    """The arguments of a configuration inside another one."""
    known = getattr(transformers, name)().to_dict()
    return {key: value for key, value in TINY.items() if key in known}


def two_towers(name: str, **changes: Any) -> Case:
    """Text and images, and a loss that contrasts them."""
    parts = {f"{side}_config": part(f"{name}{side.title()}Config") for side in ("text", "vision")}
    model = build(f"{name}Model", **parts, **changes)
    image = images(16)
    return case(model, lambda number: {"input_ids": ids(number), **image(number), "return_loss": True})


def clip() -> Case:
    return two_towers("CLIP", projection_dim=8)


def siglip() -> Case:
    return two_towers("Siglip")


def mobilenet_v1() -> Case:
    return case(build("MobileNetV1Model", depth_multiplier=0.125, min_depth=8), images(96, 4))


def mobilenet_v2() -> Case:
    return case(build("MobileNetV2Model", depth_multiplier=0.125, finegrained_output=False), images(96, 4))


def efficientnet() -> Case:
    scaled = {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}
    return case(build("EfficientNetModel", without=("image_size",), **scaled), images(96, 4))


def levit() -> Case:
    down = [["Subsample", 4, heads, 4, 2, 2] for heads in (2, 4)]
    sizes = {"hidden_sizes": [8, 16, 24], "num_attention_heads": [1, 2, 2], "depths": [1] * 3, "key_dim": [4] * 3}
    model = build("LevitModel", without=("drop_path_rate", "patch_size"), image_size=64, down_ops=down, **sizes)
    return case(model, images(64, 4))


def cvt() -> Case:
    sizes = {"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3], "drop_path_rate": [0.0] * 3}
    return case(build("CvtModel", **sizes), images(64, 4))


def mobilevit() -> Case:
    sizes = {"hidden_sizes": [8, 8, 16], "neck_hidden_sizes": [4, 4, 8, 8, 8, 8, 16]}
    return case(build("MobileViTModel", image_size=128, **sizes), images(128))


def donut() -> Case:
    sizes = {"depths": [1, 2], "num_heads": [2, 4], "window_size": 2, "embed_dim": 8}
    return case(build("DonutSwinModel", image_size=32, **sizes), images(32))


def hiera() -> Case:
    sizes = {"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 8, "patch_kernel": [7, 7], "patch_stride": [4, 4]}
    units = {"patch_padding": [3, 3], "masked_unit_size": [4, 4], "query_stride": [2, 2], "num_query_pool": 1}
    return case(build("HieraModel", without=("patch_size",), image_size=[32, 32], **sizes, **units), images(32))


def detr() -> Case:
    backbone = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 16], "depths": [1] * 4, "out_features": ["stage4"]}
    timm = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    config = transformers.ResNetConfig(**backbone)
    return case(build("DetrModel", num_queries=4, backbone_config=config, **timm), images(64))


def vivit() -> Case:
    model = build("VivitModel", num_frames=4, tubelet_size=[2, 4, 4])
    return case(model, lambda number: {"pixel_values": normal(number, 2, 4, 3, 16, 16)})


def audio_spectrogram() -> Case:
    model = build("ASTModel", max_length=16, num_mel_bins=16, frequency_stride=4, time_stride=4)
    return case(model, lambda number: {"input_values": normal(number, 2, 16, 16)})


def wav2vec2_bert() -> Case:
    sizes = {"feature_projection_input_dim": 8, "conv_depthwise_kernel_size": 3}
    model = build("Wav2Vec2BertModel", position_embeddings_type="relative_key", **sizes)
    return case(model, lambda number: {"input_features": normal(number, 2, 10, 8)})


def perceiver() -> Case:
    latents = {"num_latents": 6, "d_latents": 16, "num_blocks": 1, "num_self_attends_per_block": 2}
    heads = {"num_self_attention_heads": 4, "num_cross_attention_heads": 4, "qk_channels": 16, "v_channels": 16}
    model = build("PerceiverForMaskedLM", max_position_embeddings=10, **latents, **heads)
    return case(model, lambda number: {"inputs": ids(number), "labels": ids(number + 50)})


def time_series() -> Case:
    sizes = {"prediction_length": 4, "context_length": 6, "num_time_features": 1, "lags_sequence": [1, 2]}
    model = build("TimeSeriesTransformerForPrediction", "TimeSeriesTransformerConfig", **sizes)

    def batch(number: int) -> dict[str, Any]:
        past = {"past_values": normal(number, 2, 8).abs() + 1, "past_time_features": normal(number + 1, 2, 8, 1)}
        future = {"future_values": normal(number, 2, 4).abs() + 1, "future_time_features": normal(number + 2, 2, 4, 1)}
        return {**past, **future, "past_observed_mask": torch.ones(2, 8, dtype=torch.float64)}

    return case(model, batch)


def chameleon() -> Case:
    name = "ChameleonForConditionalGeneration"
    return case(build(name, "ChameleonConfig", vocabulary_map={"<image>": VOCABULARY - 1}), labelled)


def xlstm() -> Case:
    return case(build("xLSTMForCausalLM"), lambda number: labelled(number) | {"use_cache": False})


def dbrx() -> Case:
    attention = {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}
    experts = {"ffn_hidden_size": 8, "moe_num_experts": 4, "moe_top_k": 2}
    return case(build("DbrxForCausalLM", attn_config=attention, ffn_config=experts), labelled)


def bamba() -> Case:
    sizes = {"mamba_n_heads": 8, "mamba_d_head": 4, "mamba_n_groups": 1, "mamba_chunk_size": 4}
    model = build("BambaForCausalLM", attn_layer_indices=[1], **sizes)
    return case(model, lambda number: labelled(number) | {"use_cache": False})


def musicgen() -> Case:
    model = build("MusicgenForCausalLM", "MusicgenDecoderConfig", num_codebooks=2)
    return case(model, lambda number: {"input_ids": torch.randint(3, VOCABULARY, (4, 7), generator=seeded(number))})


SPECIAL: dict[str, Callable[[], Case]] = {
    function.__name__: function
    for function in (
        clip, siglip, mobilenet_v1, mobilenet_v2, efficientnet, levit, cvt, mobilevit, donut, hiera, detr, vivit,
        audio_spectrogram, wav2vec2_bert, perceiver, time_series, chameleon, xlstm, dbrx, bamba, musicgen,
    )
}  # fmt: skip
"""Every case by name."""
