"""A JSON schema made ready for llguidance: keywords that cannot be kept are refused by name, idle ones are left out.

Drafts 7 and 2020-12. llguidance refuses most of the keywords that it cannot keep; here the place in the schema is named
too. It does not see that two properties of one object have the same name: `runtime/grammar/keys.py` does.

An object gets no properties that its schema does not name, unless `additionalProperties` asks for them. The schema
would allow them. But a model that may add properties goes on adding them, and llama.cpp closes objects too.
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


def prepare(text: str, *, keyed: bool = True) -> dict[str, Any]:
    """The schema in `text` (JSON) as llguidance is to see it; `keyed` where no key comes twice. Raises BadRequest."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the schema is not JSON: {error}", "correct it") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise BadRequest("the schema is not an object", 'send one such as `{"type": "object"}`')
    nodes = [(schema, "#")]
    for node, place in nodes:
        _clean(node, place)
        _choose(node, schema)
        nodes.extend(_inner(node, place))
    keyed = keyed and not any("patternProperties" in node for node, _ in nodes)  # a pattern may have too few names
    for node, place in nodes:
        _count(node, place, keyed)
    if not any(_joins(node) for node, _ in nodes):
        for node, _ in nodes:
            _close(node)
    return schema


def _joins(node: dict[str, Any]) -> bool:
    """Whether one object has to keep several schemas at once, or exactly one, so that none of them may be closed."""
    several = any(key in node for key in ("anyOf", "$ref"))
    return "allOf" in node or "oneOf" in node or (several and ("properties" in node or "required" in node))


def _choose(node: dict[str, Any], schema: dict[str, Any]) -> None:
    """Make `oneOf` an `anyOf` where its schemas exclude each other, which llguidance does not see behind `$ref`.

    They do by their types, or by a property that tells them apart, as in the tagged unions of Pydantic.
    """
    options = node.get("oneOf")
    if not isinstance(options, list) or not options or "anyOf" in node:
        return
    resolved = [_resolved(option, schema) for option in options]
    tags = [_tags(option) for option in resolved]
    apart = [[each[name] for each in tags] for name in set.intersection(*(set(each) for each in tags))]
    types = [_types(option) for option in resolved]
    if any(_disjoint(each) for each in [*apart, *([types] if all(types) else [])]):
        node["anyOf"] = node.pop("oneOf")


def _disjoint(groups: list[list[str]]) -> bool:
    """Whether no text is in two of the groups."""
    return sum(len(set(group)) for group in groups) == len({text for group in groups for text in group})


def _types(node: Any) -> list[str]:
    """The types of JSON that a schema allows, integers as numbers; empty where it names none."""
    named = node.get("type", []) if isinstance(node, dict) else []
    names = named if isinstance(named, list) else [named]
    return ["number" if name == "integer" else name for name in names if isinstance(name, str)]


def _resolved(node: Any, schema: dict[str, Any]) -> Any:
    """The schema that `node` refers to where it does nothing else, one step far."""
    reference = node.get("$ref") if isinstance(node, dict) else None
    if isinstance(reference, str) and reference.startswith("#/"):
        found: Any = schema
        for name in reference[2:].split("/"):
            found = found.get(name) if isinstance(found, dict) else None
        return found
    return node


def _tags(node: Any) -> dict[str, list[str]]:
    """The values that each property of an object may have, where there must be one of few texts."""
    properties, required = _object(node)
    found: dict[str, list[str]] = {}
    for name in required if isinstance(node, dict) and node.get("type") == "object" else ():
        value = properties.get(name)
        values = value.get("enum", [value.get("const")]) if isinstance(value, dict) else None
        if isinstance(values, list) and values and all(isinstance(each, str) for each in values):
            found[name] = values
    return found


def _object(node: Any) -> tuple[dict[str, Any], list[str]]:
    """The properties that a schema names, and the names that it requires; empty where it is malformed."""
    properties, required = (node.get(key) for key in ("properties", "required")) if isinstance(node, dict) else (0, 0)
    names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    return properties if isinstance(properties, dict) else {}, names


def _close(node: dict[str, Any]) -> None:
    """Allow no properties beside the named ones, where the schema says nothing about others."""
    properties, required = _object(node)
    open_on_purpose = any(key in node for key in ("additionalProperties", "patternProperties", "minProperties"))
    if properties and not open_on_purpose and all(name in properties for name in required):
        node["additionalProperties"] = False


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
    """Check the keywords of one schema, and take out the idle ones."""
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
        name = str(node["format"])
        if name in _OTHER_FORMATS:
            raise cannot_keep("format", place, f"`{name}`")
        if name not in _FORMATS:
            del node["format"]
    for pattern in [node.get("pattern"), *_names(node.get("patternProperties"))]:
        if isinstance(pattern, str):
            check_repeats(pattern, "pattern")
    _check_numbers(node, place)


def _check_numbers(node: dict[str, Any], place: str) -> None:
    """Raises BadRequest for divisors that are none, or that cannot be kept."""
    step = node.get("multipleOf")
    if step is not None:
        positive = isinstance(step, int | float) and not isinstance(step, bool) and step > 0
        if not positive or len(re.sub(r"\D", "", f"{step}").strip("0")) > MAX_DIVISOR_DIGITS or "e" in f"{step}":
            raise cannot_keep("multipleOf", place, f"{step}"[:20])


def _count(node: dict[str, Any], place: str, keyed: bool) -> None:
    """Raise BadRequest for a `minProperties` that keys which come twice could fill up; take out an idle one."""
    least, required = node.get("minProperties"), node.get("required")
    always = len(required) if isinstance(required, list) else 0
    if isinstance(least, int) and least > always + 1 and not keyed:
        raise cannot_keep("minProperties", place, f"{least}")
    if isinstance(least, int) and least <= always:
        del node["minProperties"]


def _names(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else []


def cannot_keep(keyword: str, place: str, value: str = "") -> BadRequest:
    """The error about a keyword at a place of a schema (a JSON pointer)."""
    of = f" {value}" if value else ""
    return BadRequest(f"the schema has `{keyword}`{of} at `{place[:200]}`, which cannot be kept", "leave it out")
