"""The keys of `config.json` that count: what the model's class reads, by a table of transformers (`keys.json`).

A key that `config.json` leaves out has the default of the class. A key that the class reads, and that nobody looked at
while the model was planned, stops the conversion unless it has the value that changes nothing.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from quant.convert.config import ModelConfig
from quant.errors import UnsupportedModel

# Not among the defaults that are filled in: a file without one of these is damaged rather than short.
_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "n_embd")
# Other names of classes, as first versions of models have them, and classes that read what another one does.
_SAME = {
    "LLaMAForCausalLM": "LlamaForCausalLM",
    "ExaoneMoEForCausalLM": "ExaoneMoeForCausalLM",
    "MPTForCausalLM": "MptForCausalLM",
    "MiMoV2ForCausalLM": "MiMoV2FlashForCausalLM",
    "NemotronHPuzzleForCausalLM": "NemotronHForCausalLM",
    "RWForCausalLM": "FalconForCausalLM",
    "StableLMEpochForCausalLM": "StableLmForCausalLM",
    "LFM2ForCausalLM": "Lfm2ForCausalLM",
    "VLlama3ForCausalLM": "LlamaForCausalLM",
    "OLMoForCausalLM": "OlmoForCausalLM",
    "Ernie4_5_ForCausalLM": "Ernie4_5ForCausalLM",
}
# A file that does not say whether its output is tied is told by its tensors where it is part of something larger.
_LEFT_OUT = ("tie_word_embeddings",)
# Other names for the part of a head that is rotated.
_SHARES = ("partial_rotary_factor", "rotary_pct", "rope_pct", "rotary_dim")
# Where the rotary settings are, an object each.
_OBJECTS = ("rope_parameters", "rope_scaling")
# Classes that read rotary settings by the kinds of layers alone, and no older names.
_BY_KIND_ALONE = ("Gemma4", "Laguna", "Mellum", "MiMoV2")
# Read in all their forms by `families/rotary.py`, or without effect where nothing is rotated.
_ROTARY = (
    "original_max_position_embeddings",
    *_OBJECTS,
    "rope_theta",
    *_SHARES,
    "global_rope_theta",
    "local_rope_theta",
    "rope_local_base_freq",
)
# They only say which tensors a model has, and the tensors say so too.
_TOLD_BY_TENSORS = (
    "add_cross_attention",
    "attention_bias",
    "attention_out_bias",
    "mamba_conv_bias",
    "mamba_proj_bias",
    "mlp_bias",
    "norm_bias",
    "projectors_bias",
    "qk_layernorm",
    "qkv_bias",
    "use_bias",
    "bias",
    "use_parallel_residual",
    "use_qk_norm",
    "use_qkv_bias",
    "classifier_bias",
)
# Older names of keys, which count where the newer one is not given.
_OLDER = {"tie_embedding": "tie_word_embeddings"}
# The base of the frequencies in layers with a window.
_LOCAL_BASES = ("local_rope_theta", "rope_local_base_freq")
# GPT-NeoX's names for the base and the share; a class that has these reads no others.
_OLD_BASE, _OLD_SHARE = "rotary_emb_base", "rotary_pct"
COUNTING = frozenset({*_ROTARY, *_TOLD_BY_TENSORS})
WITHOUT_EFFECT = frozenset(
    {
        # For training alone: what is forgotten at random, losses, first values of weights.
        "attention_dropout",
        "attention_probs_dropout_prob",
        "attn_dropout",
        "attn_pdrop",
        "classifier_dropout",
        "embd_pdrop",
        "embedding_dropout",
        "hidden_dropout",
        "hidden_dropout_prob",
        "mlp_dropout",
        "resid_dropout",
        "resid_pdrop",
        "residual_dropout",
        "projector_dropout",
        "summary_first_dropout",
        "ffn_dropout",
        "aux_loss_alpha",
        "output_router_logits",
        "pretraining_tp",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "router_z_loss_coef",
        "seq_aux",
        "sparse_pred_ignore_index",
        "sparse_prediction",
        "problem_type",
        "initializer_cutoff_factor",
        "initializer_range",
        "rescale_prenorm_residual",
        "gradient_checkpointing",
        "mamba_dt_init_floor",
        "mamba_dt_max",
        "mamba_dt_min",
        "time_step_floor",
        "time_step_init_scheme",
        "time_step_max",
        "time_step_min",
        "time_step_rank",
        "time_step_scale",
        "ep_size",
        "mup_base_width",
        # How a computation is cut, cached and run; what comes out stays the same.
        "_attn_implementation",
        "_attn_implementation_internal",
        "_flash_attn_2_enabled",
        "attn_implementation",
        "cache_implementation",
        "chunk_size",
        "chunk_size_feed_forward",
        "deterministic_flash_attn",
        "embedding_initializer_range",
        "embedding_size",
        "is_encoder_decoder",
        "mamba_chunk_size",
        "num_logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "pruned_heads",
        "reorder_and_upcast_attn",
        "reference_compile",
        "residual_in_fp32",
        "return_dict",
        "torchscript",
        "use_associative_scan",
        "use_cache",
        "use_flash_attn",
        "use_mamba_kernels",
        "use_mambapy",
        "repad_logits_with_grad",
        "dtype",
        "torch_dtype",
        "use_bfloat16",
        "use_fused_rms_norm",
        "fused_bias_fc",
        "fused_dropout_add_ln",
        # Names, versions, and the numbers of tokens, which the tokenizer's code reads where they count.
        "_name_or_path",
        "architectures",
        "auto_map",
        "finetuning_task",
        "id2label",
        "label2id",
        "model_type",
        "name_or_path",
        "num_labels",
        "task_specific_params",
        "tokenizer_class",
        "transformers_version",
        "language",
        "bos_token_id",
        "cls_token_id",
        "eos_token_id",
        "mask_token_id",
        "pad_token_id",
        "sep_token_id",
        "unk_token_id",
        # Parts of a model that no answer needs: heads for training, and what sees or hears.
        "decoder_bias",
        "mtp_hybrid_override_pattern",
        "mtp_layers_block_type",
        "num_mtp_layers",
        "image_size",
        "mm_tokens_per_image",
        "num_channels",
        "patch_size",
        "text_config",
        "vision_config",
        "pixel_shuffle_ratio",
        "projector_input_dim",
        "projector_output_dim",
        "pooling_kernel_size",
        "standardize",
        "position_embedding_size",
        "attention_context_left",
        "attention_context_right",
        "use_clipped_linears",
        "attention_invalid_logits_value",
        "attention_logit_cap",
        "conf_attention_chunk_size",
        "conf_attention_context_left",
        "conf_attention_context_right",
        "conf_attention_logit_cap",
        "conf_num_attention_heads",
        "gradient_clipping",
        "attention_chunk_size",
        *COUNTING,
    }
)
"""Keys that change no logit, whatever their values."""
# A key that counts only where a switch is on.
_SWITCHED = {
    "mamba_norm_before_gate": "mamba_rms_norm",
    "max_window_layers": "use_sliding_window",
    "sliding_window": "use_sliding_window",
    "attn_scale": "attn_temperature_tuning",
    "floor_scale": "attn_temperature_tuning",
    "top_k_experts": "enable_moe_block",
    "moe_intermediate_size": "enable_moe_block",
    "num_experts": "enable_moe_block",
    "num_global_key_value_heads": "attention_k_eq_v",
    "vocab_size_per_layer_input": "hidden_size_per_layer_input",
}


@cache
def _whole() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(__file__).with_name("keys.json").read_text())
    return found


def entry_of(name: str) -> dict[str, Any] | None:
    """The entry of a class, None where transformers does not know it."""
    return table().get(_SAME.get(name, name))


def table() -> dict[str, Any]:
    """The entries by the class's name; `tests/quant/make_keys.py` says what they hold."""
    found: dict[str, Any] = _whole()["classes"]
    return found


def filled(config: ModelConfig, name: str) -> ModelConfig:
    """The config with the defaults of class `name` for switches, factors, windows and rotary settings that it lacks."""
    entry = entry_of(name)
    if entry is None:
        return config
    older = {new: config.values[old] for old, new in _OLDER.items() if old in entry["others"] and old in config.values}
    config = config.filled(older)
    config.looked_at |= {old for old in _OLDER if old in entry["others"]}
    # Where a file has a key by both names, the older one counts, unless it is the name of the class's field.
    given, fields = config.values, entry["defaults"]
    for one, other in (
        (new, old) if new in fields or new not in given else (old, new) for old, new in entry["aliases"].items()
    ):
        config = config.changed({one: given[other]}) if other in given else config
    config = config.filled({old: config.values[new] for old, new in entry["aliases"].items() if new in config.values})
    defaults = {
        key: value
        for key, value in entry["defaults"].items()
        if isinstance(value, bool | float | int) and key not in (*_LEFT_OUT, *_SIZES) and not key.endswith("token_id")
    }
    config = _by_kind(_whole_heads(config, entry), entry)
    rope = entry["rope"] or {}
    rope = rope.get("full_attention", rope)
    given = config.values
    if _OLD_BASE in entry["others"]:
        base, share = given.get(_OLD_BASE), given.get(_OLD_SHARE)
        config = config.changed(
            {
                "rope_theta": rope["rope_theta"] if base is None else base,
                "partial_rotary_factor": rope["partial_rotary_factor"] if share is None else share,
            }
        )
        config.looked_at |= {_OLD_BASE, _OLD_SHARE}
    told = any(given.get(key) is not None for key in _SHARES)
    wanted = ("rope_theta",) if told else ("rope_theta", "partial_rotary_factor")
    return _original(config.filled(defaults | {key: rope[key] for key in wanted if key in rope}), entry)


def _original(config: ModelConfig, entry: dict[str, Any]) -> ModelConfig:
    """The config whose rotary scaling has the trained length in the class's own field, where there is one."""
    key = "original_max_position_embeddings"
    if key not in entry["defaults"]:
        return config
    names = [name for name in _OBJECTS if config.values.get(name) is not None]
    return config.changed({name: {**config.part(name).values, key: config.values[key]} for name in names})


def _whole_heads(config: ModelConfig, entry: dict[str, Any]) -> ModelConfig:
    """The config without a share of heads that is rotated, where the class rotates the whole of them all the same."""
    if entry["partial"]:
        return config
    parts = {
        name: {key: value for key, value in config.part(name).values.items() if key != "partial_rotary_factor"}
        for name in _OBJECTS
        if config.values.get(name) is not None
    }
    return config.changed({**dict.fromkeys(key for key in _SHARES if key in config.values), **parts})


def _by_kind(config: ModelConfig, entry: dict[str, Any]) -> ModelConfig:
    """The config with rotary settings for each kind of layers, where the class has them apart from each other."""
    usual, rope, scaling = entry["rope"] or {}, config.part("rope_parameters"), config.part("rope_scaling").values
    given = rope.values
    if "full_attention" not in usual:
        # transformers then forgets the base in `rope_parameters`, too.
        if scaling:
            return config.changed({"rope_parameters": None}) if given else config
        scaled = usual.get("rope_type", "default") != "default" and not given
        return config.changed({"rope_parameters": usual}) if scaled else config
    if given and not given.keys() & usual.keys():
        hint = "give it for `full_attention` and for `sliding_attention`, as transformers saves it"
        raise UnsupportedModel(f"`rope_parameters` in `{config.name}` are not told by kinds of layers", hint)
    values = config.values
    if entry["config"].startswith(_BY_KIND_ALONE):
        base = values.get("rope_theta")
        if not given and base not in (None, usual["full_attention"]["rope_theta"]) and "Gemma" not in entry["config"]:
            raise UnsupportedModel(f"its `rope_theta` in `{config.name}` stands where the class does not read it")
        return config if given else config.changed({"rope_parameters": usual})
    made = {kind: dict(rope.part(kind).values or {"rope_type": "default"}) for kind in usual}
    for kind in usual if "local_rope_theta" in entry["others"] else ("full_attention",):
        made[kind] |= scaling  # the older name `type` has no effect beside `rope_type`
    everywhere = ("global_rope_theta" if "global_rope_theta" in entry["others"] else "rope_theta",)
    for kind, names in (("full_attention", everywhere), ("sliding_attention", _LOCAL_BASES)):
        base = next((values[name] for name in names if name in entry["others"] and values.get(name) is not None), None)
        made[kind].setdefault("rope_theta", usual[kind]["rope_theta"] if base is None else base)
    return config.changed({"rope_parameters": made, "rope_scaling": None})


def check(config: ModelConfig, name: str, accept: bool = False) -> tuple[str, ...]:
    """The keys that nobody knows, which are gone without where the user accepts (`accept`) that.

    `config` is the file as it is, after the model of class `name` has been planned by it. Raises UnsupportedModel where
    the class reads a key that was not looked at, and the value is not the one without effect. Where transformers does
    not know the class, every key that was not looked at counts, unless `accept` is set.
    """
    entry = entry_of(name)
    ignored = [key for key, value in config.values.items() if _counts(config, key, value, entry)]
    if not ignored or (accept and entry is None):
        return tuple(ignored)
    key = ignored[0]
    said = f"`{key}` in `{config.name}` is {ascii(config.values[key])[:60]}, and"
    if entry is None:
        raise UnsupportedModel(
            f"{said} nobody knows whether the code of `{ascii(name)[1:-1][:60]}` computes otherwise then",
            hint="where it does not, `lm pull --accept-unknown-keys` converts the model without it and notes that",
        )
    usual = {**entry["others"], **entry["defaults"]}[entry["aliases"].get(key, key)]
    raise UnsupportedModel(
        f"{said} llama.cpp has nothing for it in models of this class (`{name}`)",
        hint=f"only models with the usual value, {ascii(usual)[:40]}, can be converted: "
        f"the class computes otherwise with another one (transformers {_whole()['transformers']})",
    )


def _counts(config: ModelConfig, key: str, value: Any, entry: dict[str, Any] | None) -> bool:
    """Whether a key that was not looked at may change what the model computes."""
    if key in config.looked_at or key in WITHOUT_EFFECT:
        return False
    if entry is None:
        return value is not None
    name = entry["aliases"].get(key, key)
    usual = {**entry["others"], **entry["defaults"]}
    if name not in usual or {name, *(old for old, new in entry["aliases"].items() if new == name)} & config.looked_at:
        return False
    if value is None:
        return usual[name] is True  # a switch that is null is off
    switch = _SWITCHED.get(name, "")
    if switch in usual and not config.values.get(switch, usual[switch]):
        return False
    return bool(value != usual[name]) and not (value is False and usual[name] is None)
