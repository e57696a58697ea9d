"""PEFT's `adapter_config.json`: the settings of an adapter; settings that no GGUF adapter can hold are refused.

Source: `LoraConfig` in `tuners/lora/config.py` of PEFT 0.19. A key that is not known and asks for something is refused:
nobody can say what the adapter would be without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from quant.convert.config import ModelConfig
from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import Files

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_WITHOUT = "train it without, or merge it into its base and pull the merged model"
# Settings that an adapter in GGUF has no place for, and why.
_REFUSED = {
    "use_dora": "DoRA scales each column of the changed weight by its length, which llama.cpp does not compute",
    "lora_bias": "its matrices have biases of their own, for which a GGUF adapter has no place",
    "modules_to_save": "it brings whole modules with it, for which a GGUF adapter has no place",
    "trainable_token_indices": "it replaces single rows of the embedding, for which a GGUF adapter has no place",
    "layer_replication": "it repeats layers of its base",
    "alora_invocation_tokens": "it works from a certain token on (aLoRA), and not for a whole text",
    "use_qalora": "QALoRA pools the inputs, which llama.cpp does not compute",
    "use_bdlora": "its matrices are block-diagonal",
    "arrow_config": "it chooses among several adapters for each token",
    "velora_config": "VeLoRA changes what its matrices compute",
    "monteclora_config": "MonteCLoRA draws its matrices at random",
    "kasa_config": "KaSA changes the weights of its base",
    "megatron_config": "it belongs to a model split by Megatron",
}
# Settings that concern training and names alone, or that the tensors show by themselves.
_SILENT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "target_parameters",
        "task_type",
        "alpha_pattern",
        "use_rslora",
        "bias",
        "unsloth_fixed",
    }
)
# Beginnings of `init_lora_weights` that take the first value of the adapter out of the weights of the base.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# A pattern of names is an expression of Python's `re`. Repetitions within repetitions could take for ever to match.
_PATTERN, _REPEATED = re.compile(r"[\w.^$\\|()\[\]*+?-]{1,200}"), re.compile(r"[*+?]")
_MOST_REPEATED = 4
_LONGEST = 80


@dataclass(frozen=True)
class AdapterSettings:
    """The settings of an adapter in a PEFT folder.

    - `base`: the base's name or path, as whoever trained the adapter called it, and its `revision`; "" where unknown.
    - `alpha`: the numerator of its scale, and `alphas` its exceptions: patterns of modules' names with their own.
    - `rooted`: rank-stabilized: the scale is alpha / √rank instead of alpha / rank.
    - `task`: PEFT's name of the kind of model, such as `CAUSAL_LM`; "" where it is not said.
    """

    base: str
    revision: str
    alpha: float
    alphas: Mapping[str, float]
    rooted: bool
    task: str

    def scale(self, module: str, rank: int) -> float:
        """The number by which PEFT multiplies B·A of a module; `get_pattern_key` of PEFT finds its alpha."""
        found = (value for key, value in self.alphas.items() if re.match(rf"(.*\.)?({key})$", module))
        alpha = next(found, self.alpha)
        return alpha / math.sqrt(rank) if self.rooted else alpha / rank


def is_peft(files: Files) -> bool:
    """Whether a source is an adapter in PEFT's layout, and no whole model that has the settings of one beside it."""
    names = files.names()
    return CONFIG in names and not any(
        name.startswith(("model.safetensors", "model-", "pytorch_model")) for name in names
    )


def read_settings(files: Files) -> AdapterSettings:
    """The settings of a PEFT adapter. Raises UnsupportedModel for what GGUF cannot hold, and MalformedFile."""
    config = ModelConfig.read(files, CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        shown = f"`{ascii(kind)[1:-1][:40]}`" if isinstance(kind, str) else "unknown"
        raise UnsupportedModel(f"the kind of the adapter is {shown} (`peft_type`), and only LoRA can be run", _WITHOUT)
    for key, why in _REFUSED.items():
        if config.get(key):
            raise UnsupportedModel(f"the adapter cannot be run: {why} (`{key}`)", _WITHOUT)
    bias = config.get("bias", "none")
    if bias != "none":
        raise UnsupportedModel(f"the adapter changes biases of its base (`bias`: {ascii(bias)[:20]})", _WITHOUT)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        raise UnsupportedModel(
            f"the adapter was begun as `{ascii(start)[1:-1][:30]}` and fits only the changed base of its training",
            "save it with `path_initial_model_for_weight_conversion`, as PEFT's documentation says",
        )
    for key, value in config.values.items():
        if key not in _SILENT and key not in _REFUSED and value not in (None, False, [], {}, ""):
            raise UnsupportedModel(f"the adapter asks for `{ascii(key)[1:-1][:40]}`, which is not known", _WITHOUT)
    rank = config.get("r")
    if type(rank) is not int or rank < 1:
        raise config.wrong("r", "a rank of 1 or more")
    return AdapterSettings(
        base=_text(config, "base_model_name_or_path"),
        revision=_text(config, "revision"),
        alpha=_alpha(config, "lora_alpha"),
        alphas=_alphas(config.part("alpha_pattern")),
        rooted=config.flag("use_rslora"),
        task=_text(config, "task_type"),
    )


def _text(config: ModelConfig, key: str) -> str:
    value = config.get(key)
    return value if isinstance(value, str) and value.isprintable() else ""


def _alpha(config: ModelConfig, key: str) -> float:
    alpha = config.number(key)
    if not alpha:
        raise config.wrong(key, "a number other than 0, for 0 takes the adapter away")
    return alpha


def _alphas(config: ModelConfig) -> dict[str, float]:
    """The exceptions of `alpha_pattern`. Raises MalformedFile for a pattern that is none, or takes long to match."""
    for key in config.values:
        shown = ascii(key)[1:-1][:_LONGEST]
        if not _PATTERN.fullmatch(key) or len(_REPEATED.findall(key)) > _MOST_REPEATED or re.search(r"\)[*+?]", key):
            raise MalformedFile(f"`{shown}` in `{config.name}` is not a pattern of names that can be read")
        try:
            re.compile(key)
        except re.error:
            raise MalformedFile(f"`{shown}` in `{config.name}` is not a regular expression") from None
    return {key: _alpha(config, key) for key in config.values}


def require_weights(files: Files) -> None:
    """Raise UnsupportedModel where an adapter has its weights in no safetensors file."""
    names = files.names()
    if WEIGHTS in names:
        return
    if PICKLE in names:
        raise UnsupportedModel(
            f"the adapter has its weights only in `{PICKLE}`, a pickle, which can run any code when it is opened",
            f"ask its authors for `{WEIGHTS}`, or convert it where you trust it",
        )
    raise UnsupportedModel(f"the adapter has no `{WEIGHTS}`", "is this the whole folder of it?")
