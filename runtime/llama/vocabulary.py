"""A model's vocabulary: text to token ids, and token ids to bytes. Safe to call from any thread."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from quant.notes import NotedToken, TokenizerNote
from runtime.llama.library import library, quick_library
from runtime.text.notes import Notes
from runtime.text.tokenizer import Tokenizer

# Bits of llama.cpp's `llama_token_attr`.
ATTR_UNKNOWN, ATTR_CONTROL, ATTR_USER, ATTR_LSTRIP, ATTR_RSTRIP = 1 << 0, 1 << 3, 1 << 4, 1 << 7, 1 << 8


class Vocabulary:
    """The tokens of one model. `handle` is llama.cpp's pointer, `size` the number of tokens."""

    def __init__(self, model: Any, notes: Notes) -> None:
        """`model` is llama.cpp's handle, `notes` what the converter wrote into the file.

        Raises LoadFailed for a tokenizer note that was made for another vocabulary.
        """
        low = library()
        self.handle = low.llama_model_get_vocab(model)
        self.size: int = low.llama_vocab_n_tokens(self.handle)
        self._pieces: list[bytes | None] = [None] * self.size
        self._ends = dict.fromkeys(notes.stops, True)
        self._tokenizer = Tokenizer(notes.tokenizer, self.size, self._llama) if notes.tokenizer else None

    def check(self) -> None:
        """Tokenize a letter, at which llama.cpp aborts where a token is missing that it puts before or after texts."""
        if library().llama_vocab_type(self.handle):
            self._llama("a", add=True)

    def special_text(self, which: str) -> str:
        """The text of the special token `which` ("bos", "eos"); empty when the model has none."""
        token = getattr(library(), f"llama_vocab_{which}")(self.handle)
        return self.text(token) if token >= 0 else ""

    def added(self, which: str) -> array[int]:
        """The special token `which` ("bos", "eos", "sep") if the tokenizer adds it to texts; empty otherwise."""
        low = library()
        if not getattr(low, f"llama_vocab_get_add_{which}")(self.handle):
            return array("i")
        return array("i", [getattr(low, f"llama_vocab_{which}")(self.handle)])

    def infill(self, which: str) -> int | None:
        """The fill-in token `which` ("pre", "suf", "mid", "rep", "sep"); None where the vocabulary has none."""
        token: int = getattr(library(), f"llama_vocab_fim_{which}")(self.handle)
        return token if token >= 0 else None

    def control_texts(self) -> list[str]:
        """The texts of the control tokens, which only a chat template may write."""
        return [token.text for token in self._added if "s" in token.flags]

    @cached_property
    def _added(self) -> list[NotedToken]:
        """The added tokens, with the flags that llama.cpp knows of."""
        attribute, added = quick_library().llama_vocab_get_attr, ATTR_CONTROL | ATTR_UNKNOWN | ATTR_USER
        letters = {ATTR_LSTRIP: "l", ATTR_RSTRIP: "r"}
        tokens = []
        for token in range(self.size):
            bits = attribute(self.handle, token)
            if bits & added and (text := self.text(token)):
                flags = "".join(letter for bit, letter in letters.items() if bits & bit)
                tokens.append(NotedToken(token, text, flags if bits & added == ATTR_USER else flags + "s"))
        return tokens

    @cached_property
    def _mixed_tokenizer(self) -> Tokenizer:
        """The tokenizer of prompts that parse control tokens in some parts only, for a file without a note.

        llama.cpp parses either all control tokens of a text or none.
        """
        return Tokenizer(TokenizerNote(added=self._added), self.size, self._llama)

    def text(self, token: int) -> str:
        """The text of `token` in the vocabulary, of a control token too."""
        if self._tokenizer and token in self._tokenizer.hidden:
            return self._tokenizer.hidden[token]
        return (quick_library().llama_vocab_get_text(self.handle, token) or b"").decode(errors="replace")

    def tokenize(self, text: str, *, special: bool, add: bool) -> array[int]:
        """The ids of `text`; `special` parses control tokens in it, `add` puts the model's first and last tokens."""
        ids = self.tokenize_parts([(text, special)])
        return self.frame[0] + ids + self.frame[1] if add else ids

    def tokenize_parts(self, parts: Sequence[tuple[str, bool]]) -> array[int]:
        """The ids of consecutive texts, each with whether control tokens are parsed in it."""
        mixed = len({special for _, special in parts}) > 1
        tokenizer = self._mixed_tokenizer if mixed and not self._tokenizer else self._tokenizer
        if tokenizer and (ids := tokenizer.tokenize(parts)) is not None:
            return ids
        ids = array("i")
        for text, special in parts:
            ids.extend(self._llama(text, special=special))
        return ids

    @cached_property
    def frame(self) -> tuple[array[int], array[int]]:
        """The tokens that the model puts before and after a text.

        llama.cpp does not say which they are, so one letter is tokenized with and without them.
        """
        bare, framed = self._llama("a"), self._llama("a", add=True)
        starts = (n for n in range(len(framed) + 1) if framed[n : n + len(bare)] == bare)
        start = next(starts) if bare else len(self.added("bos"))
        return framed[:start], framed[start + len(bare) :]

    def _llama(self, text: str, *, special: bool = False, add: bool = False) -> array[int]:
        """The ids of `text` by llama.cpp's own tokenizer."""
        low = library()
        data = text.encode(errors="replace")
        room = len(data) + 8
        out = (ctypes.c_int32 * room)()
        count = low.llama_tokenize(self.handle, data, len(data), out, room, add, special)
        if count < 0:  # the room was too small: there are -count ids
            out = (ctypes.c_int32 * -count)()
            count = low.llama_tokenize(self.handle, data, len(data), out, -count, add, special)
        ids = array("i")
        ids.frombytes(memoryview(out).cast("B")[: 4 * count])
        return ids

    def piece(self, token: int) -> bytes:
        """The bytes that `token` adds to a text; none for control tokens."""
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._piece(token)
        return piece

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(128)  # one for each call: another thread may ask meanwhile
        size = quick_library().llama_token_to_piece(self.handle, token, buffer, len(buffer), 0, False)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = quick_library().llama_token_to_piece(self.handle, token, buffer, len(buffer), 0, False)
        if size and self._tokenizer and token in self._tokenizer.hidden:
            return self.text(token).encode()
        return buffer.raw[:size]

    def marked_piece(self, token: int) -> bytes:
        """The bytes of `token` in a text that control tokens cut into parts: these have their names there."""
        return self.piece(token) or self.text(token).encode()

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """Every token that ends a turn; looked for once, which takes a quarter of a second in a large vocabulary."""
        return tuple(filter(self.ends, range(self.size)))

    def ends(self, token: int) -> bool:
        """Whether `token` ends a turn: llama.cpp recognises its text, or the converter noted its id."""
        end = self._ends.get(token)
        if end is None:
            end = self._ends[token] = bool(quick_library().llama_vocab_is_eog(self.handle, token))
        return end
