"""The form of a model's answers, learned from its chat template: conversations with and without a call are compared.

A template that knows calls writes the calls of earlier answers in the form that the model uses for its next one. The
probes have names that no template has, so each part of the form is the text between two of them. Forms that no
comparison shows are in `runtime/answers/notations.py`.
"""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

from runtime.answers.forms import CallBody, CallForm, Hole, JsonArguments, JsonCall, Pattern, Tags
from runtime.answers.notations import NOTATIONS
from runtime.answers.parser import AnswerForm, Marks
from runtime.answers.probing import ARGUMENTS, IDS, NAMES, Atoms, Probes, Render, common, common_end

COMPARED = "by comparing conversations"
_OPENERS, _CLOSERS = "<[", ">]"


class Learned(NamedTuple):
    """How a template writes answers; `as_text` where it wants the arguments of calls as JSON text, not as an object.

    `parallel` where it takes several calls in one answer. `how` says by what the form was recognised.
    """

    form: AnswerForm
    as_text: bool = False
    parallel: bool = False
    how: str = ""

    @property
    def names_in_ids(self) -> bool:
        """Whether the template writes the id of a call where its name belongs: `functions.NAME:0`."""
        return any(Hole.NAMING_ID in call.before for call in self.form.calls)


def learn(render: Render, source: str) -> Learned:
    """The form of answers of the template `source`; without calls where it writes none, or in a form unknown here."""
    probes = Probes(render, source)
    learned = _learn_calls(probes, as_text=False)
    for each in NOTATIONS:
        if (form := each.form(learned.form, source)) is not None:
            return Learned(form, parallel=probes.calls(2, as_text=False) is not None, how=each.name)
    return learned if learned.form.calls else _learn_calls(probes, as_text=True)


def _learn_calls(probes: Probes, as_text: bool) -> Learned:
    """The form of answers, with the form of calls where there is one."""
    one, two = probes.calls(1, as_text), probes.calls(2, as_text)
    call = None
    if one is not None:
        call = _json_form(one, two) or _named_form(one, two)
    calls = () if call is None else (_unpacked(call, probes.atoms),)
    form = AnswerForm(probes.thinking, content=_shown(probes), calls=calls, noise=probes.header())
    return Learned(form, as_text, two is not None, COMPARED) if calls else Learned(form)


def _shown(probes: Probes) -> Marks | None:
    return probes.content and Marks(*map(probes.atoms.unpack, probes.content))


def _unpacked(value: Any, atoms: Atoms) -> Any:
    """A form with the tags in the place of their atoms."""
    if isinstance(value, str):
        return atoms.unpack(value)
    if isinstance(value, tuple):
        return tuple(_unpacked(each, atoms) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _unpacked(getattr(value, field.name), atoms) for field in fields(value)})
    return value


def _boundary(text: str, at: int) -> int:
    """`at`, or the beginning of the tag that it stands in."""
    for start in range(at - 1, max(-1, at - 40), -1):
        if text[start] in _CLOSERS or text[start].isspace():
            break
        if text[start] in _OPENERS:
            return start
    return at


# ---- calls that are JSON


def _json_form(one: str, two: str | None) -> CallForm | None:
    for start in (i for i in range(max(0, one.find(NAMES[0]))) if one[i] in "{["):
        found = _decode(one, start)
        if found is None:
            continue
        value, end = found
        listed = isinstance(value, list)
        body = _json_body(value[0] if listed and value else value)
        if body is None:
            continue
        if listed:
            return CallForm(body, open=one[:start], close=one[end:], listed=True)
        first = _decode(two, start) if two else None
        if two is None or first is None:
            return CallForm(body, before=_pattern(one[:start]), after=one[end:])
        middle = two[first[1] : two.find("{", first[1])]
        return _sections(body, (one[:start], "", one[end:]), middle)
    return None


def _decode(text: str, start: int) -> tuple[Any, int] | None:
    """The JSON value at `start`, and where it ends."""
    try:
        return json.JSONDecoder().raw_decode(text, start)
    except ValueError:
        return None


def _json_body(value: Any) -> JsonCall | None:
    if not isinstance(value, dict):
        return None
    if list(value) == [NAMES[0]]:
        return JsonCall()
    keys = {_key(part): key for key, part in value.items()}
    if "name" in keys and "arguments" in keys:
        return JsonCall(keys["name"], keys["arguments"], keys.get("id", ""))
    return None


def _key(part: Any) -> str:
    if part == NAMES[0]:
        return "name"
    if part == ARGUMENTS[0]:
        return "arguments"
    return "id" if part == IDS[0] else ""


# ---- calls with the name before the arguments


class _Core(NamedTuple):
    """A call's name and arguments in a text: where the name begins, the text between both, and where they end."""

    body: CallBody
    start: int
    middle: str
    end: int


def _named_form(one: str, two: str | None) -> CallForm | None:
    """A form in which the name stands between texts, and the arguments follow as JSON or as tags."""
    names = NAMES if NAMES[0] in one else IDS
    core = _core(one, names[0])
    if core is None:
        return None
    parts = (one[: core.start], core.middle, one[core.end :])
    first = _core(two, names[0]) if two else None
    if two is None or first is None:
        return _sections(core.body, parts, None, names)
    second = two.find(names[1], first.end)
    following = two[second + len(names[1]) :]
    if not following.startswith(_with_name(core.middle, names[1])):
        parts = (parts[0], _numbered(parts[1]), parts[2])
    return _sections(core.body, parts, two[first.end : second], names)


def _core(text: str, name: str) -> _Core | None:
    """The first call of a text."""
    at = text.find("key_one")
    start = text.rfind(name, 0, at)
    first = text.find(name)
    if start < 0:
        return None
    after = first + len(name)
    for begin in (i for i in range(after, at) if text[i] == "{"):
        found = _decode(text, begin)
        if found is not None and found[0] == ARGUMENTS[0]:
            return _Core(JsonArguments(), first, text[after:begin], found[1])
    return _tags(text, first, after)


def _tags(text: str, start: int, after: int) -> _Core | None:
    """The form of arguments that stand between tags."""
    found = re.fullmatch("(.*?)key_one(.*?)vprobe(.*?)key_two(.*?)7731(.*)", text[after:], re.DOTALL)
    if found is None:
        return None
    before, to_text, between, to_number, rest = found.groups()
    between = between.replace("key_one", "{key}")
    before_key = _clean(before[len(before) - common_end(before, between) :])
    after_value = between[: len(between) - len(before_key)]
    closing = after_value.replace("{key}", "key_two")
    if not before_key.strip() or not after_value.strip() or not rest.lstrip().startswith(closing.lstrip()):
        return None
    kind, text_kind = None, ""
    if to_text != to_number:
        begin, end = common(to_text, to_number), common_end(to_text, to_number)
        # `true` and `false` end alike.
        while end and to_text[len(to_text) - end].isalnum():
            end -= 1
        kind, text_kind = (to_text[:begin], to_text[len(to_text) - end :]), to_text[begin : len(to_text) - end]
        if not kind[0] or not kind[1]:
            return None
    body = Tags(before_key, to_text, after_value, kind, text_kind)
    end = len(text) - len(rest) + rest.find(closing.strip()) + len(closing.strip())
    return _Core(body, start, before[: len(before) - len(before_key)], end)


# ---- sections


def _sections(
    body: CallBody, parts: tuple[str, str, str], between: str | None, names: tuple[str, str] | None = None
) -> CallForm:
    """The form, from the texts before the call, between its name and its arguments, after it, and between two calls."""
    head, middle, tail = (_marked(part) for part in parts)
    slot: Pattern = () if names is None else ((Hole.NAME if names is NAMES else Hole.NAMING_ID),)
    inner = _pattern(_with_slot(middle, names))
    if between is None:
        return CallForm(body, before=(*_pattern(_with_slot(head, names)), *slot, *inner), after=tail)
    between = _marked(between)
    shared = _clean(head[len(head) - common_end(head, between) :])
    numbered = common_end(_numbered(head), _numbered(between))
    if numbered > len(shared) + 1 and (cleaned := _clean(_numbered(head)[len(_numbered(head)) - numbered :])) != shared:
        head, between, shared = _numbered(head), _numbered(between), cleaned
    before = (*_pattern(shared if shared.strip() else ""), *slot, *inner)
    rest = between[: len(between) - len(shared)]
    opening = head[: len(head) - len(shared)]
    after = rest[: _boundary(rest, common(rest, tail))]
    if not opening.strip():
        return CallForm(
            body, before=before, after=after, between=rest[len(after) :] if rest[len(after) :].strip() else None
        )
    return CallForm(body, opening, before, after, rest[len(after) :], tail[len(after) :])


_ID, _INDEX, _SAME = "\x00", "\x01", "\x02"
_SLOTS = {_ID: Hole.ID, _INDEX: Hole.INDEX, _SAME: Hole.SAME_NAME}


def _marked(text: str) -> str:
    """The text with the place of an id."""
    return text.replace(IDS[0], _ID).replace(IDS[1], _ID)


def _numbered(text: str) -> str:
    """The text with the places of numbers."""
    return re.sub(r"\d+", _INDEX, text)


def _with_slot(text: str, names: tuple[str, str] | None) -> str:
    return text if names is None else text.replace(names[0], _SAME).replace(names[1], _SAME)


def _with_name(text: str, name: str) -> str:
    return text.replace(NAMES[0], name).replace(IDS[0], IDS[1])


def _pattern(text: str) -> Pattern:
    parts = re.split("([\x00\x01\x02])", text)
    return tuple(_SLOTS.get(part, part) for part in parts if part.strip())


def _clean(text: str) -> str:
    """The text without the rest of a tag at its beginning."""
    opener = min((at for at in map(text.find, _OPENERS) if at >= 0), default=len(text))
    closer = max((text.rfind(letter, 0, opener) for letter in _CLOSERS), default=-1)
    return text[closer + 1 :]
