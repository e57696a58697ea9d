"""Models that also see, hear or speak, made by the table of their language model, beside tensors of other parts."""

from __future__ import annotations

from tests.quant.zoo.mixtures import DEEPSEEK_V3, ROUTED_EXPERTS, YOUTU
from tests.quant.zoo.recurrent import QWEN_LINEAR
from tests.quant.zoo.sketched import STEP, Sketch

_TEXT = ("text_config",)
_HEAD = ("lm_head.weight",)
_END = "ForConditionalGeneration"
_INSIDE = "model.language_model."
_GRANITE = {
    "embedding_multiplier": 2.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.5,
    "logits_scaling": 0.5,
    "architectures": ["GraniteForCausalLM"],
}
_MLA = {**DEEPSEEK_V3, "head_dim": None}
_EXPERTS = {"num_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 64, "norm_topk_prob": True}
_LINEAR = {**QWEN_LINEAR, "linear_conv_kernel_dim": 4, "full_attention_interval": 4}


def _sees(name: str, text: str, *beside: str, **config: object) -> Sketch:
    """As transformers 5 saves it."""
    around = tuple(f"model.{each}" for each in beside)
    return Sketch(f"{name}{_END}", config, _INSIDE, _HEAD, text=text, nested=_TEXT, beside=around)


def _older(name: str, text: str, *beside: str, at: str = "language_model.", **config: object) -> Sketch:
    """As transformers 4 saved it."""
    return Sketch(name, config, f"{at}model.", (), text=text, nested=_TEXT, beside=beside)


_LLAMA, _QWEN2, _QWEN3, _GLM4 = (f"{name}ForCausalLM" for name in ("Llama", "Qwen2", "Qwen3", "Glm4"))
WRAPPED = {
    "qwen2, flamingo": _sees("AudioFlamingo3", _QWEN2, "audio_tower.a", "multi_modal_projector.b"),
    "exaone4, 4.5": _sees("Exaone4_5_", "Exaone4ForCausalLM", "visual.a", head_dim=32, sliding_window=None),
    "granite, speech": _older(f"GraniteSpeech{_END}", "GraniteForCausalLM", "encoder.a", "projector.b", **_GRANITE),
    "granite, speech plus": _older(
        f"GraniteSpeechPlus{_END}", "GraniteForCausalLM", "encoder.a", "projector.b", **_GRANITE
    ),
    "glm4, v": _sees("Glm4v", _GLM4, "visual.a", partial_rotary_factor=0.5, model_type="glm4v_text", head_dim=32),
    "glm4, ocr": _sees("GlmOcr", _GLM4, "visual.a", model_type="glm_ocr_text", head_dim=64),
    "glm4moe, v": _sees(
        "Glm4vMoe",
        "Glm4MoeForCausalLM",
        "visual.a",
        **ROUTED_EXPERTS,
        partial_rotary_factor=0.5,
        attention_bias=True,
    ),
    "hunyuan-dense, vl": Sketch(
        "HunYuanVLForConditionalGeneration",
        {"rope_scaling": {"type": "xdrope", "alpha": 100.0, "xdrope_section": [4, 4, 4, 4]}, "head_dim": 32},
        text="HunYuanDenseV1ForCausalLM",
        beside=("vit.a",),
    ),
    "llama, janus": _sees("Janus", _LLAMA, "vision_model.a", "aligner.b", "vqmodel.c", "generation_head.d"),
    "deepseek2, kimi vl": _older(
        "KimiVLForConditionalGeneration",
        "DeepseekV3ForCausalLM",
        "vision_tower.a",
        "multi_modal_projector.b",
        **_MLA,
        model_type="deepseek_v3",
    ),
    "deepseek2, kimi k2.5": _older(
        "KimiK25ForConditionalGeneration", "DeepseekV3ForCausalLM", "mm_projector.b", **_MLA, model_type="kimi_k2"
    ),
    "deepseek2, youtu vl": Sketch(
        "YoutuVLForConditionalGeneration", YOUTU, text="YoutuForCausalLM", beside=("siglip2.a", "merger.b")
    ),
    "llama, paddleocr": _sees("PaddleOCRVL", _LLAMA, "visual.a", "projector.b", head_dim=64),
    "qwen35, minicpm": _sees("MiniCPMV4_6", "Qwen3_5ForCausalLM", "vision_tower.a", "merger.b", **_LINEAR),
    "qwen3, asr": _sees("Qwen3ASR", _QWEN3, "audio_tower.a", "multi_modal_projector.b", head_dim=64),
    "qwen3, step": _sees("StepVL", _QWEN3, "vision_model.a", head_dim=64),
    "qwen3moe, vl": _sees("Qwen3VLMoe", "Qwen3MoeForCausalLM", "visual.a", **_EXPERTS, head_dim=64),
    "qwen3moe, omni": Sketch(
        "Qwen3OmniMoeForConditionalGeneration",
        {**_EXPERTS, "head_dim": 64},
        "thinker.model.",
        ("thinker.lm_head.weight",),
        text="Qwen3MoeForCausalLM",
        nested=("thinker_config", "text_config"),
        beside=("thinker.visual.a", "thinker.audio_tower.b", "talker.c", "code2wav.d"),
    ),
    "qwen2, omni": Sketch(
        "Qwen2_5OmniModel",
        {},
        "thinker.model.",
        ("thinker.lm_head.weight",),
        text=_QWEN2,
        nested=("thinker_config", "text_config"),
        beside=("thinker.visual.a", "talker.c", "token2wav.d"),
    ),
    "qwen2, vl without an output": Sketch(
        "Qwen2VLModel", {}, "language_model.", text="Qwen2Model", nested=_TEXT, beside=("visual.a",)
    ),
    "deepseek2-ocr": Sketch(
        "DeepseekOCRForCausalLM",
        {
            "use_mla": False,
            "num_key_value_heads": 4,
            "rope_theta": None,
            "rms_norm_eps": 1e-6,
            "n_routed_experts": 12,
            "n_shared_experts": 2,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 64,
            "first_k_dense_replace": 1,
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
            "kv_lora_rank": None,
            "q_lora_rank": None,
            "qk_nope_head_dim": 0,
            "qk_rope_head_dim": 0,
            "v_head_dim": 0,
            "model_type": "deepseek_v2",
            "architectures": ["DeepseekV2ForCausalLM"],
        },
        text="DeepseekV2ForCausalLM",
        nested=("language_config",),
        beside=("model.sam_model.a", "model.vision_model.b", "model.projector.c", "model.view_seperator"),
    ),
    "qwen2, dots ocr": Sketch("DotsOCRForCausalLM", {}, text=_QWEN2, beside=("vision_tower.a",)),
    "stablelm, llava": Sketch(
        "LlavaStableLMEpochForCausalLM",
        {"partial_rotary_factor": 0.5, "rms_norm_eps": None, "layer_norm_eps": 1e-2},
        text="StableLmForCausalLM",
        beside=("model.vision_tower.a", "model.mm_projector.b"),
    ),
    "phi3, v": Sketch(
        "Phi4ForCausalLMV",
        {"original_max_position_embeddings": 512},
        text="Phi3ForCausalLM",
        beside=("model.vision_tower.a", "model.mm_projector.b"),
    ),
    "step35, 3.7": Sketch(
        "Step3p7ForConditionalGeneration",
        STEP,
        "model.",
        _HEAD,
        text="Step3p5ForCausalLM",
        nested=_TEXT,
        beside=("vision_model.a", "vit_large_projector.b"),
    ),
    "llama, sarashina": _older(
        "Sarashina2VisionForCausalLM", _LLAMA, "visual.a", "norm.weight", at="llm.", model_type="llama"
    ),
}
