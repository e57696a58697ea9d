"""Configs of much pulled models as their makers published them, facts key by key, and the same made small.

Each JSON file beside this one has the name of a model, the keys and values of its `config.json` that count for its
numbers, and of its `generation_config.json` the sampling settings. Long lists of rotary factors are ramps between their
ends. `endings` of a chat model are the tokens that `tokenizer_config.json` calls the first and the last one, the texts
of tokens by their numbers, and the numbers that `config.json` and `generation_config.json` name as ends of a text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.quant.zoo import ZOO
from tests.quant.zoo.row import Row

PUBLISHED: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted(Path(__file__).parent.glob("*.json"))
}
# What the class of a model is called, and its task: rows are named by both.
_TASKS = ("ForCausalLM", "ForSequenceClassification", "ForMaskedLM", "TextModel", "Model")
# Settings that say how large a model is, which the rows of the zoo have small.
_SIZES = {
    *("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "max_position_embeddings", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "moe_intermediate_size", "n_routed_experts", "num_experts"),
    *("num_local_experts", "num_experts_per_tok", "experts_per_token", "n_group", "topk_group", "kv_lora_rank"),
    *("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "first_k_dense_replace", "n_shared_experts"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "query_pre_attn_scalar", "full_attn_idxs", "block_dim"),
    *("block_ff_dim", "block_auto_adjust_ff_dim", "initial_context_length", "type_vocab_size", "num_labels"),
    *("num_heads", "state_size", "n_groups", "chunk_size", "mamba_d_ssm", "mamba_d_head", "mamba_d_state"),
    *("mamba_n_heads", "mamba_n_groups", "mamba_chunk_size"),
}
# The names that a class of transformers has for settings which its models were published with by other names.
_USUAL_NAMES = {
    "NomicBertModel": {
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_layer": "num_hidden_layers",
        "n_positions": "max_position_embeddings",
        "layer_norm_epsilon": "layer_norm_eps",
        "rotary_emb_base": "rope_theta",
    }
}


def usual(config: dict[str, Any], back: bool = False) -> dict[str, Any]:
    """The settings by the names that transformers has for them; with `back` by the published ones again."""
    names = _USUAL_NAMES.get(config["architectures"][0], {})
    names = {new: old for old, new in names.items()} if back else names
    return {names.get(key, key): value for key, value in config.items()}


def row_of(config: dict[str, Any]) -> Row:
    """The row of the zoo with the model's class."""
    name = config["architectures"][0]
    task = next(each for each in _TASKS if name.endswith(each))
    wanted = {"ForMaskedLM": "Model"}.get(task, task)
    found = [row for row in ZOO.values() if row.kind + row.task == name.removesuffix(task) + wanted and not row.around]
    return found[0]


def small(config: dict[str, Any]) -> dict[str, Any]:
    """The published settings with the sizes of the row: windows, lengths and lists of layers shrink with them."""
    row = row_of(config)
    sizes = {key: value for key, value in row.settings().items() if key in _SIZES}
    made = {key: value for key, value in config.items() if key not in _SIZES} | sizes
    if config.get("num_key_value_heads", 0) == config.get("num_attention_heads"):
        made["num_key_value_heads"] = made["num_attention_heads"]
    pattern = config.get("_sliding_window_pattern", config.get("sliding_window_pattern")) or 0
    layers = max(made["num_hidden_layers"], pattern, 5 if "no_rope_layers" in config else 0)
    made["num_hidden_layers"] = layers
    for key in ("layer_types", "no_rope_layers"):
        if key in config:
            made[key] = config[key][:layers]
    if config.get("query_pre_attn_scalar"):
        made["query_pre_attn_scalar"] = made["head_dim"]
    elif "head_dim" not in config:
        made.pop("head_dim", None)
    if config.get("full_attn_idxs"):
        made["full_attn_idxs"] = [2]
    if config.get("q_lora_rank"):
        made["q_lora_rank"] = row.settings()["q_lora_rank"]
    window = config.get("sliding_window")
    if isinstance(window, int):
        # A window is a part of its model's context, or reaches over all of it.
        narrow = window < config["max_position_embeddings"] and pattern_of(config)
        made["sliding_window"] = 48 if narrow else 512
    _shorten(made, config)
    return made


def pattern_of(config: dict[str, Any]) -> bool:
    """Whether some layers see the whole text and others a window, so that the engine has windows too."""
    kinds = set(config.get("layer_types") or ())
    alternating = ("Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3TextModel", "Cohere2ForCausalLM")
    return len(kinds) > 1 or config["architectures"][0] in alternating


def _shorten(made: dict[str, Any], config: dict[str, Any]) -> None:
    scaling = made.get("rope_scaling")
    if "original_max_position_embeddings" in made:
        made["original_max_position_embeddings"] = 256 if scaling else made["max_position_embeddings"]
    if not scaling:
        return
    head = made.get("head_dim", made["hidden_size"] // made["num_attention_heads"])
    pairs = int(head * config.get("partial_rotary_factor", 1.0)) // 2
    short = {key: value[:pairs] if isinstance(value, list) else value for key, value in scaling.items()}
    if "original_max_position_embeddings" in scaling:
        short["original_max_position_embeddings"] = 128
    made["rope_scaling"] = short
