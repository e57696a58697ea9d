"""Further models whose code comes with their weights, sketched as those in `sketched.py` are."""

from __future__ import annotations

from typing import Any

from tests.quant.zoo import sketched
from tests.quant.zoo.recurrent import NEMOTRON_H
from tests.quant.zoo.row import SIZES
from tests.quant.zoo.sketched import GPT, Sketch

_WITHOUT_SIZES = dict.fromkeys(
    (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("max_position_embeddings", "rms_norm_eps", "rope_theta"),
    )
)
_BAICHUAN: dict[str, Any] = {
    "num_key_value_heads": None,
    "rope_theta": None,
    "hidden_size": 64,
    "intermediate_size": 96,
}
_BLOCK = {"n_heads_in_group": 2, "replace_with_linear": False, "no_op": False}
_NONE = {"n_heads_in_group": None, "replace_with_linear": False, "no_op": True}
_MATRIX = {"n_heads_in_group": None, "replace_with_linear": True, "no_op": False}
_FED, _UNFED = {"ffn_mult": 3.0, "no_op": False}, {"ffn_mult": None, "no_op": True}
_LING = {
    "num_hidden_layers": 5,
    "layer_group_size": 2,
    "head_dim": 32,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "gated_attention_proj_granularity_type": "head_wise",
    "short_conv_kernel_size": 4,
    "no_kda_lora": True,
    "kda_safe_gate": True,
    "kda_lower_bound": -5.0,
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "num_shared_experts": 1,
    "moe_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "score_function": "sigmoid",
}
SKETCHES = sketched.SKETCHES | {
    "baichuan": Sketch("BaiChuanForCausalLM", {**_BAICHUAN, "num_hidden_layers": 32}),
    "baichuan, 13b": Sketch(
        "BaichuanForCausalLM",
        {**_BAICHUAN, "num_hidden_layers": 40, "max_position_embeddings": None, "model_max_length": 512},
    ),
    "baichuan, 2": Sketch("BaichuanForCausalLM", {**_BAICHUAN, "num_hidden_layers": 32, "vocab_size": 125696}),
    "codeshell": Sketch(
        "CodeShellForCausalLM",
        {
            **GPT,
            "group_query_attention": True,
            "num_query_groups": 2,
            "position_embedding_type": "rope",
            "activation_function": "gelu_pytorch_tanh",
            "n_inner": 512,
            "tie_word_embeddings": False,
        },
        prefix="transformer.",
    ),
    "talkie": Sketch(
        "TalkieForCausalLM",
        {"num_key_value_heads": None, "head_dim": 32, "rms_norm_eps": None},
        bare=("lm_head", "lm_head.weight", "lm_head_gain.w_g"),
    ),
    "maple": Sketch(
        "MapleForCausalLM",
        {
            "intermediate_size": None,
            "head_dim": 32,
            "hidden_act": "silu",
            "partial_rotary_factor": 0.5,
            "sliding_window": 48,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "nope_on_global_attention": True,
            "num_experts": 12,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 64,
            "norm_topk_prob": True,
        },
    ),
    "spark2_5": Sketch(
        "Spark2_5ForCausalLM",
        {
            "head_dim": 64,
            "hidden_act": "gelu",
            "sliding_window": 48,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "gate_attn_act_mode": "sigmoid",
            "headwise_attn_output_gate": True,
            "rope_theta": None,
            "rope_parameters": {
                "full_attention": {"rope_theta": 5000000.0, "partial_rotary_factor": 0.25},
                "sliding_attention": {"rope_theta": 10000.0, "partial_rotary_factor": 1.0},
            },
        },
    ),
    "neo-bert": Sketch(
        "NeoBERT",
        {
            "num_key_value_heads": None,
            "rms_norm_eps": None,
            "rope_theta": None,
            "max_position_embeddings": None,
            "max_length": 512,
            "norm_eps": 1e-2,
            "intermediate_size": 384,
        },
        bare=(),
    ),
    "nemotron_h_moe, puzzle": Sketch(
        "NemotronHPuzzleForCausalLM",
        {
            **NEMOTRON_H,
            "rope_theta": None,
            "rms_norm_eps": None,
            "layer_norm_epsilon": 1e-2,
            "conv_kernel": 4,
            "num_hidden_layers": 5,
            "intermediate_size": None,
            "n_routed_experts": 12,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "moe_latent_size": 64,
            "moe_shared_expert_intermediate_size": 96,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
            "block_configs": [
                {"block_type": "mamba"},
                {"block_type": "moe", "moe_intermediate_size": 64, "num_experts_per_tok": 3},
                {"block_type": "attention"},
                {"block_type": "moe", "moe_intermediate_size": 32, "num_experts_per_tok": 2},
                {"block_type": "mamba"},
            ],
        },
        prefix="backbone.",
    ),
    "minimax-01, m1": Sketch(
        "MiniMaxM1ForCausalLM",
        {
            "num_hidden_layers": 8,
            "attn_type_list": [0, 0, 0, 0, 0, 0, 0, 1],
            "head_dim": 32,
            "rotary_dim": 16,
            "intermediate_size": 64,
            "num_local_experts": 12,
            "num_experts_per_tok": 3,
            "postnorm": True,
            "shared_intermediate_size": 0,
            **{f"layernorm_{part}_alpha": 3.5 for part in ("full_attention", "linear_attention", "mlp")},
            **{f"layernorm_{part}_beta": 1.0 for part in ("full_attention", "linear_attention", "mlp")},
        },
        indexed=True,
    ),
    "llama, of a smaller vision model": Sketch("VLlama3ForCausalLM"),
    "mamba, first names": Sketch(
        "MambaLMHeadModel",
        {
            **_WITHOUT_SIZES,
            "d_model": 128,
            "n_layer": 3,
            "vocab_size": SIZES["vocab_size"] - 3,
            "ssm_cfg": {},
            "rms_norm": True,
            "residual_in_fp32": True,
            "fused_add_norm": True,
            "pad_vocab_size_multiple": 8,
            "tie_word_embeddings": True,
        },
        prefix="backbone.",
    ),
    "bailingmoe3": Sketch("BailingMoeV3ForCausalLM", {**_LING, "q_lora_rank": 32}),
    "bailingmoe3, flash": Sketch(
        "BailingMoeV3ForCausalLM",
        {
            **_LING,
            "n_group": 4,
            "topk_group": 2,
            "expert_swiglu_limit_list": [0, 0, 7.0, 7.0, 0],
            "share_expert_swiglu_limit_list": [0, 0, 0, 16.0, 0],
        },
    ),
    "plamo": Sketch(
        "PlamoForCausalLM",
        {"num_attention_heads": 16, "num_key_value_heads": 16, "n_shared_head": 8, "rope_theta": None},
    ),
    "openelm": Sketch(
        "OpenELMForCausalLM",
        {
            **_WITHOUT_SIZES,
            "model_dim": 128,
            "head_dim": 32,
            "num_transformer_layers": 3,
            "num_query_heads": [4, 6, 8],
            "num_kv_heads": [1, 2, 2],
            "ffn_multipliers": [0.5, 2.25, 4.0],
            "ffn_dim_divisor": 32,
            "rope_freq_constant": 10000,
            "max_context_length": 512,
        },
        prefix="transformer.",
        bare=(),
    ),
    "deci": Sketch("DeciLMForCausalLM", {"num_key_value_heads_per_layer": [4, 2, 1], "num_key_value_heads": None}),
    "deci, blocks": Sketch(
        "DeciLMForCausalLM",
        {
            "num_key_value_heads": None,
            "num_hidden_layers": 6,
            "intermediate_size": None,
            "block_configs": [
                {"attention": _BLOCK, "ffn": _FED},
                {"attention": _MATRIX, "ffn": {**_FED, "ffn_mult": 5.5}},
                {"attention": _NONE, "ffn": _FED},
                {"attention": {**_BLOCK, "n_heads_in_group": 4}, "ffn": _FED},
                {"attention": _NONE, "ffn": _UNFED},
                {"attention": _BLOCK, "ffn": _FED},
            ],
        },
    ),
}
