"""From Ollama's `options` and OpenAI's sampling fields to the options of `runtime/options.py`, whose ranges hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeVar, cast

import msgspec
from msgspec.inspect import BoolType, FloatType, IntType

from runtime.errors import BadRequest
from runtime.options import MAX_BIAS, MAX_BIASES, MAX_INT, MAX_LOGPROBS, MAX_STOP_LENGTH, MAX_STOPS, Limits, Sampling

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
            shown = json.dumps(value)[:40]
            raise BadRequest(
                f"`{name}` is not a {kind} from {self.low:,} to {self.high:,}: {shown}", "correct it or leave it out"
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
_ENGINE = frozenset(
    {
        "num_batch",
        "num_gpu",
        "main_gpu",
        "low_vram",
        "f16_kv",
        "vocab_only",
        "use_mmap",
        "use_mlock",
        "num_thread",
        "numa",
        "logits_all",
        "embedding_only",
        "num_keep",
        "num_gqa",
        "draft_num_predict",
    }
)
_KNOWN = sorted({*_TYPES, "num_ctx", "num_predict", "stop"})
_CONTEXT = Range(1, MAX_INT, whole=True)
_PREDICT = Range(-2, MAX_INT, whole=True)


def with_sampling(shape: type[Body]) -> type[Body]:
    """The body `shape` with one more field for each sampling option, by its name here; all may be left out."""
    fields = [(name, _plain(kind) | None, None) for name, kind in _TYPES.items()]
    return cast(type[Body], msgspec.defstruct(shape.__name__, fields, bases=(shape,), kw_only=True))


def _plain(kind: Any) -> Any:
    """An option's type without its range, which `sampling` checks with a better message."""
    plain = {IntType: int, FloatType: float, BoolType: bool}
    return plain.get(type(kind), dict[str, float])  # JSON's keys are texts


def sampling_fields(body: msgspec.Struct) -> dict[str, Any]:
    """The sampling options of a body whose type `with_sampling` made."""
    return {name: getattr(body, name) for name in _TYPES}


def sampling(defaults: Mapping[str, Any], overrides: Mapping[str, Any]) -> Sampling:
    """How to draw tokens: by the request's options (`overrides`), else by the model's (`defaults`), else by Ollama's.

    Names that are no sampling options are passed over: clients send many that concern Ollama's own engine.
    Raises BadRequest for a value out of its range.
    """
    values: dict[str, Any] = {}
    for name, allowed in RANGES.items():
        value = overrides.get(name)
        value = defaults.get(name) if value is None else value
        if value is not None:
            values[name] = allowed.check(name, value)
    if "seed" in values:
        values["seed"] = -1 if values["seed"] < 0 else values["seed"] % 2**32
    if overrides.get("ignore_eos") is not None:
        values["ignore_eos"] = overrides["ignore_eos"] is True
    return Sampling(**values, logit_bias=_biases(overrides.get("logit_bias") or {}))


def unknown_warning(names: Iterable[str]) -> str:
    """A sentence about the names in Ollama's `options` that do not exist, each with the nearest that does; or ""."""
    warnings = []
    for name in names:
        if name not in _ENGINE and name not in _KNOWN:
            close = get_close_matches(name, _KNOWN, 1)
            warnings.append(f"`{name[:40]}`" + (f" (did you mean `{close[0]}`?)" if close else ""))
    return f"there is no option {', '.join(warnings[:8])}: passed over" if warnings else ""


def _biases(given: Any) -> dict[int, float]:
    """The numbers to add to logits, by token id; JSON has the ids as texts. Raises BadRequest."""
    if isinstance(given, dict) and len(given) > MAX_BIASES:
        raise BadRequest(f"`logit_bias` has {len(given)} entries, and {MAX_BIASES} are allowed")
    biases = {}
    for token, value in given.items() if isinstance(given, dict) else [("", None)]:
        is_id = isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 11
        if not (is_id and isinstance(value, int | float) and -MAX_BIAS <= value <= MAX_BIAS):
            raise BadRequest(
                f"`logit_bias` holds an entry that is no token id with a bias from -{MAX_BIAS} to {MAX_BIAS}",
                "correct it",
            )
        biases[int(token)] = float(value)
    return biases


def limits(defaults: Mapping[str, Any], overrides: Mapping[str, Any]) -> Limits:
    """When to stop, by `num_predict` and `stop`; below zero is as far as the context goes. Raises BadRequest."""
    count = overrides.get("num_predict", defaults.get("num_predict"))
    count = -1 if count is None else int(_PREDICT.check("num_predict", count))
    stop = overrides.get("stop")
    return Limits(max_tokens=max(count, -1), stop=stops(defaults.get("stop") if stop is None else stop))


def stops(value: Any) -> list[str]:
    """Stop strings from a text, a list of texts or nothing; empty ones are left out. Raises BadRequest."""
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRequest("`stop` is neither a text nor a list of texts", "send a list of texts")
    if len(texts) > MAX_STOPS or any(len(text) > MAX_STOP_LENGTH for text in texts):
        raise BadRequest(f"`stop` has more than {MAX_STOPS} texts or one above {MAX_STOP_LENGTH} letters", "send less")
    return [text for text in texts if text]


def context(overrides: Mapping[str, Any]) -> int | None:
    """The context asked for, in tokens, if any. Raises BadRequest."""
    value = overrides.get("num_ctx")
    # Ollama's own default is written as 0 by some clients.
    return None if not value else int(_CONTEXT.check("num_ctx", value))


def alternatives(wanted: bool, top: int | None) -> int:
    """How many alternatives to report for each token, -1 for no probabilities at all. Raises BadRequest."""
    if top is not None and not 0 <= top <= MAX_LOGPROBS:
        raise BadRequest(f"`top_logprobs` must be between 0 and {MAX_LOGPROBS}", "ask for fewer")
    return (top or 0) if wanted else -1
