"""Small random models of every architecture, made by transformers, with attention that is peaked and logits that vary.

The weights come from NumPy's frozen generator and the tensor's name, so a model is the same wherever it is made.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.quant.support import DEMO

VOCABULARY = 4160
# The first tokens of the demo's tokenizer.
NAMED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SIZES = {
    **{"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "vocab_size": VOCABULARY},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "rope_theta": 30000.0},
}
# What keeps norms from dividing by zero, by any of its names: no family's default, and large enough to be noticed.
EPSILON = 1e-2
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")


class Row(NamedTuple):
    """An architecture: what transformers calls it, how its config differs from `SIZES` (None: it has no such key).

    Of a model that also sees, this config is that of its language model, and `around` what stands around it. Norms of
    heads are by `heads` larger than in other rows, for attention that is scaled otherwise.
    """

    kind: str
    config: Mapping[str, Any] = {}
    task: str = "ForCausalLM"
    spread: float = 3.0
    around: Mapping[str, Any] = {}
    heads: float = 1.0


LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LAYERS = ["sliding_attention", "full_attention"]
WINDOW = {"head_dim": 64, "sliding_window": 48, "num_hidden_layers": 2, "layer_types": LAYERS}
LONG = {
    "rope_type": "longrope",
    "long_factor": [1.0 + pair / 4 for pair in range(16)],
    "short_factor": [1.0 + pair / 16 for pair in range(16)],
}
SCALES = {
    **{"embedding_multiplier": 12.0, "attention_multiplier": 0.3, "logits_scaling": 0.5},
    **{"residual_multiplier": 0.22, "tie_word_embeddings": True},
}
EXPERTS = {"num_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
# The norm of its compressed keys has this epsilon in transformers, whatever the config says.
DEEPSEEK = {
    **{"q_lora_rank": None, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16},
    **{"v_head_dim": 24, "n_routed_experts": 6, "n_shared_experts": 2, "moe_intermediate_size": 32},
    **{
        "first_k_dense_replace": 2,
        "rms_norm_eps": 1e-6,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 27,
        "head_dim": 16,
    },
    **{"num_key_value_heads": 4, "hidden_size": 64, "routed_scaling_factor": 2.0, "intermediate_size": 96},
}
HALF = {"rope_type": "default", "rope_theta": 30000.0, "partial_rotary_factor": 0.5}
DEEPSEEK_3 = {
    **{"q_lora_rank": 48, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 24},
    **{"n_routed_experts": 16, "n_shared_experts": 1, "moe_intermediate_size": 64, "first_k_dense_replace": 1},
    **{"n_group": 4, "topk_group": 2, "num_experts_per_tok": 4, "routed_scaling_factor": 2.5, "head_dim": 16},
    **{"num_key_value_heads": 4, "num_hidden_layers": 3, "norm_topk_prob": True, "rms_norm_eps": 1e-6},
}
BETAS = {"beta_fast": 4.0, "beta_slow": 0.5}
LLAMA_4 = {
    **{"num_hidden_layers": 4, "intermediate_size": 64, "intermediate_size_mlp": 256, "num_local_experts": 12},
    **{"head_dim": 32, "num_experts_per_tok": 1},
}
ONE_STEP = {"factor": 16.0, "high_freq_factor": 1.0, "original_max_position_embeddings": 64}
ROUTED = {
    **{"n_routed_experts": 12, "n_shared_experts": 2, "moe_intermediate_size": 64, "first_k_dense_replace": 1},
    **{"num_experts_per_tok": 3, "routed_scaling_factor": 1.5, "norm_topk_prob": True, "head_dim": 32},
}
ONE = {"mscale": 1.0, "mscale_all_dim": 1.0, "rope_theta": 1e5}
MSCALE = {"mscale": 0.707, "mscale_all_dim": 0.707}
GPT_OSS = {
    **{"head_dim": 32, "num_local_experts": 12, "num_experts_per_tok": 3, "sliding_window": 48},
    **{"rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}, "intermediate_size": 96},
}
OLMO = {
    "full_attention": {**YARN, "rope_theta": 30000.0, "attention_factor": 1.138629436},
    "sliding_attention": {"rope_type": "default", "rope_theta": 30000.0},
}
# Kinds whose configuration alone is that of a larger model, and buffers that are trained.
TEXT_KINDS = ("Gemma3", "Gemma3n", "Gemma4", "Llama4")
LEARNED = ("correction_bias", "expert_bias", "layer_scalar")
# Settings for which None says something.
KEPT = ("sliding_window", "q_lora_rank")
# With random weights and norms behind every part, deep encoders forget which token is which.
SHALLOW = {"num_hidden_layers": 2}
NO_SIZES: dict[str, Any] = dict.fromkeys(SIZES.keys() - {"vocab_size", "bos_token_id", "eos_token_id"})
RANKS = "ForSequenceClassification"
SEES = "ForConditionalGeneration"
EYES = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 14},
}
QWEN_EYES = {"depth": 2, "num_heads": 2, "patch_size": 14, "hidden_size": 32}
MROPE = {"mrope_section": [4, 6, 6]}
BASES = {
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 30000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
    }
}
MODERN = {"num_key_value_heads": None, "local_attention": 32, "num_hidden_layers": 4, "num_labels": 1, **BASES}
MIXERS = {"mamba_n_heads": 8, "mamba_d_state": 32, "mamba_chunk_size": 64}
GEMMA_4 = {
    **{"head_dim": 32, "global_head_dim": 64, "sliding_window": 48, "num_hidden_layers": 2, "layer_types": LAYERS},
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "rope_theta": 30000.0, "partial_rotary_factor": 0.5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
    },
    **{"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": VOCABULARY, "final_logit_softcapping": 10.0},
}
GRANITE_4 = {
    **{**SCALES, **MIXERS, "layer_types": ["mamba", "attention", "mamba"], "shared_intermediate_size": 96},
    "position_embedding_type": "rope",
}
NEMOTRON_LAYERS = ["linear_attention", "full_attention", "mlp", "linear_attention"]
NEMOTRON_3_LAYERS = ["linear_attention", "moe", "full_attention", "moe", "linear_attention"]
NEMOTRON_H = {
    **{"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 32, "n_groups": 2, "chunk_size": 64},
    **{"num_hidden_layers": None, "head_dim": 32},
}
FALCON_H1 = {
    **{**MIXERS, "mamba_d_ssm": 192, "mamba_n_heads": 6, "mamba_n_groups": 2, "head_dim": 32},
    **{"attention_in_multiplier": 1.5, "attention_out_multiplier": 0.75, "key_multiplier": 0.5},
    **{"embedding_multiplier": 5.0, "lm_head_multiplier": 0.5, "mlp_multipliers": [0.75, 0.5]},
    **{"ssm_in_multiplier": 1.25, "ssm_out_multiplier": 0.5, "ssm_multipliers": [0.5, 0.75, 0.125, 0.25, 0.75]},
}
ZOO: dict[str, Row] = {
    "llama": Row("Llama"),
    "llama, biases": Row("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": Row("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama, wide rotation": Row("Llama", {"rope_theta": 500000.0, "rms_norm_eps": 1e-3}),
    "llama, linear": Row("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama, 3.1": Row("Llama", {"rope_scaling": {**LLAMA_3, "original_max_position_embeddings": 64}}),
    "llama, yarn": Row("Llama", {"rope_scaling": YARN}),
    "llama, mistral": Row("Mistral", {"sliding_window": None, "head_dim": 64}),
    "mistral3": Row(
        "Ministral3", {"rope_parameters": {**YARN, **BETAS, **ONE, "llama_4_scaling_beta": 0.1}, "head_dim": 64}
    ),
    "smollm3": Row("SmolLM3", {"num_hidden_layers": 5}),
    "granite": Row("Granite", SCALES),
    "qwen2": Row("Qwen2"),
    "qwen2, tied": Row("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": Row("Qwen3", {"head_dim": 64}),
    "gemma": Row("Gemma", {"head_dim": 64, "num_hidden_layers": 2}, spread=2.0),
    "gemma2": Row(
        "Gemma2",
        {**WINDOW, "query_pre_attn_scalar": 64, "attn_logit_softcapping": 10.0, "final_logit_softcapping": 10.0},
        spread=1.2,
    ),
    "gemma3": Row("Gemma3", {**WINDOW, "query_pre_attn_scalar": 64, "rope_local_base_freq": 3000.0}, spread=2.0),
    "phi2": Row("Phi", {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "phi3": Row("Phi3", {"sliding_window": 500}),
    "phi3, long rope": Row("Phi3", {"rope_scaling": LONG, "original_max_position_embeddings": 128}),
    "phi3, partial rotation": Row("Phi3", {"partial_rotary_factor": 0.5, "num_key_value_heads": 1}),
    "olmo2": Row("Olmo2"),
    "olmo2, windows": Row("Olmo3", {"sliding_window": 48, "num_hidden_layers": 4, "rope_parameters": OLMO}),
    "glm4": Row(
        "Glm4", {"head_dim": 32, "attention_bias": True, "rope_parameters": {**HALF, "partial_rotary_factor": 0.25}}
    ),
    "chatglm": Row("Glm", {"head_dim": 32, "attention_bias": True}),
    "command-r": Row("Cohere", {"logit_scale": 0.4}),
    "cohere2": Row("Cohere2", {"logit_scale": 0.4, "sliding_window": 48, "num_hidden_layers": 4}),
    "gpt2": Row(
        "GPT2",
        {**NO_SIZES, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 512},
        "LMHeadModel",
    ),
    "gptneox": Row("GPTNeoX", {"num_key_value_heads": None, "rope_parameters": HALF}),
    "gptneox, serial": Row("GPTNeoX", {"num_key_value_heads": None, "use_parallel_residual": False}),
    "starcoder2": Row("Starcoder2", {"sliding_window": None}),
    "stablelm": Row("StableLm", {"use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "stablelm, parallel": Row("StableLm", {"use_parallel_residual": True}),
    "llama, mixtral": Row("Mixtral", {"num_local_experts": 12, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2moe": Row("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 96, "norm_topk_prob": False}),
    "qwen3moe": Row("Qwen3Moe", {**EXPERTS, "head_dim": 64, "norm_topk_prob": True}),
    "granitemoe": Row("GraniteMoe", {**SCALES, "num_local_experts": 12, "num_experts_per_tok": 3}),
    "granitemoe, shared": Row(
        "GraniteMoeShared",
        {**SCALES, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 96},
    ),
    "deepseek2": Row("DeepseekV2", DEEPSEEK, spread=1.5),
    "deepseek2, yarn": Row("DeepseekV2", {**DEEPSEEK, "rope_scaling": {**YARN, **MSCALE}}, spread=1.5),
    "gpt-oss": Row("GptOss", GPT_OSS),
    "gpt-oss, yarn": Row(
        "GptOss", {**GPT_OSS, "rope_parameters": {**YARN, "rope_theta": 150000.0, "truncate": True}}, spread=2.0
    ),
    "deepseek2, v3": Row("DeepseekV3", DEEPSEEK_3),
    "deepseek2, v3 yarn": Row("DeepseekV3", {**DEEPSEEK_3, "rope_scaling": {**YARN, **ONE}}),
    "deepseek2, moonlight": Row(
        "DeepseekV3",
        {**DEEPSEEK, "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "first_k_dense_replace": 25},
        spread=1.5,
    ),
    "deepseek2, glm 4.7 flash": Row(
        "Glm4MoeLite",
        {**DEEPSEEK_3, "mlp_layer_types": ["dense", "sparse", "sparse"], "first_k_dense_replace": None},
    ),
    "glm4moe": Row("Glm4Moe", {**ROUTED, "attention_bias": True, "use_qk_norm": True, "rope_parameters": HALF}),
    "glm4moe, air": Row("Glm4Moe", {**ROUTED, "attention_bias": True, "rope_parameters": HALF}),
    "dots1": Row("Dots1", {**ROUTED, "num_key_value_heads": 4, "sliding_window": None}),
    "ernie4_5-moe": Row(
        "Ernie4_5_Moe",
        {
            **{"moe_num_experts": 12, "moe_k": 3, "moe_intermediate_size": 64, "moe_num_shared_experts": 2},
            **{"moe_layer_start_index": 1, "tie_word_embeddings": True},
        },
    ),
    "hunyuan-moe": Row("HunYuanMoEV1", {"head_dim": 32, "num_experts": 12, "moe_topk": 3}),
    "minimax-m2": Row(
        "MiniMaxM2", {"head_dim": 32, "num_local_experts": 12, "num_experts_per_tok": 3, "rotary_dim": 16}
    ),
    "llama4": Row("Llama4", {**LLAMA_4, "num_experts_per_tok": 2, "rope_scaling": {**LLAMA_3, **ONE_STEP}}),
    "llama4, maverick": Row(
        "Llama4", {**LLAMA_4, "interleave_moe_layer_step": 2, "num_local_experts": 128, "use_qk_norm": False}
    ),
    "lfm2moe": Row(
        "Lfm2Moe",
        {
            **{"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1, "num_experts": 12},
            **{"num_experts_per_tok": 3, "moe_intermediate_size": 64},
        },
    ),
    "olmoe": Row("Olmoe", {"num_experts": 12, "num_experts_per_tok": 3, "num_key_value_heads": 4}),
    "seed_oss": Row("SeedOss", {"head_dim": 64, "attention_bias": True, "attention_out_bias": False}),
    "ernie4_5": Row("Ernie4_5", {"head_dim": 32}),
    "hunyuan-dense": Row(
        "HunYuanDenseV1",
        {"head_dim": 32, "rope_scaling": {"rope_type": "dynamic", "alpha": 100.0, "factor": 1.0}},
    ),
    "lfm2": Row(
        "Lfm2",
        {
            **{"layer_types": ["full_attention", "conv", "conv"], "block_auto_adjust_ff_dim": False},
            **{"block_ff_dim": 256, "num_key_value_heads": 2, "conv_L_cache": 4},
        },
    ),
    "mamba": Row(
        "Mamba",
        {
            **{"state_size": 8, "conv_kernel": 3, "time_step_rank": 6},
            **dict.fromkeys(("intermediate_size", "num_attention_heads", "num_key_value_heads")),
        },
        spread=1.5,
    ),
    "llama, llava": Row(
        "Llava",
        {"model_type": "llama"},
        SEES,
        around={"vision_config": {"model_type": "clip_vision_model", **EYES}},
    ),
    "llama, idefics3": Row(
        "Idefics3",
        {"model_type": "llama", "tie_word_embeddings": True},
        SEES,
        around={"vision_config": EYES, "scale_factor": 1, "tie_word_embeddings": True},
    ),
    "gemma3, sees": Row(
        "Gemma3",
        {**WINDOW, "query_pre_attn_scalar": 64, "rope_local_base_freq": 3000.0},
        SEES,
        spread=0.7,
        around={"vision_config": EYES, "mm_tokens_per_image": 4},
    ),
    "mistral3, sees": Row(
        "Mistral3",
        {
            **{"rope_parameters": {**YARN, **BETAS, **ONE, "llama_4_scaling_beta": 0.1}, "head_dim": 64},
            "model_type": "ministral3",
        },
        SEES,
        around={"vision_config": {"model_type": "pixtral", **EYES}, "tie_word_embeddings": False},
    ),
    "qwen2, vl": Row(
        "Qwen2VL",
        {"rope_scaling": {"type": "mrope", **MROPE}},
        SEES,
        around={"vision_config": {**QWEN_EYES, "embed_dim": 32, "hidden_size": 128}},
    ),
    "qwen2, 2.5 vl": Row(
        "Qwen2_5_VL",
        {"rope_scaling": {"type": "mrope", **MROPE}, "tie_word_embeddings": True},
        SEES,
        around={
            "vision_config": {**QWEN_EYES, "out_hidden_size": 128, "intermediate_size": 48},
            "tie_word_embeddings": True,
        },
    ),
    "qwen3, vl": Row(
        "Qwen3VL",
        {"head_dim": 64, "rope_scaling": {"rope_type": "default", "mrope_section": [12, 10, 10]}},
        SEES,
        around={
            "vision_config": {
                **{**QWEN_EYES, "out_hidden_size": 128, "intermediate_size": 48},
                **{"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16},
            }
        },
    ),
    "mamba2": Row(
        "Mamba2",
        {
            **{"num_heads": 8, "head_dim": 32, "state_size": 32, "n_groups": 2, "chunk_size": 64},
            **dict.fromkeys(("intermediate_size", "num_attention_heads", "num_key_value_heads")),
        },
        spread=1.0,
    ),
    "granitehybrid": Row("GraniteMoeHybrid", {**GRANITE_4, "num_local_experts": 12, "num_experts_per_tok": 3}),
    "granitehybrid, no rotation": Row(
        "GraniteMoeHybrid", {**GRANITE_4, "num_local_experts": 0, "position_embedding_type": None}
    ),
    "granitehybrid, attention alone": Row(
        "GraniteMoeHybrid", {**GRANITE_4, "num_local_experts": 0, "layer_types": ["attention"] * 3}
    ),
    "nemotron_h": Row("NemotronH", {**NEMOTRON_H, "layers_block_type": NEMOTRON_LAYERS}, spread=2.0),
    "nemotron_h_moe": Row(
        "NemotronH",
        {
            **{**NEMOTRON_H, "layers_block_type": NEMOTRON_3_LAYERS, "n_routed_experts": 12},
            **{"num_experts_per_tok": 3, "moe_intermediate_size": 64, "moe_shared_expert_intermediate_size": 96},
            **{"routed_scaling_factor": 2.5, "norm_topk_prob": True},
        },
        spread=2.0,
    ),
    "falcon-h1": Row("FalconH1", FALCON_H1),
    "falcon-h1, norms": Row("FalconH1", {**FALCON_H1, "mamba_rms_norm": True, "mamba_norm_before_gate": False}),
    "gemma4": Row("Gemma4", GEMMA_4, spread=1.2, heads=0.25),
    "gemma4, shared keys": Row(
        "Gemma4",
        {
            **GEMMA_4,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 32,
            "num_hidden_layers": 4,
            "layer_types": LAYERS * 2,
        },
        spread=1.15,
        heads=0.23,
    ),
    "gemma4, experts": Row(
        "Gemma4",
        {
            **{**GEMMA_4, "attention_k_eq_v": True, "num_global_key_value_heads": 1, "enable_moe_block": True},
            **{"num_experts": 12, "top_k_experts": 3, "moe_intermediate_size": 64},
        },
        spread=1.2,
        heads=0.25,
    ),
    "arcee": Row("Arcee", {"rope_scaling": {**LLAMA_3, "original_max_position_embeddings": 64}}),
    "nemotron": Row("Nemotron", {"partial_rotary_factor": 0.5}),
    "exaone4": Row(
        "Exaone4",
        {
            **{"sliding_window": None, "layer_types": ["full_attention"] * 3},
            "rope_scaling": {**LLAMA_3, "original_max_position_embeddings": 64},
        },
    ),
    "exaone4, windows": Row(
        "Exaone4",
        {"num_hidden_layers": 64, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "sliding_window": 48},
        spread=1.2,
        heads=0.8,
    ),
    "olmo": Row("Olmo", {"clip_qkv": 4.0}),
    "stablelm, head norms": Row("StableLm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "qwen3, embedding": Row("Qwen3", {"head_dim": 64}, "Model"),
    "qwen3, ranking": Row("Qwen3", {"head_dim": 64, "num_labels": 1}, RANKS),
    "gemma-embedding": Row(
        "Gemma3",
        {**WINDOW, "query_pre_attn_scalar": 64, "rope_local_base_freq": 3000.0, "use_bidirectional_attention": True},
        "TextModel",
        spread=2.0,
    ),
    "bert": Row("Bert", {**SHALLOW, "num_key_value_heads": None}, "Model"),
    "bert, xlm-roberta": Row(
        "XLMRoberta",
        {**SHALLOW, "num_key_value_heads": None, "type_vocab_size": 1, "pad_token_id": 1},
        "Model",
    ),
    "bert, ranking": Row("Bert", {**SHALLOW, "num_key_value_heads": None, "num_labels": 1}, RANKS),
    "bert, xlm-roberta ranking": Row(
        "XLMRoberta",
        {**SHALLOW, "num_key_value_heads": None, "type_vocab_size": 1, "pad_token_id": 1, "num_labels": 1},
        RANKS,
    ),
    "nomic-bert": Row("NomicBert", {"num_key_value_heads": None}, "Model"),
    "modern-bert": Row(
        "ModernBert", {"num_key_value_heads": None, "local_attention": 32, "num_hidden_layers": 4, **BASES}, "Model"
    ),
    "modern-bert, ranking": Row("ModernBert", {**MODERN, "classifier_pooling": "mean"}, RANKS),
    "modern-bert, ranking by its first token": Row("ModernBert", MODERN, RANKS),
}


def config_of(row: Row) -> dict[str, Any]:
    """The settings by which transformers makes the model."""
    own = {key: value for key, value in {**SIZES, **row.config}.items() if value is not None or key in KEPT}
    return {**row.around, "text_config": own} if row.around else own


_HEAD_NORM = re.compile(r"(q|k|query|key)_(layer)?norm\.")


def weight(name: str, shape: tuple[int, ...], spread: float, heads: float = 1.0) -> np.ndarray:
    """float32 weights for the tensor of this name: norms around their middle, matrices by their inputs."""
    random = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) < 2:
        middle = 1.0 if "norm" in name.lower() or "ln_" in name else 0.0
        # Heads that are normalized attend to one token more than to others by these weights alone.
        middle = 2.0 * heads if _HEAD_NORM.search(name) else middle
        return (middle + 0.3 * random).astype(np.float32)
    if name.startswith("classifier") and shape[0] == 1:
        spread *= 4
    return (random * spread / shape[-1] ** 0.5).astype(np.float32)


def make(row: Row, path: Path) -> Path:
    """The model in a folder as its authors would publish it, in several shards, with the demo's tokenizer."""
    import torch
    import transformers

    text = "Text" if row.kind in TEXT_KINDS and not row.around else ""
    made = getattr(transformers, f"{row.kind}{text}Config")(**config_of(row))
    own = made.get_text_config()
    for key in EPSILONS:
        if hasattr(own, key) and key not in row.config:
            setattr(own, key, EPSILON)
    model = getattr(transformers, row.kind + row.task)(made)
    with torch.no_grad():
        learned = ((name, tensor) for name, tensor in model.named_buffers() if name.endswith(LEARNED))
        for name, tensor in (*model.named_parameters(), *learned):
            tensor.copy_(torch.from_numpy(weight(name, tuple(tensor.shape), row.spread, row.heads)))
    model.save_pretrained(path, max_shard_size="1MB")
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    if row.task == RANKS:
        tokenizer["post_processor"] = framed("<|endoftext|>", "<|im_end|>", 1 + (row.kind == "XLMRoberta"))
    else:
        (path / "tokenizer_config.json").write_bytes((DEMO / "tokenizer_config.json").read_bytes())
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert json.loads((path / "config.json").read_text())["architectures"] == [row.kind + row.task]
    return path


def framed(first: str, last: str, between: int) -> dict[str, Any]:
    """The step of a tokenizer that puts special tokens around a text, and `last` between two, once or twice."""
    special = {text: {"SpecialToken": {"id": text, "type_id": 0}} for text in (first, last)}
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    numbers = {name: NAMED.index(name) for name in (first, last)}
    return {
        "type": "TemplateProcessing",
        "single": [special[first], one, special[last]],
        "pair": [special[first], one, *[special[last]] * between, two, special[last]],
        "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]} for text, id in numbers.items()},
    }


def texts(ids: list[int]) -> list[list[int]]:
    """Texts of several lengths, for models that make one score of each."""
    return [ids[start : start + 8 + start // 4] for start in range(0, len(ids) - 64, 8)]


def kinds(pair: list[int]) -> dict[str, Any]:
    """Which of two texts each token belongs to; the first one ends with its separator."""
    import torch

    first = pair.index(NAMED.index("<|im_end|>")) + 1
    return {"token_type_ids": torch.tensor([[0] * first + [1] * (len(pair) - first)])}


def reference(path: Path, row: Row, ids: list[int], pairs: list[list[int]] | None = None) -> np.ndarray:
    """What transformers computes, float32, GELU by the engine's formula: logits `[len(ids), vocabulary]`, of an encoder
    its vectors, and of a ranker the scores of `pairs` or `texts(ids)` (of Qwen 3: how probable "yes" is)."""
    import torch
    import transformers

    made = getattr(transformers, row.kind + row.task)
    model = made.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    for module in list(model.modules()):
        for name, part in module.named_children():
            if "GELU" in type(part).__name__:
                setattr(module, name, tanh_gelu())
    with torch.no_grad():
        if row.task == RANKS:
            asked = [(text, {}) for text in texts(ids)]
            if pairs:
                asked = [(text, kinds(text) if row.kind == "Bert" else {}) for text in pairs]
            scores = torch.cat([model(torch.tensor([text]), **more).logits[0] for text, more in asked])
            return (scores.sigmoid() if row.kind == "Qwen3" else scores).float().numpy()
        found = model(torch.tensor([ids]))
        return (found.logits if hasattr(found, "logits") else found.last_hidden_state)[0].float().numpy()


def attention(path: Path, row: Row, ids: list[int]) -> list[float]:
    """How peaked each layer that attends is: the largest share that a token gets, on average over the later ones."""
    import torch
    import transformers

    made = getattr(transformers, row.kind + row.task)
    model = made.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        layers = getattr(model(torch.tensor([ids]), output_attentions=True), "attentions", None) or ()
    return [float(shares[0, :, 16:].max(-1).values.mean()) for shares in layers if shares is not None]


def tanh_gelu() -> Any:
    """The only GELU that llama.cpp has for these models."""
    import torch

    return torch.nn.GELU(approximate="tanh")
