"""`config.json` of a model that is taken back: the language model alone, whole weights, their type."""

from __future__ import annotations

from typing import Any

from quant.convert import wrappers
from quant.convert.config import ModelConfig

# Types of safetensors by the names of PyTorch's.
TORCH = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
# How the source was quantized, by whichever program.
_QUANTIZED = ("quantization_config", "compression_config", "quantization")
# Rotation by place in time, height and width is the usual one in a text.
_SEEING = ("mrope", "mrope_section", "mrope_interleaved")


def whole(config: ModelConfig) -> ModelConfig:
    """The settings as they are of a model whose weights are not quantized."""
    return ModelConfig(config.name, {key: value for key, value in config.values.items() if key not in _QUANTIZED})


def type_of(config: ModelConfig) -> str:
    """The type in which the settings say that the weights were published; BF16 where they say none of `TORCH`."""
    given = [part.get(key) for part in (config, config.part("text_config")) for key in ("dtype", "torch_dtype")]
    return next((type for name in given for type, torch in TORCH.items() if name == torch), "BF16")


def settings(config: ModelConfig, dtype: str, tied: bool | None) -> dict[str, Any]:
    """The settings of the language model in `config`; `tied` where its output is not what the settings say of it."""
    merged, name, wrapped = wrappers.unwrap(config)
    values = dict(config.values)
    if wrapped:
        own = config.part("text_config").values or {
            key: value for key, value in values.items() if not key.endswith(("_config", "_token_id"))
        }
        kind = next(kind for kind, known in wrappers.CLASSES.items() if known == name)
        kept = {key: merged.values.get(key, value) for key, value in own.items()}
        ties = {key: value for key, value in merged.values.items() if key == "tie_word_embeddings"}
        values = {**wrappers.defaults_of(config), **kept, **ties, "architectures": [name], "model_type": kind}
        values |= {key: _without_sight(values[key]) for key in ("rope_scaling", "rope_parameters") if values.get(key)}
    values |= {"torch_dtype": TORCH[dtype]}
    values |= {"dtype": TORCH[dtype]} if "dtype" in values else {}
    return values if tied is None else values | {"tie_word_embeddings": tied}


def _without_sight(rotary: Any) -> Any:
    """The rotary settings without the keys that only images have a use for."""
    if not isinstance(rotary, dict):
        return rotary
    found = {key: value for key, value in rotary.items() if key not in _SEEING and value not in _SEEING}
    return {"rope_type": "default", **found}
