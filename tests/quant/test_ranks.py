"""Lists of ranks: token ids through llama.cpp against `tiktoken`, and what must be refused."""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from quant.convert.tokenizer import pretokenizer, ranks
from quant.convert.tokenizer.cutting import KNOWN
from quant.convert.tokenizer.reading import read_vocabulary
from quant.errors import MalformedFile, QuantError, UnsupportedModel
from tests.quant.engine import Engine
from tests.quant.support import Folder
from tests.quant.vocabularies import NASTY, PLAIN, byte_level, follows, vocabulary_file

# The bytes that the letters of byte-level vocabularies stand for.
BYTES = {letter: byte for byte, letter in enumerate(ranks._LETTERS)}
RULES = {pre.name: pre.rules[0] for pre in KNOWN}
FILES = {"qwen.tiktoken": "qwen2", "tiktoken.model": "kimi-k2", "tokenizer.model": "llama-bpe"}
KINDS = {
    "qwen.tiktoken": "QWenTokenizer",
    "tiktoken.model": "TikTokenTokenizer",
    "tokenizer.model": "ChatGLM4Tokenizer",
}
HOMES = {"qwen.tiktoken": "qwen", "tiktoken.model": "kimi", "tokenizer.model": "chatglm"}


def listed(size: int = 1500) -> dict[bytes, int]:
    """Tokens with their ranks, trained over all that a rule may cut."""
    vocab = byte_level(KNOWN[0], size)["model"]["vocab"]
    return {bytes(BYTES[letter] for letter in token): rank for token, rank in vocab.items()}


def lines(tokens: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in tokens.items())


def added(name: str, base: int) -> dict[str, int]:
    """The special tokens that a published configuration lists."""
    if name == "qwen.tiktoken":
        return {}
    texts = ["[BOS]", "[EOS]", "<|im_end|>"] if name == "tiktoken.model" else ["<|endoftext|>", "[gMASK]", "<|user|>"]
    return {text: base + number for number, text in enumerate(texts)}


def folder(name: str, data: bytes | None = None, program: str | None = None, **config: Any) -> Folder:
    tokens = listed()
    special = {
        str(id): {"content": text, "special": True, "normalized": False}
        for text, id in added(name, len(tokens)).items()
    }
    kind = f"tokenization_{HOMES[name]}.{KINDS[name]}"
    settings = {"auto_map": {"AutoTokenizer": [kind, None]}, "added_tokens_decoder": special, **config}
    contents = {name: lines(tokens) if data is None else data, "tokenizer_config.json": json.dumps(settings).encode()}
    if program is not None:
        contents[f"tokenization_{HOMES[name]}.py"] = program.encode()
    return Folder(contents=contents)


def special_tokens(name: str, base: int) -> dict[str, int]:
    """All special tokens, as the published programs make them."""
    named = added(name, base)
    if name == "qwen.tiktoken":
        texts = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))]
        return {text: base + number for number, text in enumerate(texts)}
    if name == "tiktoken.model":
        texts_by_id = {id: text for text, id in named.items()}
        return {texts_by_id.get(id, f"<|reserved_token_{id}|>"): id for id in range(base, base + 258)}
    return named


@pytest.mark.oracle
@pytest.mark.parametrize("name", FILES)
def test_tokens_are_those_of_tiktoken(name: str, tmp_path: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    tokens = listed()
    special = special_tokens(name, len(tokens))
    vocabulary = read_vocabulary(folder(name), len(tokens) + 300)
    rule = RULES[FILES[name]]
    original = tiktoken.Encoding(name, pat_str=rule, mergeable_ranks=tokens, special_tokens=special)
    text = "".join(list(special)[:3]) + NASTY.replace("<|im_end|>", "")
    with Engine(vocabulary_file(tmp_path / "v.gguf", vocabulary.entries), vocabulary_only=True) as engine:
        for piece in (text, PLAIN, *pretokenizer.HARD):
            if name == "qwen.tiktoken":
                piece = unicodedata.normalize("NFC", piece)
            if follows(FILES[name], piece):
                assert engine.tokenize(piece, special=True) == original.encode(piece, allowed_special="all"), piece


@pytest.mark.parametrize("name", FILES)
def test_special_tokens_steer_and_come_behind_the_listed_ones(name: str) -> None:
    tokens = listed()
    found = read_vocabulary(folder(name), len(tokens) + 300)
    special = special_tokens(name, len(tokens))
    assert {text: found.ids[text] for text in special} == special
    types = found.entries["tokenizer.ggml.token_type"]
    assert {types[id] for id in special.values()} == {3} and set(types[: len(tokens)]) == {1}
    assert len(types) == len(tokens) + 300 and types[-1] == 5
    assert (found.first, found.last) == (None, None)
    steps = json.loads(found.note.get("lm.tokenizer", "{}")).get("steps")
    assert steps == ([["NFC"]] if name == "qwen.tiktoken" else None)


def test_special_tokens_without_an_embedding_are_left_out() -> None:
    tokens = listed()
    found = read_vocabulary(folder("tiktoken.model"), len(tokens) + 2)
    assert found.entries["tokenizer.ggml.tokens"][-2:] == ["[BOS]", "[EOS]"]
    assert found.remarks == ("no embedding for the added token `<|im_end|>`, left out",)


def test_tokens_that_no_merge_makes_are_told() -> None:
    # A word of four letters, of which no two beside each other are a token.
    tokens = {bytes([byte]): byte for byte in range(256)} | {b"zqzx": 256}
    found = read_vocabulary(folder("tiktoken.model", lines(tokens)), 2000)
    assert found.remarks == ("1 token is made by no merge, and llama.cpp spells such words by smaller ones",)
    assert read_vocabulary(folder("tokenizer.model", lines(tokens)), 2000).remarks == ()


PROGRAMS = {
    "qwen.tiktoken": 'PAT_STR = r"""%s"""\n',
    "tiktoken.model": 'pat_str = "|".join([\n%s\n])\n',
    "tokenizer.model": "class Tokenizer:\n    def read(self):\n        pat_str = %s\n",
}


def program(name: str, rule: str) -> str:
    """The text of a program with the expression, written as the published one has it."""
    if name == "qwen.tiktoken":
        return PROGRAMS[name] % rule
    if name == "tiktoken.model":
        # The bars between the alternatives, not those within brackets.
        parts = re.split(r"\|(?![^(]*\))", rule)
        return PROGRAMS[name] % "\n".join(f'        r"""{part}""",  # as published' for part in parts)
    return PROGRAMS[name] % json.dumps(rule)


@pytest.mark.parametrize("name", FILES)
def test_the_program_beside_the_list_must_cut_as_the_known_one(name: str) -> None:
    rule = RULES[FILES[name]]
    wanted = read_vocabulary(folder(name), 2000)
    assert read_vocabulary(folder(name, program=program(name, rule)), 2000) == wanted
    changed = program(name, rule).replace("{1,3}", "{1,2}").replace(r"|\p{N}|", r"|\p{N}+|")
    assert changed != program(name, rule)
    for text in (changed, "import tiktoken\n", "(" * 10_000, "x = '", '"\\ud800"\n\0'):
        with pytest.raises(UnsupportedModel, match="otherwise than") as caught:
            read_vocabulary(folder(name, program=text), 2000)
        assert "transformers" in caught.value.hint


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"auto_map": None}, "names no class"),
        ({"auto_map": {"AutoTokenizer": []}}, "names no class"),
        (
            {"auto_map": {"AutoTokenizer": "tokenization_arcade100k.Arcade100kTokenizer"}},
            "`Arcade100kTokenizer` is not",
        ),
        ({"auto_map": None, "tokenizer_class": "Fast"}, "`Fast` is not known"),
        ({"auto_map": 3}, "must be an object"),
    ],
)
def test_a_program_that_is_not_known_is_refused(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(QuantError, match=reason) as caught:
        read_vocabulary(folder("qwen.tiktoken", **config), 2000)
    assert caught.value.hint


def test_a_program_may_be_named_by_another_repository_or_by_its_class_alone() -> None:
    wanted = read_vocabulary(folder("qwen.tiktoken"), 2000)
    elsewhere = {"AutoTokenizer": ["Qwen/Qwen-7B--tokenization_qwen.QWenTokenizer", None]}
    assert read_vocabulary(folder("qwen.tiktoken", auto_map=elsewhere), 2000) == wanted
    assert read_vocabulary(folder("qwen.tiktoken", auto_map=None, tokenizer_class="QWenTokenizer"), 2000) == wanted


BYTES_ALONE = {bytes([byte]): byte for byte in range(256)}
BROKEN = {
    "nothing": b"",
    "no rank": b"IQ==\n",
    "no Base64": b"!! 0\n",
    "odd Base64": b"IQ 0\n",
    "twice": lines(BYTES_ALONE) + b"IQ== 256\n",
    "a gap": lines(BYTES_ALONE | {b"ab": 257}),
    "the same rank": lines(BYTES_ALONE | {b"ab": 255}),
    "no byte": lines({token: rank for token, rank in BYTES_ALONE.items() if rank < 255}),
    "a number too long": lines(BYTES_ALONE) + b"YWI= 99999999999999999999\n",
    "binary": bytes(range(256)) * 4,
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a page": b"<!DOCTYPE html><html></html>",
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("name", ["qwen.tiktoken", "tiktoken.model"])
def test_broken_lists_are_refused_with_a_hint(case: str, name: str) -> None:
    with pytest.raises(MalformedFile, match=f"`{name}`") as caught:
        read_vocabulary(folder(name, BROKEN[case]), 2000)
    assert caught.value.hint


def test_a_list_with_more_tokens_than_the_model_is_refused() -> None:
    with pytest.raises(MalformedFile, match="only 1000 embeddings"):
        read_vocabulary(folder("qwen.tiktoken"), 1000)
