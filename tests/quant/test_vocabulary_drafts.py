"""Which model may draft for which: by kind, special tokens and texts of their vocabularies."""

from __future__ import annotations

from typing import Any

import pytest

from quant.errors import UnsupportedModel
from quant.gguf.drafts import check_draft
from quant.gguf.header import Header

TOKENS = [f"t{number}" for number in range(1000)]
PLAIN = {"model": "gpt2", "tokens": TOKENS, "bos_token_id": 1, "eos_token_id": 2, "add_bos_token": True}


def header(**changed: Any) -> Header:
    entries = {f"tokenizer.ggml.{key}": value for key, value in (PLAIN | changed).items() if value is not None}
    return Header("a file", 3, entries, {}, (), 0, 32)


@pytest.mark.parametrize(
    "draft",
    [
        {},
        {"tokens": TOKENS[:872]},
        {"tokens": ["other", "first", "tokens", "than", "these", *TOKENS[5:]]},
        {"eos_token_id": 7},  # it is not put behind a text, so its number does not count
        {"add_bos_token": None, "bos_token_id": 1, "model": "gpt2"},
    ],
    ids=["the same", "fewer", "the first ones differ", "another end", "silent"],
)
def test_vocabularies_that_mean_the_same_are_taken(draft: dict[str, Any]) -> None:
    base = header(add_bos_token=None) if draft.get("add_bos_token", 0) is None else header()
    check_draft(header(**draft), base, "small", "large")


@pytest.mark.parametrize(
    ("draft", "reason"),
    [
        ({"model": "llama"}, "of two kinds, `llama` and `gpt2`"),
        ({"bos_token_id": 3}, "the same token before a text"),
        ({"add_bos_token": False}, "the same token before a text"),
        ({"add_eos_token": True}, "the same token after a text"),
        ({"tokens": TOKENS[:871]}, "871 and 1,000 tokens"),
        ({"tokens": [*TOKENS[:700], "é", *TOKENS[701:]]}, r"token 700 is `\\xe9` in one and `t700` in the other"),
        ({"tokens": None}, "no vocabulary"),
        ({"tokens": "abc"}, "no vocabulary"),
    ],
    ids=["kind", "begin", "no begin", "an end", "size", "text", "none", "not a list"],
)
def test_others_are_refused_with_the_difference(draft: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModel, match="`small` cannot draft for `large`: .*" + reason) as caught:
        check_draft(header(**draft), header(), "small", "large")
    assert "same family" in caught.value.hint
