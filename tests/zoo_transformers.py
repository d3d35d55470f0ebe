"""Tiny instances of the architectures of `transformers`, with random weights.

A case is written as what differs from :data:`TINY`, of which each configuration takes what it knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.case import Case, normal, seeded, weighted

transformers = pytest.importorskip("transformers")

VOCABULARY = 40
Batch = Callable[[int], dict[str, Any]]

TINY: dict[str, Any] = {
    # width and depth, in every spelling
    "hidden_size": 16, "d_model": 16, "n_embd": 16, "dim": 16, "embedding_size": 16, "word_embed_proj_dim": 16,
    "emb_dim": 16, "hidden_sizes": [8, 16], "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "n_layers": 2,
    "encoder_layers": 2, "decoder_layers": 2, "num_decoder_layers": 2, "depths": [1, 1],
    "intermediate_size": 24, "d_ff": 24, "d_inner": 24, "n_inner": 24, "ffn_dim": 24, "hidden_dim": 24,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8,
    "num_attention_heads": 4, "num_heads": 4, "n_head": 4, "n_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "d_kv": 4, "d_head": 4, "rotary_dim": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8,
    "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4, "state_size": 4, "time_step_rank": 4,
    "mamba_d_state": 4, "mamba_dt_rank": 4, "n_groups": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 4, "linear_value_head_dim": 4, "num_global_layers": 1,
    # inputs
    "vocab_size": VOCABULARY, "max_position_embeddings": 64, "n_positions": 64, "max_source_positions": 64,
    "max_target_positions": 64, "type_vocab_size": 2, "sliding_window": 8, "image_size": 16, "patch_size": 4,
    "num_mel_bins": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    # nothing random, nothing tied
    "tie_word_embeddings": False, "router_jitter_noise": 0.0, "apply_spec_augment": False, "layerdrop": 0.0,
    "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "drop_path_rate": 0.0, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "attention_dropout": 0.0, "hidden_dropout": 0.0, "dropout": 0.0,
    "activation_dropout": 0.0, "feat_proj_dropout": 0.0, "final_dropout": 0.0, "dropout_rate": 0.0,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "embd_dropout": 0.0, "resid_dropout": 0.0,
    "attn_dropout": 0.0, "classifier_dropout": 0.0, "embedding_dropout": 0.0,
}  # fmt: skip


def build(name: str, config: str = "", without: tuple[str, ...] = (), **changes: Any) -> nn.Module:
    """A model with random weights.

    Args:
        name: Class of the model.
        config: Class of its configuration; by default the model's name with ``Config`` for its last word.
        without: Keys of :data:`TINY` that mean something else here.
        changes: Further arguments of the configuration.
    """
    for ending in ("ForCausalLM", "ForMaskedLM", "LMHeadModel", "ForPreTraining", "ForImageClassification", "Model"):
        config = config or (name.removesuffix(ending) + "Config") * name.endswith(ending)
    kind = getattr(transformers, config)
    synonyms = getattr(kind, "attribute_map", {})
    known = {**kind().to_dict(), **synonyms}
    given = {key: value for key, value in TINY.items() if key in known and key not in without}
    given = {key: value for key, value in given.items() if synonyms.get(key) not in given}
    arguments = kind(**{**given, **changes})
    arguments._experts_implementation = "eager"  # the others have no float64
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, name)(arguments)
    with torch.no_grad():  # with weights too small, attention is uniform and hides what it depends on
        for weight in model.parameters():
            if weight.dim() > 1 and weight.numel() > 1 and weight.std() < 0.25:
                weight.mul_(0.3 / weight.std().clamp_min(1e-3))
    return model


def case(model: nn.Module, batch: Batch) -> Case:
    """The model's own loss where it has one, or a loss of all that it returns."""

    def loss(number: int) -> Tensor:
        outputs = model(**batch(number))
        if getattr(outputs, "loss", None) is not None:
            own: Tensor = outputs.loss
            return own
        return weighted(number, *_outputs(dict(outputs)))

    return model, loss


def _outputs(item: object) -> list[Tensor]:
    if isinstance(item, dict):
        return [tensor for key, value in item.items() if key != "past_key_values" for tensor in _outputs(value)]
    if isinstance(item, (list, tuple)):
        return [tensor for value in item for tensor in _outputs(value)]
    return [item] if isinstance(item, torch.Tensor) and item.requires_grad else []


# -- batches -----------------------------------------------------------------------------------------------------------


def ids(number: int, length: int = 10) -> Tensor:
    return torch.randint(3, VOCABULARY, (2, length), generator=seeded(number))


def tokens(number: int) -> dict[str, Any]:
    return {"input_ids": ids(number)}


def labelled(number: int) -> dict[str, Any]:
    return {"input_ids": ids(number), "labels": ids(number + 50)}


def pairs(number: int) -> dict[str, Any]:
    return {"input_ids": ids(number), "decoder_input_ids": ids(number + 50)}


def images(size: int, batch: int = 2) -> Batch:
    return lambda number: {"pixel_values": normal(number, batch, 3, size, size)}


def sound(number: int) -> dict[str, Any]:
    return {"input_values": normal(number, 2, 800)}


def spectrum(*shape: int) -> Batch:
    return lambda number: {"input_features": normal(number, 2, *shape), "decoder_input_ids": ids(number)}


# -- architectures -----------------------------------------------------------------------------------------------------

DECODERS: dict[str, dict[str, Any]] = {
    name: {}
    for name in (
        "Llama", "Mistral", "Mixtral", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "Qwen3Next", "Gemma", "Gemma2",
        "Olmo", "Olmo2", "Olmoe", "FlexOlmo", "Phi", "Phi3", "Phimoe", "StableLm", "Cohere", "Cohere2", "Granite",
        "GraniteMoe", "Persimmon", "Starcoder2", "Mamba", "FalconMamba", "Bloom", "GPTNeoX", "GPTJ", "GPTBigCode",
        "OPT", "CodeGen", "Falcon", "Mpt", "RecurrentGemma", "Glm4", "Glm4Moe", "Exaone4", "Nemotron", "Helium",
        "Lfm2", "Apertus", "BitNet", "DiffLlama", "Doge", "Dots1", "JetMoe", "MiniMax", "ModernBertDecoder", "BioGpt",
        "NanoChat", "Afmoe", "GptOss", "HunYuanDenseV1",
    )
}  # fmt: skip
DECODERS |= {
    "GPTNeo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "DeepseekV2": {"num_key_value_heads": 4},
    "DeepseekV3": {"num_key_value_heads": 4},
    "Jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "use_mamba_kernels": False},
    "Mamba2": {"num_heads": 8, "chunk_size": 4},
    "Zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "use_mamba_kernels": False},
    "Gemma3": {"config": "Gemma3TextConfig"},
    "Llama4": {"config": "Llama4TextConfig"},
    "Rwkv": {"attention_hidden_size": 16},
}

WAVES: dict[str, Any] = {
    "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 4), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0, "mask_feature_prob": 0.0,
}  # fmt: skip
CONFORMER = WAVES | {"position_embeddings_type": "relative", "conv_depthwise_kernel_size": 5}
DISENTANGLED: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
MIXED_DEBERTA = DISENTANGLED | {"conv_kernel_size": 3, "position_buckets": 4, "norm_rel_ebd": "layer_norm"}
PROPHET: dict[str, Any] = {f"num_{side}_layers": 1 for side in ("encoder", "decoder")}
PROPHET |= {f"num_{side}_attention_heads": 4 for side in ("encoder", "decoder")}
MASKED: dict[str, Any] = {
    "decoder_hidden_size": 8, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1,
    "decoder_intermediate_size": 8,
}  # fmt: skip
DETECTION: dict[str, Any] = {
    "image_size": 32, "window_block_indices": [0], "window_size": 2, "residual_block_indices": [1],
    "use_relative_position_embeddings": True,
}  # fmt: skip
PYRAMID: dict[str, Any] = {
    "num_encoder_blocks": 2, "num_attention_heads": [1, 2], "patch_sizes": [7, 3], "strides": [4, 2],
    "sr_ratios": [2, 1], "mlp_ratios": [2, 2],
}  # fmt: skip
WINDOWS: dict[str, Any] = {"depths": [1, 2], "num_heads": [2, 4], "window_size": 2, "image_size": 32, "embed_dim": 8}
STAGES: dict[str, Any] = {"embedding_size": 8}

OTHERS: dict[str, tuple[Batch, dict[str, Any]]] = {
    "GPT2LMHeadModel": (labelled, {}),
    # encoders of text
    "BertForMaskedLM": (labelled, {}),
    "RobertaForMaskedLM": (labelled, {}),
    "RobertaPreLayerNormModel": (tokens, {}),
    "AlbertForMaskedLM": (labelled, {"embedding_size": 8}),
    "DistilBertForMaskedLM": (labelled, {"without": ("num_hidden_layers",)}),
    "ElectraForPreTraining": (tokens, {"embedding_size": 8}),
    "DebertaModel": (tokens, DISENTANGLED),
    "DebertaV2Model": (
        tokens,
        DISENTANGLED | {"conv_kernel_size": 3, "position_buckets": 4, "norm_rel_ebd": "layer_norm"},
    ),
    "MPNetModel": (tokens, {}),
    "FunnelModel": (tokens, {"block_sizes": [1, 1], "num_decoder_layers": 1, "without": ("num_hidden_layers",)}),
    "LongformerModel": (tokens, {"attention_window": 4}),
    "BigBirdModel": (tokens, {"attention_type": "original_full"}),
    "XLNetModel": (tokens, {}),
    "ModernBertForMaskedLM": (labelled, {}),
    "RoFormerModel": (tokens, {}),
    "FNetModel": (tokens, {}),
    "SqueezeBertModel": (tokens, {f"{kind}_groups": 4 for kind in ("q", "k", "v", "intermediate", "output")}),
    "MobileBertModel": (tokens, {"embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8}),
    "ConvBertModel": (tokens, {"conv_kernel_size": 3, "head_ratio": 2}),
    "NystromformerModel": (tokens, {"num_landmarks": 5, "segment_means_seq_len": 10}),
    "IBertModel": (tokens, {}),
    "EsmModel": (tokens, {"mask_token_id": 3, "position_embedding_type": "rotary", "token_dropout": False}),
    "CanineModel": (tokens, {}),
    "LayoutLMModel": (tokens, {}),
    # from sequence to sequence
    "T5Model": (pairs, {}),
    "UMT5Model": (pairs, {}),
    "LongT5Model": (pairs, {}),
    "SwitchTransformersModel": (pairs, {}),
    "BartModel": (pairs, {}),
    "MBartModel": (pairs, {}),
    "PegasusModel": (pairs, {}),
    "MarianModel": (pairs, {"scale_embedding": True}),
    "BlenderbotModel": (pairs, {}),
    "ProphetNetModel": (pairs, PROPHET),
    "WhisperModel": (spectrum(8, 20), {"max_source_positions": 10}),
    "Speech2TextModel": (spectrum(20, 8), {"input_feat_per_channel": 8, "conv_channels": 8, "num_conv_layers": 2}),
    # images
    "ViTModel": (images(16), {}),
    "DeiTModel": (images(16), {}),
    "BeitModel": (images(16), {"use_relative_position_bias": True, "layer_scale_init_value": 0.1}),
    "Dinov2Model": (images(16), {}),
    "SwinModel": (images(32), WINDOWS),
    "Swinv2Model": (images(32), WINDOWS),
    "ConvNextForImageClassification": (images(64), {"num_stages": 2}),
    "ConvNextV2Model": (images(64), {"num_stages": 2}),
    "ResNetModel": (images(32, 4), STAGES),
    "RegNetModel": (images(32, 4), STAGES | {"groups_width": 4}),
    "BitModel": (images(32), STAGES | {"num_groups": 4}),
    "SegformerModel": (images(32), PYRAMID),
    "PvtModel": (images(32), PYRAMID | {"sequence_reduction_ratios": [2, 1], "patch_sizes": [4, 2], "image_size": 32}),
    "PoolFormerModel": (
        images(32),
        {"num_encoder_blocks": 2, "patch_sizes": [7, 3], "strides": [4, 2], "padding": [2, 1], "mlp_ratio": 2.0},
    ),
    "FocalNetModel": (images(32), {"embed_dim": 8, "focal_levels": [1, 1], "focal_windows": [3, 3], "image_size": 32}),
    "ViTMAEForPreTraining": (images(16), MASKED),
    "VitDetModel": (images(32), DETECTION),
    "CLIPVisionModel": (images(16), {}),
    "SiglipVisionModel": (images(16), {}),
    # sound
    "Wav2Vec2Model": (sound, WAVES),
    "Wav2Vec2Model/layer": (sound, WAVES | {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    "Wav2Vec2ConformerModel": (
        sound,
        WAVES | {"position_embeddings_type": "relative", "conv_depthwise_kernel_size": 5},
    ),
    "HubertModel": (sound, WAVES),
    "WavLMModel": (sound, WAVES | {"num_buckets": 16, "max_bucket_distance": 20}),
    "SEWModel": (sound, WAVES | {"squeeze_factor": 2}),
    "Data2VecAudioModel": (sound, WAVES | {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2}),
}


def architectures() -> dict[str, Callable[[], Case]]:
    """Every case by name."""

    def decoder(name: str) -> Callable[[], Case]:
        model = f"{name}ForCausalLM"
        return lambda: case(build(model, **DECODERS[name]), lambda number: labelled(number) | {"use_cache": False})

    def other(name: str) -> Callable[[], Case]:
        batch, changes = OTHERS[name]
        return lambda: case(build(name.partition("/")[0], **changes), batch)

    return {name: decoder(name) for name in DECODERS} | {name: other(name) for name in OTHERS}
