"""Fields and forms that bodies of llama-server's routes share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from registry.store.catalog import Model
from runtime.errors import BadRequest
from runtime.options import MAX_ANSWERS, MAX_BIAS
from server.api import options
from server.api.fields import GRAMMARS, KnownFields
from server.api.options import Range, Whole
from server.api.prompts import is_id

COUNT = Range(1, MAX_ANSWERS, whole=True)
_LONGEST_DRAFT = "speculative.n_max"
LONGEST_DRAFT: Any = msgspec.field(name=_LONGEST_DRAFT, default=None)
"""llama-server's field for `draft_num_predict`, which goes before it."""
# Which slot and which part of the cache a request uses, and how its stream is kept open: no answer is another for it.
_IDLE = frozenset({"cache_prompt", "n_cache_reuse", "sse_ping_interval", "t_max_prompt_ms", "backend_sampling"})
# How llama-server drafts, beside how much; the text is the same.
_DRAFTING = ("speculative.n_min", "speculative.p_min", "speculative.type")
_NOTED: dict[str, Any] = {
    "adaptive_target": -1,
    "adaptive_decay": None,
    "dry_sequence_breakers": None,
    "dynatemp_range": None,
    "dynatemp_exponent": 1,
    "id_slot": -1,
    "min_keep": None,
    "n_discard": None,
    "n_indent": None,
    "n_keep": None,
    "post_sampling_probs": None,
    "return_progress": None,
    "samplers": None,
    **dict.fromkeys(_DRAFTING),
}
_HONOURED = ("grammar", "json_schema")
COMPLETION = KnownFields(
    binding={name: hint for name, hint in GRAMMARS.items() if name not in _HONOURED}
    | {"max_tokens": "use `n_predict`", "image_data": "", "lora": "send `adapters`, a list of names"},
    noted=_NOTED,
    idle=_IDLE,
    misplaced={"messages": "send it to `/v1/chat/completions`", "input": "send `prompt`"},
)
# Limits of time and an order of samplers, which editors send with every request: a slower answer is still one.
INFILL = KnownFields(
    binding={name: hint for name, hint in GRAMMARS.items() if name != "t_max_predict_ms"}
    | {"max_tokens": "use `n_predict`"},
    noted={name: _NOTED[name] for name in ("n_keep", "post_sampling_probs", *_DRAFTING)},
    idle=_IDLE | {"id_slot", "t_max_predict_ms", "n_indent", "samplers"},
)
TOKENS = KnownFields()


def biases_of(given: Any) -> tuple[dict[str, float], dict[str, float]]:
    """The numbers to add to logits: by token id, and by text, whose every token gets the number.

    llama-server takes an object, or a list of pairs in which `false` forbids a token. Raises BadRequest.
    """
    pairs = given.items() if isinstance(given, Mapping) else given
    ids: dict[str, float] = {}
    texts: dict[str, float] = {}
    for pair in pairs or ():
        token, bias = pair if isinstance(pair, list | tuple) and len(pair) == 2 else (None, 0)
        bias = -MAX_BIAS if bias is False else bias
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -MAX_BIAS <= bias <= MAX_BIAS:
            token, bias = None, 0
        if is_id(token) or (isinstance(token, str) and token.isdigit() and isinstance(given, Mapping)):
            ids[str(token)] = float(bias)
        elif isinstance(token, str) and token:
            texts[token] = float(bias)
        else:
            raise BadRequest(
                f"`logit_bias` holds an entry that is no token or text with a bias from -{MAX_BIAS} to {MAX_BIAS}",
                "send pairs such as `[15043, 1.0]`; `false` forbids a token",
                "logit_bias",
            )
    return ids, texts


def count_of(given: Whole | None, name: str) -> int:
    """How many answers a prompt gets. Raises BadRequest."""
    return 1 if given is None else int(COUNT.check(name, given))


def drafts_of(model: Model, most: Whole | None, longest: Whole | None) -> int:
    """How many tokens a draft may have, by `draft_num_predict` or `speculative.n_max`. Raises BadRequest."""
    if most is None and longest is not None:
        return options.drafts({}, {_LONGEST_DRAFT: longest}, _LONGEST_DRAFT)
    return options.drafts(model.params, {"draft_num_predict": most})
