"""The Llama family: Llama 1 to 3, Mistral, SmolLM, TinyLlama, Falcon 3 and all that share their layers.

Not covered: mixtures of experts. Sources: `modeling_llama.py`, `modeling_smollm3.py` and `modeling_granite.py`
of transformers, `gguf/constants.py` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quant.convert.base import Family, headless
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, rotary
from quant.convert.families.decoder import DecoderSizes
from quant.errors import UnsupportedModel
from quant.gguf.check import MAX_BLOCKS

_TENSORS = decoder.paired(decoder.STANDARD)


def _describe(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    return decoder.bounded_by_window(config, decoder.describe(config, sizes))


LLAMA = Family(
    classes=(
        "LlamaForCausalLM",
        "LLaMAForCausalLM",
        "VLlama3ForCausalLM",
        "InternLM3ForCausalLM",
        "IQuestCoderForCausalLM",
    ),
    architecture="llama",
    tensors=_TENSORS,
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=decoder.describe,
    computed=rotary.tables,
)
# Llama reads no `sliding_window`, whatever a file says.
MISTRAL = replace(LLAMA, classes=("MistralForCausalLM",), describe=_describe)


def _describe_ministral(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    """YaRN that leaves lengths alone, and attention that is sharper far behind the trained length."""
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    scaling = rotary.parameters(config)
    multiplier = rotary.shared_scale(scaling)
    bare = {name: value for name, value in scaling.values.items() if not name.startswith(("mscale", "beta"))}
    return {
        **_describe(config.changed({key: bare}), sizes),
        **rotary.betas(scaling),
        "rope.scaling.yarn_log_multiplier": multiplier,
        "attention.temperature_scale": scaling.number("llama_4_scaling_beta"),
    }


MINISTRAL3 = replace(LLAMA, classes=("Ministral3ForCausalLM",), architecture="mistral3", describe=_describe_ministral)


def _describe_smollm3(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    """llama.cpp leaves out rotation in every fourth layer, whatever the file says."""
    if not decoder.every_fourth_unrotated(config, sizes.layers):
        raise UnsupportedModel("it leaves out rotary embedding in other layers than every fourth")
    if config.flag("use_sliding_window"):
        return _describe(config, sizes)
    config.without_effect("layer_types")
    return decoder.describe(config, sizes)


SMOLLM3 = Family(
    classes=("SmolLM3ForCausalLM",),
    architecture="smollm3",
    tensors=_TENSORS,
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=_describe_smollm3,
    tied=True,
)


def describe_granite(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    """Granite scales the embedding, what each layer adds, attention and the logits."""
    return {
        **decoder.describe(config, sizes),
        "embedding_scale": decoder.scale(config, "embedding_multiplier", 1.0),
        "residual_scale": decoder.scale(config, "residual_multiplier", 1.0),
        "attention.scale": decoder.scale(config, "attention_multiplier", 1.0),
        "logit_scale": decoder.scale(config, "logits_scaling", 1.0),
    }


GRANITE = Family(
    classes=("GraniteForCausalLM",),
    architecture="granite",
    tensors=_TENSORS,
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=describe_granite,
    computed=rotary.tables,
)


def _describe_nanbeige(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    """A text goes through all layers `num_loops` times."""
    loops = config.count("num_loops", 1)
    if loops * sizes.layers > MAX_BLOCKS:
        raise UnsupportedModel(f"its layers are run {loops * sizes.layers} times, and llama.cpp does so {MAX_BLOCKS}")
    skipped = config.flag("skip_loop_final_norm")
    return {**decoder.describe(config, sizes), "num_loops": loops, "skip_loop_final_norm": skipped}


NANBEIGE = replace(
    LLAMA,
    classes=("NanbeigeForCausalLM",),
    architecture="nanbeige",
    describe=_describe_nanbeige,
    computed=lambda config, sizes: (),
)
# Published for embeddings without the output.
BARE = replace(headless(LLAMA), classes=("LlamaModel",), encoder=True)
BARE_MISTRAL = replace(headless(MISTRAL), classes=("MistralModel",), encoder=True)


def _describe_bidirectional(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    """Its own program is Llama's but for the mask, and reads no windows either."""
    config.without_effect("layer_types", "max_window_layers", "sliding_window", "use_sliding_window")
    return {**decoder.describe(config, sizes), "attention.causal": False}


# Published for embeddings by tokens that see each other in both directions.
BIDIRECTIONAL = replace(
    BARE,
    classes=("LlamaBidirectionalModel",),
    architecture="llama-embed",
    describe=_describe_bidirectional,
)
FAMILIES = (LLAMA, MISTRAL, BARE, BARE_MISTRAL, BIDIRECTIONAL, MINISTRAL3, SMOLLM3, GRANITE, NANBEIGE)
