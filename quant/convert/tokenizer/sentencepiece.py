"""`tokenizer.model`: a SentencePiece vocabulary, for models that come without `tokenizer.json`.

Source of the format: `sentencepiece_model.proto` of google/sentencepiece, a protocol buffer; a few fields matter.
Tokens that were added later are in `added_tokens.json` and `tokenizer_config.json`, as transformers keeps them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from quant.convert.config import MAX_JSON, ModelConfig, read_whole
from quant.convert.tokenizer.added import AddedToken, note, read_decoder, within
from quant.convert.tokenizer.unigram import is_table
from quant.convert.tokenizer.vocabulary import VocabularyPlan, added_type, too_many, unused_text
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf.header import TOKEN_BYTE, TOKEN_CONTROL, TOKEN_NORMAL, TOKEN_UNKNOWN, TOKEN_UNUSED, TOKEN_USER
from quant.plan import Files

FILE = "tokenizer.model"
_UNIGRAM, _BPE = 1, 2
# GGUF took over SentencePiece's numbers of types.
_TYPES = (TOKEN_NORMAL, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER, TOKEN_UNUSED, TOKEN_BYTE)
_ADDED_SCORE = -1000.0
Field = int | bytes
"""A value in a protocol buffer: a number, or the bytes of any other kind."""


def read(files: Files, size: int) -> VocabularyPlan:
    """The vocabulary in `tokenizer.model`, padded to `size` embeddings.

    Raises MalformedFile for a file that is no such model or contradicts the embeddings. Raises UnsupportedModel for a
    SentencePiece model that is neither BPE nor Unigram, and for a BPE model with its own table of replacements.
    """
    message = _parse_message(read_whole(files, FILE, MAX_JSON))
    pieces = [_piece(raw) for raw in message.get(1, ())]
    if not pieces:
        raise _broken("it has no pieces")
    trainer, normalizer = (_parse_message(message.get(number, [b""])[-1]) for number in (2, 3))
    kind = trainer.get(3, [_UNIGRAM])[-1]
    if kind not in (_UNIGRAM, _BPE):
        raise UnsupportedModel(f"`{FILE}` is neither BPE nor Unigram")
    added, beyond = within(_added(files), size)
    pieces = _place_pieces(pieces, added, size)
    ids = {text: id for id, (text, _, _) in enumerate(pieces)}
    tokens, types = [text for text, _, _ in pieces], [type for _, _, type in pieces]
    noted = note(added.values(), tokens, types, _steps(normalizer) if kind == _BPE else ())
    entries: dict[str, Any] = {
        "model": "llama" if kind == _BPE else "t5",
        "pre": "default",
        "tokens": tokens,
        "scores": [score for _, score, _ in pieces],
        "token_type": types,
        "add_space_prefix": bool(normalizer.get(3, [1])[-1]),
    }
    unknown = [id for id, (_, _, type) in enumerate(pieces) if type == TOKEN_UNKNOWN]
    if unknown:
        entries["unknown_token_id"] = unknown[0]
    if kind == _UNIGRAM:
        entries |= _preparation(normalizer)
    config = ModelConfig.read(files, "tokenizer_config.json")
    first = ids.get("<s>", ids.get("<bos>")) if config.flag("add_bos_token", kind == _BPE) else None
    last = ids.get("</s>") if config.flag("add_eos_token", kind == _UNIGRAM) else None
    return VocabularyPlan(ids, entries, first, last, noted, beyond)


def _parse_message(raw: Field) -> dict[int, list[Field]]:
    """The fields of a message by their numbers, each with all its values: integers, or bytes for any other kind."""
    if isinstance(raw, int):
        raise _broken("a number stands where a message belongs")
    found: dict[int, list[Field]] = {}
    for number, value in _fields(raw):
        found.setdefault(number, []).append(value)
    return found


def _fields(raw: bytes) -> Iterator[tuple[int, Field]]:
    position = 0
    while position < len(raw):
        key, position = _varint(raw, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(raw, position)
            yield key >> 3, value
            continue
        length, position = _varint(raw, position) if kind == 2 else ({1: 8, 5: 4}.get(kind, 0), position)
        if kind not in (1, 2, 5) or position + length > len(raw):
            raise _broken("it ends within a field, or is no protocol buffer")
        yield key >> 3, raw[position : position + length]
        position += length


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if position >= len(raw):
            break
        byte = raw[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise _broken("it has a number that does not end")


def _piece(raw: Field) -> tuple[str, float, int]:
    """Text, score and GGUF's type of a piece."""
    fields = _parse_message(raw)
    text, score, type = (fields.get(number, [default])[-1] for number, default in ((1, b""), (2, bytes(4)), (3, 1)))
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4 or type not in _TYPES:
        raise _broken("a piece has no text, no score or no type")
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        raise _broken("a piece is not UTF-8") from None
    (value,) = struct.unpack("<f", score)
    if not decoded or not abs(value) < 1e30:
        raise _broken("a piece has no text, or a score that is no number")
    return decoded, value, int(type)


def _added(files: Files) -> dict[int, AddedToken]:
    """The tokens that were added later, by number."""
    name = "added_tokens.json"
    older = ModelConfig.read(files, name).values.items()
    return {**{id: AddedToken.read(id, {"content": text}, name) for text, id in older}, **read_decoder(files)}


def _place_pieces(
    pieces: list[tuple[str, float, int]], added: Mapping[int, AddedToken], size: int
) -> list[tuple[str, float, int]]:
    """A piece for every number below `size`: the vocabulary's, an added token, or a piece of the type unused."""
    if len(pieces) > size:
        raise too_many(FILE, len(pieces) - 1, size)
    texts = {text for text, _, _ in pieces} | {token.text for token in added.values()}
    placed = [*pieces, *((unused_text(id, texts), 0.0, TOKEN_UNUSED) for id in range(len(pieces), size))]
    for id, text, special, *_ in added.values():
        type = added_type(text, special)
        if id >= len(pieces) or placed[id][0] != text:
            placed[id] = text, _ADDED_SCORE, type
        elif placed[id][2] == TOKEN_NORMAL:
            placed[id] = text, placed[id][1], type
    return placed


def _steps(normalizer: dict[int, list[Field]]) -> list[list[str]]:
    """The steps before byte pairs are merged, for which GGUF has no place."""
    name, table, extra = (normalizer.get(number, [default])[-1] for number, default in ((1, b""), (2, b""), (4, 1)))
    steps: list[list[str]] = []
    if table:
        known: dict[Field, list[list[str]]] = {b"nfkc": [["NFKC"]], b"nmt_nfkc": [["Nmt"], ["NFKC"]]}
        if name not in known:
            raise UnsupportedModel(f"`{FILE}` has a table of replacements of its own, which llama.cpp does not apply")
        steps += known[name]
    return steps + ([["Collapse"], ["Strip", "both"]] if extra else [])


def _preparation(normalizer: dict[int, list[Field]]) -> dict[str, Any]:
    table = normalizer.get(2, [b""])[-1]
    entries: dict[str, Any] = {"remove_extra_whitespaces": bool(normalizer.get(4, [1])[-1])}
    if table and not is_table(table):
        raise _broken("its table of replacements is none")
    return entries | ({"precompiled_charsmap": table} if table else {})


def _broken(rule: str) -> MalformedFile:
    return MalformedFile(f"`{FILE}` is not a valid SentencePiece model: {rule}")
