"""The type of a model's KV cache: which one is wanted, and which ones llama.cpp cannot make for the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from quant.types import QuantType
from registry.store.catalog import Model
from runtime.defaults import CACHE_TYPE
from server.errors import Unsupported
from server.values import cache_type

# Models without flash attention in llama.cpp (`llama_init_from_model`), which a quantized cache needs.
_WITHOUT_FLASH = ("grok",)


class CacheChoice(NamedTuple):
    """The type of a KV cache, and why the type of the settings was not taken; "" where it was."""

    kv_type: str
    reason: str = ""


class Drafter(NamedTuple):
    """A model that is to draft in the same process, with a KV cache of the same type: its name, its file's entries."""

    name: str
    metadata: Mapping[str, Any]


def choose_cache_type(
    model: Model, metadata: Mapping[str, Any], asked: str | None, usual: str, draft: Drafter | None = None
) -> CacheChoice:
    """The type that a request asked for, else the model's own (`kv_type`), else `usual`, the setting.

    `metadata` are the entries of the model's file; its `draft` gets the same type. The settings are for all models,
    so that one which cannot have their type gets the default. Raises Unsupported where the type was asked for, or is
    the model's own.
    """
    wanted = asked or _own_type(model)
    obstacle = _obstacle(metadata, wanted or usual)
    if draft and not obstacle and (of_draft := _obstacle(draft.metadata, wanted or usual)):
        obstacle = f"its draft `{draft.name}` cannot: {of_draft}"
    if not obstacle:
        return CacheChoice(wanted or usual)
    if wanted:
        message = f"`{model.name}` cannot have a KV cache in {wanted}: {obstacle}"
        raise Unsupported(message, "take F16, the default, or BF16")
    return CacheChoice(CACHE_TYPE, f"the KV cache is in {CACHE_TYPE} and not in {usual}: {obstacle}")


def _own_type(model: Model) -> str | None:
    try:
        return cache_type(model.params["kv_type"])
    except (KeyError, ValueError):
        return None


def _obstacle(metadata: Mapping[str, Any], kv_type: str) -> str:
    """Why llama.cpp makes no KV cache of this type for a model (`llama_init_from_model`); "" where it does."""
    block, architecture = QuantType.by_name(kv_type).block, str(metadata.get("general.architecture", ""))

    def number(key: str, default: int) -> int:
        value = metadata.get(f"{architecture}.{key}", default)
        return value if isinstance(value, int) else default

    heads = number("attention.head_count", 1)
    if block == 1 or not heads:
        return ""
    if architecture in _WITHOUT_FLASH:
        return "blocks need flash attention, and llama.cpp has none for this model"
    usual = number("embedding_length", block) // heads
    lengths = (number(f"attention.{what}_length", usual) for what in ("key", "value"))
    odd = next((length for length in lengths if length % block), 0)
    return f"flash attention reads whole blocks of {block} values, and its heads have {odd}" if odd else ""
