"""A model's own heads as a draft model: its block for further tokens guesses from its last hidden states.

The block has a KV cache of one layer. It reads a text as the model does, row by row: each token with the model's hidden
state of the token before. So the states of every step are noted (`follow`): a prompt's are read at once, an answer's
wait in a queue until the next guess, so that answers without guesses cost no time. The record of the cache has an entry
for each sequence of the model, which is compared with its tokens. Where it holds something else, or nothing, it begins
anew in the middle of the text. A guess is then less likely to come true, until enough of the text has been read.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.cache.spill import common_prefix
from runtime.engine.draft_model import AT_ONCE, FAULTS, LEAST_CHANCE, Guess
from runtime.engine.pace import Pace
from runtime.engine.schedule import Stretch
from runtime.engine.session import Session
from runtime.llama.context import OK, Context, ContextParams
from runtime.llama.heads import HeadsContext
from runtime.llama.model import LlamaModel

NAME = "the model's own heads"
# Rows of an answer that wait at most; where more come without a guess, the oldest are lost.
_QUEUE = 64


@dataclass(eq=False)
class _Read:
    """A sequence: `tokens` from position `first` on are in the cache, and tokens in `queue` wait behind them.

    `queue` has for each token the model's hidden state before it. `state` is the one after the last token, None where
    it is not known.
    """

    number: int
    first: int = 0
    tokens: array[int] = field(default_factory=lambda: array("i"))
    queue: list[tuple[int, Any]] = field(default_factory=list)
    state: Any = None

    @property
    def cached(self) -> int:
        """The position behind the last token in the cache."""
        return self.first + len(self.tokens)

    @property
    def end(self) -> int:
        """The position behind the last token."""
        return self.cached + len(self.queue)


class OwnHeads:
    """Guesses tokens, as `DraftModel` does. It belongs to the engine's thread."""

    def __init__(self, model: LlamaModel, params: ContextParams, large: Context, gap: float) -> None:
        """`large` is the model's own context, made with `params`. Raises LoadFailed."""
        import numpy as np  # a worker without drafts starts faster without

        self.name = NAME
        self.problem = ""
        self._large = large
        self._vocabulary = model.vocabulary
        self.context = HeadsContext(model, params, large)
        self.buffers = dict(self.context.buffers)
        self._zero = np.zeros(model.n_embd, np.float32)
        self._rows = np.zeros((self.context.batch_size, model.n_embd), np.float32)
        self._read = [_Read(number) for number in range(params.sequences)]
        self._pace = Pace(self.context.batch_size, gap)
        self._row_seconds = 0.0
        self._faults = 0
        self._warm_up()

    def _warm_up(self) -> None:
        token = memoryview(bytes(4 * AT_ONCE)).cast("i")
        for count in (1, 1, AT_ONCE, AT_ONCE):
            began = time.perf_counter()
            self.context.put_prompt(0, token[:count], 0, 0, 1)
            self.context.decode(count, self._rows)
            seconds = time.perf_counter() - began
            self.context.cut(0, 0)
            if count == 1:
                step = seconds
            self._row_seconds = seconds / count
        self._pace.note(1, 0, step)

    def seconds(self, rows: int) -> float:
        """Seconds of a step that guesses for `rows` answers."""
        return self._pace.answer_seconds(rows)

    def read_seconds(self, tokens: int) -> float:
        """Seconds in which `tokens` of a text are read."""
        return tokens * self._row_seconds

    def leave(self, session: Session) -> None:
        """An answer has ended: what was read stays, as long as its sequence is the same."""

    def follow(self, stretches: Sequence[Stretch]) -> None:
        """Note the hidden states of a step that was just computed, before tokens are drawn from it."""
        if self.problem or not any(stretch.session.drafting for stretch in stretches):
            return
        rows = sum(stretch.size + len(stretch.draft) for stretch in stretches)
        states, row = self._large.hidden(rows), 0
        for stretch in stretches:
            session, start, size = stretch.session, stretch.start, stretch.size + len(stretch.draft)
            if session.drafting and session.seq:
                read = self._settled(session.seq.number, session.tokens[:start])
                new = session.tokens[start : start + stretch.size] + stretch.draft
                self._append(read, new, states[row : row + size])
            row += size

    def behind(self, session: Session) -> int:
        """How many rows have to be read to guess the next token; 0 where none can be guessed."""
        seq = session.seq
        if self.problem or seq is None or len(seq.tokens) != len(session.tokens) - 1:
            return 0
        read = self._settled(seq.number, seq.tokens)
        if read.state is None:
            return 0
        behind = len(read.queue) + 1
        return behind if self._has_room(behind + AT_ONCE, {read.number}) else 0

    def read(self, session: Session, seconds: float) -> None:
        """Read rows of an answer that wait, for about `seconds`."""
        assert session.seq
        read = self._read[session.seq.number]
        self._flush(read, max(AT_ONCE, int(seconds / self._row_seconds)))

    def guess(self, guesses: Iterable[Guess], go_on: Callable[[Sequence[Guess]], bool]) -> None:
        """Guess the next tokens of several answers, as long as `go_on` agrees, which gets the drafts that may grow."""
        reads = {
            guess: read
            for guess in guesses
            if guess.most > 0 and (seq := guess.session.seq) and (read := self._read[seq.number]).state is not None
        }
        open_ = list(reads)
        rows = {guess: [*read.queue, (guess.session.tokens[-1], read.state)] for guess, read in reads.items()}
        places, kept = {guess: read.cached for guess, read in reads.items()}, {read.number for read in reads.values()}
        while open_:
            ends, count = [], 0
            for guess in open_:
                tokens = array("i", [token for token, _ in rows[guess]])
                for row, (_, state) in enumerate(rows[guess], count):
                    self._rows[row] = state
                self.context.put_prompt(count, memoryview(tokens), places[guess], reads[guess].number, 1)
                count += len(tokens)
                ends.append(count - 1)
            began = time.perf_counter()
            if not self._decoded(count):
                return
            self._pace.note(count, 0, time.perf_counter() - began)
            for guess in open_:
                places[guess] += len(rows[guess])
            added = [(guess, self._add(guess, row), row) for guess, row in zip(open_, ends, strict=True)]
            rows = {guess: [(guess.tokens[-1], self._state(row))] for guess, grows, row in added if grows}
            open_ = list(rows)
            if not (open_ and self._has_room(len(open_), kept) and go_on(open_)):
                break
        for read in reads.values():  # what was drafted is read again with the model's own states, if it comes true
            read.tokens.extend(token for token, _ in read.queue)
            read.queue.clear()
            self.context.cut(read.number, read.cached)

    def _state(self, row: int) -> Any:
        return self.context.state_after(row).copy()

    def _add(self, guess: Guess, row: int) -> bool:
        """Append the likeliest token to a draft; whether another may follow."""
        import numpy as np

        logits = self.context.logits(row)
        token = int(logits.argmax())
        if self._vocabulary.ends(token):
            return False
        guess.tokens.append(token)
        guess.confidences.append(float(1 / np.exp(logits - logits[token]).sum()))
        return len(guess.tokens) < guess.most and guess.chance > LEAST_CHANCE

    def _settled(self, number: int, text: array[int]) -> _Read:
        """The record of a sequence of the model, which holds `text`, made to agree with it."""
        read, length = self._read[number], len(text)
        held = read.tokens + array("i", [token for token, _ in read.queue])
        if length < read.first or read.first + common_prefix(held, text[read.first :]) < length:
            self._begin(read, text)
        elif length < read.end:
            waiting = length - read.cached
            read.state = read.queue[waiting][1] if waiting >= 0 else None
            del read.queue[max(0, waiting) :]
            if waiting < 0:
                del read.tokens[length - read.first :]
                self.context.cut(number, length)
        return read

    def _begin(self, read: _Read, text: array[int]) -> None:
        """Let a record begin behind `text`, with as much of it as another sequence has read."""
        others = (other for other in self._read if other is not read and other.cached >= len(text) > other.first)
        found = min(
            (other for other in others if common_prefix(other.tokens, text[other.first :]) == len(text) - other.first),
            key=lambda other: other.first,
            default=None,
        )
        self._clear(read)
        read.first = len(text)
        if found and self._has_room(len(text) - found.first, {read.number, found.number}):
            self.context.copy(found.number, read.number, len(text), found.first)
            read.first, read.tokens = found.first, found.tokens[: len(text) - found.first]

    def _append(self, read: _Read, tokens: array[int], states: Any) -> None:
        """Note rows behind a record: a prompt's are read at once, others wait."""
        before = self._zero if read.state is None else read.state
        for token, state in zip(tokens, states, strict=True):
            read.queue.append((token, before))
            before = state.copy() if len(tokens) <= AT_ONCE else state
        read.state = before.copy()
        if len(tokens) > AT_ONCE:
            self._flush(read, len(read.queue))
        elif len(read.queue) > _QUEUE:
            place = read.end
            self._clear(read)
            read.first, read.state = place, before.copy()

    def _flush(self, read: _Read, most: int) -> None:
        """Read the first `most` rows that wait."""
        for start in range(0, min(most, len(read.queue)), self.context.batch_size):
            piece = read.queue[: min(most - start, self.context.batch_size)]
            if not self._has_room(len(piece), {read.number}):
                place, state = read.end, read.state
                self._clear(read)
                read.first, read.state = place, state
                return
            tokens = array("i", [token for token, _ in piece])
            for row, (_, state) in enumerate(piece):
                self._rows[row] = state
            began = time.perf_counter()
            self.context.put_prompt(0, memoryview(tokens), read.cached, read.number, 0)
            if not self._decoded(len(piece)):
                return
            self._row_seconds = (self._row_seconds + (time.perf_counter() - began) / len(piece)) / 2
            read.tokens.extend(tokens)
            del read.queue[: len(piece)]

    def _has_room(self, rows: int, kept: set[int]) -> bool:
        """Whether the cache has room for `rows` more; sequences that are not `kept` may give way."""
        for read in self._read:
            if self._free() >= rows:
                break
            if read.number not in kept and read.tokens:
                self._clear(read)
        return self._free() >= rows

    def _free(self) -> int:
        return self.context.tokens - sum(len(read.tokens) for read in self._read)

    def _clear(self, read: _Read) -> None:
        self.context.cut(read.number, 0)
        read.first, read.tokens, read.queue, read.state = 0, array("i"), [], None

    def _decoded(self, rows: int) -> bool:
        """Compute; where that fails, forget all texts, and stop after the third time in a row."""
        status = self.context.decode(rows, self._rows)
        if status == OK:
            self._faults = 0
            return True
        self._faults += 1
        for read in self._read:
            self._clear(read)
        if self._faults == FAULTS:
            self.problem = f"llama.cpp could not compute steps of {self.name} (status {status})"
            sys.stderr.write(f"{self.problem}\n")
        return False
