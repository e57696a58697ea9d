"""No object of an answer has a key twice, whatever the model draws."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from runtime import messages as m
from runtime.errors import BadRequest
from runtime.grammar.compiler import Compiler
from runtime.grammar.keys import OpenObjects
from runtime.grammar.matcher import Matcher
from runtime.grammar.schema import prepare

WORDS = ("<end>", '"a"', '", "', '{"a": ', '": ', '", "a": 1', "[{")
END = 256


class Letters:
    """A vocabulary of all bytes and of some longer tokens; the first of those ends a turn."""

    size = END + len(WORDS)

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < END else b"" if token == END else WORDS[token - END].encode()

    def ends(self, token: int) -> bool:
        return token == END

    def control_texts(self) -> list[str]:
        return ["<end>"]

    def tokenize(self, text: str, *, special: bool, add: bool) -> Any:
        return memoryview(text.encode())


VOCABULARY = Letters()


def compiled(schema: Any = None) -> Matcher:
    grammar = m.Grammar("json") if schema is None else m.Grammar("schema", json.dumps(schema))
    return Compiler(VOCABULARY).compile(grammar)  # type: ignore[arg-type]


def written(matcher: Matcher, text: str) -> Matcher:
    for letter in text.encode():
        assert matcher.take(letter), (text, chr(letter))
    return matcher


@pytest.mark.parametrize(
    ("before", "refused"),
    [
        ('{"a": 1, "a', '"'),
        ('{"\\n": 1, "\\n', '"'),
        ('{"a": 1, ', '"a"'),
        ('{"a": 1, "b": "x', '", "a": 1'),
        ('{"": 1, "', '"'),
        ('{"b": [{"a": 1, "b": {"a": 2}, "a', '"'),
        ('{"ä": {"a": "\\"a\\": "}, "ä', '"'),
    ],
)
def test_a_key_that_comes_again_is_refused(before: str, refused: str) -> None:
    matcher = written(compiled(), before)
    token = ord(refused) if len(refused) == 1 else END + WORDS.index(refused)
    assert not matcher.allowed()[token]
    assert not matcher.take(token)
    assert matcher.allowed()[ord("b")] or matcher.allowed()[ord('"')]  # the answer can go on


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"a": {"a": 1}}, "b": [{"a": 1}, {"a": "a"}]}',
        '{"a": "a", "b": "a", "aa": ["a", "a"], "a\\"": 1, "A": "\\", \\"a\\": 1"}',
    ],
)
def test_keys_of_other_objects_and_values_are_free(text: str) -> None:
    assert written(compiled(), text).complete
    assert OpenObjects().after(text.encode()) is not None


def test_another_spelling_of_a_key_is_the_same_key() -> None:
    assert OpenObjects().after(b'{"a": 1, "\\u0061"') is None
    assert OpenObjects().after(b'{"\\u00e4": 1, "' + "ä".encode() + b'"') is None


def test_a_copy_goes_its_own_way() -> None:
    matcher = written(compiled(), '{"a": 1, "')
    twin = matcher.copy()
    written(twin, "b")
    written(matcher, "a")
    assert not matcher.take(ord('"')) and twin.take(ord('"'))


def answer_of(matcher: Matcher, seed: int) -> str:
    """A random answer that likes short texts, so that keys come again; "" where it has no end within 400 tokens."""
    choice, text = random.Random(seed), b""
    for _ in range(400):
        text += b"".join(map(VOCABULARY.piece, matcher.forced()))
        if matcher.complete:
            return text.decode()
        (ids,) = matcher.allowed().nonzero()
        liked = [each for each in ids.tolist() if chr(each) in '"ab,{}:1' or each > END]
        token = choice.choice(liked or ids.tolist())
        assert matcher.take(token), (text, token)
        if token == END:
            return text.decode()
        text += VOCABULARY.piece(token)
    return ""


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


def test_random_answers_have_no_key_twice() -> None:
    schemas = (None, {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 3})
    for schema in schemas:
        found = [answer_of(compiled(schema).copy(), seed) for seed in range(60)]
        whole = [json.loads(text, object_pairs_hook=unrepeated) for text in found if text]
        assert whole
        assert all(len(each) >= 3 for each in whole if schema)


def test_a_pattern_that_has_one_name_alone_may_have_it_again() -> None:
    schema = {"type": "object", "patternProperties": {"^only$": {"type": "boolean"}}, "additionalProperties": False}
    matcher = compiled(schema)
    for text in ('{"only": true, ', '"only": false}'):
        for letter in text.encode():
            if letter not in matcher.forced():
                matcher.take(letter)
    assert matcher.allowed().any() or matcher.complete


def test_properties_are_counted_where_no_key_comes_twice() -> None:
    many = {"type": "object", "minProperties": 3}
    assert prepare(json.dumps(many))["minProperties"] == 3
    for schema, keyed in ((many, False), ({**many, "patternProperties": {"^a$": {}}}, True)):
        with pytest.raises(BadRequest, match="minProperties"):
            prepare(json.dumps(schema), keyed=keyed)
