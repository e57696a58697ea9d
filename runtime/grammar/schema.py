"""A JSON schema made ready for llguidance: what cannot be kept is refused by its name, what says nothing is left out.

Drafts 7 and 2020-12. llguidance refuses most of what it cannot keep; here the place in the schema is named too, and
what it would keep only in part is refused: it does not see that two added properties of one object have the same name,
so it cannot count properties.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from runtime.errors import BadRequest
from runtime.grammar.bounds import check_repeats

# Digits of `multipleOf`, without the decimal point: the automaton has as many states as its value.
MAX_DIVISOR_DIGITS = 4
# Keywords that no grammar of ours keeps, each with the values that mean nothing and are left out.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "not": (False,),
    "if": (),
    "contains": (),
    "minContains": (0,),
    "maxContains": (),
    "uniqueItems": (False,),
    "propertyNames": (True, {}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "$dynamicRef": (),
    "$recursiveRef": (),
}
# Keywords without a meaning of their own: for `if`, which is refused, for references that are refused, or for editors.
_IDLE = frozenset({"then", "else", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "x-guidance", "contentSchema"})
# Where schemas stand inside a schema: as the value, in a list, by names, and either a value or a list.
_ONE = ("additionalProperties", "additionalItems")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
"""Formats that llguidance keeps."""
_OTHER_FORMATS = frozenset(
    {
        "idn-email",
        "idn-hostname",
        "uri-reference",
        "iri",
        "iri-reference",
        "uri-template",
        "json-pointer",
        "relative-json-pointer",
        "regex",
    }
)
"""The other formats of the specification. A name that it does not have, such as `int32` or `password`, is a remark."""
_DRAFTS = re.compile(r"https?://json-schema\.org/(draft-0[467]|draft/20(19-09|20-12))/schema#?")


def prepare(text: str) -> dict[str, Any]:
    """The schema in `text` (JSON) as llguidance is to see it. Raises BadRequest."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the schema is not JSON: {error}", "correct it") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise BadRequest("the schema is not an object", 'send one such as `{"type": "object"}`')
    pending = [(schema, "#")]
    while pending:
        node, place = pending.pop()
        _clean(node, place)
        pending.extend(_inner(node, place))
    return schema


def _inner(node: dict[str, Any], place: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The schemas right inside `node`, with their places."""
    for key, value in node.items():
        listed = key in _LISTS or (key == "items" and isinstance(value, list))
        if listed and isinstance(value, list):
            found: Iterator[tuple[str, Any]] = ((f"{key}/{number}", each) for number, each in enumerate(value))
        elif key in _NAMED and isinstance(value, dict):
            found = ((f"{key}/{name}", each) for name, each in value.items())
        elif key in _ONE or key == "items":
            found = iter([(key, value)])
        else:
            continue
        yield from ((each, f"{place}/{name}") for name, each in found if isinstance(each, dict))


def _clean(node: dict[str, Any], place: str) -> None:
    """Check the keywords of one schema, and take out those that say nothing."""
    for key in [key for key in node if key in _IDLE]:
        del node[key]
    for key in [key for key in node if key in _REFUSED]:
        # 0 and False are equal, and not the same in JSON.
        if not any(type(node[key]) is type(idle) and node[key] == idle for idle in _REFUSED[key]):
            raise cannot_keep(key, place)
        del node[key]
    if "$schema" in node and not _DRAFTS.fullmatch(str(node["$schema"])):
        del node["$schema"]
    if "format" in node:
        if node["format"] in _OTHER_FORMATS:
            raise cannot_keep("format", place, f"`{node['format']}`")
        if node["format"] not in _FORMATS:
            del node["format"]
    for pattern in [node.get("pattern"), *_names(node.get("patternProperties"))]:
        if isinstance(pattern, str):
            check_repeats(pattern, "pattern")
    _check_numbers(node, place)


def _check_numbers(node: dict[str, Any], place: str) -> None:
    """Raises BadRequest for counts and divisors that are none, or that cannot be kept."""
    step = node.get("multipleOf")
    if step is not None:
        positive = isinstance(step, int | float) and not isinstance(step, bool) and step > 0
        if not positive or len(re.sub(r"\D", "", f"{step}").strip("0")) > MAX_DIVISOR_DIGITS or "e" in f"{step}":
            raise cannot_keep("multipleOf", place, f"{step}"[:20])
    least, required = node.get("minProperties"), node.get("required")
    always = len(required) if isinstance(required, list) else 0
    if isinstance(least, int) and least > always + 1:
        raise cannot_keep("minProperties", place, f"{least}")
    if isinstance(least, int) and least <= always:
        del node["minProperties"]


def _names(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else []


def cannot_keep(keyword: str, place: str, value: str = "") -> BadRequest:
    """The error about a keyword at a place of a schema (a JSON pointer)."""
    of = f" {value}" if value else ""
    return BadRequest(f"the schema has `{keyword}`{of} at `{place[:200]}`, which cannot be kept", "leave it out")
