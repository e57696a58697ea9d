"""Decoders; Gemma 4's model with experts stands beside its others."""

from __future__ import annotations

from tests.quant.zoo.row import SIZES, VOCABULARY, Row
from tests.quant.zoo.settings import (
    GRANITE_SCALES,
    HALF_ROTATED_ROPE,
    LLAMA_3_ROPE,
    MINISTRAL,
    SLIDING_AND_FULL,
    WINDOWED,
    YARN_ROPE,
)

LONG_ROPE = {
    "rope_type": "longrope",
    "long_factor": [1.0 + pair / 4 for pair in range(16)],
    "short_factor": [1.0 + pair / 16 for pair in range(16)],
}
WITHOUT_USUAL_SIZES = dict.fromkeys(SIZES.keys() - {"vocab_size", "bos_token_id", "eos_token_id"})
GEMMA_4 = {
    "head_dim": 32,
    "global_head_dim": 64,
    "sliding_window": 48,
    "num_hidden_layers": 2,
    "layer_types": SLIDING_AND_FULL,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "rope_theta": 30000.0, "partial_rotary_factor": 0.5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
    },
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": VOCABULARY,
    "final_logit_softcapping": 10.0,
}
GEMMA_3N = {
    "head_dim": 32,
    "sliding_window": 48,
    "num_hidden_layers": 2,
    "layer_types": SLIDING_AND_FULL,
    # llama.cpp divides the variance of as many activations by one less.
    "intermediate_size": 12288,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 30000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
    },
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 0,
    "activation_sparsity_pattern": [0.95] * 2,
}
FALCON = {"num_key_value_heads": None, "intermediate_size": None}
DECODERS: dict[str, Row] = {
    "apertus": Row("Apertus", {"rope_scaling": LLAMA_3_ROPE}),
    "falcon": Row("Falcon", FALCON),
    "falcon, two norms": Row("Falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "bloom": Row("Bloom", {"num_key_value_heads": None, "intermediate_size": None, "rope_theta": None}),
    "mpt": Row(
        "Mpt",
        {**WITHOUT_USUAL_SIZES, "d_model": 128, "n_layers": 3, "n_heads": 4, "attn_config": {"clip_qkv": 6.0}},
    ),
    "starcoder": Row(
        "GPTBigCode",
        {**WITHOUT_USUAL_SIZES, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 512, "n_inner": 256},
    ),
    "jais2": Row("Jais2"),
    "hrm_text": Row(
        "HrmText",
        {
            "num_hidden_layers": 2,
            "num_key_value_heads": None,
            "head_dim": 32,
            "H_cycles": 2,
            "L_cycles": 2,
            "embedding_scale": 12.0,
        },
        spread=1.5,
    ),
    "llama": Row("Llama"),
    "llama, biases": Row("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": Row("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama, wide rotation": Row("Llama", {"rope_theta": 500000.0, "rms_norm_eps": 1e-3}),
    "llama, linear": Row("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama, 3.1": Row("Llama", {"rope_scaling": LLAMA_3_ROPE}),
    "llama, yarn": Row("Llama", {"rope_scaling": YARN_ROPE}),
    "llama, mistral": Row("Mistral", {"sliding_window": None, "head_dim": 64}),
    "mistral3": Row("Ministral3", MINISTRAL),
    "smollm3": Row("SmolLM3", {"num_hidden_layers": 5}),
    "granite": Row("Granite", GRANITE_SCALES),
    "qwen2": Row("Qwen2"),
    "qwen2, tied": Row("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": Row("Qwen3", {"head_dim": 64}),
    "gemma": Row("Gemma", {"head_dim": 64, "num_hidden_layers": 2}, spread=2.0),
    "gemma2": Row(
        "Gemma2",
        {**WINDOWED, "query_pre_attn_scalar": 64, "attn_logit_softcapping": 10.0, "final_logit_softcapping": 10.0},
        spread=1.2,
    ),
    "gemma3": Row("Gemma3", {**WINDOWED, "query_pre_attn_scalar": 64, "rope_local_base_freq": 3000.0}, spread=2.0),
    "phi2": Row("Phi", {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "phi3": Row("Phi3", {"sliding_window": 500}),
    "phi3, long rope": Row("Phi3", {"rope_scaling": LONG_ROPE, "original_max_position_embeddings": 128}),
    "phi3, partial rotation": Row("Phi3", {"partial_rotary_factor": 0.5, "num_key_value_heads": 1}),
    "olmo2": Row("Olmo2"),
    "olmo2, windows": Row(
        "Olmo3",
        {
            "sliding_window": 48,
            "num_hidden_layers": 4,
            "rope_parameters": {
                "full_attention": {**YARN_ROPE, "rope_theta": 30000.0, "attention_factor": 1.138629436},
                "sliding_attention": {"rope_type": "default", "rope_theta": 30000.0},
            },
        },
    ),
    "glm4": Row(
        "Glm4",
        {
            "head_dim": 32,
            "attention_bias": True,
            "rope_parameters": {**HALF_ROTATED_ROPE, "partial_rotary_factor": 0.25},
        },
    ),
    "chatglm": Row("Glm", {"head_dim": 32, "attention_bias": True}),
    "command-r": Row("Cohere", {"logit_scale": 0.4}),
    "cohere2": Row("Cohere2", {"logit_scale": 0.4, "sliding_window": 48, "num_hidden_layers": 4}),
    "gpt2": Row(
        "GPT2",
        {**WITHOUT_USUAL_SIZES, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 512},
        "LMHeadModel",
    ),
    "gptneox": Row("GPTNeoX", {"num_key_value_heads": None, "rope_parameters": HALF_ROTATED_ROPE}),
    "gptneox, serial": Row("GPTNeoX", {"num_key_value_heads": None, "use_parallel_residual": False}),
    "starcoder2": Row("Starcoder2", {"sliding_window": None}),
    "stablelm": Row("StableLm", {"use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "stablelm, parallel": Row("StableLm", {"use_parallel_residual": True}),
    "seed_oss": Row("SeedOss", {"head_dim": 64, "attention_bias": True, "attention_out_bias": False}),
    "ernie4_5": Row("Ernie4_5", {"head_dim": 32}),
    "hunyuan-dense": Row(
        "HunYuanDenseV1",
        {"head_dim": 32, "rope_scaling": {"rope_type": "dynamic", "alpha": 100.0, "factor": 1.0}},
    ),
    "gemma3n": Row("Gemma3n", GEMMA_3N, spread=1.2, heads=0.25),
    "gemma4": Row("Gemma4", GEMMA_4, spread=1.2, heads=0.25),
    "gemma4, shared keys": Row(
        "Gemma4",
        {
            **GEMMA_4,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 32,
            "num_hidden_layers": 4,
            "layer_types": SLIDING_AND_FULL * 2,
        },
        spread=1.15,
        heads=0.23,
    ),
    "gemma4, experts": Row(
        "Gemma4",
        {
            **GEMMA_4,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "num_experts": 12,
            "top_k_experts": 3,
            "moe_intermediate_size": 64,
        },
        spread=1.2,
        heads=0.25,
    ),
    "arcee": Row("Arcee", {"rope_scaling": LLAMA_3_ROPE}),
    "nemotron": Row("Nemotron", {"partial_rotary_factor": 0.5}),
    "exaone4": Row(
        "Exaone4",
        {
            "sliding_window": None,
            "layer_types": ["full_attention"] * 3,
            "rope_scaling": LLAMA_3_ROPE,
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
}
