"""What holds an answer at each token: nothing while it thinks, a grammar after that, or from a call's beginning on."""

from __future__ import annotations

import json
import random
import re
from array import array
from typing import Any

import jsonschema
import pytest

from runtime import messages as m
from runtime.answers.forms import CallForm, Hole, JsonArguments, JsonCall, Tags
from runtime.answers.notations import GemmaArguments, PythonCall
from runtime.answers.parser import AnswerForm, AnswerParser, Marks
from runtime.answers.pieces import Arguments, CallBegun, CallEnded
from runtime.errors import BadRequest
from runtime.grammar.compiler import Compiler
from runtime.grammar.course import Course

WORDS = ("<end>", "<think>", "</think>", "ink>{", "</th", "\n\n", '<tool_call>\n{"na', "[CALL]", "ab")
MARKS = ("<end>", "<think>", "</think>", "[CALL]")
THINKING = AnswerForm(Marks("<think>", "</think>"))
CALLS = CallForm(JsonCall("name", "arguments"), before=("<tool_call>\n",), after="\n</tool_call>")
ADD = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
END = 256


class Letters:
    """A vocabulary of all bytes and a few longer tokens; the first one ends a turn, `[CALL]` is a control token."""

    size = 256 + len(WORDS)

    def piece(self, token: int) -> bytes:
        if token in (END, END + WORDS.index("[CALL]")):
            return b""
        return bytes([token]) if token < 256 else WORDS[token - 256].encode()

    def marked_piece(self, token: int) -> bytes:
        return self.piece(token) or WORDS[token - 256].encode()

    def ends(self, token: int) -> bool:
        return token == END

    def control_texts(self) -> list[str]:
        return ["<end>", "[CALL]"]

    def tokenize(self, text: str, *, special: bool, add: bool) -> array[int]:
        parts = re.split("(" + "|".join(map(re.escape, MARKS)) + ")", text)
        return array("i", [t for part in parts for t in ([word(part)] if part in MARKS else part.encode())])


LETTERS: Any = Letters()
COMPILER = Compiler(LETTERS)


def tool(name: str, schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema, **more}}


def word(text: str) -> int:
    return END + WORDS.index(text)


def yes() -> Any:
    return COMPILER.compile(m.Grammar("gbnf", 'root ::= "yes" | "{}"')).copy()


def takes(course: Course, *tokens: int | str) -> list[int | str]:
    """The tokens, or letters of texts, that are taken before the first that is not."""
    taken: list[int | str] = []
    for each in tokens:
        for token in each.encode() if isinstance(each, str) else [each]:
            if not course.take(token):
                return taken
        taken.append(each)
    return taken


def test_the_grammar_begins_where_the_thinking_ends() -> None:
    course = Course(LETTERS, THINKING, thinks=True, grammar=yes())
    thought = [word("<think>"), "nothing holds <b>this</b>, é", word("</think>"), word("\n\n")]
    assert takes(course, *thought) == thought
    assert not course.complete
    assert not course.take(ord("n"))
    assert list(course.allowed().nonzero()[0]) == [ord("y"), ord("{")]
    assert takes(course, "yes") == ["yes"]
    assert course.complete


def test_an_answer_may_come_without_thinking_and_then_holds_from_its_first_token() -> None:
    course = Course(LETTERS, THINKING, thinks=True, grammar=yes())
    assert takes(course, "\n", "n") == ["\n"]
    assert takes(course, "yes") == ["yes"]
    unwilling = Course(LETTERS, THINKING, grammar=yes())
    assert not unwilling.take(word("<think>"))


def test_a_prompt_that_opens_the_thinking_and_marks_in_pieces() -> None:
    opened = AnswerForm(THINKING.thinking, opened=True)
    course = Course(LETTERS, opened, grammar=yes())
    assert takes(course, "so", word("</th"), "ink>", "\n", "yes") == ["so", word("</th"), "ink>", "\n", "yes"]
    assert course.complete


def test_a_token_of_the_mark_and_of_what_may_not_follow_is_written_as_the_mark_alone() -> None:
    course = Course(LETTERS, AnswerForm(THINKING.thinking, opened=True), grammar=yes())
    assert takes(course, "so", word("</th"), word("ink>{")) == ["so", word("</th")]
    (first,) = course.allowed().nonzero()[0]
    assert course.take(int(first))
    assert bytes([int(first), *course.forced()]) == b"ink>"
    assert takes(course, "{}") == ["{}"]


def test_the_end_of_the_turn_within_thinking_ends_the_thinking() -> None:
    course = Course(LETTERS, AnswerForm(THINKING.thinking, opened=True), grammar=yes())
    assert takes(course, "so", END) == ["so"]
    assert list(course.allowed().nonzero()[0]) == [word("</think>")]
    assert takes(course, word("</think>"), "yes") == [word("</think>"), "yes"]


@pytest.mark.parametrize("held", [True, False], ids=["grammar", "free"])
def test_a_budget_ends_the_thinking_with_the_models_own_mark(held: bool) -> None:
    course = Course(LETTERS, THINKING, thinks=True, budget=3, grammar=yes() if held else None)
    assert takes(course, word("<think>"), "a", "b") == [word("<think>"), "a", "b"]
    assert course.forced() == []
    assert takes(course, "c") == ["c"]
    assert course.forced()[:1] == [word("</think>")]
    assert takes(course, "\n", "no")[1:] == ([] if held else ["no"])


def test_a_budget_waits_for_the_end_of_a_letter_and_may_be_nothing() -> None:
    opened = AnswerForm(THINKING.thinking, opened=True)
    course = Course(LETTERS, opened, budget=1)
    assert course.take("é".encode()[0])
    assert course.forced() == []
    assert course.take("é".encode()[1])
    assert course.forced() == [word("</think>")]
    assert Course(LETTERS, opened, budget=0).forced() == [word("</think>")]


def test_the_marks_of_the_answer_follow_the_thinking() -> None:
    form = AnswerForm(Marks("<think>", "</think>"), opened=True, content=Marks("[CALL]", ""), turn="ab")
    course = Course(LETTERS, form, grammar=yes(), lead="[CALL]")
    assert takes(course, "x", word("</think>")) == ["x", word("</think>")]
    assert course.forced()[:3] == [*b"ab", word("[CALL]")]


def test_free_text_is_held_from_a_calls_beginning_to_its_end() -> None:
    section = COMPILER.section(CALLS, [tool("add", ADD, strict=True)], several=False, loose=True)
    course = Course(LETTERS, AnswerForm(calls=(CALLS,)), section=section)
    assert takes(course, "I <b>add</b>: <tool") == ["I <b>add</b>: <tool"]
    assert takes(course, "_call>\n", '{"name": "add", "arguments": {"a": ', "x") == [
        "_call>\n",
        '{"name": "add", "arguments": {"a": ',
    ]
    assert takes(course, "12}", "}\n</tool_call>", " and more", END) == ["12}", "}\n</tool_call>", " and more", END]
    assert takes(course, word('<tool_call>\n{"na'), 'me": "sub') == [word('<tool_call>\n{"na')]


def test_a_token_that_breaks_a_call_as_it_begins_is_refused() -> None:
    section = COMPILER.section(CallForm(JsonArguments(), before=("<tool_call>\n", Hole.NAME)), [tool("x", ADD)])
    form = AnswerForm(calls=(CallForm(JsonArguments(), before=("<tool_call>\n", Hole.NAME)),))
    course = Course(LETTERS, form, section=section)
    assert not course.take(word('<tool_call>\n{"na'))
    assert list(course.allowed().nonzero()[0]) == [ord("<")]
    assert takes(course, "<tool_call>\nx", '{"a": 1}') == ["<tool_call>\nx", '{"a": 1}']


NUMBERED = ("<c>", Hole.NAME, ":", Hole.INDEX, "\n")
PARTS = Tags("<p=", ">\n", "\n</p>\n")
KINDS = Tags('<p name="', ">", "</p>", ('" string="', '">'), "true")
FORMS = {
    "JSON": CALLS,
    "JSON in a list": CallForm(JsonCall("tool", "args", "id"), open="[CALL]", close="<end>", listed=True),
    "bare JSON": CallForm(JsonCall("name", "parameters")),
    "name first": CallForm(JsonArguments(), "<calls>", NUMBERED, "</c>", "", "</calls>"),
    "id that names": CallForm(JsonArguments(), "[CALL]", (Hole.NAMING_ID, "<a>"), between="ab", close="!"),
    "tags": CallForm(PARTS, "<tool_call>\n", ("<f=", Hole.NAME, ">\n"), "</f>", close="</tool_call>"),
    "calls of Python": CallForm(PythonCall(), open="[CALL]", close="<end>", listed=True),
    "Gemma 4": CallForm(GemmaArguments(), before=("[CALL]call:", Hole.NAME), after="<end>"),
    "tags with kinds": CallForm(KINDS, before=("<f=", Hole.NAME, ">"), after="</f>"),
}
BOTH = [
    tool("add", ADD),
    tool(
        "say",
        {
            "type": "object",
            "properties": {"text": {"type": "string", "maxLength": 4}, "how": {"enum": ["loud", "low"]}},
            "required": ["text", "how"],
            "additionalProperties": False,
        },
    ),
]


@pytest.mark.parametrize("name", FORMS)
def test_any_answer_by_the_grammar_of_a_section_is_read_as_calls_that_keep_the_schemas(name: str) -> None:
    """Drawn at random from what is allowed, until the section is complete."""
    form = FORMS[name]
    schemas = {each["function"]["name"]: each["function"]["parameters"] for each in BOTH}
    for seed in range(6):
        section = COMPILER.section(form, BOTH, several=bool(seed % 2) and form.between is not None)
        assert section
        matcher, random_, text = section.copy(), random.Random(seed), b""
        for _ in range(400):
            forced = matcher.forced()
            text += b"".join(map(LETTERS.marked_piece, forced))
            if matcher.complete:
                break
            allowed = [int(token) for token in matcher.allowed().nonzero()[0]]
            token = END if END in allowed else random_.choice(_sober(allowed))
            if token == END:
                break
            assert matcher.take(token)
            text += LETTERS.marked_piece(token)
        parser = AnswerParser(AnswerForm(calls=(form,)), schemas)
        pieces = [*parser.feed(text.decode()), *parser.finish()]
        called = [piece.name for piece in pieces if isinstance(piece, CallBegun)]
        given = "".join(piece.text for piece in pieces if isinstance(piece, Arguments))
        assert len(called) == sum(isinstance(piece, CallEnded) for piece in pieces) >= 1, (text, pieces)
        if len(called) == 1:
            jsonschema.validate(json.loads(given), schemas[called[0]])


OPTIONAL = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}}


@pytest.mark.parametrize("required", [[], ["b"], ["a", "c"]], ids=["none", "one", "two"])
def test_optional_arguments_of_a_call_of_python_may_be_left_out(required: list[str]) -> None:
    form = FORMS["calls of Python"]
    schema = {**OPTIONAL, "required": required, "additionalProperties": False}
    section = COMPILER.section(form, [tool("f", schema, strict=True)], loose=True)
    assert section
    for number in range(8):
        names = [name for bit, name in enumerate("abc") if number >> bit & 1]
        ordered = [*(name for name in names if name in required), *(name for name in names if name not in required)]
        text = ", ".join(f"{name}={'abc'.index(name) + 1}" for name in ordered)
        course = Course(LETTERS, AnswerForm(calls=(form,)), section=section)
        whole = takes(course, word("[CALL]"), f"[f({text})]", END) == [word("[CALL]"), f"[f({text})]", END]
        assert whole is (set(required) <= set(names)), text


TREE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "n": {"anyOf": [{"$ref": "#/$defs/t"}, {"const": 1}]}},
}
DEEP = {
    "type": "object",
    "properties": {
        "days": {
            "type": "array",
            "items": {"type": "integer", "minimum": 1, "maximum": 7},
            "minItems": 1,
            "maxItems": 2,
        },
        "City": {"enum": ["Rome", 'a "b"', 3, None]},
        "at": {"type": ["string", "null"], "pattern": "^[0-9]{2}$"},
        "by:": {"type": "object", "additionalProperties": {"type": "boolean"}},
        "any": True,
        "tree": {"$ref": "#/$defs/t"},
    },
    "required": ["City", "days"],
    "$defs": {"t": TREE},
}
Q = '<|"|>'


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (f"{{City:{Q}Rome{Q},days:[1]}}", True),
        (f"{{any:{{a:[{Q}x, }}{Q},-1.5,{{}}]}},at:{Q}07{Q},{Q}by:{Q}:{{x:true,y:false}},City:3,days:[1,7]}}", True),
        (f'{{any:true,at:null,City:{Q}a "b"{Q},days:[2],tree:{{n:{{n:1,v:-3}}}}}}', True),
        (f"{{City:{Q}Oslo{Q}", False),
        ("{days:", False),
        ("{City:null,days:[]", False),
        ("{City:null,days:[1,2,3", False),
        (f"{{at:{Q}123", False),
        (f"{{{Q}by:{Q}:{{x:1", False),
        ("{City:null,days:[1],tree:{v:true", False),
        ("{City:null,days:[1],x", False),
        ("{City:null,any:", False),
    ],
)
def test_arguments_in_gemmas_notation_keep_their_schema(arguments: str, kept: bool) -> None:
    form = FORMS["Gemma 4"]
    section = COMPILER.section(form, [tool("f", DEEP, strict=True)], loose=True)
    course = Course(LETTERS, AnswerForm(calls=(form,)), section=section)
    ending = [END] if kept else []
    parts: list[Any] = ["So: ", word("[CALL]"), f"call:f{arguments}", *ending]
    assert (takes(course, *parts) == parts) is kept
    if kept:
        parser = AnswerParser(AnswerForm(calls=(form,)), {"f": DEEP})
        pieces = [*parser.feed(f"[CALL]call:f{arguments}<end>"), *parser.finish()]
        given = json.loads("".join(piece.text for piece in pieces if isinstance(piece, Arguments)))
        jsonschema.validate(given, DEEP)


@pytest.mark.parametrize(
    "odd", [{"allOf": [{}]}, {"$ref": "http://127.0.0.1/x"}, {"minProperties": 3}, {"$ref": "#/a"}]
)
def test_a_keyword_that_gemmas_notation_cannot_keep_is_refused_by_name(odd: dict[str, Any]) -> None:
    named = tool("f", {"type": "object", "properties": {"a": odd}}, strict=True)
    with pytest.raises(BadRequest, match=f"the tool `f`: .*`{re.escape(next(iter(odd)))}`"):
        COMPILER.section(FORMS["Gemma 4"], [named], loose=True)


def test_arguments_that_are_no_names_of_python_are_refused_by_name() -> None:
    odd = tool("f", {"type": "object", "properties": {"a-b": {}}}, strict=True)
    with pytest.raises(BadRequest, match="`a-b` is no name of Python"):
        COMPILER.section(FORMS["calls of Python"], [odd], loose=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tags", "<tool_call>\n<f=say>\n<p=how>\nany\n</p>\n<p=text>\nway\n</p>\n</f></tool_call>"),
        ("calls of Python", '[say(how="any", text=[1])]'),
        ("JSON", '<tool_call>\n{"name": "say", "arguments": {"how": "any"}}\n</tool_call>'),
    ],
)
def test_a_tool_that_is_not_strict_takes_its_arguments_beside_one_that_is(name: str, text: str) -> None:
    free = tool("say", {"type": "object", "properties": {"text": {"type": ["string", "array"]}, "how": {}}})
    if name == "tags":
        free["function"]["parameters"]["properties"] = {"text": {"type": "string"}, "how": {"type": "string"}}
    section = COMPILER.section(FORMS[name], [tool("add", ADD, strict=True), free], loose=True)
    course = Course(LETTERS, AnswerForm(calls=(FORMS[name],)), section=section)
    begun = [word("[CALL]")] if "Python" in name else []
    assert takes(course, *begun, text) == [*begun, text]


@pytest.mark.parametrize("close", ["\n</p>\n", "</p>", "\n[CALL]"])
def test_a_text_of_any_length_between_tags_can_be_closed(close: str) -> None:
    form = CallForm(Tags("<p=", ">", close), "<tool_call>\n", ("<f=", Hole.NAME, ">\n"), "</f>", close="</tool_call>")
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    section = COMPILER.section(form, [tool("say", schema, strict=True)], loose=True)
    course = Course(LETTERS, AnswerForm(calls=(form,)), section=section)
    closing = ["\n", word("[CALL]")] if "CALL" in close else [close]
    parts = ["<tool_call>\n<f=say>\n<p=text>1 < 2, </b>\n</", "q>", *closing, "</f></tool_call>", "More."]
    assert takes(course, *parts) == parts


def _sober(tokens: list[int]) -> list[int]:
    """Letters that end texts and numbers soon, where there are any."""
    return [token for token in tokens if chr(token if token < 256 else 0) in '"})]<\n, 7x'] or tokens


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (m.Grammar("regex", "("), "`grammar` is refused: unclosed group"),
        (m.Grammar("regex", "a{2,1}"), "`grammar` is refused: invalid repetition count range"),
        (m.Grammar("lark", "start: /[/"), "`grammar` is refused: unclosed character class"),
        (m.Grammar("lark", "start: ("), "`grammar` is refused: 1"),
        (m.Grammar("schema", '{"type": "string", "pattern": "("}'), "`pattern` cannot be kept: unclosed group"),
    ],
    ids=["a group", "a count", "a class in a rule", "a rule", "a pattern"],
)
def test_a_grammar_is_refused_with_what_is_wrong_in_it(grammar: m.Grammar, said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        COMPILER.compile(grammar)
    assert str(caught.value).startswith(said)
