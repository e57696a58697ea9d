"""Keys of JSON objects, none of which may come twice: what no grammar can say, watched beside one.

A name that an object has already is refused at the quote that would close it, so that the model goes on with a longer
one. Only where the grammar leaves no other name, as a pattern of one text does, it may come again.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
from llguidance import LLMatcher

from runtime.grammar.matcher import Matcher
from runtime.llama.vocabulary import Vocabulary

_QUOTE, _ESCAPE = b'"\\'


class OpenObjects(NamedTuple):
    """A place in a JSON text: the keys of each object that is open, and the string that is being written."""

    open: tuple[frozenset[str] | None, ...] = ()
    """From the outside to the inside; None for an array."""
    key: bytes | None = None
    """The text of a key up to here, as it is written; None outside of keys."""
    inside: bool = False
    """Whether this is within a string that is no key."""
    escaped: bool = False
    """Whether the letter before was a backslash that escapes the next one."""
    named: bool = True
    """Whether the next string is a value: the object has its next key already, or there is no object."""

    def after(self, data: bytes) -> OpenObjects | None:
        """The place behind `data`, which goes on as JSON; None where a key closes that its object has already."""
        if self.inside and _QUOTE not in data and _ESCAPE not in data and not self.escaped:
            return self
        place: OpenObjects | None = self
        for byte in data:
            if place is not None:
                place = place._in_string(byte) if place.inside or place.key is not None else place._outside(byte)
        return place

    def _in_string(self, byte: int) -> OpenObjects | None:
        key = self.key
        if not self.escaped and byte == _QUOTE:
            return self._replace(inside=False) if key is None else self._named(key)
        escaped = byte == _ESCAPE and not self.escaped
        return self._replace(key=None if key is None else key + bytes([byte]), escaped=escaped)

    def _named(self, key: bytes) -> OpenObjects | None:
        """The place behind a key's closing quote."""
        text, names = key.decode(errors="surrogateescape"), self.open[-1]
        try:
            name = json.loads(f'"{text}"', strict=False)
        except ValueError:  # no key of JSON, which the grammar refuses
            name = text
        if names is None or name in names:
            return None
        return OpenObjects((*self.open[:-1], names | {name}))

    def _outside(self, byte: int) -> OpenObjects:
        match byte:
            case 0x22:
                return self._replace(inside=True) if self.named else self._replace(key=b"")
            case 0x7B:  # {
                return OpenObjects((*self.open, frozenset()), named=False)
            case 0x5B:  # [
                return OpenObjects((*self.open, None))
            case 0x7D | 0x5D:
                return OpenObjects(self.open[:-1])
            case 0x2C:  # ,
                return OpenObjects(self.open, named=not self.open or self.open[-1] is None)
        return self

    def forgetful(self) -> OpenObjects:
        """The same place, where the innermost object takes any key."""
        return self._replace(open=(*self.open[:-1], frozenset())) if self.open and self.open[-1] else self


class Quotes:
    """The bytes of a vocabulary's tokens, and the tokens that may close a key."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.size = vocabulary.size

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none of a control token."""
        return self._vocabulary.piece(token)

    @cached_property
    def _counts(self) -> Any:
        return np.array([self.piece(token).count(b'"') for token in range(self.size)])

    @cached_property
    def one(self) -> Any:
        """Ids of the tokens that have a quote, and may close a key that has begun."""
        return np.flatnonzero(self._counts > 0)

    @cached_property
    def two(self) -> Any:
        """Ids of the tokens that have two, and may be a whole key."""
        return np.flatnonzero(self._counts > 1)


class KeyedMatcher(Matcher):
    """A matcher of a grammar whose texts are JSON, or have JSON and no other quotes and brackets."""

    def __init__(self, matcher: LLMatcher, quotes: Quotes) -> None:
        super().__init__(matcher, quotes.size)
        self._quotes = quotes
        self._place = OpenObjects()

    def copy(self) -> Self:
        """The same grammar for another answer."""
        twin = type(self)(self._matcher.deep_copy(), self._quotes)
        twin._place = self._place
        return twin

    def take(self, token: int) -> bool:
        """Whether `token` may come next. If so, it has come: the state is the one after it."""
        place = self._place.after(self._quotes.piece(token))
        if place is None or not super().take(token):
            return False
        self._place = place
        return True

    def allowed(self) -> Any:
        """Which tokens may come next, bool `(vocabulary,)`; an end token where the answer may end."""
        mask = super().allowed()
        place = self._place
        candidates = self._quotes.two if place.key is None else self._quotes.one
        twice = [each for each in candidates[mask[candidates]] if place.after(self._quotes.piece(each)) is None]
        if not twice:
            return mask
        rest = mask.copy()
        rest[twice] = False
        if rest.any():
            return rest
        self._place = place.forgetful()
        return mask

    def forced(self) -> list[int]:
        """The tokens that must come next, as the model's tokenizer cuts their text. They have come then."""
        tokens = super().forced()
        for token in tokens:
            piece = self._quotes.piece(token)
            place = self._place.after(piece) or self._place.forgetful().after(piece)
            self._place = place or self._place
        return tokens
