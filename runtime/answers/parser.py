"""Telling an answer apart while it comes: its text, its thinking, and its calls of tools."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from runtime.answers.forms import CallForm, Calls
from runtime.answers.incoming import Incoming, Malformed, Reading
from runtime.answers.pieces import AnswerText, CallBroken, Piece, Thought


class Marks(NamedTuple):
    """The texts around a part of an answer. Blanks beside them are the template's, and are dropped with them."""

    open: str
    close: str


@dataclass(frozen=True)
class AnswerForm:
    """How a model writes its answers; `opened` when the prompt ends within the thinking.

    `content` are the marks around the answer's own text. `turn` begins another part of the answer after its thinking,
    in forms that have such parts. `noise` are texts that end a turn, or begin another one of the
    assistant, and are no part of an answer.
    """

    thinking: Marks | None = None
    opened: bool = False
    content: Marks | None = None
    calls: tuple[CallForm, ...] = ()
    noise: tuple[str, ...] = ()
    turn: str = ""


class AnswerParser:
    """Takes the text of one answer in pieces, and gives back what it is made of."""

    def __init__(self, form: AnswerForm, schemas: Mapping[str, Any] | None = None) -> None:
        """`schemas` are the schemas of the tools' parameters, by the tools' names."""
        self._form = form
        self._calls = Calls(dict(schemas or {}))
        self._source = Incoming()
        self._reading: Iterator[None] | None = self._read()
        self._blanks = ""
        # Whether nothing of the answer's own text has come yet.
        self._at_start = True

    def feed(self, text: str) -> list[Piece]:
        """The pieces that `text` completes."""
        self._source.text += text
        return self._go()

    def finish(self) -> list[Piece]:
        """The last pieces: the answer has ended."""
        self._source.ended = True
        return self._go()

    def _go(self) -> list[Piece]:
        if self._reading is not None:
            try:
                next(self._reading)
            except StopIteration:
                self._reading = None
        pieces, self._calls.pieces = self._calls.pieces, []
        return pieces

    # ---- readers

    def _read(self) -> Reading[None]:
        if self._form.opened:
            yield from self._think()
        marks = _Marks(self._form)
        while (yield from self._source.has(1)):
            if self._at_start and (yield from self._begin(marks)):
                continue
            yield from self._text(marks)
        if self._blanks:
            self._calls.pieces.append(AnswerText(self._blanks))

    def _begin(self, marks: _Marks) -> Reading[bool]:
        """Read what may stand only before the answer's own text; whether there was any."""
        source, form = self._source, self._form
        start = source.at
        yield from source.blanks()
        if form.thinking and (yield from source.follows(form.thinking.open)):
            yield from self._think()
            return True
        if form.thinking and (yield from source.follows(form.thinking.close)):
            return True
        if form.content and form.content.open.strip() and (yield from source.follows(form.content.open)):
            self._at_start = False
            return True
        waiting, self._blanks = self._blanks, self._blanks + source.text[start : source.at]
        for call in marks.bare:
            if (yield from self._call(call)):
                return True
        self._blanks, source.at = waiting, start
        return False

    def _think(self) -> Reading[None]:
        """Tell the thinking up to its end mark, which is passed over."""
        source, close = self._source, self._form.thinking.close.strip() if self._form.thinking else ""
        yield from source.blanks()
        blanks = ""
        while True:
            found = source.text.find(close, source.at)
            rest = "" if source.ended else source.text[source.at :]
            end = found if found >= 0 else len(source.text) - _overlap(rest, close)
            text = blanks + source.text[source.at : end]
            thought = text.rstrip()
            if thought:
                self._calls.pieces.append(Thought(thought))
            blanks, source.at = text[len(thought) :], end
            if found >= 0:
                source.at += len(close)
                yield from source.blanks()
                return
            if source.ended:
                return
            self._forget()
            yield

    def _text(self, marks: _Marks) -> Reading[None]:
        """Tell text up to the next mark, and read what begins there."""
        source = self._source
        found = marks.pattern.search(source.text, source.at) if marks.pattern else None
        rest = "" if source.ended else source.text[source.at :]
        end = found.start() if found else len(source.text) - marks.overlap(rest)
        self._say(source.text[source.at : end])
        source.at = end
        self._forget()
        if found is None:
            if not source.ended:
                yield
            return
        mark = found[0]
        for call in marks.calls.get(mark, ()):
            if (yield from self._call(call)):
                return
        if mark not in marks.dropped:
            self._say(mark)
        source.at += len(mark)

    def _call(self, form: CallForm) -> Reading[bool]:
        """Read a section of calls; False, and nothing read, where none begins here.

        Blanks around a section are dropped with it, and those around a call that breaks are told with it.
        """
        source, calls = self._source, self._calls
        start, count = source.at, calls.count
        calls.started = start
        try:
            yield from form.read(source, calls)
        except Malformed:
            if calls.open:
                blanks = self._blanks if calls.count == count else ""
                calls.pieces.append(CallBroken(calls.count, blanks + source.text[calls.started : source.at]))
                calls.count, calls.open, self._blanks = calls.count + 1, False, ""
                return True
            elif calls.count == count:
                source.at = start
                return False
            else:
                source.at = calls.started
        self._blanks = ""
        yield from source.blanks()
        return True

    def _say(self, text: str) -> None:
        """Tell text, but for blanks at its end, which wait for what follows."""
        text = self._blanks + text
        said = text.rstrip()
        if said:
            self._at_start = False
            self._calls.pieces.append(AnswerText(said))
        self._blanks = text[len(said) :]

    def _forget(self) -> None:
        """Drop the text that has been read. Called where no reader holds a position."""
        self._source.text = self._source.text[self._source.at :]
        self._source.at = 0


class _Marks:
    """The texts at which an answer's own text may stop."""

    def __init__(self, form: AnswerForm) -> None:
        self.dropped = {text.strip() for text in form.noise}
        if form.content and form.content.close.strip():
            self.dropped.add(form.content.close.strip())
        self.bare = [call for call in form.calls if call.bare]
        self.calls: dict[str, list[CallForm]] = {}
        for call in form.calls:
            if not call.bare:
                self.calls.setdefault(call.trigger, []).append(call)
            elif call.between and call.between.strip():
                # After text a call begins as a second one does.
                self.calls.setdefault(call.between.strip(), []).append(replace(call, open=call.between))
        self.all = sorted({*self.dropped, *self.calls}, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, self.all))) if self.all else None

    def overlap(self, text: str) -> int:
        """How many characters at the end of `text` may begin a mark."""
        return max((_overlap(text, mark) for mark in self.all), default=0)


def _overlap(text: str, mark: str) -> int:
    """The length of the longest end of `text` with which `mark` begins, without all of it."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
