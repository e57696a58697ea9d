"""`tokenizer.model`: read as the same vocabulary that `tokenizer.json` holds, and refused when it is damaged."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from quant.convert.tokenizer.reading import read_vocabulary
from quant.convert.tokenizer.vocabulary import VocabularyPlan
from quant.errors import MalformedFile, QuantError, UnsupportedModel
from tests.quant.engine import Engine
from tests.quant.support import Folder
from tests.quant.test_pieces import TEXTS, unigram
from tests.quant.test_tokenizer import folder, sentencepiece
from tests.quant.vocabularies import NASTY, PLAIN, vocabulary_file

UNIGRAM, BPE = 1, 2


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | float | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def model(pieces: list[tuple[str, float, int]], kind: int, extra: bytes = b"") -> bytes:
    """A file as sentencepiece writes it, fields that nobody needs included."""
    pieces_field = b"".join(field(1, field(1, t.encode()) + field(2, s) + field(3, k)) for t, s, k in pieces)
    return pieces_field + field(2, field(3, kind) + field(4, 8000)) + field(3, field(1, b"identity") + extra)


def bpe_file() -> tuple[dict[str, Any], VocabularyPlan, bytes]:
    tokenizer = sentencepiece()
    wanted = read_vocabulary(folder(tokenizer), len(tokenizer["model"]["vocab"]))
    columns = (wanted.entries[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    return tokenizer, wanted, model(list(zip(*columns, strict=True)), BPE, field(4, 0))


def test_byte_pairs_are_those_of_tokenizer_json() -> None:
    tokenizer, wanted, data = bpe_file()
    found = read_vocabulary(Folder(contents={"tokenizer.model": data}), len(tokenizer["model"]["vocab"]))
    assert found.entries == wanted.entries
    assert (found.first, found.last) == (1, None)


def test_byte_pairs_are_prepared_as_the_file_says() -> None:
    tokenizer, _, _ = bpe_file()
    size = len(tokenizer["model"]["vocab"])
    pieces = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)] + [("<unk>", 0.0, 2)]

    def steps(extra: bytes) -> Any:
        source = Folder(contents={"tokenizer.model": model(pieces, BPE, extra)})
        return json.loads(read_vocabulary(source, size).note.get("lm.tokenizer", "{}")).get("steps")

    table = field(2, struct.pack("<I", 4) + bytes(4) + b"a\0")
    assert steps(field(4, 0)) is None
    assert steps(b"") == [["Collapse"], ["Strip", "both"]]
    assert steps(field(4, 0) + field(1, b"nmt_nfkc") + table) == [["Nmt"], ["NFKC"]]
    with pytest.raises(UnsupportedModel, match="table of replacements"):
        steps(field(1, b"user_defined") + table)


def test_unigram_ids_are_those_of_tokenizers(tmp_path: Path) -> None:
    tokenizer = unigram()
    types = {0: 3, 1: 3, 2: 3, 3: 2}
    pieces = [(text, float(score), types.get(id, 1)) for id, (text, score) in enumerate(tokenizer["model"]["vocab"])]
    source = Folder(contents={"tokenizer.model": model(pieces, UNIGRAM)})
    entries = read_vocabulary(source, len(pieces)).entries
    numbers = {"bos_token_id": 0, "eos_token_id": 2, "add_bos_token": False, "add_eos_token": False}
    entries |= {f"tokenizer.ggml.{key}": value for key, value in numbers.items()}
    original = Tokenizer.from_str(json.dumps(tokenizer))
    with Engine(vocabulary_file(tmp_path / "v.gguf", entries), vocabulary_only=True) as engine:
        # llama.cpp drops spaces at the ends of a text as SentencePiece does, and `tokenizers` keeps one.
        for text in (*TEXTS, PLAIN, NASTY.replace("<|im_end|>", "").replace("</s>", "").strip()):
            if text.strip():
                assert engine.tokenize(text) == original.encode(text, add_special_tokens=False).ids


def test_added_tokens_come_from_both_files() -> None:
    tokenizer, _, data = bpe_file()
    size = len(tokenizer["model"]["vocab"])
    decoder = {str(size + 1): {"content": "<|x|>", "special": False}, "2": {"content": "</s>", "special": True}}
    source = Folder(contents={"tokenizer.model": data, "added_tokens.json": json.dumps({"<tool>": size}).encode()})
    source = source.change("tokenizer_config.json", added_tokens_decoder=decoder, add_bos_token=False)
    found = read_vocabulary(source, size + 3)
    assert found.entries["tokenizer.ggml.tokens"][size:] == ["<tool>", "<|x|>", f"[PAD{size + 2}]"]
    assert found.entries["tokenizer.ggml.token_type"][size:] == [4, 3, 5]
    assert found.first is None
    assert read_vocabulary(source, size + 1).remarks == ("no embedding for the added token `<|x|>`, left out",)
    with pytest.raises(MalformedFile, match="embeddings"):
        read_vocabulary(source, size - 1)


def test_other_kinds_and_other_files_are_refused() -> None:
    pieces = [("<unk>", 0.0, 2), ("a", -1.0, 1)]
    with pytest.raises(UnsupportedModel, match="neither"):
        read_vocabulary(Folder(contents={"tokenizer.model": model(pieces, 3)}), 2)
    cases = (b"", b"\xff" * 20, b"\x0a\x05ab", model([], BPE), model([("", 0.0, 1)], BPE), model([("a", 0.0, 9)], BPE))
    table = model(pieces, UNIGRAM, extra=field(2, struct.pack("<I", 1 << 30) + b"x\0"))
    for data in (*cases, table, model([("a", float("nan"), 1)], BPE), model([*pieces, ("a", 0.0, 1)], BPE)):
        with pytest.raises(MalformedFile):
            read_vocabulary(Folder(contents={"tokenizer.model": data}), 10)


@settings(max_examples=300)
@given(st.data())
def test_damaged_files_raise_nothing_else(data: st.DataObject) -> None:
    raw = bytearray(model([("<unk>", 0.0, 2), ("ab", -1.0, 1), ("<0x41>", 0.0, 6)], UNIGRAM, field(4, 0)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    try:
        read_vocabulary(Folder(contents={"tokenizer.model": bytes(raw[: cut or None])}), 8)
    except QuantError as error:
        assert str(error).isprintable()
