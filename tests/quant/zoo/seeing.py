"""Models that also see, of which only the language model is converted."""

from __future__ import annotations

from tests.quant.zoo.decoders import GEMMA_4
from tests.quant.zoo.row import Row
from tests.quant.zoo.settings import MINISTRAL, WINDOWED

SMALL_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {"depth": 2, "num_heads": 2, "patch_size": 14, "hidden_size": 32}
SEEING: dict[str, Row] = {
    "llama, llava": Row(
        "Llava",
        {"model_type": "llama"},
        "ForConditionalGeneration",
        around={"vision_config": {"model_type": "clip_vision_model", **SMALL_VISION}},
    ),
    "llama, idefics3": Row(
        "Idefics3",
        {"model_type": "llama", "tie_word_embeddings": True},
        "ForConditionalGeneration",
        around={"vision_config": SMALL_VISION, "scale_factor": 1, "tie_word_embeddings": True},
    ),
    "gemma3, sees": Row(
        "Gemma3",
        {**WINDOWED, "query_pre_attn_scalar": 64, "rope_local_base_freq": 3000.0},
        "ForConditionalGeneration",
        spread=0.7,
        around={"vision_config": SMALL_VISION, "mm_tokens_per_image": 4},
    ),
    "gemma4, unified": Row(
        "Gemma4Unified",
        {key: value for key, value in GEMMA_4.items() if "per_layer" not in key},
        "ForConditionalGeneration",
        spread=1.2,
        heads=0.25,
        around={"vision_config": SMALL_VISION, "audio_config": None},
    ),
    "mistral3, sees": Row(
        "Mistral3",
        {
            **MINISTRAL,
            "model_type": "ministral3",
        },
        "ForConditionalGeneration",
        around={"vision_config": {"model_type": "pixtral", **SMALL_VISION}, "tie_word_embeddings": False},
    ),
    "muse-glimmer": Row(
        "MuseGlimmer",
        {
            "model_type": "muse_glimmer_text",
            "head_dim": 32,
            "sliding_window": 48,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "layer_rope_theta": [30000.0, 0, 30000.0],
            "qk_scale_factor": 3.0,
            "output_multiplier": 0.7,
            "final_logit_softcapping": 10.0,
        },
        "ForConditionalGeneration",
        around={"vision_config": SMALL_VISION},
    ),
    "qwen2, vl": Row(
        "Qwen2VL",
        {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}},
        "ForConditionalGeneration",
        around={"vision_config": {**QWEN_VISION, "embed_dim": 32, "hidden_size": 128}},
    ),
    "qwen2, 2.5 vl": Row(
        "Qwen2_5_VL",
        {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}, "tie_word_embeddings": True},
        "ForConditionalGeneration",
        around={
            "vision_config": {**QWEN_VISION, "out_hidden_size": 128, "intermediate_size": 48},
            "tie_word_embeddings": True,
        },
    ),
    "qwen3, vl": Row(
        "Qwen3VL",
        {"head_dim": 64, "rope_scaling": {"rope_type": "default", "mrope_section": [12, 10, 10]}},
        "ForConditionalGeneration",
        around={
            "vision_config": {
                **QWEN_VISION,
                "out_hidden_size": 128,
                "intermediate_size": 48,
                "deepstack_visual_indexes": [0, 1],
                "num_position_embeddings": 16,
            }
        },
    ),
}
