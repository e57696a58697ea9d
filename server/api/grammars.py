"""From the fields of both dialects to the grammar of a request."""

from __future__ import annotations

import msgspec

from runtime.errors import BadRequest
from runtime.messages import Grammar
from runtime.options import MAX_GRAMMAR

KINDS = ("gbnf", "lark", "regex")


class GrammarField(msgspec.Struct):
    """A `grammar` whose `type` (one of `KINDS`) is named; a bare text is GBNF."""

    type: str
    value: str


def of_field(field: str | GrammarField | None) -> Grammar | None:
    """The grammar of the field `grammar`, None where it is empty. Raises BadRequest."""
    match field:
        case None | "":
            return None
        case str():
            return _checked(Grammar("gbnf", field, "grammar"))
        case GrammarField("gbnf" | "lark" | "regex" as kind, text):
            return _checked(Grammar(kind, text, "grammar"))
    raise BadRequest(f"there is no type of grammar `{field.type[:40]}`", f"known are {', '.join(KINDS)}", "grammar")


def of_schema(raw: msgspec.Raw, name: str) -> Grammar:
    """The grammar of a JSON schema, as it came in the field `name`. Raises BadRequest where it is no object."""
    try:
        text = bytes(raw).decode()
    except UnicodeDecodeError:
        raise BadRequest(f"`{name}` is no text (UTF-8)", "correct it", name) from None
    if not text.startswith("{"):
        hint = 'send an object such as `{"type": "object"}`'
        raise BadRequest(f"`{name}` is no JSON schema: {text[:40]}", hint, name)
    return _checked(Grammar("schema", text, name))


def only(**given: Grammar | None) -> Grammar | None:
    """The one grammar that was given, by the names of its fields. Raises BadRequest for two."""
    found = [name for name, grammar in given.items() if grammar]
    if len(found) > 1:
        raise BadRequest(f"`{found[0]}` and `{found[1]}` exclude each other", "leave one out", found[1])
    return given[found[0]] if found else None


def _checked(grammar: Grammar) -> Grammar:
    if len(grammar.text) > MAX_GRAMMAR:
        message = f"`{grammar.field}` has more than {MAX_GRAMMAR:,} characters"
        raise BadRequest(message, "make it smaller", grammar.field)
    return grammar
