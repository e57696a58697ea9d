"""Models that transformers does not know: made by the table of their family, to be compared with llama.cpp's converter.

The tables name every tensor of the source, so that a sketch needs nothing but a configuration. Whether the names are
right is what llama.cpp's converter tells, which has a table of its own, and its loader, which wants every tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from quant.convert import keys
from quant.convert.config import ModelConfig
from quant.convert.families.table import FAMILIES
from quant.convert.placing import expand
from tests.quant.support import DEMO, safetensors
from tests.quant.zoo.making import weight
from tests.quant.zoo.mixtures import DEEPSEEK_V3, HUNYUAN_V3, ROUTED_EXPERTS, YOUTU
from tests.quant.zoo.recurrent import KIMI_LINEAR, LFM2, QWEN_LINEAR, QWEN_LINEAR_EXPERTS
from tests.quant.zoo.row import SIZES
from tests.quant.zoo.settings import HALF_ROTATED_ROPE


class Sketch(NamedTuple):
    """A model of the class `name`, with `SIZES` and the settings in `config`; a setting that is None is left out.

    `prefix` stands in front of the names of all tensors but those in `bare` and those that begin with `mtp.`. A model
    that is `predicting` has a block that predicts further tokens.

    A model that also sees has the settings of its language model, of the class `text`, at the keys `nested`, and
    tensors of its other parts, `beside`. A folder that is `indexed` lists its tensors by their files.
    """

    name: str
    config: Mapping[str, Any] = {}
    prefix: str = "model."
    bare: tuple[str, ...] = ("lm_head.weight",)
    spread: float = 1.0
    predicting: bool = False
    text: str = ""
    nested: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    indexed: bool = False

    def own(self) -> dict[str, Any]:
        """The settings of the language model."""
        own = {"rms_norm_eps": 1e-2, **SIZES, **self.config}
        return {key: value for key, value in own.items() if value is not None or key == "sliding_window"}

    def settings(self) -> dict[str, Any]:
        """The model's `config.json`."""
        own = self.own()
        for key in reversed(self.nested):
            own = {key: own}
        return {"architectures": [self.name], **own}


ROUTED = {
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "num_shared_experts": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "head_dim": 32,
}
SIGMOID = {"score_function": "sigmoid"}
GPT = {
    "n_embd": 128,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": 256,
    "n_positions": 512,
    "layer_norm_epsilon": 1e-2,
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")),
    **dict.fromkeys(("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta")),
}
STEP = {
    "num_attention_groups": 2,
    "num_key_value_heads": None,
    "attention_other_setting": {"num_attention_heads": 6, "num_attention_groups": 2, "head_dim": 32},
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    "partial_rotary_factors": [0.5, 1.0, 1.0],
    "rope_theta": [5000000.0, 10000.0, 10000.0],
    "head_dim": 32,
    "sliding_window": 48,
    "moe_num_experts": 12,
    "moe_top_k": 3,
    "moe_intermediate_size": 64,
    "share_expert_dim": 48,
    "moe_layers_enum": "1,2",
    "moe_router_scaling_factor": 3.0,
    "norm_expert_weight": True,
    "use_moe_router_bias": True,
    "swiglu_limits": [0.0, 0.0, 7.0],
    "swiglu_limits_shared": [0.0, 0.0, 16.0],
}
THINKER = {
    "moe_num_primary_experts": 12,
    "moe_num_active_primary_experts": 3,
    "moe_ffn_hidden_size": 64,
    "moe_enable_early_router": True,
    "moe_primary_router_apply_softmax": False,
    "norm_topk_prob": True,
    "intermediate_size": None,
    "head_dim": 32,
    "sliding_window_layout": [0, 0, 0],
    "rope_layout": [1, 1, 1],
}
_LFM2 = {**LFM2, "norm_eps": 1e-2, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256}
_STATES = dict.fromkeys(
    ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings")
)
SKETCHES = {
    "llama-embed": Sketch("LlamaBidirectionalModel", prefix=""),
    "llama, iquest coder": Sketch("IQuestCoderForCausalLM"),
    "qwen2, kormo": Sketch("KORMoForCausalLM"),
    "lfm2, old name": Sketch("LFM2ForCausalLM", _LFM2),
    "olmo, old name": Sketch("OLMoForCausalLM", {"rms_norm_eps": None}),
    "eurobert, jina v5": Sketch("JinaEmbeddingsV5Model", {"head_dim": 32}, prefix=""),
    "deepseek2, youtu": Sketch("YoutuForCausalLM", YOUTU),
    "nanbeige": Sketch("NanbeigeForCausalLM", {"num_loops": 2, "skip_loop_final_norm": True}),
    "lfm2, vectors": Sketch("Lfm2Model", _LFM2, prefix=""),
    "lfm2, vectors of both directions": Sketch("Lfm2BidirectionalModel", {**_LFM2, "conv_L_cache": 3}, prefix=""),
    "jina-bert-v2": Sketch(
        "JinaBertModel",
        {
            "position_embedding_type": "alibi",
            "feed_forward_type": "geglu",
            "type_vocab_size": 2,
            "rms_norm_eps": None,
            "layer_norm_eps": 1e-2,
            "num_key_value_heads": None,
            "rope_theta": None,
        },
        prefix="",
    ),
    "chatglm, first name": Sketch(
        "ChatGLMModel",
        {
            "num_layers": 3,
            "num_hidden_layers": None,
            "ffn_hidden_size": 256,
            "intermediate_size": None,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "num_key_value_heads": None,
            "kv_channels": 32,
            "seq_length": 512,
            "max_position_embeddings": None,
            "padded_vocab_size": SIZES["vocab_size"],
            "layernorm_epsilon": 1e-2,
            "rms_norm_eps": None,
            "rope_ratio": 3.0,
            "rope_theta": None,
            "add_qkv_bias": True,
        },
        prefix="transformer.",
        bare=(),
    ),
    "arctic": Sketch(
        "ArcticForCausalLM",
        {"num_local_experts": 12, "num_experts_per_tok": 3, "use_residual": True, "parallel_attn_mlp_res": True},
    ),
    "bailingmoe2, sarvam": Sketch(
        "SarvamMoEForCausalLM",
        {**ROUTED, "num_shared_experts": 1, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, **SIGMOID},
    ),
    "refact": Sketch(
        "GPTRefactForCausalLM",
        {
            **GPT,
            "n_inner": None,
            "multi_query": True,
        },
        prefix="transformer.",
    ),
    "jais": Sketch(
        "JAISLMHeadModel",
        {
            **GPT,
            "activation_function": "swiglu",
            "position_embedding_type": "alibi",
            "scale_attn_weights": True,
            "mup_scale_qk_dot_by_d": True,
            "mup_embeddings_scale": 9.1,
            "mup_output_alpha": 2.2,
            "mup_width_scale": 0.5,
            "tie_word_embeddings": False,
        },
        prefix="transformer.",
    ),
    "mimo2, as published": Sketch(
        "MiMoV2FlashForCausalLM",
        {
            "head_dim": 48,
            "v_head_dim": 32,
            "swa_head_dim": 48,
            "swa_v_head_dim": 32,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 4,
            "n_routed_experts": 12,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 64,
            "hybrid_layer_pattern": [0, 1, 1],
            "moe_layer_freq": [0, 1, 1],
            "sliding_window": 48,
            "rope_theta": 5000000.0,
            "swa_rope_theta": 10000.0,
            "partial_rotary_factor": 0.334,
            "layernorm_epsilon": 1e-2,
            "rms_norm_eps": None,
            "attention_value_scale": 0.707,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "add_swa_attention_sink_bias": True,
            "add_full_attention_sink_bias": False,
        },
    ),
    "grovemoe": Sketch(
        "GroveMoeForCausalLM",
        {
            "num_experts": 12,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 64,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "head_dim": 32,
        },
    ),
    "smallthinker": Sketch("SmallThinkerForCausalLM", THINKER),
    "smallthinker, windows": Sketch(
        "SmallThinkerForCausalLM",
        {
            **THINKER,
            "num_hidden_layers": 5,
            "sliding_window_layout": [0, 1, 1, 1, 0],
            "rope_layout": [0, 1, 1, 1, 0],
            "sliding_window_size": 4096,
            "moe_primary_router_apply_softmax": True,
        },
    ),
    "step35": Sketch("Step3p5ForCausalLM", STEP),
    "orion": Sketch("OrionForCausalLM"),
    "xverse": Sketch("XverseForCausalLM"),
    "pangu-embedded": Sketch("PanguEmbeddedForCausalLM", {"bias": True}),
    "maincoder": Sketch("MaincoderForCausalLM", {"head_dim": 32}),
    "exaone": Sketch(
        "ExaoneForCausalLM",
        {
            "num_layers": 3,
            "num_hidden_layers": None,
            "layer_norm_epsilon": 1e-2,
            "rms_norm_eps": None,
            "activation_function": "silu",
        },
        prefix="transformer.",
    ),
    "qwen": Sketch(
        "QWenLMHeadModel",
        {
            "num_key_value_heads": None,
            "rms_norm_eps": None,
            "layer_norm_epsilon": 1e-2,
            "seq_length": 512,
            "max_position_embeddings": 512,
            "rotary_emb_base": 30000.0,
            "intermediate_size": 512,
        },
        prefix="transformer.",
    ),
    "kimi-linear, as published": Sketch(
        "KimiLinearForCausalLM",
        {
            **KIMI_LINEAR,
            **dict.fromkeys(name for name in KIMI_LINEAR if name.startswith(("linear_", "layer_"))),
            "linear_attn_config": {
                "full_attn_layers": [2, 4],
                "kda_layers": [1, 3],
                "head_dim": 32,
                "num_heads": 4,
                "short_conv_kernel_size": 4,
            },
            "head_dim": 40,
            "model_max_length": 512,
            "max_position_embeddings": None,
            "first_k_dense_replace": 1,
            "mla_use_nope": True,
            "moe_renormalize": True,
            "moe_router_activation_func": "sigmoid",
        },
    ),
    "rwkv6": Sketch(
        "Rwkv6ForCausalLM",
        {
            **_STATES,
            "head_size": 64,
            "head_size_divisor": 8,
            "layer_norm_epsilon": 1e-2,
            "rescale_every": 2,
            "attention_hidden_size": 128,
            "num_hidden_layers": 4,
        },
        prefix="rwkv.",
        bare=("head.weight",),
    ),
    "rwkv7": Sketch(
        "RWKV7ForCausalLM",
        {
            **_STATES,
            "head_dim": 64,
            "norm_eps": 1e-5,
            "hidden_act": "sqrelu",
            "decay_low_rank_dim": 32,
            "a_low_rank_dim": 48,
            "v_low_rank_dim": 16,
            "gate_low_rank_dim": 64,
            "attn_mode": "chunk",
        },
    ),
    "bailingmoe": Sketch("BailingMoeForCausalLM", {**ROUTED, "first_k_dense_replace": 0}),
    "bailingmoe2": Sketch(
        "BailingMoeV2ForCausalLM",
        {
            **ROUTED,
            "num_shared_experts": 1,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.5,
            "partial_rotary_factor": 0.5,
        },
    ),
    "deepseek": Sketch(
        "DeepseekForCausalLM",
        {
            **ROUTED,
            "num_experts": None,
            "n_routed_experts": 12,
            "num_shared_experts": None,
            "n_shared_experts": 2,
            "norm_topk_prob": False,
        },
    ),
}
# Models with a block that predicts further tokens, which transformers leaves out of every class.
_NEXT = {"num_nextn_predict_layers": 1}
_LINEAR = {"linear_conv_kernel_dim": 4, "full_attention_interval": 4}
PREDICTING = {
    "qwen35, heads": Sketch(
        "Qwen3_5ForCausalLM", {**QWEN_LINEAR, **_LINEAR, "mtp_num_hidden_layers": 1}, predicting=True
    ),
    "qwen35moe, heads": Sketch(
        "Qwen3_5MoeForCausalLM",
        {**QWEN_LINEAR_EXPERTS, **_LINEAR, "intermediate_size": 64, "mtp_num_hidden_layers": 1},
        predicting=True,
    ),
    "qwen3next, heads": Sketch(
        "Qwen3NextForCausalLM", {**QWEN_LINEAR_EXPERTS, **_LINEAR, "intermediate_size": 64}, predicting=True
    ),
    "glm4moe, heads": Sketch(
        "Glm4MoeForCausalLM",
        {
            **ROUTED_EXPERTS,
            **_NEXT,
            "attention_bias": True,
            "use_qk_norm": True,
            "rope_parameters": HALF_ROTATED_ROPE,
        },
        predicting=True,
    ),
    "deepseek2, heads": Sketch("DeepseekV3ForCausalLM", {**DEEPSEEK_V3, **_NEXT}, predicting=True),
    "deepseek2, glm 4.7 flash, heads": Sketch("Glm4MoeLiteForCausalLM", {**DEEPSEEK_V3, **_NEXT}, predicting=True),
    "hy_v3, heads": Sketch("HYV3ForCausalLM", {**HUNYUAN_V3, **_NEXT, "router_scaling_factor": 2.5}, predicting=True),
}


def shapes(sketch: Sketch) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the model's tensors."""
    name = sketch.text or sketch.name
    family = FAMILIES[name]
    config = keys.filled(ModelConfig("config.json", sketch.own()), name)
    family = family.instead(config) or family
    sizes = family.read_sizes(config)
    if sketch.predicting:
        sizes = replace(sizes, predicting=frozenset([sizes.layers]))
    rows = expand(family, sizes)
    first = next((row.choice for row, _ in rows.values() if row.choice), "")
    beside: dict[str, tuple[int, ...]] = dict.fromkeys(sketch.beside, (4, 4))
    return beside | {
        name if name in sketch.bare or name.startswith("mtp.") else sketch.prefix + name: sizes.at(layer).shape(
            row.shape
        )
        for name, (row, layer) in sorted(rows.items())
        if row.choice in ("", first)
        and not row.zeros
        and (row.required or not (name.endswith(".bias") or ".norms." in name))
    }


def make(sketch: Sketch, path: Path) -> Path:
    """The model in a folder, in one shard, with the demo's tokenizer."""
    path.mkdir()
    tensors = {}
    for name, shape in shapes(sketch).items():
        bare = name.removeprefix(sketch.prefix)
        tensors[name] = ("F32", shape, weight(bare, shape, sketch.spread).tobytes())
    (path / "model.safetensors").write_bytes(safetensors(tensors))
    if sketch.indexed:
        index = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text(json.dumps(sketch.settings()))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((DEMO / name).read_bytes())
    return path
