"""A draft model: a small model of the same vocabulary beside the large one, which guesses what comes next.

It has a KV cache of its own with as many cells, whose sequences are shared and parked as the large model's are. The
texts of answers are read when a draft is wanted for the first time, in pieces. One step of it guesses a token for each
answer that has a draft. Whether that pays, and for how many tokens, is decided in `runtime/engine/guessing.py`.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from runtime.cache.pool import CellPool
from runtime.cache.pool import Sequence as Cells
from runtime.cache.spill import Spill, common_prefix
from runtime.drafts.drafting import Drafting
from runtime.engine.pace import Pace
from runtime.engine.session import Session
from runtime.llama.context import OK, Context, ContextParams
from runtime.llama.model import LlamaModel

# Tokens that are read together with the first guess; more are read before.
AT_ONCE = 16
# The rows of a piece of a text that is read, at least.
_LEAST_ROWS = 16
# Failed steps in a row after which nothing is guessed any more.
FAULTS = 3
# A token that all guesses come true before it with a smaller chance is not worth a row.
LEAST_CHANCE = 0.08


@dataclass(eq=False)
class Guess:
    """A draft as it is guessed for an answer: at most `most` tokens, and the probability that the model gives each.

    Before the first, `behind` tokens of the answer's text have to be read.
    """

    session: Session
    drafting: Drafting
    most: int
    behind: int
    tokens: array[int] = field(default_factory=lambda: array("i"))
    confidences: list[float] = field(default_factory=list)

    @property
    def chance(self) -> float:
        """The chance that all tokens so far come true."""
        return self.drafting.guess_chances(self.confidences)[-1] if self.confidences else 1.0


class DraftModel:
    """Guesses tokens. It belongs to the engine's thread.

    `problem` says why it does so no more, "" while it does. `buffers` has bytes by kind, as `Context.buffers`, and of
    the weights (`model`).
    """

    def __init__(self, model: LlamaModel, params: ContextParams, name: str, vocabulary: int, gap: float) -> None:
        """`vocabulary` is the size of the large model's. Raises LoadFailed, BadRequest."""
        self.name = f"`{name}`"
        self.problem = ""
        self._vocabulary = model.vocabulary
        self._known = min(vocabulary, model.vocabulary.size)
        self.context = Context(model, params)
        self.buffers = {"model": model.buffers.get("model", model.size), **self.context.buffers}
        self._longest = min(self.context.tokens, model.n_ctx_train)
        spill = Spill(self.context, 0)
        self._pool = CellPool(self.context, self.context.tokens, params.sequences, model.memory, spill)
        self._held: dict[Session, Cells] = {}
        self._pace = Pace(self.context.batch_size, gap)
        self._row_seconds = 0.0
        """Seconds of a row of a text that is read."""
        self._steps = self._faults = 0
        self._warm_up()

    def _warm_up(self) -> None:
        """Measure a step, and reading; the first of each takes longer than all others, and does not count."""
        tokens, measured = array("i", bytes(4 * _LEAST_ROWS)), dict[int, float]()
        for count in (1, 1, _LEAST_ROWS, _LEAST_ROWS):
            began = time.perf_counter()
            self.context.put_prompt(0, memoryview(tokens[:count]), 0, 0, 1)
            self.context.decode(count)
            seconds = time.perf_counter() - began
            self.context.cut(0, 0)
            measured[count] = seconds
        self._pace.note(1, 0, measured[1])
        self._row_seconds = measured[_LEAST_ROWS] / _LEAST_ROWS

    def seconds(self, rows: int) -> float:
        """Seconds of a step that guesses for `rows` answers."""
        return self._pace.answer_seconds(rows)

    def read_seconds(self, tokens: int) -> float:
        """Seconds in which `tokens` of a text are read."""
        return tokens * self._row_seconds

    def leave(self, session: Session) -> None:
        """Park the sequence of an answer that has ended."""
        cells = self._held.pop(session, None)
        if cells is not None:
            self._pool.cut(cells, common_prefix(cells.tokens, session.tokens))
            self._pool.park(cells, self._steps)

    def behind(self, session: Session) -> int:
        """How many tokens of an answer have to be read to guess the next one; 0 where none can be guessed."""
        tokens = session.tokens
        if self.problem or len(tokens) >= self._longest:
            return 0
        cells = self._held.get(session)
        if cells is None:
            cells = self._pool.start(*self._pool.match(tokens[:-1]))
            if cells is None:
                return 0
            self._held[session] = cells
        self._pool.cut(cells, min(common_prefix(cells.tokens, tokens), len(tokens) - 1))
        behind = len(tokens) - len(cells.tokens)
        known = max(tokens[-behind:]) < self._known
        return behind if known and self._has_room(behind + AT_ONCE) else 0

    def _has_room(self, rows: int) -> bool:
        while self._pool.free < rows and self._pool.evict():
            pass
        return self._pool.free >= rows

    def read(self, session: Session, seconds: float) -> None:
        """Read a piece of an answer's text, for about `seconds`."""
        cells = self._held[session]
        start = len(cells.tokens)
        rows = max(_LEAST_ROWS, int(seconds / self._row_seconds))
        piece = session.tokens[start : min(start + min(rows, self.context.batch_size), len(session.tokens) - 1)]
        self.context.put_prompt(0, memoryview(piece), start, cells.number, 0)
        began = time.perf_counter()
        if self._decoded(len(piece)):
            self._pool.grow(cells, piece)
            taken = (time.perf_counter() - began) / len(piece)
            self._row_seconds = (self._row_seconds + taken) / 2

    def guess(self, guesses: Iterable[Guess], go_on: Callable[[Sequence[Guess]], bool]) -> None:
        """Guess the next tokens of several answers, as long as `go_on` agrees, which gets the drafts that may grow."""
        open_ = [guess for guess in guesses if guess.most > 0 and guess.session in self._held]
        added = [guess.session.tokens[len(self._held[guess.session].tokens) :] for guess in open_]
        while open_:
            rows: list[int] = []
            count = 0
            for guess, tokens in zip(open_, added, strict=True):
                cells = self._held[guess.session]
                self.context.put_prompt(count, memoryview(tokens), len(cells.tokens), cells.number, 1)
                count += len(tokens)
                rows.append(count - 1)
            began = time.perf_counter()
            if not self._decoded(count):
                return
            self._pace.note(count, 0, time.perf_counter() - began)
            for guess, tokens in zip(open_, added, strict=True):
                self._pool.grow(self._held[guess.session], tokens)
            open_ = [guess for guess, row in zip(open_, rows, strict=True) if self._add(guess, row)]
            added = [guess.tokens[-1:] for guess in open_]
            if not (open_ and self._has_room(len(open_)) and go_on(open_)):
                return

    def _add(self, guess: Guess, row: int) -> bool:
        """Append the likeliest token to a draft; whether another may follow."""
        import numpy as np  # a worker without a draft starts faster without

        logits = self.context.logits(row)
        token = int(logits.argmax())
        if token >= self._known or self._vocabulary.ends(token):
            return False
        guess.tokens.append(token)
        guess.confidences.append(float(1 / np.exp(logits - logits[token]).sum()))
        return len(guess.tokens) < guess.most and guess.chance > LEAST_CHANCE

    def _decoded(self, rows: int) -> bool:
        """Compute; where that fails, forget all texts, and stop after the third time in a row."""
        self._steps += 1
        status = self.context.decode(rows)
        if status == OK:
            self._faults = 0
            return True
        self._faults += 1
        for cells in self._pool.sequences:
            self._pool.clear(cells)
            cells.busy = False
        self._held.clear()
        if self._faults == FAULTS:
            self.problem = f"llama.cpp could not compute steps of {self.name} (status {status})"
            sys.stderr.write(f"{self.problem}\n")
        return False
