from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import BadBody
from server.http.wire import MAX_DEPTH, decode, too_deep
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
    assert too_deep(json.dumps(value).encode()) == (depth(value) > MAX_DEPTH)


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
        b'{"a": "\\ud800"}',
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
    with pytest.raises(BadBody):
        decode(body, dict)
    assert time.perf_counter() - began < allowed(1)


def test_the_place_of_a_mistake_is_named() -> None:
    with pytest.raises(BadBody, match=r"expected `int`, got `str` - at `\$\[\.\.\.\]`"):
        decode(b'{"a": "b"}', dict[str, int])
