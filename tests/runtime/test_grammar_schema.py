"""Schemas made ready for llguidance, without a model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import BadRequest
from runtime.grammar.bounds import check_repeats
from runtime.grammar.schema import prepare

KEYWORDS = ("type", "properties", "required", "items", "anyOf", "oneOf", "allOf", "$ref", "$defs", "enum", "const")
KEYWORDS += ("format", "pattern", "patternProperties", "multipleOf", "minProperties", "uniqueItems", "$schema", "not")
ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["object", "string", "#/$defs/a", "(", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KEYWORDS, "a"]), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(KEYWORDS), ANY, max_size=6))
def test_a_malformed_schema_is_refused_or_left_to_llguidance(schema: dict[str, Any]) -> None:
    try:
        assert isinstance(prepare(json.dumps(schema)), dict)
    except BadRequest as error:
        assert str(error)


def test_the_place_of_a_keyword_is_named() -> None:
    schema = {"properties": {"a": {"items": {"anyOf": [{}, {"uniqueItems": True}]}}}}
    with pytest.raises(BadRequest, match="`uniqueItems` at `#/properties/a/items/anyOf/1`"):
        prepare(json.dumps(schema))


def test_names_of_properties_and_values_are_no_keywords() -> None:
    schema = {
        "properties": {"not": {"type": "string"}, "if": {}},
        "enum": [{"uniqueItems": True}],
        "default": {"not": 1},
    }
    assert prepare(json.dumps(schema))["properties"] == schema["properties"]


def test_an_object_is_closed_only_where_that_keeps_its_schema() -> None:
    plain = {"properties": {"a": {}}}
    assert prepare(json.dumps(plain))["additionalProperties"] is False
    for open_one in (
        {"allOf": [plain, {"properties": {"b": {}}}]},
        {"oneOf": [plain, {"properties": {"b": {}}}]},
        {**plain, "additionalProperties": True},
        {**plain, "required": ["b"]},
    ):
        assert 'additionalProperties": false' not in json.dumps(prepare(json.dumps(open_one)))


POINT: dict[str, Any] = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}


@pytest.mark.parametrize(
    ("options", "exclude"),
    [
        ([{"type": "integer"}, {"$ref": "#/$defs/point"}], True),
        ([{"type": "string"}, {"type": ["boolean", "null"]}, {"type": "object"}], True),
        ([{"type": "integer"}, {"type": "number"}], False),
        ([{"type": "array"}, {"$ref": "#/$defs/point"}], False),
        ([{"type": "integer"}, {"minItems": 2}], False),
        ([{"type": "integer"}, {"$ref": "#/$defs/none"}], False),
        ([], False),
    ],
    ids=["reference", "types", "numbers", "lists", "untyped", "nowhere", "empty"],
)
def test_one_of_schemas_that_exclude_each_other_is_any_of_them(options: list[Any], exclude: bool) -> None:
    schema = {"properties": {"p": {"oneOf": options}}, "$defs": {"point": POINT}}
    assert ("anyOf" in prepare(json.dumps(schema))["properties"]["p"]) is exclude


@pytest.mark.parametrize("text", ["(a{1000}){1000}", "((a|b){0,5000}c){0,5000}", "a{999999999}", "[a-z]{200000}"])
def test_repetitions_that_blow_up_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="`pattern` repeats too much"):
        check_repeats(text, "pattern")


@pytest.mark.parametrize(
    "text", ["^[0-9]{5}$", r"\{1000\}\(a{3}", "(ab{3}){20}", "[(]{1000}", "a{5,}", '"({" x{9}', ")"]
)
def test_other_repetitions_pass(text: str) -> None:
    check_repeats(text, "pattern")
