from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import BadBody, BodyTooLarge
from server.http.bodies import decode
from server.http.outline import MAX_DEPTH, MAX_OBJECTS, MAX_VALUES, check_outline
from tests.daemon import allowed


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


leaves = st.none() | st.booleans() | st.integers() | st.text(alphabet='ab[]{}"\\,:é')
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=200)


@given(values, st.integers(0, 70))
def test_depth_is_measured_as_a_parser_would(value: Any, wrapping: int) -> None:
    for _ in range(wrapping):
        value = [value]
    assert refused(json.dumps(value).encode()) == (depth(value) > MAX_DEPTH)


def refused(body: bytes) -> bool:
    try:
        check_outline(body)
    except (BadBody, BodyTooLarge):
        return True
    return False


class Shape(msgspec.Struct):
    a: str | int | None = None
    many: Any = None


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'"' * 1_000_000,
        b'"' + b'\\"' * 500_000,
        b'"' + b"\\" * 1_000_001,
        b"[]" * 500_000,
        b"9" * 5_000,
        b'"\xed\xa0\x80"',
        b"\xff\xfe",
        b"NaN",
        b"nonsense",
        b"{} {}",
        b"",
    ],
)
def test_hostile_bodies_are_refused_quickly(body: bytes) -> None:
    began = time.perf_counter()
    with pytest.raises((BadBody, BodyTooLarge)):
        decode(body, Shape)
    assert time.perf_counter() - began < allowed(1)


def test_the_place_of_a_mistake_is_named() -> None:
    with pytest.raises(BadBody, match=r"expected `int \| str \| null`, got `array` - at `\$.a`"):
        decode(b'{"a": []}', Shape)


@pytest.mark.parametrize("encoding", ["latin-1", "gbk", "utf-16"])
def test_a_body_in_another_encoding_is_told_in_plain_words(encoding: str) -> None:
    with pytest.raises(BadBody) as caught:
        decode('{"a": "é中"}'.replace("中" if encoding == "latin-1" else "é", "").encode(encoding), Shape)
    assert str(caught.value) == "the body is not text in UTF-8"


def test_null_means_not_given() -> None:
    class Strict(msgspec.Struct):
        name: str = "x"
        count: int = 5

    body = decode(b'{"name": null, "count" : null , "other": null, "more": 1}', Strict)
    assert (body.value, set(body.given)) == (Strict(), {"more"})


def test_half_a_pair_of_surrogates_is_read_as_ollama_reads_it() -> None:
    assert decode(b'{"a": "x\\ud83dy"}', Shape).value.a == "x\ufffdy"
    assert decode(b'{"a": "\\ude00\\ud83d\\ude00 \\\\ud83d"}', Shape).value.a == "\ufffd\U0001f600 \\ud83d"


PIECE = 1 << 17


@pytest.mark.parametrize("text", ["[" * 200, "\\[" * 200, '"[{' * 200, '\\"[' * 200, "\\"])
@pytest.mark.parametrize("before", range(PIECE - 12, PIECE + 2, 3))
def test_strings_across_pieces_are_passed_over(text: str, before: int) -> None:
    lists = [[0] * 2] * (MAX_DEPTH + 1)
    body = json.dumps({"a": "x" * before + text, "b": "]", "many": lists}).encode()
    assert not refused(body)
    assert refused(body[:-1] + b"]" * 70)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * (30 << 20),
        b"[]," * (10 << 20),
        b'{"a":' * (6 << 20),
        b'"",' * (10 << 20),
        b'{"many": [' + b"1," * (MAX_VALUES + 1) + b"1]}",
        b'{"many": [' + b"{}," * (MAX_OBJECTS + 1) + b"1]}",
    ],
)
def test_what_would_be_long_to_decode_is_refused_before(body: bytes) -> None:
    began = time.thread_time()
    with pytest.raises((BadBody, BodyTooLarge)):
        decode(body, Shape)
    assert time.thread_time() - began < allowed(1)


def test_a_large_body_of_text_is_not_counted_as_values() -> None:
    assert decode(b'{"a": "' + b"[{:," * (4 << 20) + b'"}', Shape).value.a
