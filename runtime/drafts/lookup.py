"""Prompt lookup: the next tokens of an answer, guessed from its prompt, its own text, and a text that was predicted.

Answers that edit, quote or call again repeat long pieces of the text before. The last tokens of the answer are
looked for in the known text, and what followed them there is the draft. The idea is "prompt lookup decoding"
(Saxena, 2023). Two things are added for edited text. A draft that comes true is followed through its source without
another search. Where the answer parts from the source, the next draft goes on behind the token that was replaced, or
behind the answer's last token where that stands close by.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Self

# Tokens by which a place in the known text is found, and how many places are compared, the latest first.
GRAM, PLACES = 3, 8
# Tokens before a place that are compared at most.
_LOOK_BACK = 64
# How far from the place where an answer parted from its source one token is enough to take it up again, and for how
# many tokens of the answer.
_NEAR, _PATIENCE = 24, 48
# Stands between two texts; no token.
_BORDER = -1
# Bits of a token in the number that stands for a gram. llama.cpp's vocabularies are far smaller.
_BITS = 21


class Lookup:
    """The known text of one answer, which grows with it.

    `matched` counts the tokens before the draft that are the same in its source; 0 is a mere guess.
    """

    def __init__(self, prompt: Sequence[int], prediction: Sequence[int] = ()) -> None:
        """`prediction` is a text that the answer is expected to resemble."""
        self._text = array("i", [*prediction, _BORDER, *prompt] if prediction else prompt)
        self._latest: dict[int, int] = {}
        """By a gram: the position behind it, where it occurred last."""
        self._before = array("i", [0] * min(GRAM, len(self._text) + 1))
        """By the position behind a gram: the position behind the same gram before it, 0 where it is the first."""
        text, latest, before = self._text, self._latest, self._before
        for end, (first, second, third) in enumerate(zip(text, text[1:], text[2:], strict=False), GRAM):
            gram = (first << _BITS | second) << _BITS | third
            before.append(latest.get(gram, 0))
            latest[gram] = end
        self._predicted = len(prediction)
        # A prediction is expected to come from its beginning.
        self._at = 0 if prediction else -1
        """The position in the known text of the token that is expected next, -1 where none is."""
        self._parted = self._since = 0
        """Where the answer parted from its source, and the tokens since then; 0 and 0 before that."""
        self.matched = 0

    @property
    def in_prediction(self) -> bool:
        """Whether the token that is expected next stands in the prediction."""
        return 0 <= self._at < self._predicted

    def copy(self) -> Self:
        """The same for another answer to the same prompt."""
        twin = object.__new__(type(self))
        twin.__dict__ |= self.__dict__
        twin._text, twin._before, twin._latest = self._text[:], self._before[:], self._latest.copy()
        return twin

    def feed(self, token: int) -> None:
        """Append a token of the answer."""
        text, at = self._text, self._at
        self._since += 1
        if at >= 0:
            if text[at] == token:
                self._at = at + 1
                self.matched += 1
            else:
                if self.matched or not self._parted:  # a mere guess that fails leaves the place where it was
                    self._parted, self._since = at + 1, 0
                self._at, self.matched = -1, 0
        text.append(token)
        end = len(text)
        if end < GRAM:
            self._before.append(0)
            return
        gram = (text[-3] << _BITS | text[-2]) << _BITS | token
        self._before.append(self._latest.get(gram, 0))
        self._latest[gram] = end

    def propose(self, most: int) -> array[int]:
        """At most `most` tokens that may come next; none where nothing like the last tokens is known."""
        if self._at < 0 and not self._find():
            return array("i")
        draft = self._text[self._at : self._at + most]
        if len(draft) < most:  # the answer repeats itself: the draft goes on as its own source
            draft = (draft * -(-most // len(draft)))[:most]
        return draft[: draft.index(_BORDER)] if _BORDER in draft else draft

    def _find(self) -> bool:
        """Look for the answer's last tokens in the text before them; whether they are there."""
        text, end = self._text, len(self._text)
        best = length = 0
        place = self._before[end]
        for _ in range(PLACES):
            if not place:
                break
            agreeing = self._agreeing(place, end)
            if agreeing > length:
                best, length = place, agreeing
            place = self._before[place]
        if length:
            self._at, self.matched = best, length
            return True
        if not self._parted or self._since > _PATIENCE:
            return False
        near = text[self._parted - 1 : min(self._parted + _NEAR, end - 1)]
        if text[-1] in near:
            self._at, self.matched = self._parted + near.index(text[-1]), 1
        elif not self._since and self._parted < end - 1:
            # One token stands for another: the source goes on behind it.
            self._at, self.matched = self._parted, 0
        return self._at >= 0

    def _agreeing(self, place: int, end: int) -> int:
        """How many tokens before `place` are the same as before `end`, as far as they are compared."""
        text, count, most = self._text, GRAM, min(place, _LOOK_BACK)
        while count < most and text[place - count - 1] == text[end - count - 1]:
            count += 1
        return count
