"""Models that also see or hear: the language model in them, the names of its tensors, and the parts left behind.

Sources: `configuration_*.py`, `modeling_*.py` and `conversion_mapping.py` of transformers, for the names that files
have had before its version 5 and since.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from quant.convert.base import Family, S
from quant.convert.config import ModelConfig
from quant.errors import UnsupportedModel
from quant.safetensors import Entry

# Models whose language model works alone, by the beginning of the class's name: their own `model_type`, "" where files
# always name the class, and the `model_type` of this language model where `text_config` does not say.
_USUAL = {
    "AudioFlamingo3": ("audioflamingo3", "qwen2"),
    "AyaVision": ("aya_vision", "cohere2"),
    "Cohere2Vision": ("cohere2_vision", "cohere2"),
    "Exaone4_5_": ("exaone4_5", "exaone4"),
    "FastVlm": ("fast_vlm", "qwen2"),
    "Gemma3": ("gemma3", "gemma3_text"),
    "Gemma3n": ("gemma3n", "gemma3n_text"),
    "Gemma4": ("gemma4", "gemma4_text"),
    "Gemma4Unified": ("gemma4_unified", "gemma4_unified_text"),
    "Glm4v": ("glm4v", "glm4v_text"),
    "Glm4vMoe": ("glm4v_moe", "glm4v_moe_text"),
    "GlmOcr": ("glm_ocr", "glm_ocr_text"),
    "GraniteSpeech": ("granite_speech", "granite"),
    "GraniteSpeechPlus": ("granite_speech_plus", "granite"),
    "HunYuanVL": ("hunyuan_vl", "hunyuan_vl_text"),
    "Idefics3": ("idefics3", "llama"),
    "InternVL": ("internvl", "qwen2"),
    "Janus": ("janus", "llama"),
    "KimiK25": ("kimi_k25", "kimi_k2"),
    "KimiVL": ("kimi_vl", "deepseek_v3"),
    "Lfm2Vl": ("lfm2_vl", "lfm2"),
    "LightOnOcr": ("lighton_ocr", "qwen3"),
    "Llama4": ("llama4", "llama4_text"),
    "Llava": ("llava", "llama"),
    "LlavaNext": ("llava_next", "llama"),
    "LlavaOnevision": ("llava_onevision", "qwen2"),
    "MiniCPMV4_6": ("minicpmv4_6", "qwen3_5_text"),
    "Mistral3": ("mistral3", "mistral"),
    "MuseGlimmer": ("muse_glimmer", "muse_glimmer_text"),
    "PaddleOCRVL": ("paddleocr_vl", "paddleocr_vl_text"),
    "Qwen2_5_VL": ("qwen2_5_vl", "qwen2_5_vl_text"),
    "Qwen2Audio": ("qwen2_audio", "qwen2"),
    "Qwen2VL": ("qwen2_vl", "qwen2_vl_text"),
    "Qwen3ASR": ("qwen3_asr", "qwen3"),
    "Qwen3OmniMoe": ("qwen3_omni_moe", "qwen3_omni_moe_text"),
    "Qwen3VL": ("qwen3_vl", "qwen3_vl_text"),
    "Qwen3VLMoe": ("qwen3_vl_moe", "qwen3_vl_moe_text"),
    "Qwen3_5": ("qwen3_5", "qwen3_5_text"),
    "Qwen3_5Moe": ("qwen3_5_moe", "qwen3_5_moe_text"),
    "SmolVLM": ("smolvlm", "llama"),
    "VipLlava": ("vipllava", "llama"),
    "Voxtral": ("voxtral", "llama"),
    "YoutuVL": ("youtu_vl", "youtu"),
    "Step3p7": ("step3p7", "step3p5"),
    "StepVL": ("", "qwen3"),
}
# The language model's `model_type` for classes with other ends of their names, which are whole.
_OTHER = {
    "DeepseekOCRForCausalLM": "deepseek_v2",
    "DotsOCRForCausalLM": "qwen2",
    "LlavaStableLMEpochForCausalLM": "stablelm",
    "Phi4ForCausalLMV": "phi3",
    "Qwen2VLModel": "qwen2_vl_model",
    "Qwen2_5OmniModel": "qwen2",
    "Sarashina2VisionForCausalLM": "llama",
}
_WRAPPERS = {**{f"{name}ForConditionalGeneration": language for name, (_, language) in _USUAL.items()}, **_OTHER}
# The classes of language models by `model_type`.
_TEXTS = {
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3n_text": "Gemma3nForCausalLM",
    "granite": "GraniteForCausalLM",
    "gemma4_text": "Gemma4ForCausalLM",
    "gemma4_unified_text": "Gemma4ForCausalLM",
    # Rotated by place in time, height and width, as Qwen 2 VL is.
    "glm4v_text": "Glm4ForCausalLM",
    "glm4v_moe_text": "Glm4MoeForCausalLM",
    "glm_ocr_text": "Glm4ForCausalLM",
    "hunyuan_vl_text": "HunYuanDenseV1ForCausalLM",
    "kimi_k2": "DeepseekV3ForCausalLM",
    "kimi_linear": "KimiLinearForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "muse_glimmer_text": "MuseGlimmerTextModel",
    # ERNIE 4.5 that rotates halves of its heads, as Llama does.
    "paddleocr_vl_text": "LlamaForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
    # Rotated by place in time, height and width, which are one number in a text. (llama.cpp's own architecture for
    # Qwen 2 VL never reads what is added to the variance in its norms.)
    "qwen2_5_vl_text": "Qwen2ForCausalLM",
    "qwen2_vl_text": "Qwen2ForCausalLM",
    "qwen2_vl_model": "Qwen2Model",
    "qwen3_omni_moe_text": "Qwen3MoeForCausalLM",
    "qwen3_vl_text": "Qwen3ForCausalLM",
    "qwen3_vl_moe_text": "Qwen3MoeForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "step3p5": "Step3p5ForCausalLM",
    "youtu": "YoutuForCausalLM",
}
# The classes of all models by `model_type`, for files that do not name them (`MODEL_FOR_CAUSAL_LM_MAPPING_NAMES`).
CLASSES = {
    **_TEXTS,
    "afmoe": "AfmoeForCausalLM",
    "apertus": "ApertusForCausalLM",
    "arcee": "ArceeForCausalLM",
    "bert": "BertModel",
    "bloom": "BloomForCausalLM",
    "camembert": "CamembertModel",
    "distilbert": "DistilBertModel",
    "dots1": "Dots1ForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "ernie4_5_moe": "Ernie4_5_MoeForCausalLM",
    "eurobert": "EuroBertModel",
    "exaone_moe": "ExaoneMoeForCausalLM",
    "falcon": "FalconForCausalLM",
    "falcon_mamba": "FalconMambaForCausalLM",
    "falcon_h1": "FalconH1ForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "glm4_moe_lite": "Glm4MoeLiteForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_bigcode": "GPTBigCodeForCausalLM",
    "dbrx": "DbrxForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "hrm_text": "HrmTextForCausalLM",
    "minimax": "MiniMaxForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "granitemoeshared": "GraniteMoeSharedForCausalLM",
    "hunyuan_v1_dense": "HunYuanDenseV1ForCausalLM",
    "hunyuan_v1_moe": "HunYuanMoEV1ForCausalLM",
    "hy_v3": "HYV3ForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "jais2": "Jais2ForCausalLM",
    "jamba": "JambaForCausalLM",
    "lfm2_moe": "Lfm2MoeForCausalLM",
    "mamba": "MambaForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
    "minicpm": "MiniCPMForCausalLM",
    "minimax_m2": "MiniMaxM2ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "modernbert": "ModernBertModel",
    "mpt": "MptForCausalLM",
    "nemotron": "NemotronForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
    "nomic_bert": "NomicBertModel",
    "olmo": "OlmoForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "phi": "PhiForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "roberta": "RobertaModel",
    "seed_oss": "SeedOssForCausalLM",
    "solar_open": "SolarOpenForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "xlm-roberta": "XLMRobertaModel",
    **{kind: f"{name}ForConditionalGeneration" for name, (kind, _) in _USUAL.items() if kind},
    # Known by their names alone, and refused.
    "mllama": "MllamaForConditionalGeneration",
    "phi4_multimodal": "Phi4MultimodalForCausalLM",
    "phi4mm": "Phi4MMForCausalLM",
}
# Defaults of transformers, which `text_config` may leave out (LLaVA 1.5 and Pixtral do).
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "mistral": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "vocab_size": 32000,
    },
    "gemma4_unified_text": {"enable_moe_block": False, "hidden_size_per_layer_input": 0},
    # Not the default of GLM 4, which is 128.
    "glm4v_text": {"head_dim": None},
    "glm4v_moe_text": {"head_dim": None},
    "qwen2_vl_text": {"rope_theta": 1e6, "rms_norm_eps": 1e-5},
    "qwen2_5_vl_text": {"rope_theta": 1e6, "rms_norm_eps": 1e-5},
    "qwen3_omni_moe_text": {"norm_topk_prob": True},
    "qwen3_vl_moe_text": {"norm_topk_prob": True},
    "qwen3_vl_text": {"rope_theta": 5e5},
}
_PHI_4 = "adapters for images and speech stand around its matrices; Phi 4 mini is its language model by itself"
REFUSED = {
    "MllamaForConditionalGeneration": "some of its layers attend to nothing but images, and llama.cpp has none such",
    **dict.fromkeys(("Phi4MMForCausalLM", "Phi4MultimodalForCausalLM"), _PHI_4),
}
# Names that programs for training put within names of tensors, and in front of all names of a file; then beginnings
# that tell a model within another model.
_INSIDE = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AROUND = ("module.", "base_model.model.")
_TWICE = ("model.model.", "model.lm_head.")
# Buffers that transformers computes anew, whatever a file has.
_BUFFERS = re.compile(r"(.*\.)?(position_ids|(original_)?inv_freq|cos_cached|sin_cached|masked_bias)")
# The prefix of the tensors of the language model; then the prefixes of other parts, and what `lm` calls these parts.
_APART = "llm."
PREFIX = r"(thinker\.)?(model\.)?((language_model|text_model|llm)\.)?"
BESIDE = {
    "vision_tower": "vision",
    "vision_model": "vision",
    "visual": "vision",
    "vision_encoder": "vision",
    "vision_embedder": "vision",
    "vit": "vision",
    "vit_large_projector": "a projector",
    "siglip2": "vision",
    "sam_model": "vision",
    "qwen2_model": "vision",
    "view_seperator": "a projector",
    "vqmodel": "vision",
    "audio_tower": "hearing",
    "encoder": "hearing",
    "talker": "speech",
    "token2wav": "speech",
    "code2wav": "speech",
    "generation_embeddings": "drawing",
    "generation_aligner": "drawing",
    "generation_head": "drawing",
    "aligner": "a projector",
    "merger": "a projector",
    "mlp_AR": "a projector",
    "mm_projector": "a projector",
    "multi_modal_projector": "a projector",
    "projector": "a projector",
    "connector": "a projector",
    "vision_projection": "a projector",
    "vision_adapter": "a projector",
    "image_newline": "a projector",
    "embed_vision": "a projector",
    "embed_audio": "a projector",
}


def plain(entries: Iterable[Entry]) -> list[Entry]:
    """The tensors by the names that the model gives them, without empty tensors and buffers that are computed anew.

    Programs for training keep a model within others (`module.`, `_orig_mod.`), and save it with their names in front.
    """
    found = [
        replace(entry, name=_INSIDE.sub("", entry.name))
        for entry in entries
        if entry.size and not _BUFFERS.fullmatch(entry.name)
    ]
    while found and (around := _around([entry.name for entry in found])):
        found = [replace(entry, name=entry.name.removeprefix(around)) for entry in found]
    return found


def _around(names: list[str]) -> str:
    """The prefix in front of all names that belongs to none of them, "" where there is none."""
    for start in _AROUND:
        if all(name.startswith(start) for name in names):
            return start
    twice = any(name.startswith(_TWICE) for name in names) and all(name.startswith("model.") for name in names)
    return "model." if twice else ""


def _class(config: ModelConfig) -> str:
    """The name of the model's class, by its `model_type` where `architectures` has none."""
    names: Any = config.get("architectures")
    if names and (not isinstance(names, list) or not isinstance(names[0], str)):
        raise config.wrong("architectures", "a list with the name of the model's class")
    if names:
        return str(names[0])
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CLASSES:
        given = "no `model_type`" if kind is None else f"a `model_type` that is not known (`{ascii(kind)[:40]}`)"
        hint = f"give the name of the model's class in `{config.name}`, as `architectures`"
        raise UnsupportedModel(f"`{config.name}` has no `architectures`, and {given}", hint=hint)
    return CLASSES[kind]


def _text_config(config: ModelConfig) -> ModelConfig:
    """The settings of the language model by themselves, empty where the file has all in one place."""
    thinking = config.part("thinker_config")
    if thinking.values:
        return thinking.part("text_config")
    names = (name for name in ("text_config", "llm_config", "language_config") if config.get(name) is not None)
    return config.part(next(names, "text_config"))


def unwrap(config: ModelConfig) -> tuple[ModelConfig, str, bool]:
    """The settings of the language model, the name of its class, and whether it is a part of a larger model.

    Raises UnsupportedModel where the language model does not work alone, or where its class is not known.
    """
    name = _class(config)
    names = [name]
    if name in REFUSED:
        raise UnsupportedModel(f"its language model cannot be taken out: {REFUSED[name]}")
    text = _text_config(config)
    if name not in _WRAPPERS:
        return config.changed({**text.values, "architectures": names}), name, False
    # The first files of Qwen 2 VL have all settings in one place.
    kind = str(text.get("model_type") or _WRAPPERS[name])
    if kind not in _TEXTS:
        raise UnsupportedModel(f"its language model (`{ascii(kind)[1:-1][:40]}`) cannot be converted yet")
    ties = [part.get("tie_word_embeddings") for part in (config, text)]
    tied = {"tie_word_embeddings": any(tie is True for tie in ties)} if any(type(tie) is bool for tie in ties) else {}
    defaults = {key: value for key, value in _DEFAULTS.get(kind, {}).items() if text.values or key not in config.values}
    values = {**config.values, **defaults, **text.values, **tied}
    if name == "Gemma3ForConditionalGeneration":
        window = text.get("sliding_window")
        if type(window) is int and window <= 0:
            raise UnsupportedModel(f"its `sliding_window` is {window}, which is no window")
        values["final_logit_softcapping"] = None  # the larger model's class does not read it
    return ModelConfig(config.name, values), _TEXTS[kind], True


def defaults_of(config: ModelConfig) -> dict[str, Any]:
    """The settings that the language model within a larger one has where these do not say otherwise."""
    text = config.part("text_config")
    return dict(_DEFAULTS.get(str(text.get("model_type") or _WRAPPERS[_class(config)]), {}))


def take_out(family: Family[S], entries: Iterable[Entry]) -> tuple[Family[S], list[Entry], dict[str, int]]:
    """The language model within a larger one: its family, its tensors, and the bytes of each other part.

    The family has the prefix that the names of tensors have in the larger model.
    """
    beside = re.compile(rf"(?:thinker\.)?(?:model\.)?({'|'.join(BESIDE)})(?:\.|$)")
    language: list[Entry] = []
    left_out: dict[str, int] = {}
    entries = list(entries)
    apart = any(entry.name.startswith(_APART) for entry in entries)
    for entry in entries:
        found = beside.match(entry.name)
        # Sarashina 2.2 has the last norm of its vision in front of everything.
        if found or (apart and not entry.name.startswith(_APART)):
            kind = BESIDE[found[1]] if found else "vision"
            left_out[kind] = left_out.get(kind, 0) + entry.size
        else:
            language.append(entry)
    # A file without an output shares the embedding, where the settings say nothing of it.
    tied = not any(entry.name.endswith("lm_head.weight") for entry in language)
    return replace(family, prefix=PREFIX + family.prefix, tied=tied), language, left_out
