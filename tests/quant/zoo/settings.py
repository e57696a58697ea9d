"""Settings that several rows share: sizes, rotary scaling, parts of configurations."""

from __future__ import annotations

LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
SLIDING_AND_FULL = ["sliding_attention", "full_attention"]
WINDOWED = {"head_dim": 64, "sliding_window": 48, "num_hidden_layers": 2, "layer_types": SLIDING_AND_FULL}
GRANITE_SCALES = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.3,
    "logits_scaling": 0.5,
    "residual_multiplier": 0.22,
    "tie_word_embeddings": True,
}
HALF_ROTATED_ROPE = {"rope_type": "default", "rope_theta": 30000.0, "partial_rotary_factor": 0.5}
MINISTRAL = {
    "rope_parameters": {
        **YARN_ROPE,
        "beta_fast": 4.0,
        "beta_slow": 0.5,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "rope_theta": 1e5,
        "llama_4_scaling_beta": 0.1,
    },
    "head_dim": 64,
}
