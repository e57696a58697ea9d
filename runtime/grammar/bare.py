"""Arguments in Gemma 4's notation as a grammar: like JSON, with bare keys, and tokens for the quotes of texts.

`{city:<|"|>Paris<|"|>,days:[1,2]}`: keys come in the order of their names, as the model's template writes them. A
schema becomes rules of llguidance's dialect of Lark, which keeps the same keywords as its JSON, but for a few that are
refused here by name; a `format` is a remark. Source: the macro `format_argument` of the template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Protocol

from runtime.errors import BadRequest

QUOTE = '<|"|>'
# A key that its parser reads without quotes.
_BARE = re.compile(r"[A-Za-z0-9_$][A-Za-z0-9_$.\- ]*(?<! )")
_KEY = r"/[A-Za-z0-9_$][A-Za-z0-9_$.\-]{0,63}/"
_REFUSED = ("allOf", "oneOf", "patternProperties", "minProperties", "maxProperties", "prefixItems", "additionalItems")
# Keywords beside which an `anyOf` or a `$ref` would have to hold as well.
_BESIDE = frozenset({"type", "enum", "const", "properties", "items", "additionalProperties", "required", "pattern"})
_DEPTH = 60
_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "integer": lambda value: not isinstance(value, bool) and (isinstance(value, int) or value == int(value)),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}


class SectionRules(Protocol):
    """The rules of a section, to which these are added."""

    def add(self, name: str, body: str) -> str:
        """A new rule, whose name begins with `name`; its whole name."""

    def reserve(self, name: str) -> str:
        """The whole name of a rule that `fill` adds later."""

    def fill(self, rule: str, body: str) -> None:
        """Add the rule of a reserved name."""

    def spelled(self, text: str) -> str:
        """A text of the notation as an expression."""

    def raw(self, schema: dict[str, Any], closing: str) -> str:
        """A text without quotes that keeps a schema, and what closes it."""

    def json(self, schema: dict[str, Any]) -> str:
        """A value of JSON that keeps a schema."""


class BareArguments:
    """Writes the rules for the arguments of one tool."""

    def __init__(self, rules: SectionRules, schema: dict[str, Any]) -> None:
        self._rules = rules
        self._schema = schema
        self._named: dict[str, str] = {}
        """The rules of references, by the reference; "" is any value."""
        self._depth = 0

    def arguments(self) -> str:
        """The object of all arguments. Raises BadRequest for a keyword that cannot be kept."""
        return self._object(self._schema)

    def any_object(self) -> str:
        """An object of any arguments."""
        return self._object({})

    def _value(self, schema: Any) -> str:
        """A value that keeps a schema."""
        if schema is True or schema == {}:
            return self._any()
        if not isinstance(schema, dict):
            raise _refused("false")
        self._depth += 1
        if self._depth > _DEPTH:
            raise BadRequest("the schema is nested too deeply", "make it flatter")
        try:
            return self._of(schema)
        finally:
            self._depth -= 1

    def _of(self, schema: dict[str, Any]) -> str:
        for keyword in _REFUSED:
            if keyword in schema:
                raise _refused(keyword)
        for keyword in ("$ref", "anyOf"):
            if keyword in schema and _BESIDE & schema.keys():
                raise _refused(keyword)
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        if "anyOf" in schema:
            return self._rules.add("either", " | ".join(map(self._value, schema["anyOf"])))
        kinds = schema.get("type")
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            fitting = [each for each in values if kinds is None or any(_TYPES[kind](each) for kind in kinds)]
            if not fitting:
                raise BadRequest("no answer can satisfy the schema", "correct it")
            return self._rules.add("one", " | ".join(self._rules.spelled(written(each)) for each in fitting))
        if kinds is None:
            kinds = ["object"] if "properties" in schema else ["array"] if "items" in schema else []
        if not kinds:
            return self._any()
        return self._rules.add("value", " | ".join(self._kind(kind, schema) for kind in kinds))

    def _kind(self, kind: str, schema: dict[str, Any]) -> str:
        match kind:
            case "object":
                return self._object(schema)
            case "array":
                return self._array(schema)
            case "string":
                return self._text(schema)
        return self._rules.json({**schema, "type": kind})

    def _text(self, schema: dict[str, Any]) -> str:
        return f"{self._rules.spelled(QUOTE)} {self._rules.raw(schema, QUOTE)}"

    def _reference(self, reference: Any) -> str:
        """The rule of a reference into the schema itself, which may lead back to where it stands."""
        if reference not in self._named:
            found: Any = self._schema
            inside = isinstance(reference, str) and reference.startswith("#")
            for name in reference[1:].split("/")[1:] if inside else ():
                name = name.replace("~1", "/").replace("~0", "~")
                found = found.get(name) if isinstance(found, dict) else None
            if not inside or found is None:
                raise _refused("$ref")
            self._later(reference, lambda: self._value(found))
        return self._named[reference]

    def _any(self) -> str:
        if "" not in self._named:
            self._later(
                "",
                lambda: " | ".join(
                    self._kind(kind, {}) for kind in ("object", "array", "string", "number", "boolean", "null")
                ),
            )
        return self._named[""]

    def _later(self, name: str, body: Callable[[], str]) -> None:
        """Give a rule its name before its body, which may lead back to it."""
        self._named[name] = rule = self._rules.reserve("named")
        self._rules.fill(rule, body())

    def _object(self, schema: dict[str, Any]) -> str:
        """An object: the named properties by their names, then others where there may be."""
        named = schema.get("properties") or {}
        required = schema.get("required") or []
        others = schema.get("additionalProperties", not named)
        rest = alone = ""
        if others is not False:
            pair = self._rules.add("pair", f"{_KEY} {_quoted(':')} {self._value(others)}")
            rest = self._rules.add("rest", f"({_quoted(',')} {pair})*")
            alone = self._rules.add("alone", f"{pair} {rest}")
        for key in sorted((key for key in named if named[key] is not False), key=str.lower, reverse=True):
            spelled = self._rules.spelled(f"{bare(key)}:")
            argument = self._rules.add("argument", f"{spelled} {self._value(named[key])}")
            first, further = f"{argument} {rest}".strip(), f"{_quoted(',')} {argument}"
            always = key in required
            alone = self._rules.add("alone", first if always or not alone else f"{first} | {alone}")
            rest = self._rules.add("rest", f"{further if always else f'({further})?'} {rest}".strip())
        if any(key not in named for key in required):
            raise _refused("required")
        inside = alone if required or not alone else f"{alone}?"
        return self._rules.add("object", f"{_quoted('{')} {inside} {_quoted('}')}")

    def _array(self, schema: dict[str, Any]) -> str:
        if isinstance(schema.get("items"), list):
            raise _refused("items")
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        item = self._value(schema.get("items", {}))
        if most == 0:
            return f"{_quoted('[')} {_quoted(']')}"
        more = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        inside = f"{item} ({_quoted(',')} {item}){more}"
        return self._rules.add("array", f"{_quoted('[')} {inside if least else f'({inside})?'} {_quoted(']')}")


def bare(key: str) -> str:
    """A key as the notation has it: in quotes where its reader could not tell its end."""
    return key if _BARE.fullmatch(key) else f"{QUOTE}{key}{QUOTE}"


def written(value: Any) -> str:
    """A value in the notation."""
    match value:
        case str():
            return f"{QUOTE}{value}{QUOTE}"
        case dict():
            pairs = sorted(value.items(), key=lambda pair: pair[0].lower())
            return "{" + ",".join(f"{bare(key)}:{written(each)}" for key, each in pairs) + "}"
        case list():
            return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


def _refused(keyword: str) -> BadRequest:
    return BadRequest(f"`{keyword}` cannot be kept in this model's own notation of calls", "leave it or `strict` out")


def _quoted(text: str) -> str:
    return json.dumps(text)
