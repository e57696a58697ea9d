"""A vocabulary with fewer tokens: texts of the tokens that stay are cut as before, and any other text still has tokens.

Bytes, control tokens and added tokens always stay, and the parts of which a token is joined (`quant/cuts/merging.py`).
The rows of the embedding and of the output matrix that belong to the others are left out, and ids are counted anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import msgspec

from quant.cuts.merging import Rank, by_merges, by_scores, parts_of
from quant.cuts.rows import rows_of
from quant.cuts.scripts import Scripts
from quant.errors import UnsupportedModel
from quant.gguf.header import TOKEN_BYTE, TOKEN_CONTROL, TOKEN_NORMAL, TOKEN_UNKNOWN, TOKEN_UNUSED, TOKEN_USER
from quant.notes import STOPS, TOKENIZER, TokenizerNote
from quant.plan import ModelPlan

_PREFIX = "tokenizer.ggml."
_TOKENS = f"{_PREFIX}tokens"
_ID = re.compile(r"tokenizer\.ggml\.\w+_token_id")
_LISTS = (_TOKENS, f"{_PREFIX}scores", f"{_PREFIX}token_type")
# Lists of ids.
_IDS = (STOPS, f"{_PREFIX}suppress_tokens")
# Another form of the same vocabulary, which llama.cpp passes over.
_DROPPED = ("tokenizer.huggingface.json",)
# Tensors with a row, or a value, for each token.
_ROWS = re.compile(
    r"(token_embd|output|per_layer_token_embd)\.(weight|bias)|blk\.\d+\.nextn\.(embed_tokens|shared_head_head)\.weight"
)
_STEERING = (TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER)
_SPACE = "▁"
# For each `tokenizer.ggml.model` whether pairs are joined by a table of merges, not by scores; and whether tokens are
# written in the letters of `_BYTES`, not as text.
_KINDS = {"gpt2": (True, True), "gemma4": (True, False), "llama": (False, False)}


def _letters() -> dict[str, int]:
    """The letters by which byte pair encoding writes bytes: printable ones of Latin-1 as they are, others from U+0100.

    Source: `bytes_to_unicode` of GPT-2's encoder.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTES = _letters()


class WholeVocabulary:
    """The vocabulary of a plan; `size` counts its tokens."""

    def __init__(self, plan: ModelPlan) -> None:
        """Raises UnsupportedModel for a tokenizer that is neither byte pair encoding nor SentencePiece's."""
        metadata = plan.metadata
        self._tokens: list[str] = metadata.get(_TOKENS, [])
        self._types = metadata.get(f"{_PREFIX}token_type", [TOKEN_NORMAL] * len(self._tokens))
        self._metadata = metadata
        self.size = len(self._tokens)
        kind = metadata.get(f"{_PREFIX}model")
        if kind not in _KINDS:
            raise UnsupportedModel(
                f"the vocabulary of a `{ascii(kind)[1:-1][:40]}` tokenizer cannot be cut",
                "vocabularies of byte pair encoding and of SentencePiece's can",
            )
        self._merges, self._in_letters = _KINDS[kind]
        known = {*_LISTS, *_IDS, f"{_PREFIX}merges", f"{_PREFIX}precompiled_charsmap"}
        for key, value in metadata.items():
            if key.startswith(_PREFIX) and isinstance(value, list) and key not in known:
                raise UnsupportedModel(f"`{key}` is not known, and it may count tokens")

    def _single_bytes(self) -> set[int]:
        """The ids of the tokens for one byte, with which every text has tokens."""
        if not self._in_letters:
            return {id for id, type in enumerate(self._types) if type == TOKEN_BYTE}
        return {id for id, token in enumerate(self._tokens) if token in _BYTES}

    @cached_property
    def _rank(self) -> Rank:
        if self._merges:
            return by_merges(self._metadata.get(f"{_PREFIX}merges", []))
        scores = self._metadata.get(f"{_PREFIX}scores", [0.0] * self.size)
        return by_scores(dict(zip(self._tokens, scores, strict=False)))

    def wanted(self, of: Scripts | Iterable[int]) -> list[int]:
        """The ids that stay, in order: tokens that texts of these scripts can have, or these ids; and what they need.

        Raises UnsupportedModel where an id is none, and where every token would stay.
        """
        ids = self._always()
        if isinstance(of, Scripts):  # the parts of such a token are parts of the same texts
            ids |= {id for id in range(self.size) if self._fits(id, of)}
        else:
            ids |= self.with_parts(of)
        if len(ids) == self.size:
            raise UnsupportedModel("every token of its vocabulary would stay", "there is nothing to cut")
        return sorted(ids)

    def with_parts(self, ids: Iterable[int]) -> set[int]:
        """These ids, and the ids of the parts of their tokens. Raises UnsupportedModel where an id is none."""
        found = set(ids)
        if not found <= set(range(self.size)):
            raise UnsupportedModel(f"token {max(found)} is none of the {self.size:,} tokens")
        places = {token: id for id, token in enumerate(self._tokens)}
        for id in tuple(found):
            if self._types[id] not in (*_STEERING, TOKEN_BYTE):
                found |= {places[part] for part in parts_of(self._tokens[id], self._rank) if part in places}
        return found

    def _fits(self, id: int, scripts: Scripts) -> bool:
        token = self._tokens[id]
        if self._types[id] == TOKEN_UNUSED:
            return False
        if not self._in_letters:
            return scripts.has(token.replace(_SPACE, " "))
        if any(letter not in _BYTES for letter in token):
            return scripts.has(token)  # an added token, which is text as it is
        return scripts.has_bytes(bytes(_BYTES[letter] for letter in token))

    def _always(self) -> set[int]:
        """Bytes, tokens that steer the model or were added to it, and all that an entry names."""
        steering = {id for id, type in enumerate(self._types) if type in _STEERING}
        named = {value for key, value in self._metadata.items() if _ID.fullmatch(key) and self._is_id(value)}
        named |= {id for key in _IDS for id in self._metadata.get(key, []) if self._is_id(id)}
        if note := self._note:
            named |= {token.id for token in note.added} | ({note.end[0]} if note.end else set())
        return self._single_bytes() | steering | named

    def _is_id(self, value: Any) -> bool:
        return isinstance(value, int) and 0 <= value < self.size

    @property
    def _note(self) -> TokenizerNote | None:
        text = self._metadata.get(TOKENIZER)
        return TokenizerNote.decode(text) if isinstance(text, str) else None

    def cut(self, plan: ModelPlan, kept: Sequence[int]) -> ModelPlan:
        """The plan with the tokens `kept` alone, sorted ids; raises UnsupportedModel for a tensor of another form."""
        tensors = []
        for tensor in plan.tensors:
            if _ROWS.fullmatch(tensor.name):
                if tensor.shape[0] != self.size:
                    raise UnsupportedModel(
                        f"`{tensor.name}` has {tensor.shape[0]:,} rows, and there are {self.size:,} tokens"
                    )
                tensor = rows_of(tensor, kept)
            elif self.size in tensor.shape and self.size > 1024:
                raise UnsupportedModel(f"`{tensor.name}` may have a row for each token, and is not known")
            tensors.append(tensor)
        numbers = {id: number for number, id in enumerate(kept)}
        metadata = {
            key: self._entry(key, value, numbers) for key, value in plan.metadata.items() if key not in _DROPPED
        }
        size = f"{plan.architecture}.vocab_size"
        metadata |= {size: len(kept)} if size in metadata else {}
        stops = tuple(numbers[id] for id in plan.stops if id in numbers)
        return replace(plan, metadata=metadata, tensors=tuple(tensors), stops=stops)

    def _entry(self, key: str, value: Any, numbers: dict[int, int]) -> Any:
        """An entry of the metadata with the ids that stay, counted anew."""
        if key in _LISTS:
            return [value[id] for id in numbers]
        if key in _IDS:
            return [numbers[id] for id in value if id in numbers]
        if _ID.fullmatch(key):
            return numbers.get(value, value)
        if key == f"{_PREFIX}merges":
            here = {self._tokens[id] for id in numbers}
            return [merge for merge in value if here.issuperset(_texts(merge))]
        if key == TOKENIZER and (note := self._note):
            added = [msgspec.structs.replace(each, id=numbers[each.id]) for each in note.added]
            end = (numbers[note.end[0]], note.end[1]) if note.end else None
            return msgspec.structs.replace(note, added=added, end=end).encode()
        return value


def _texts(merge: str) -> tuple[str, str, str]:
    """The two texts of a merge, and what they make."""
    left, _, right = merge[1:].partition(" ")
    return merge[:1] + left, right, merge[:1] + left + right
