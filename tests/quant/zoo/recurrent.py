"""Models with a state beside attention, or instead of it."""

from __future__ import annotations

from tests.quant.zoo.row import Row
from tests.quant.zoo.settings import GRANITE_SCALES

MAMBA_2_MIXER = {"mamba_n_heads": 8, "mamba_d_state": 32, "mamba_chunk_size": 64}
GRANITE_4 = {
    **GRANITE_SCALES,
    **MAMBA_2_MIXER,
    "layer_types": ["mamba", "attention", "mamba"],
    "shared_intermediate_size": 96,
    "position_embedding_type": "rope",
}
NEMOTRON_H = {
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 32,
    "n_groups": 2,
    "chunk_size": 64,
    "num_hidden_layers": None,
    "head_dim": 32,
}
FALCON_H1 = {
    **MAMBA_2_MIXER,
    "mamba_d_ssm": 192,
    "mamba_n_heads": 6,
    "mamba_n_groups": 2,
    "head_dim": 32,
    "attention_in_multiplier": 1.5,
    "attention_out_multiplier": 0.75,
    "key_multiplier": 0.5,
    "embedding_multiplier": 5.0,
    "lm_head_multiplier": 0.5,
    "mlp_multipliers": [0.75, 0.5],
    "ssm_in_multiplier": 1.25,
    "ssm_out_multiplier": 0.5,
    "ssm_multipliers": [0.5, 0.75, 0.125, 0.25, 0.75],
}
QWEN_LINEAR = {
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "num_hidden_layers": 4,
    "head_dim": 64,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 30000.0, "partial_rotary_factor": 0.25},
}
QWEN_LINEAR_EXPERTS = {
    **QWEN_LINEAR,
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 96,
}
JAMBA = {
    "num_hidden_layers": 4,
    "attn_layer_period": 3,
    "attn_layer_offset": 1,
    "mamba_d_state": 8,
    "mamba_d_conv": 3,
    "mamba_dt_rank": 6,
    "rope_theta": None,
}
LFM2 = {
    "layer_types": ["full_attention", "conv", "conv"],
    "block_auto_adjust_ff_dim": False,
    "block_ff_dim": 256,
    "num_key_value_heads": 2,
    "conv_L_cache": 4,
}
BAMBA = {
    "attn_layer_indices": [1],
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 32,
    "mamba_expand": 2,
    "mamba_d_conv": 3,
    "mamba_chunk_size": 64,
}
KIMI_LINEAR = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "linear_head_dim": 32,
    "linear_num_heads": 4,
    "linear_conv_kernel_dim": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 48,
    "q_lora_rank": None,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "num_experts": 12,
    "num_experts_per_token": 3,
    "num_shared_experts": 2,
    "moe_intermediate_size": 64,
    "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-4,
    "rope_theta": None,
}
RECURRENT: dict[str, Row] = {
    "kimi-linear": Row("KimiLinear", KIMI_LINEAR),
    "qwen35": Row("Qwen3_5", QWEN_LINEAR),
    "qwen35moe": Row("Qwen3_5Moe", QWEN_LINEAR_EXPERTS),
    "qwen3next": Row("Qwen3Next", QWEN_LINEAR_EXPERTS),
    "lfm2moe": Row(
        "Lfm2Moe",
        {
            "layer_types": ["conv", "full_attention", "conv"],
            "num_dense_layers": 1,
            "num_experts": 12,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 64,
        },
    ),
    "lfm2": Row("Lfm2", LFM2),
    "jamba": Row("Jamba", {**JAMBA, "num_experts": 12, "num_experts_per_tok": 3}, spread=1.5),
    "jamba, dense": Row("Jamba", {**JAMBA, "num_experts": 1, "mamba_dt_rank": "auto"}, spread=1.5),
    "mamba": Row(
        "Mamba",
        {
            "state_size": 8,
            "conv_kernel": 3,
            "time_step_rank": 6,
            "intermediate_size": None,
            "num_attention_heads": None,
            "num_key_value_heads": None,
        },
        spread=1.5,
    ),
    "mamba, falcon": Row(
        "FalconMamba",
        {
            "state_size": 8,
            "conv_kernel": 3,
            "time_step_rank": 6,
            "intermediate_size": None,
            "num_attention_heads": None,
            "num_key_value_heads": None,
            "mixer_rms_eps": 1e-2,
        },
        spread=1.5,
    ),
    "mamba2": Row(
        "Mamba2",
        {
            "num_heads": 8,
            "head_dim": 32,
            "state_size": 32,
            "n_groups": 2,
            "chunk_size": 64,
            "intermediate_size": None,
            "num_attention_heads": None,
            "num_key_value_heads": None,
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
    "granitehybrid, bamba": Row("Bamba", BAMBA),
    "nemotron_h": Row(
        "NemotronH",
        {**NEMOTRON_H, "layers_block_type": ["linear_attention", "full_attention", "mlp", "linear_attention"]},
        spread=2.0,
    ),
    "nemotron_h_moe": Row(
        "NemotronH",
        {
            **NEMOTRON_H,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "linear_attention"],
            "n_routed_experts": 12,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 64,
            "moe_shared_expert_intermediate_size": 96,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
        },
        spread=2.0,
    ),
    "nemotron_h_moe, latent": Row(
        "NemotronH",
        {
            **NEMOTRON_H,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "linear_attention"],
            "n_routed_experts": 12,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 64,
            "moe_latent_size": 64,
            "moe_shared_expert_intermediate_size": 96,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
        },
        spread=2.0,
    ),
    "minimax-01": Row(
        "MiniMax",
        {
            "num_hidden_layers": 4,
            "head_dim": 32,
            "num_local_experts": 12,
            "num_experts_per_tok": 3,
            "intermediate_size": 64,
            "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
            # transformers gives this epsilon to the norm of the states, whatever the settings say.
            "rms_norm_eps": 1e-6,
            **{f"{part}_attn_alpha_factor": 1.7 for part in ("full", "linear")},
            "mlp_alpha_factor": 1.7,
        },
        spread=2.0,
    ),
    "falcon-h1": Row("FalconH1", FALCON_H1),
    "falcon-h1, norms": Row("FalconH1", {**FALCON_H1, "mamba_rms_norm": True, "mamba_norm_before_gate": False}),
}
