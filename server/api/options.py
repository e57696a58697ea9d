"""From Ollama's `options` and OpenAI's sampling fields to the options of `runtime/options.py`, whose ranges hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import msgspec
from msgspec.inspect import BoolType, FloatType, IntType

from runtime.defaults import CACHE_TYPES
from runtime.errors import BadRequest
from runtime.options import MAX_BIAS, MAX_BIASES, MAX_INT, MAX_LOGPROBS, MAX_STOP_LENGTH, MAX_STOPS, Limits, Sampling
from server.api.fields import GRAMMARS, refuse_field, unknown
from server.values import cache_type

Whole = int | float
"""A whole number in a body, which clients also write as 5.0; `Range.check` tells."""
Body = TypeVar("Body", bound=msgspec.Struct)


@dataclass(frozen=True)
class Range:
    """The numbers that an option may have, both ends included; whole numbers only where `whole`."""

    low: float
    high: float
    whole: bool = False

    def check(self, name: str, value: Any) -> int | float:
        """The value, as int or float; raises BadRequest."""
        kind = "whole number" if self.whole else "number"
        fits = isinstance(value, int) or (isinstance(value, float) and (not self.whole or value.is_integer()))
        if isinstance(value, bool) or not fits or not self.low <= value <= self.high:
            raise BadRequest(
                f"`{name}` is not a {kind} from {self.low:,} to {self.high:,}: {_shown(value)}",
                "correct it or leave it out",
                name,
            )
        return int(value) if self.whole else float(value)


_TYPES = {field.name: msgspec.inspect.type_info(field.type) for field in msgspec.structs.fields(Sampling)}
RANGES = {
    name: Range(kind.ge, kind.le, whole=isinstance(kind, IntType))
    for name, kind in _TYPES.items()
    if isinstance(kind, IntType | FloatType) and kind.ge is not None and kind.le is not None
}
# Clients send any 64-bit number as a seed; `sampling` makes 32 bits of it.
RANGES["seed"] = replace(RANGES["seed"], low=-(2**63), high=2**64 - 1)
# Options of Ollama's engine that ours decides for itself: to pass them over changes no answer.
_ENGINE_NUMBERS = frozenset(("num_batch", "num_gpu", "main_gpu", "num_thread", "num_gqa"))
_ENGINE_FLAGS = frozenset(
    ("low_vram", "f16_kv", "vocab_only", "use_mmap", "use_mlock", "numa", "logits_all", "embedding_only")
)
# Options that Ollama or llama.cpp has and we have not, with the value that asks for nothing.
_NOTED = {"num_keep": 0, "penalize_newline": True, "tfs_z": 1.0, "samplers": None, "dry_sequence_breakers": None}
ENGINE = _ENGINE_NUMBERS | _ENGINE_FLAGS
KNOWN = frozenset({*_TYPES, "num_ctx", "kv_type", "num_predict", "stop", "draft_num_predict"})
_OTHERS = ENGINE | GRAMMARS.keys() | _NOTED.keys()
_ANY_NUMBER = Range(-MAX_INT - 1, MAX_INT)
_CONTEXT = Range(1, MAX_INT, whole=True)
_PREDICT = Range(-MAX_INT - 1, MAX_INT, whole=True)
_DRAFTS = Range(0, MAX_INT, whole=True)
_MOST_TOKENS = Range(-1, MAX_INT, whole=True)
_ALTERNATIVES = Range(0, MAX_LOGPROBS, whole=True)


def with_sampling(shape: type[Body]) -> type[Body]:
    """The body `shape` with one more field for each sampling option, by its name here; all may be left out."""
    fields = [(name, _plain(kind) | None, None) for name, kind in _TYPES.items()]
    return cast(type[Body], msgspec.defstruct(shape.__name__, fields, bases=(shape,), kw_only=True))


def _plain(kind: Any) -> Any:
    """An option's type without its range, which `sampling` checks with a better message."""
    plain = {IntType: Whole, FloatType: float, BoolType: bool}
    return plain.get(type(kind), dict[str, float])  # JSON's keys are texts


def sampling_fields(body: msgspec.Struct) -> dict[str, Any]:
    """The sampling options of a body whose type `with_sampling` made."""
    return {name: getattr(body, name) for name in _TYPES}


def sampling(defaults: Mapping[str, Any], overrides: Mapping[str, Any]) -> Sampling:
    """How to draw tokens: by the request's options (`overrides`), else by the model's (`defaults`), else by Ollama's.

    Names that are no sampling options are left to `check_options`. Raises BadRequest for a value out of its range.
    """
    values: dict[str, Any] = {}
    for name, allowed in RANGES.items():
        value = overrides.get(name)
        value = defaults.get(name) if value is None else value
        # A penalty of 0 would divide by it; clients mean that there is none.
        if value is not None and not (name == "repeat_penalty" and value == 0):
            values[name] = allowed.check(name, value)
    if "seed" in values:
        values["seed"] = -1 if values["seed"] < 0 else values["seed"] % 2**32
    if overrides.get("ignore_eos") is not None:
        values["ignore_eos"] = overrides["ignore_eos"] is True
    return Sampling(**values, logit_bias=_biases(overrides.get("logit_bias") or {}))


def check_options(given: Mapping[str, Any]) -> list[str]:
    """The names in Ollama's `options` that are passed over, each as a warning names it.

    Raises Unsupported for an option that bounds what the text may be, BadRequest for one of the wrong type.
    """
    shown: list[str] = []
    for name, value in given.items():
        if value is None or name in KNOWN:
            continue
        if name not in _OTHERS:
            shown.append(unknown(name, sorted(KNOWN)) if len(shown) < 8 else "")
            continue
        if name in GRAMMARS and value:
            refuse_field(name)
        if name in _ENGINE_NUMBERS or name == "num_keep":
            _ANY_NUMBER.check(name, value)
        elif name in _ENGINE_FLAGS and not isinstance(value, bool):
            raise BadRequest(f"`{name}` is neither true nor false: {_shown(value)}", "correct it or leave it out", name)
        if name in _NOTED and value != _NOTED[name]:
            shown.append(f"`{name}`")
    return shown


def _shown(value: Any) -> str:
    """A value of any size, cut to a few letters."""
    if isinstance(value, str):
        return json.dumps(value[:40])
    return json.dumps(value)[:40] if isinstance(value, bool | int | float | None) else f"a {type(value).__name__}"


def _biases(given: Any) -> dict[int, float]:
    """The numbers to add to logits, by token id; JSON has the ids as texts. Raises BadRequest."""
    if isinstance(given, dict) and len(given) > MAX_BIASES:
        message = f"`logit_bias` has {len(given)} entries, and {MAX_BIASES} are allowed"
        raise BadRequest(message, "send fewer", "logit_bias")
    biases = {}
    for token, value in given.items() if isinstance(given, dict) else [("", None)]:
        is_id = isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 11
        if not (is_id and isinstance(value, int | float) and -MAX_BIAS <= value <= MAX_BIAS):
            raise BadRequest(
                f"`logit_bias` holds an entry that is no token id with a bias from -{MAX_BIAS} to {MAX_BIAS}",
                "correct it",
                "logit_bias",
            )
        biases[int(token)] = float(value)
    return biases


def limits(defaults: Mapping[str, Any], overrides: Mapping[str, Any]) -> Limits:
    """When to stop, by `num_predict` and `stop`; below zero is as far as the context goes. Raises BadRequest."""
    count = overrides.get("num_predict")
    count = defaults.get("num_predict") if count is None else count
    count = -1 if count is None else int(_PREDICT.check("num_predict", count))
    stop = overrides.get("stop")
    return Limits(max_tokens=max(count, -1), stop=stops(defaults.get("stop") if stop is None else stop))


def stops(value: Any) -> list[str]:
    """Stop strings from a text, a list of texts or nothing; empty ones are left out. Raises BadRequest."""
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if isinstance(texts, list) and len(texts) > MAX_STOPS:
        raise BadRequest(f"`stop` has more than {MAX_STOPS} texts", "send fewer", "stop")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRequest("`stop` is neither a text nor a list of texts", "send a list of texts", "stop")
    if any(len(text) > MAX_STOP_LENGTH for text in texts):
        raise BadRequest(f"`stop` has a text above {MAX_STOP_LENGTH} letters", "send a shorter one", "stop")
    return [text for text in texts if text]


def context(overrides: Mapping[str, Any]) -> int | None:
    """The context asked for, in tokens, if any. Raises BadRequest."""
    value = overrides.get("num_ctx")
    # Ollama's own default is written as 0 by some clients.
    return None if not value else int(_CONTEXT.check("num_ctx", value))


def drafts(defaults: Mapping[str, Any], overrides: Mapping[str, Any], name: str = "draft_num_predict") -> int:
    """How many tokens a draft may have; -1 leaves it to the engine. A request calls it `name`. Raises BadRequest."""
    value = overrides.get(name)
    value = defaults.get("draft_num_predict") if value is None else value
    return -1 if value is None else int(_DRAFTS.check(name, value))


def most_tokens(name: str, value: Whole | None) -> int | None:
    """The tokens that an answer of OpenAI's routes may have; None and -1 set no limit. Raises BadRequest."""
    return None if value is None else int(_MOST_TOKENS.check(name, value))


def alternatives(wanted: bool, top: Whole | None, name: str = "top_logprobs") -> int:
    """How many alternatives to report for each token, -1 for no probabilities at all. Raises BadRequest."""
    count = 0 if top is None else int(_ALTERNATIVES.check(name, top))
    return count if wanted else -1


def kv_type(overrides: Mapping[str, Any]) -> str | None:
    """The type of the KV cache that is asked for (`kv_type`), if any. Raises BadRequest."""
    value = overrides.get("kv_type")
    if value is None:
        return None
    try:
        return cache_type(value)
    except ValueError:
        hint = f"known are {', '.join(CACHE_TYPES)}"
        raise BadRequest(f"there is no cache type {_shown(value)}", hint, "kv_type") from None
