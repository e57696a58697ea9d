"""Every way of cutting that llama.cpp knows: recognised, and its ids held to those of `tokenizers` on hard strings."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from quant.convert.tokenizer.cutting import KNOWN, Pre
from quant.convert.tokenizer.pretokenizer import NAMES, step_of
from quant.convert.tokenizer.reading import read_vocabulary
from quant.errors import UnsupportedModel
from tests.quant.engine import Engine
from tests.quant.support import Folder
from tests.quant.vocabularies import LIMITS, NASTY, PLAIN, QUICK_TEXTS, TEXTS, byte_level, follows, vocabulary_file

# Words of the nasty text, so that one that llama.cpp cuts otherwise leaves the others.
WORDS = (PLAIN, *(f" {word}" for word in NASTY.split(" ")), NASTY)


def entries_of(tokenizer: dict[str, Any], **other: Any) -> dict[str, Any]:
    """What a GGUF says of this tokenizer, with nothing put before or after a text."""
    size = len(tokenizer["model"]["vocab"]) + 2
    source = Folder(contents={"tokenizer.json": json.dumps(tokenizer).encode()})
    entries = read_vocabulary(source, size).entries
    return entries | {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.eos_token_id": 0} | other


class Both:
    """A tokenizer twice: as its authors publish it, and as llama.cpp has it after the conversion."""

    def __init__(self, pre: Pre, path: Path, size: int = 2_000, seamless: bool = True) -> None:
        made = byte_level(pre, size, seamless)
        self.name, self.original = pre.name, Tokenizer.from_str(json.dumps(made))
        entries = entries_of(made)
        assert entries["tokenizer.ggml.pre"] == pre.name
        self.engine = Engine(vocabulary_file(path, entries), vocabulary_only=True)

    def check(self, text: str) -> None:
        assert self.engine.tokenize(text) == self.original.encode(text).ids

    def check_any(self, texts: st.SearchStrategy[str], examples: int) -> None:
        """Hold both to `examples` strings."""

        @settings(max_examples=examples, suppress_health_check=[HealthCheck.filter_too_much])
        @given(text=texts)
        def on_any(text: str) -> None:
            assume(follows(self.name, text))
            self.check(text)

        on_any()


@pytest.mark.parametrize("pre", KNOWN, ids=lambda pre: pre.name)
def test_every_routine_cuts_as_the_rules_by_which_it_is_known(pre: Pre, tmp_path: Path) -> None:
    both = Both(pre, tmp_path / "v.gguf")
    with both.engine:
        for text in WORDS:
            if follows(pre.name, text):
                both.check(text)


@pytest.mark.parametrize("pre", [pre for pre in KNOWN if pre.name in ("llama-bpe", "qwen2", "deepseek-v3", "tekken")])
def test_it_does_so_on_any_string(pre: Pre, tmp_path: Path) -> None:
    both = Both(pre, tmp_path / "v.gguf")
    with both.engine:
        both.check_any(QUICK_TEXTS, 50)


@pytest.mark.long(name="vocabularies", sample=6)
@pytest.mark.parametrize("pre", KNOWN, ids=lambda pre: pre.name)
@pytest.mark.parametrize("seamless", [True, False], ids=["seamless", "trained"])
def test_it_does_so_on_many_strings(pre: Pre, seamless: bool, tmp_path: Path) -> None:
    both = Both(pre, tmp_path / "v.gguf", 12_000, seamless)
    with both.engine:
        both.check_any(TEXTS, 500)


# The shortest texts for each limit: once llama.cpp cuts these as the original does, a limit can go.
DIFFER = {
    "tekken": ("e\u0301", "\u016d\u0416\u00e9"),
    "gpt-4o": ("e\u0301", "\u016d\u0416\u00e9"),
    "granite-embed-multi-97m": ("\u016d\u0416\u00e9",),
    "youtu": ("camelCase",),
    "kimi-k2": ("camelCase", "e\u0301"),
    "tiny_aya": ("camelCase", "5555Z"),
    "afmoe": ("  3",),
    "deepseek-llm": ("\u3000\uff01",),
    "deepseek-coder": ("\u3000\u3001",),
    "superbpe": ("333\u0663",),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LIMITS)
def test_the_known_limits_of_llama_cpp_are_still_there(name: str, tmp_path: Path) -> None:
    both = Both(next(pre for pre in KNOWN if pre.name == name), tmp_path / "v.gguf", 12_000)
    with both.engine:
        for text in DIFFER[name]:
            assert not follows(name, text)
            assert both.engine.tokenize(text) != both.original.encode(text).ids


@pytest.mark.slow
def test_every_other_name_is_the_same_routine(tmp_path: Path) -> None:
    """So the first name of each will do, whatever llama.cpp's own converter calls a model's."""
    plain = byte_level(KNOWN[0])
    for pre in KNOWN:
        entries = entries_of(plain | {"pre_tokenizer": step_of(pre)})
        found = []
        for name in pre.names:
            named = entries | {"tokenizer.ggml.pre": name}
            # Some of them want a token for gaps.
            named["tokenizer.ggml.tokens"] = [*entries["tokenizer.ggml.tokens"][:-1], "<mask>"]
            with Engine(vocabulary_file(tmp_path / "v.gguf", named), vocabulary_only=True) as engine:
                found.append([engine.tokenize(text) for text in (NASTY, "unseenword IMG ")])
        assert all(ids == found[0] for ids in found), pre.name


def test_names_are_given_once() -> None:
    assert len(set(NAMES)) == len(NAMES)


def test_rules_that_leave_this_vocabulary_the_same_will_do() -> None:
    """DeepSeek's first tokenizer cuts every digit, llama.cpp none: no token of it has two digits."""
    pre = next(pre for pre in KNOWN if pre.name == "deepseek-llm")
    made = byte_level(pre)
    made["model"]["merges"] = [pair for pair in made["model"]["merges"] if not any(c.isdigit() for c in "".join(pair))]
    kept = {"".join(pair) for pair in made["model"]["merges"]}
    words = [word for word in made["model"]["vocab"] if len(word) == 1 or word in kept]
    made["model"]["vocab"] = {word: id for id, word in enumerate(words)}
    single = copy.deepcopy(made)
    single["pre_tokenizer"]["pretokenizers"][5] = {"type": "Digits", "individual_digits": True}
    assert entries_of(single)["tokenizer.ggml.pre"] == "deepseek-llm"
    single["pre_tokenizer"]["pretokenizers"][0] = {"type": "Punctuation", "behavior": "Isolated"}
    with pytest.raises(UnsupportedModel):
        entries_of(single)
