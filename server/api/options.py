"""Ollama's `options` and OpenAI's sampling fields, checked against one table of ranges."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from runtime.errors import BadRequest
from runtime.messages import Limits, Sampling

MAX_STOPS = 16
MAX_STOP_LETTERS = 256
MAX_TOP_LOGPROBS = 20
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Range:
    """What an option may be: whole numbers only where `whole`, both ends included."""

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


SAMPLING = {
    "temperature": Range(0, 100),
    "top_k": Range(-1, LARGEST, whole=True),
    "top_p": Range(0, 1),
    "min_p": Range(0, 1),
    "typical_p": Range(0, 1),
    "top_n_sigma": Range(-1, 100),
    "xtc_probability": Range(0, 1),
    "xtc_threshold": Range(0, 1),
    "repeat_last_n": Range(-1, LARGEST, whole=True),
    "repeat_penalty": Range(0, 100),
    "presence_penalty": Range(-100, 100),
    "frequency_penalty": Range(-100, 100),
    "dry_multiplier": Range(0, 100),
    "dry_base": Range(0, 100),
    "dry_allowed_length": Range(0, LARGEST, whole=True),
    "dry_penalty_last_n": Range(-1, LARGEST, whole=True),
    "mirostat": Range(0, 2, whole=True),
    "mirostat_tau": Range(0, 100),
    "mirostat_eta": Range(0, 100),
    "seed": Range(-(2**63), 2**64 - 1, whole=True),
}
# What Ollama's engine is told and ours decides for itself: passing it over changes no answer.
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
_OTHERS = frozenset(("num_ctx", "num_predict", "stop", "ignore_eos", "logit_bias"))
_CONTEXT = Range(1, LARGEST, whole=True)
_PREDICT = Range(-2, LARGEST, whole=True)


def sampling(defaults: Mapping[str, Any], asked: Mapping[str, Any]) -> Sampling:
    """How to draw tokens: what is asked for, else what the model's makers recommend, else Ollama's defaults.

    Names that are no sampling options are passed over: clients send many that concern Ollama's own engine.
    """
    values: dict[str, Any] = {}
    for name, allowed in SAMPLING.items():
        value = asked.get(name)
        value = defaults.get(name) if value is None else value
        if value is not None:
            values[name] = allowed.check(name, value)
    if "seed" in values:
        values["seed"] = -1 if values["seed"] < 0 else values["seed"] % 2**32
    if asked.get("ignore_eos") is not None:
        values["ignore_eos"] = asked["ignore_eos"] is True
    return Sampling(**values, logit_bias=_biases(asked.get("logit_bias") or {}))


def unknown(asked: Mapping[str, Any]) -> str:
    """A warning of the names in Ollama's `options` that mean nothing here, each with what it may have meant; or ""."""
    known = sorted({*SAMPLING, *_OTHERS})
    told = []
    for name in asked:
        if name not in _ENGINE and name not in known:
            close = get_close_matches(name, known, 1)
            told.append(f"`{name[:40]}`" + (f" (did you mean `{close[0]}`?)" if close else ""))
    return f"there is no option {', '.join(told[:8])}: passed over" if told else ""


def _biases(given: Any) -> dict[int, float]:
    """Token ids, as JSON writes keys, to what is added to their logits; raises BadRequest."""
    found = {}
    for token, value in given.items() if isinstance(given, dict) else [("", None)]:
        named = isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 11
        if not (named and isinstance(value, int | float) and -100 <= value <= 100):
            raise BadRequest(
                "`logit_bias` holds an entry that is no token id with a bias from -100 to 100", "correct it"
            )
        found[int(token)] = float(value)
    return found


def limits(defaults: Mapping[str, Any], asked: Mapping[str, Any]) -> Limits:
    """When to stop, by `num_predict` and `stop`; below zero is as far as the context goes."""
    count = asked.get("num_predict", defaults.get("num_predict"))
    count = -1 if count is None else int(_PREDICT.check("num_predict", count))
    stop = asked.get("stop")
    return Limits(max_tokens=max(count, -1), stop=stops(defaults.get("stop") if stop is None else stop))


def stops(value: Any) -> list[str]:
    """Stop strings from a text, a list of texts or nothing; empty ones are left out. Raises BadRequest."""
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRequest("`stop` is neither a text nor a list of texts", "send a list of texts")
    if len(texts) > MAX_STOPS or any(len(text) > MAX_STOP_LETTERS for text in texts):
        raise BadRequest(f"`stop` has more than {MAX_STOPS} texts or one above {MAX_STOP_LETTERS} letters", "send less")
    return [text for text in texts if text]


def context(asked: Mapping[str, Any]) -> int | None:
    """The context asked for, in tokens, if any."""
    value = asked.get("num_ctx")
    # Ollama's own default is written as 0 by some clients.
    return None if not value else int(_CONTEXT.check("num_ctx", value))


def alternatives(wanted: bool, top: int | None) -> int:
    """How many alternatives to report for each token, -1 for no probabilities at all. Raises BadRequest."""
    if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        raise BadRequest(f"`top_logprobs` must be between 0 and {MAX_TOP_LOGPROBS}", "ask for fewer")
    return (top or 0) if wanted else -1
