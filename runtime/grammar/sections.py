"""A section of calls as a grammar: the form in which a model writes calls, around the schemas of its tools.

The grammar is in llguidance's dialect of Lark. A section begins with the first word of its form, so that the same
grammar holds an answer that has to call, and one that has just begun a call by itself.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable
from typing import Any

from runtime.answers.forms import CallForm, Hole, JsonArguments, JsonCall, Tags
from runtime.answers.notations import GemmaArguments, PythonCall
from runtime.errors import BadRequest
from runtime.grammar.bare import BareArguments
from runtime.grammar.schema import prepare

Spell = Callable[[str], str]
"""A text of a template as an expression of Lark, with its control tokens."""

# JSON is written in one line, as Python's `json.dumps` does. So no answer is lost in white space, and all that stands
# between a property's name and its value is forced.
LAYOUT: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}
_ID = "/[A-Za-z0-9]{9}/"
_NUMBER = "/[0-9]+/"
_ANY: dict[str, Any] = {"type": "object"}
# The other word of an attribute that tells texts from other values.
_OTHER_KIND = {"true": "false", "false": "true"}


def section_of(form: CallForm, tools: list[dict[str, Any]], spell: Spell, *, several: bool, loose: bool) -> str:
    """The grammar of a section with a call of one of `tools`, or with `several`.

    With `loose` the schemas of tools that are not `strict` are not kept. Raises BadRequest for a schema that cannot be.
    """
    return _Writer(form, spell, loose).section(tools, several)


def is_json(form: CallForm) -> bool:
    """Whether all quotes and brackets of the calls are JSON's own, so that keys can be watched in them."""
    return isinstance(form.body, JsonCall | JsonArguments)


class _Writer:
    """Writes the rules of one grammar."""

    def __init__(self, form: CallForm, spell: Spell, loose: bool) -> None:
        self._form, self._loose = form, loose
        self._spell = spell
        self._rules: list[str] = []
        self._reserved = 0

    def section(self, tools: list[dict[str, Any]], several: bool) -> str:
        form = self._form
        calls = [self.add("call", self._call(tool)) for tool in tools]
        call = self.add("any", " | ".join(calls))
        opening, close = form.open.lstrip(), form.close
        if form.listed:
            opening, between, close = f"{opening}[", ", ", f"]{close}"
        else:
            between = form.between if form.between is not None else "" if self._is_bare else "\n"
        more = f" ({self.spelled(between)} {call})*" if several else ""
        parts = (self.spelled(opening), call + more, self.spelled(close.rstrip()))
        return "\n".join([f"start: {' '.join(part for part in parts if part)}", *self._rules]) + "\n"

    def add(self, name: str, body: str) -> str:
        """A new rule, whose name begins with `name`; its whole name."""
        rule = self.reserve(name)
        self.fill(rule, body)
        return rule

    def reserve(self, name: str) -> str:
        """The whole name of a rule that `fill` adds later."""
        self._reserved += 1
        return f"{name}_{self._reserved}"

    def fill(self, rule: str, body: str) -> None:
        """Add the rule of a reserved name."""
        self._rules.append(f"{rule}: {body}")

    def spelled(self, text: str) -> str:
        """A text of a call as an expression."""
        return self._spell(text) if text else ""

    def _call(self, tool: dict[str, Any]) -> str:
        """A call of one tool, from the text before it to the text after."""
        form, name = self._form, tool["function"]["name"]
        begun = bool(form.open.strip() or form.listed)
        parts = []
        for number, part in enumerate(form.before):
            match part:
                case str():
                    parts.append(self.spelled(part if number or begun else part.lstrip()))
                case Hole.NAME | Hole.SAME_NAME:
                    parts.append(_quoted(name))
                case Hole.NAMING_ID:
                    parts += [_quoted(f"functions.{name}:"), _NUMBER]
                case Hole.ID:
                    parts.append(_ID)
                case Hole.INDEX:
                    parts.append(_NUMBER)
                case Hole.REST:
                    pass
        after = form.after if form.close.strip() or form.listed else form.after.rstrip()
        return " ".join(part for part in (*parts, self._body(tool), self.spelled(after)) if part)

    def _body(self, tool: dict[str, Any]) -> str:
        name, schema = tool["function"]["name"], self._schema(tool)
        match self._form.body:
            case JsonCall(name="", arguments=""):
                return f"{_quoted('{' + json.dumps(name) + ': ')} {self.json(schema)} {_quoted('}')}"
            case JsonCall(name_key, arguments_key, id_key):
                return self._object(name_key, arguments_key, id_key, name, schema)
            case Tags() as tags:
                return self._several(self._tags(tags, schema), tool, "")
            case GemmaArguments():
                writer = BareArguments(self, schema)
                return writer.any_object() if self._is_free(tool) else self._refusing(tool, writer.arguments)
            case PythonCall():
                return f"{_quoted(name + '(')} {self._several(self._keywords(name, schema), tool, ', ')} {_quoted(')')}"
        return self.json(schema)

    def _object(self, name_key: str, arguments_key: str, id_key: str, name: str, schema: dict[str, Any]) -> str:
        told = f"{json.dumps(name_key)}: {json.dumps(name)}, {json.dumps(arguments_key)}: "
        arguments = self.json(schema)
        plain = f"{_quoted('{' + told)} {arguments} {_quoted('}')}"
        if not id_key:
            return plain
        id_ = f"{_quoted(f'{json.dumps(id_key)}: ')} ({_quoted(chr(34))} {_ID} {_quoted(chr(34))} | {_NUMBER})"
        first = f"{_quoted('{')} {id_} {_quoted(', ' + told)} {arguments} {_quoted('}')}"
        last = f"{_quoted('{' + told)} {arguments} {_quoted(', ')} {id_} {_quoted('}')}"
        return f"({plain} | {first} | {last})"

    def _schema(self, tool: dict[str, Any]) -> dict[str, Any]:
        """The schema of a tool's arguments. Raises BadRequest."""
        function = tool["function"]
        if self._is_free(tool):
            return _loosened(function["parameters"]) if isinstance(self._form.body, Tags | PythonCall) else _ANY
        schema: dict[str, Any] = self._refusing(
            tool, lambda: prepare(json.dumps(function["parameters"]), keyed=is_json(self._form))
        )
        return schema

    @property
    def _is_bare(self) -> bool:
        return isinstance(self._form.body, GemmaArguments)

    def _refusing(self, tool: dict[str, Any], write: Callable[[], Any]) -> Any:
        """The result of `write`, which reads the schema of a tool. Raises its BadRequest with the tool's name."""
        try:
            return write()
        except BadRequest as error:
            raise BadRequest(f"the parameters of the tool `{tool['function']['name']}`: {error}", error.hint) from None

    def _is_free(self, tool: dict[str, Any]) -> bool:
        """Whether the schema of a tool is not kept."""
        return self._loose and tool["function"].get("strict") is not True

    def json(self, schema: dict[str, Any]) -> str:
        """A value of JSON that keeps a schema."""
        return self.add("json", f"%json {json.dumps({'x-guidance': LAYOUT, **schema})}")

    def _several(self, arguments: list[tuple[str, bool]], tool: dict[str, Any], between: str) -> str:
        """Arguments one after the other, each a rule and whether it is required, with a text between two of them.

        They come in the order of the schema, the required ones first where `between` is a text. The arguments of
        a tool whose schema is not kept come in any order.
        """
        if not arguments:
            return ""
        if self._is_free(tool):
            one = self.add("one", " | ".join(rule for rule, _ in arguments))
            return f"({one} ({_quoted(between)} {one})*)?" if between else f"{one}*"
        if not between:
            return " ".join(rule if required else f"{rule}?" for rule, required in arguments)
        comma, always = _quoted(between), [rule for rule, required in arguments if required]
        rest = alone = ""
        for rule in [rule for rule, required in reversed(arguments) if not required]:
            first = f"{rule} {rest}".strip()
            alone = self.add("alone", f"{first} | {alone}" if alone else first)
            rest = self.add("rest", f"({comma} {rule})? {rest}".strip())
        return f"{f' {comma} '.join(always)} {rest}".strip() if always else f"{alone}?"

    def _keywords(self, tool: str, schema: dict[str, Any]) -> list[tuple[str, bool]]:
        """Arguments of a call of Python: a value of JSON after a name. Raises BadRequest for what is no name."""
        found = []
        for key, required, value in _properties(schema):
            if not key.isidentifier() or keyword.iskeyword(key):
                message = f"the parameters of the tool `{tool}`: `{key[:80]}` is no name of Python, as which this model"
                raise BadRequest(f"{message} writes it", "rename it, or leave `strict` out")
            found.append((self.add("argument", f"{_quoted(key + '=')} {self.json(value)}"), required))
        return found

    def _tags(self, tags: Tags, schema: dict[str, Any]) -> list[tuple[str, bool]]:
        """Arguments between tags."""
        parts: list[tuple[str, bool]] = []
        for key, required, value in _properties(schema):
            closing = tags.after_value.replace("{key}", key)
            text = _is_text(value)
            kind = ""
            if tags.kind is not None:
                other = _OTHER_KIND.get(tags.text_kind, str(value.get("type", "")))
                kind = tags.kind[0] + (tags.text_kind if text else other) + tags.kind[1]
            head = self.spelled(tags.before_key + key + (kind or tags.after_key))
            closing = closing if self._form.after.strip() or parts else closing.rstrip()
            body = self.raw(value, closing) if text else f"{self.json(value)} {self.spelled(closing)}"
            parts.append((self.add("argument", f"{head} {body}"), required))
        return parts

    def raw(self, schema: dict[str, Any], closing: str) -> str:
        """A text without quotes, and the tag that closes it."""
        spelled = self.spelled(closing)
        values = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if values:
            return "(" + " | ".join(_quoted(str(value)) for value in values) + f") {spelled}"
        mark = re.sub(r"([.^$*+?{}\[\]\\|()/])", r"\\\1", closing.strip()).replace("\n", r"\n")
        low, high = schema.get("minLength", 0), schema.get("maxLength", "")
        body = rf"/(?s:.){{{low},{high}}}/ & ~/(?s:.)*{mark}(?s:.)*/"
        pattern = schema.get("pattern")
        if isinstance(pattern, str):
            start, end = ("" if pattern.startswith("^") else "(?s:.)*", "" if pattern.endswith("$") else "(?s:.)*")
            inner = pattern.removeprefix("^").removesuffix("$").replace("/", r"\/")
            body += f" & /{start}({inner}){end}/"
        name = self.add("RAW", body)
        if "<[" in spelled:  # a control token, which no text has; blanks before it are taken for the text's
            return f"{name} {self.spelled(closing.lstrip())}"
        # A text takes as many letters as it can, the letters of the tag too, unless it is told to end with the tag.
        ended = self.reserve("raw")
        self.fill(f"{ended}[suffix={_quoted(closing)}]", name)
        return ended


def _properties(schema: dict[str, Any]) -> list[tuple[str, bool, dict[str, Any]]]:
    """The properties of an object: name, whether it is required, schema."""
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    required = schema.get("required", [])
    named = (schema.get("properties") or {}).items()
    # A schema that is `false` names a property that must not come.
    return [
        (key, key in required, {**shared, **(value if isinstance(value, dict) else {})})
        for key, value in named
        if value is not False
    ]


def _loosened(schema: dict[str, Any]) -> dict[str, Any]:
    """The names of an object's properties, and which of them are texts."""
    found = {key: {"type": "string"} if _is_text(value) else {} for key, value in schema.get("properties", {}).items()}
    return {"type": "object", "properties": found}


def _is_text(schema: Any) -> bool:
    """Whether a value is written as it is, without quotes."""
    if not isinstance(schema, dict):
        return False
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return schema.get("type") == "string" or ("type" not in schema and any(isinstance(each, str) for each in values))


def _quoted(text: str) -> str:
    """A text as a string of Lark, which are JSON's."""
    return json.dumps(text, ensure_ascii=False)
