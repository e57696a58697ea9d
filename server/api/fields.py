"""Fields of a body that its route does not honour: refused, or named in a warning, by one table for each dialect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import msgspec

from server.errors import BadBody, Unsupported
from server.http.bodies import Given

_SHOWN = 8
_LONGEST_NAME = 40
# Longer JSON texts of lists and objects hold something.
_LONGEST_NOTHING = 64


class KnownFields(NamedTuple):
    """The fields that a dialect's clients send and its routes do not honour.

    `binding` ones bound what the text may be, or carry a part of the question: they are refused, each with a hint.
    `noted` ones are named in the answer's `warning`; a field that has the value beside its name asks for nothing, as
    does one that is false, 0 or empty where that value is None. `idle` ones change no answer, ones within fields
    among them, such as `messages[].tool_calls[].index`. `misplaced` ones carry the question on another route, and would
    be lost here: they are refused, each with the place where it belongs.
    """

    binding: Mapping[str, str] = {}
    noted: Mapping[str, Any] = {}
    idle: frozenset[str] = frozenset()
    misplaced: Mapping[str, str] = {}


# Fields of llama-server, vLLM and their kin that bound what a text may be, in the body of any dialect.
GRAMMARS = dict.fromkeys(
    (
        "grammar",
        "json_schema",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structured_outputs",
        "regex",
        "ebnf",
        "min_tokens",
        "stop_token_ids",
        "bad_words",
        "bad_words_ids",
        "allowed_token_ids",
        "banned_tokens",
        "banned_strings",
        "logits_processors",
        "t_max_predict_ms",
    ),
    "",
)


def passed_over(given: Given, shape: type[msgspec.Struct], known: KnownFields) -> list[str]:
    """The given fields that are neither honoured nor idle, each as a warning names it. Raises Unsupported."""
    honoured = dict.fromkeys(shape.__struct_encode_fields__)
    shown: list[str] = []
    for name, raw in given.items():
        if name in honoured or name in known.idle:
            continue
        if name in known.misplaced and not _is_nothing(raw, None):
            raise BadBody(f"`{name}` is not a field of this route", known.misplaced[name], name)
        if name in known.binding:
            if not _is_nothing(raw, None):
                refuse_field(name, known.binding[name])
        elif name not in known.noted:
            shown.append(unknown(name, [*honoured]) if len(shown) < _SHOWN else "")
        elif not _is_nothing(raw, known.noted[name]):
            shown.append(f"`{name}`")
    return shown


def passed_within(names: Sequence[str], known: KnownFields) -> list[str]:
    """The unknown fields within fields that are not idle, such as `messages[].weight`, each as a warning names it."""
    parted = (name.rpartition(".") for name in names if name not in known.idle)
    return [f"`{path}.{field[:_LONGEST_NAME]}`" for path, _, field in parted]


def refuse_field(name: str, hint: str = "") -> None:
    """Raise Unsupported for a field that must not be ignored."""
    raise Unsupported(f"`{name}` is not in this version of lm", hint or f"leave `{name}` out", name)


def unknown(name: str, known: Sequence[str]) -> str:
    """A name that does not exist, with the nearest that does: only a short name can be a slip of the pen."""
    close = get_close_matches(name, known, 1) if len(name) <= _LONGEST_NAME else []
    return f"`{name[:_LONGEST_NAME]}`" + (f" (did you mean `{close[0]}`?)" if close else " (unknown)")


def warning(shown: Sequence[str]) -> str:
    """The sentence of a warning about fields and options that were passed over; "" for none."""
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return f"passed over: {', '.join(shown[:_SHOWN])}{more}" if shown else ""


def _is_nothing(raw: msgspec.Raw, nothing: Any) -> bool:
    """Whether a field's JSON asks for nothing: it equals `nothing`, or is false or empty where that is None."""
    if len(bytes(raw)) > _LONGEST_NOTHING:
        return False
    value = msgspec.json.decode(raw)
    return not value if nothing is None else value == nothing
