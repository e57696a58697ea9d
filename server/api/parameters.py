"""The parameters of a model that is made here: names and ranges of requests' options, from numbers or from texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.errors import BadRequest
from server.api import options
from server.api.fields import unknown

# Parameters that Ollama had once, or that its engine has: they change no answer here.
_IDLE = frozenset({"penalize_newline", "tfs_z", "num_keep", "embedding_only"})
_SWITCHES = {"true": True, "false": False}


def checked(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The parameters that count, typed; and the names of parameters that have no effect here.

    A Modelfile has every value as text. Raises BadRequest for a name that nobody knows, and for a value that the
    option cannot have.
    """
    counted: dict[str, Any] = {}
    idle: list[str] = []
    for name, value in given.items():
        if name in options.ENGINE or name in _IDLE:
            idle.append(name)
        elif name == "stop":
            counted[name] = options.stops(value)
        elif name in options.KNOWN and name != "logit_bias":
            counted[name] = _typed(value)
        else:
            raise BadRequest(
                f"there is no parameter {unknown(name, sorted(options.KNOWN))}", "correct it or leave it out", name
            )
    try:
        options.sampling({}, counted)
        options.limits({}, counted)
        options.context(counted)
        options.drafts({}, counted)
    except BadRequest as error:
        error.field = "parameters"
        raise
    return counted, idle


def _typed(value: Any) -> Any:
    """A value as the number or the switch that a text spells; what is none stays, and the checks of options say so."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if text in _SWITCHES:
        return _SWITCHES[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return value
