"""Who runs, who waits, and what goes into the next step.

Requests are admitted in their order when a sequence is free and their prompt plus a reserve has room; one that would
gain by waiting for a prompt that is being computed lets others pass. In a step the running answers come first, then
prompts, the oldest first, as much as the pace allows; beside answers long ones are read between the steps instead, one
at a time. When the pool is full parked sequences give way, then the youngest request: it goes back to the head of the
queue, and loses nothing but time.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import NamedTuple

from runtime.cache.pool import CellPool
from runtime.cache.spill import common_prefix
from runtime.engine.pace import PATIENCE, Pace
from runtime.engine.prefill import Side
from runtime.engine.session import Session

# A newcomer waits for a running prompt that shares this many tokens more than the cache does.
WORTH_WAITING = 32
# Room that an answer is granted in advance when requests are admitted.
RESERVE = 256


class Stretch(NamedTuple):
    """Tokens `start` to `start + size` of a session, to be computed in the next step."""

    session: Session
    start: int
    size: int


class Schedule:
    """The queue and the running sessions of one model."""

    def __init__(self, pool: CellPool, pace: Pace, sequences: int, side: Side | None = None) -> None:
        """At most `sequences` run at once; `side` reads long prompts, where that is possible."""
        self.aside: Session | None = None
        """Whose prompt is to be read there after the step that was planned last."""
        self.waiting: deque[Session] = deque()
        self.running: list[Session] = []
        self._pool = pool
        self._pace = pace
        self._sequences = sequences
        self._side = side

    @property
    def sessions(self) -> list[Session]:
        """All of them, running ones first."""
        return [*self.running, *self.waiting]

    def admit(self, promised: int = 0) -> list[Session]:
        """Give sequences to those who wait; who got one. `promised` cells are for texts that are being read."""
        admitted = []
        for session in list(self.waiting):
            if len(self.running) >= self._sequences:
                break
            # A seed asks for the same text again, and sums round differently elsewhere in the cache.
            afresh = session.request.sampling.seed >= 0 and not self.running
            if afresh:
                self._empty()
            wanted = session.tokens[:-1]  # the last one is computed anew: its logits are needed
            source, length = self._pool.match(wanted)
            if self._soon_better(wanted, length):
                continue
            taken = self.committed() + promised
            if (self.running or promised) and taken + self._need(session) - length > self._pool.cells:
                break
            if not afresh and self._pool.recall(wanted, length):
                source, length = self._pool.match(wanted)
            marks = self._pool.marks(session.tokens, length, session.border)
            seq = self._pool.start(source, length)
            if seq is None:
                break
            session.marks = marks
            session.seq = seq
            self.waiting.remove(session)
            self.running.append(session)
            admitted.append(session)
        if admitted:
            self._pool.trim()
        return admitted

    def _empty(self) -> None:
        while self._pool.evict():
            pass

    def _soon_better(self, wanted: array[int], length: int) -> bool:
        """Whether a running prompt is about to compute more of `wanted` than the cache holds of it."""
        for running in self.running:
            if running.pending > 1:
                common = common_prefix(running.tokens, wanted)
                if self._pool.memory != "cells":  # of use only up to where its state will be kept
                    common = max((mark for mark in running.marks if mark <= common), default=0)
                if common >= length + WORTH_WAITING:
                    return True
        return False

    def committed(self) -> int:
        """Cells that running answers hold or have been promised."""
        return self._pool.held_by_busy + sum(self._need(session) for session in self.running)

    def _need(self, session: Session) -> int:
        """Cells that `session` will take: what is pending, and a reserve for the answer."""
        return session.pending + min(session.left, RESERVE, self._pool.cells // (2 * self._sequences))

    def plan(self) -> tuple[list[Stretch], list[Session]]:
        """The next step, and the answers that must end because the pool is full of them alone."""
        ending = self._make_room()
        stretches: list[Stretch] = []
        reading: list[Session] = []
        for session in self.running:
            if session.pending > 1:
                reading.append(session)
            elif session not in ending:
                stretches.append(Stretch(session, len(session.tokens) - 1, 1))
        rows = len(stretches)
        # To wait for a second token is as good as to wait for the first: those who come together start together, and
        # only answers whose text is flowing hold prompts back.
        flowing = bool(reading) and any(answer.session.answered > 1 for answer in stretches)
        waiting = len(reading)
        if self._side:
            reading = self._left_aside(self._side, reading, flowing)
        left = self._paced(rows, waiting) if flowing else self._pace.budget(0) - rows
        for session in reading:
            count = self._room(rows, min(left, session.stretch))
            if count > 0:
                stretches.append(Stretch(session, len(session.tokens) - session.pending, count))
                rows += count
                left -= count
        if not stretches and not ending and self.running and not self.aside:
            self.set_back(self.running[-1])  # prompts alone fill the pool: the oldest go first
        return stretches, ending

    def _left_aside(self, side: Side, reading: list[Session], flowing: bool) -> list[Session]:
        """Choose which of those who are `reading` goes on beside the steps, one at a time; those left for the steps."""
        others = [session for session in reading if not (flowing and side.suits(session))]
        if not (side.reading and self.aside in reading):  # a chunk that has begun is read to its end
            self.aside = next((session for session in reading if session not in others), None)
        return [session for session in others if session is not self.aside]

    def turn(self) -> float:
        """Seconds for which the one `aside` may be read now."""
        answering = sum(session.pending == 1 for session in self.running)
        return self._pace.turn(answering, len(self.running) - answering)

    def _paced(self, answering: int, reading: int) -> int:
        patience = 1.0 if self._side and self._side.usable else PATIENCE
        return self._pace.budget(answering, reading, patience)

    def _make_room(self) -> list[Session]:
        """Find a cell for the next token of every answer; what comes back runs alone, and has none."""
        while self._pool.free < len(self.running):
            answering = [session for session in self.running if session.pending == 1]
            if self._pool.free >= len(answering):
                break
            if self._pool.evict():
                continue
            others = [session for session in self.running if session.pending > 1]
            youngest = others[-1] if others else answering[-1]
            if len(self.running) > 1:
                self.set_back(youngest)
            elif not self._shift(youngest):
                return [youngest]
        return []

    def _room(self, taken: int, wanted: int) -> int:
        """How many of `wanted` cells there are besides those of `taken` rows; parked sequences give way."""
        while self._pool.free < taken + wanted and self._pool.evict():
            pass
        return min(wanted, self._pool.free - taken)

    def _shift(self, session: Session) -> bool:
        """Let the older half of a full context go, if the request asked for that and the model can."""
        if not (session.request.shift and session.seq):
            return False
        held = len(session.seq.tokens)
        keep = min(session.prompt_tokens, held // 4)
        gone = (held - keep) // 2
        if not self._pool.shift(session.seq, keep, gone):
            return False
        del session.tokens[keep : keep + gone]
        return True

    def set_back(self, session: Session) -> None:
        """Take the room of `session` for others; it comes again when there is some."""
        if session.seq:
            self._pool.interrupt(session.seq)
            session.seq = None
        self.running.remove(session)
        self.waiting.appendleft(session)

    def leave(self, session: Session, step: int) -> None:
        """End of `session`: what it holds is parked."""
        if session.seq:
            self._pool.park(session.seq, step)
            session.seq = None
            self.running.remove(session)
        elif session in self.waiting:
            self.waiting.remove(session)
