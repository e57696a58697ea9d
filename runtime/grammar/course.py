"""An answer's course: its thinking, its own text and its calls, and what is held to a grammar of them.

It has the face of `Matcher`, and asks one only where that holds: after the thinking, or from the beginning of a call
on. Thinking may have a budget of tokens; when that is spent, the model's own end mark is forced. llguidance sees no
token of the thinking, so the tokens there are free and cost nothing.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from runtime.answers.parser import AnswerForm
from runtime.grammar.matcher import Matcher
from runtime.llama.vocabulary import Vocabulary

# The beginning, where thinking may be opened; thinking; blanks between it and the answer; text of the answer that
# nothing holds; and what a grammar holds.
Part = Literal["start", "thinking", "gap", "free", "held"]
# Blanks that a model may write around its thinking, in tokens.
_BLANKS = 4


class Course:
    """The state of one answer. Its calls raise BadRequest as a matcher's do."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        form: AnswerForm,
        *,
        thinks: bool = False,
        budget: int = -1,
        grammar: Matcher | None = None,
        section: Matcher | None = None,
        lead: str = "",
    ) -> None:
        """`grammar` holds the answer after its thinking, `section` each section of calls; one of both at most.

        With `thinks` the answer may begin with thinking; if `form` is opened it does so. `budget` is in tokens, -1 for
        no limit. `lead` is the text before the held one.
        """
        self._vocabulary = vocabulary
        self._form = form
        self._budget = budget
        self._grammar = grammar
        self._section = section
        self._lead = lead if grammar else ""
        self._marks = (self._ids(form.thinking.open), self._ids(form.thinking.close)) if form.thinking else ([], [])
        self._queue: list[int] = []
        """Tokens that come next."""
        self._tail: list[int] = []
        """The last tokens of the thinking, or of the free text, in which a mark may begin."""
        self._thought = 0
        self._blanks = 0
        self._spoke = False
        """Whether free text has come, so that no call without a mark begins any more."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._refused: int | None = None
        """The token that was refused last."""
        self._matcher: Matcher | None = None
        """The grammar that holds now."""
        self._trial: Matcher | None = None
        """A section's grammar that has taken the text of a call's beginning, and refused the token after it."""
        self._part: Part = "start"
        if form.opened:
            self._think()
        elif not (thinks and form.thinking):
            self._answer(self._lead)

    # ---- the face of a matcher

    @property
    def complete(self) -> bool:
        """Whether nothing may follow but the answer's end."""
        return bool(self._part == "held" and self._grammar and self._grammar.complete and not self._queue)

    def take(self, token: int) -> bool:
        """Whether `token` may come next. If so, it has come."""
        if self._queue:
            taken = self._queue[0] == token
            del self._queue[:taken]
        else:
            taken = self._take(token)
        self._refused = None if taken else token
        return taken

    def allowed(self) -> Any:
        """Which tokens may come next, bool `(vocabulary,)`; after a token was refused, without that one."""
        if self._queue:
            return self._only(self._queue[:1])
        if self._matcher is not None:
            return self._matcher.allowed()
        if self._trial is not None:
            return self._trial.allowed()
        if self._part == "thinking" and self._refused is not None:
            return self._only(self._marks[1][:1])  # the model wants to end: it is to answer first
        mask = np.ones(self._vocabulary.size, bool)
        if self._refused is not None:
            mask[self._refused] = False
        return mask

    def forced(self) -> list[int]:
        """The tokens that must come next. They have come then."""
        tokens, self._queue = self._queue, []
        if self._matcher is not None:
            tokens += self._matcher.forced()
            self._leave()
        return tokens

    # ---- the parts

    def _take(self, token: int) -> bool:
        match self._part:
            case "start":
                return self._begin(token)
            case "thinking":
                return self._think_on(token)
            case "gap":
                if self._is_blank(token):
                    return True
                self._enter()
                return self._take(token)
            case "held":
                assert self._matcher
                taken = self._matcher.take(token)
                self._leave()
                return taken
            case "free":
                return self._section is None or self._watch(token)

    def _begin(self, token: int) -> bool:
        opening = self._marks[0]
        if token == opening[0] and not (self._grammar and self._grammar.copy().take(token)):
            self._queue = opening[1:]
            self._think()
            return True
        if self._is_blank(token):
            return True
        self._answer(self._lead)
        return self.take(token)

    def _think(self) -> None:
        self._part, self._tail = "thinking", []
        self._spend(0)

    def _spend(self, tokens: int) -> None:
        """Count tokens of the thinking, and force its end where no more may come."""
        self._thought += tokens
        if 0 <= self._budget <= self._thought and not self._decoder.getstate()[0]:
            self._queue += self._marks[1]
            self._thought_ends()

    def _think_on(self, token: int) -> bool:
        closing = self._marks[1]
        if self._vocabulary.ends(token) and token not in closing:
            return self._grammar is None
        assert self._form.thinking
        mark = self._form.thinking.close.encode()
        self._tail.append(token)
        text = b"".join(map(self._vocabulary.marked_piece, self._tail))
        at = text.find(mark)
        if at < 0:
            self._forget(text, len(mark))
            self._decoder.decode(self._vocabulary.piece(token))
            self._spend(1)
            return True
        if self._grammar and text[at + len(mark) :].strip():
            # The token has letters of the answer too: the mark is written with tokens of its own.
            self._tail.pop()
            before = len(b"".join(map(self._vocabulary.marked_piece, self._tail)))
            rest = self._ids((text[: at + len(mark)])[before:].decode(errors="replace"))
            if rest and rest[0] != token:
                self._instead(rest)
                return False
        self._thought_ends()
        return True

    def _instead(self, tokens: list[int]) -> None:
        """Have `tokens` come next in the place of one that is refused."""
        self._queue += tokens
        self._thought_ends()

    def _thought_ends(self) -> None:
        """The end mark comes next, or has come."""
        self._part, self._tail = "gap", []
        if self._grammar and (self._form.turn or self._lead):
            self._answer(self._form.turn + self._lead)

    def _answer(self, lead: str) -> None:
        """The answer begins, after a text that leads to it."""
        if lead:
            self._queue += self._ids(lead)
        self._enter()

    def _enter(self) -> None:
        self._part, self._tail = ("held" if self._grammar else "free"), []
        self._matcher = self._grammar

    def _watch(self, token: int) -> bool:
        """Look for the beginning of a call in free text, from which on the section's grammar holds."""
        if self._vocabulary.ends(token):
            return True
        if self._trial is not None:
            trial, self._trial = self._trial, None
            return trial.take(token) and self._hold(trial)
        self._tail.append(token)
        text = b"".join(map(self._vocabulary.marked_piece, self._tail))
        form = self._form.calls[0]
        trigger = form.trigger.encode()
        at = _bare(text) if form.bare else text.find(trigger)
        if at < 0 or (form.bare and self._spoke):
            self._spoke |= not text.isspace()
            self._forget(text, len(trigger))
            return True
        return self._begin_call(self._from(at), token)

    def _begin_call(self, begun: list[int], token: int) -> bool:
        """Hold the answer to a section that begins with the tokens `begun`, of which the last may be `token`."""
        assert self._section
        section = self._section.copy()
        self._tail.pop()
        if all(map(section.take, begun[:-1])):
            if section.take(begun[-1]):
                return self._hold(section)
            if begun[-1] == token:
                self._trial = section
                return False
        self._tail = []
        return True  # a call that begins otherwise than the form says is told as text

    def _hold(self, section: Matcher) -> bool:
        self._part, self._matcher, self._tail = "held", section, []
        self._leave()
        return True

    def _leave(self) -> None:
        """Go back to free text where a section is complete."""
        if self._section is not None and self._matcher is not None and self._matcher.complete:
            self._part, self._matcher, self._tail = "free", None, []

    def _from(self, at: int) -> list[int]:
        """The tokens that spell the text of `_tail` from byte `at` on."""
        pieces = [self._vocabulary.marked_piece(token) for token in self._tail]
        place = 0
        for number, piece in enumerate(pieces):
            if place == at:
                return self._tail[number:]
            if place + len(piece) > at:
                break
            place += len(piece)
        return self._ids(b"".join(pieces)[at:].decode(errors="replace"))

    # ---- tokens

    def _ids(self, text: str) -> list[int]:
        """The tokens of a mark in the middle of a text."""
        vocabulary = self._vocabulary
        for guard in ("", "\n"):
            ids = vocabulary.tokenize(guard + text, special=True, add=False).tolist()
            while guard and ids and vocabulary.marked_piece(ids[0]).isspace():
                ids = ids[1:]
            if b"".join(map(vocabulary.marked_piece, ids)) == text.encode():
                return ids
        return vocabulary.tokenize(text, special=True, add=False).tolist()

    def _forget(self, text: bytes, length: int) -> None:
        """Keep only the tokens in which a mark of `length` bytes may have begun."""
        spare = len(text) - length
        while self._tail and spare >= (size := len(self._vocabulary.marked_piece(self._tail[0]))):
            spare -= size
            self._tail.pop(0)

    def _is_blank(self, token: int) -> bool:
        piece = self._vocabulary.piece(token)
        self._blanks += 1
        return self._blanks <= _BLANKS and piece.isspace()

    def _only(self, tokens: Sequence[int]) -> Any:
        mask = np.zeros(self._vocabulary.size, bool)
        mask[list(tokens)] = True
        return mask


def _bare(text: bytes) -> int:
    """Where the JSON of a call without a mark begins; -1 where the text is another."""
    blanks = len(text) - len(text.lstrip())
    return blanks if text[blanks : blanks + 1] in (b"{", b"[") else -1
