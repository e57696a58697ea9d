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
from tests.quant.zoo.recurrent import LFM2, QWEN_LINEAR, QWEN_LINEAR_EXPERTS
from tests.quant.zoo.row import SIZES
from tests.quant.zoo.settings import HALF_ROTATED_ROPE


class Sketch(NamedTuple):
    """A model of the class `name`, with `SIZES` and the settings in `config`; a setting that is None is left out.

    `prefix` stands in front of the names of all tensors but those in `bare` and those that begin with `mtp.`. A model
    that is `predicting` has a block that predicts further tokens.

    A model that also sees has the settings of its language model, of the class `text`, at the keys `nested`, and
    tensors of its other parts, `beside`.
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
_LFM2 = {**LFM2, "norm_eps": 1e-2, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256}
SKETCHES = {
    "llama-embed": Sketch("LlamaBidirectionalModel", prefix=""),
    "llama, iquest coder": Sketch("IQuestCoderForCausalLM"),
    "qwen2, kormo": Sketch("KORMoForCausalLM"),
    "lfm2, old name": Sketch("LFM2ForCausalLM", _LFM2),
    "olmo, old name": Sketch("OLMoForCausalLM", {"rms_norm_eps": None}),
    "eurobert, jina v5": Sketch("JinaEmbeddingsV5Model", {"head_dim": 32}, prefix=""),
    "deepseek2, youtu": Sketch("YoutuForCausalLM", YOUTU),
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
        name if name in sketch.bare or name.startswith("mtp.") else sketch.prefix + name: sizes.shape(row.shape)
        for name, (row, _) in sorted(rows.items())
        if row.choice in ("", first) and (row.required or not (name.endswith(".bias") or ".norms." in name))
    }


def make(sketch: Sketch, path: Path) -> Path:
    """The model in a folder, in one shard, with the demo's tokenizer."""
    path.mkdir()
    tensors = {}
    for name, shape in shapes(sketch).items():
        bare = name.removeprefix(sketch.prefix)
        tensors[name] = ("F32", shape, weight(bare, shape, sketch.spread).tobytes())
    (path / "model.safetensors").write_bytes(safetensors(tensors))
    (path / "config.json").write_text(json.dumps(sketch.settings()))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((DEMO / name).read_bytes())
    return path
