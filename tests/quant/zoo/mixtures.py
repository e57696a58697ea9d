"""Mixtures of experts."""

from __future__ import annotations

from tests.quant.zoo.decoders import WITHOUT_USUAL_SIZES
from tests.quant.zoo.row import Row
from tests.quant.zoo.settings import GRANITE_SCALES, HALF_ROTATED_ROPE, LLAMA_3_ROPE, YARN_ROPE

QWEN_EXPERTS = {"num_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
DEEPSEEK_V2 = {
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 2,
    # transformers gives this epsilon to the norm of the compressed keys, whatever the settings say.
    "rms_norm_eps": 1e-6,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 27,
    "head_dim": 16,
    "num_key_value_heads": 4,
    "hidden_size": 64,
    "routed_scaling_factor": 2.0,
    "intermediate_size": 96,
}
DEEPSEEK_V3 = {
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 4,
    "routed_scaling_factor": 2.5,
    "head_dim": 16,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-6,
}
_ROUTED = ("n_routed_experts", "n_shared_experts", "moe_intermediate_size", "n_group", "topk_group", "norm_topk_prob")
YOUTU = {
    **DEEPSEEK_V3,
    **dict.fromkeys((*_ROUTED, "num_experts_per_tok", "routed_scaling_factor", "first_k_dense_replace", "head_dim")),
}
INDEXED = {**DEEPSEEK_V3, "index_topk": 64, "index_head_dim": 64, "index_n_heads": 16}
WINDOWED_GRANITE = {
    "sliding_window": 48,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    "layer_rope_theta": [0, 30000.0, 30000.0],
}
COHERE_MOE = {
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "num_shared_experts": 2,
    "intermediate_size": 64,
    "prefix_dense_intermediate_size": 256,
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "num_hidden_layers": 4,
    "sliding_window": 48,
    "head_dim": 32,
    "logit_scale": 0.5,
}
LAGUNA = {
    "head_dim": 32,
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 48,
    "sliding_window": 48,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    "num_attention_heads_per_layer": [4, 6, 6],
    "moe_routed_scaling_factor": 2.5,
    "rope_theta": None,
}
MIMO = {
    "head_dim": 48,
    "v_head_dim": 32,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 64,
    "sliding_window": 48,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    "rope_theta": None,
}
LLAMA_4 = {
    "num_hidden_layers": 4,
    "intermediate_size": 64,
    "intermediate_size_mlp": 256,
    "num_local_experts": 12,
    "head_dim": 32,
    "num_experts_per_tok": 1,
}
ROUTED_EXPERTS = {
    "n_routed_experts": 12,
    "n_shared_experts": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 3,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
    "head_dim": 32,
}
GPT_OSS = {
    "head_dim": 32,
    "num_local_experts": 12,
    "num_experts_per_tok": 3,
    "sliding_window": 48,
    "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
    "intermediate_size": 96,
}
AFMOE = {
    "head_dim": 32,
    "num_dense_layers": 1,
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "num_shared_experts": 2,
    "moe_intermediate_size": 64,
    "route_scale": 2.5,
    "mup_enabled": True,
    "sliding_window": 48,
    "num_hidden_layers": 4,
}
EXAONE_MOE = {
    "head_dim": 32,
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "num_shared_experts": 2,
    "moe_intermediate_size": 64,
    "sliding_window": 48,
    "num_hidden_layers": 4,
}
HUNYUAN_V3 = {
    "head_dim": 32,
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "num_shared_experts": 2,
    "moe_intermediate_size": 64,
}
MIXTURES: dict[str, Row] = {
    "glm4moe, solar": Row("SolarOpen", {**ROUTED_EXPERTS, "first_k_dense_replace": None}),
    "afmoe": Row("Afmoe", AFMOE),
    "exaone-moe": Row("ExaoneMoe", EXAONE_MOE),
    "hy_v3": Row("HYV3", HUNYUAN_V3),
    "llama, mixtral": Row("Mixtral", {"num_local_experts": 12, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2moe": Row("Qwen2Moe", {**QWEN_EXPERTS, "shared_expert_intermediate_size": 96, "norm_topk_prob": False}),
    "qwen3moe": Row("Qwen3Moe", {**QWEN_EXPERTS, "head_dim": 64, "norm_topk_prob": True}),
    "granitemoe": Row("GraniteMoe", {**GRANITE_SCALES, "num_local_experts": 12, "num_experts_per_tok": 3}),
    "granitemoe, shared": Row(
        "GraniteMoeShared",
        {**GRANITE_SCALES, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 96},
    ),
    "deepseek2": Row("DeepseekV2", DEEPSEEK_V2, spread=1.5),
    "deepseek2, yarn": Row(
        "DeepseekV2",
        {**DEEPSEEK_V2, "rope_scaling": {**YARN_ROPE, "mscale": 0.707, "mscale_all_dim": 0.707}},
        spread=1.5,
    ),
    "gpt-oss": Row("GptOss", GPT_OSS),
    "gpt-oss, yarn": Row(
        "GptOss", {**GPT_OSS, "rope_parameters": {**YARN_ROPE, "rope_theta": 150000.0, "truncate": True}}, spread=2.0
    ),
    "deepseek2, v3": Row("DeepseekV3", DEEPSEEK_V3),
    "deepseek2, v3 yarn": Row(
        "DeepseekV3",
        {**DEEPSEEK_V3, "rope_scaling": {**YARN_ROPE, "mscale": 1.0, "mscale_all_dim": 1.0, "rope_theta": 1e5}},
    ),
    "deepseek2, moonlight": Row(
        "DeepseekV3",
        {**DEEPSEEK_V2, "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "first_k_dense_replace": 25},
        spread=1.5,
    ),
    "deepseek32": Row("DeepseekV32", INDEXED, spread=2.0),
    "glm-dsa": Row("GlmMoeDsa", INDEXED, spread=2.0),
    "minicpm3": Row(
        "MiniCPM3",
        {
            **YOUTU,
            "tie_word_embeddings": False,
            "scale_emb": 12,
            "scale_depth": 1.4,
            "dim_model_base": 256,
        },
    ),
    "cohere2moe": Row("Cohere2Moe", COHERE_MOE),
    "cohere2moe, sigmoid": Row(
        "Cohere2Moe",
        {**COHERE_MOE, "expert_selection_fn": "sigmoid", "num_shared_experts": 0, "rms_norm_eps": None},
    ),
    "laguna": Row("Laguna", LAGUNA),
    "laguna, per element": Row(
        "Laguna",
        {
            **LAGUNA,
            "gating": "per-element",
            "layer_types": ["full_attention"] * 3,
            "num_attention_heads_per_layer": None,
        },
    ),
    "mimo2": Row("MiMoV2Flash", MIMO),
    "mellum": Row(
        "Mellum",
        {
            **QWEN_EXPERTS,
            "decoder_sparse_step": None,
            "head_dim": 64,
            "sliding_window": 48,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_theta": None,
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": 30000.0}
                for kind in ("full_attention", "sliding_attention")
            },
        },
    ),
    "granite_swa": Row("GraniteSWA", {**GRANITE_SCALES, **WINDOWED_GRANITE}),
    "granite_swa, experts": Row(
        "GraniteMoeSWA",
        {
            **GRANITE_SCALES,
            **WINDOWED_GRANITE,
            "num_local_experts": 12,
            "num_experts_per_tok": 3,
            "shared_intermediate_size": 96,
            "intermediate_size": 64,
        },
    ),
    "deepseek2, glm 4.7 flash": Row(
        "Glm4MoeLite",
        {**DEEPSEEK_V3, "mlp_layer_types": ["dense", "sparse", "sparse"], "first_k_dense_replace": None},
    ),
    "glm4moe": Row(
        "Glm4Moe", {**ROUTED_EXPERTS, "attention_bias": True, "use_qk_norm": True, "rope_parameters": HALF_ROTATED_ROPE}
    ),
    "glm4moe, air": Row("Glm4Moe", {**ROUTED_EXPERTS, "attention_bias": True, "rope_parameters": HALF_ROTATED_ROPE}),
    "dots1": Row("Dots1", {**ROUTED_EXPERTS, "num_key_value_heads": 4, "sliding_window": None}),
    "ernie4_5-moe": Row(
        "Ernie4_5_Moe",
        {
            "moe_num_experts": 12,
            "moe_k": 3,
            "moe_intermediate_size": 64,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "tie_word_embeddings": True,
        },
    ),
    "hunyuan-moe": Row("HunYuanMoEV1", {"head_dim": 32, "num_experts": 12, "moe_topk": 3}),
    "minimax-m2": Row(
        "MiniMaxM2", {"head_dim": 32, "num_local_experts": 12, "num_experts_per_tok": 3, "rotary_dim": 16}
    ),
    "llama4": Row(
        "Llama4",
        {
            **LLAMA_4,
            "num_experts_per_tok": 2,
            "rope_scaling": {**LLAMA_3_ROPE, "factor": 16.0, "high_freq_factor": 1.0},
        },
    ),
    "llama4, maverick": Row(
        "Llama4", {**LLAMA_4, "interleave_moe_layer_step": 2, "num_local_experts": 128, "use_qk_norm": False}
    ),
    "dbrx": Row(
        "Dbrx",
        {
            **WITHOUT_USUAL_SIZES,
            "d_model": 128,
            "n_heads": 4,
            "n_layers": 3,
            "max_seq_len": 512,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 6.0, "rope_theta": 500000.0},
            "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 12, "moe_top_k": 3},
            "rope_parameters": {"rope_type": "default", "rope_theta": 30000.0},
        },
        spread=2.0,
    ),
    "olmoe": Row("Olmoe", {"num_experts": 12, "num_experts_per_tok": 3, "num_key_value_heads": 4}),
}
