"""Which sessions run, which wait, and what goes into the next step.

Sessions are admitted in their order, when a sequence is free and the KV cache has room for the prompt and a reserve.
A session whose prompt shares its beginning with one that is in prefill waits for it, and lets others pass.

A step has the new tokens of every session in decode whose adapters have their turn (`runtime/engine/turns.py`): one,
or more where a grammar forces them. Prompts follow, the oldest first, as many rows as the pace allows. Beside running
answers, long prompts are read between the steps instead, one at a time (`runtime/engine/prefill.py`). When the KV cache
is full, parked sequences give way first, then the youngest session: it goes back to the head of the queue, and loses
nothing but time.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from runtime.cache.pool import CellPool
from runtime.cache.spill import common_prefix
from runtime.engine.pace import PATIENCE, Pace
from runtime.engine.prefill import SidePrefill
from runtime.engine.session import Session
from runtime.engine.turns import Turns
from runtime.messages import AdapterSet

# A session waits for a prompt in prefill that will leave N more of its tokens in the cache than are there now.
WORTH_WAITING = 32
# Cells that an answer is granted in advance when its session is admitted.
RESERVE = 256
# Tokens of one answer in a step, at most: one that was drawn, and the tokens that its grammar forces after it.
MOST_FORCED = 64


class Stretch(NamedTuple):
    """Tokens `start` to `start + size` of a session, to be computed in one step.

    The logits of the last `wanted` rows are needed: of 1 row when the stretch ends at the session's last token, of all
    rows where the probabilities of the prompt's tokens are asked for. A `draft` follows with logits of all its rows
    (`runtime/engine/speculation.py`).
    """

    session: Session
    start: int
    size: int
    wanted: int
    draft: array[int] = array("i")


class Step(NamedTuple):
    """The next things to do: compute `stretches` in one batch, then prefill `side` for about `seconds`.

    The sessions in `ending` must end before, because the KV cache is full of them alone. The batch is computed with
    `adapters`.
    """

    stretches: list[Stretch]
    ending: list[Session]
    side: Session | None
    seconds: float
    adapters: AdapterSet = ()


class Schedule:
    """The queue and the running sessions of one model."""

    def __init__(
        self,
        pool: CellPool,
        pace: Pace,
        sequences: int,
        side: SidePrefill | None = None,
        *,
        outputs: int = 1 << 20,
        give_way: Callable[[], bool] = lambda: False,
    ) -> None:
        """At most `sequences` sessions run at once; `side` reads long prompts, where the model allows it.

        A step gives logits of at most `outputs` rows. `give_way` frees the cells of texts being embedded; False where
        there are none.
        """
        self._outputs = outputs
        self._give_way = give_way
        self.waiting: deque[Session] = deque()
        self.running: list[Session] = []
        self.turns = Turns()
        self._pool = pool
        self._pace = pace
        self._sequences = sequences
        self._side = side
        self._side_session: Session | None = None
        # All sessions in decode fit into one step.
        self._answer_rows = max(1, min(MOST_FORCED, self._pace.budget(0) // sequences))

    @property
    def sessions(self) -> list[Session]:
        """All sessions, the running ones first."""
        return [*self.running, *self.waiting]

    @property
    def waiting_requests(self) -> int:
        """The number of requests with an answer in the queue, however many each; from any thread."""
        return len({session.id for session in self.waiting.copy()})

    @property
    def decoding(self) -> int:
        """How many sessions are in decode."""
        return sum(session.phase == "decode" for session in self.running)

    def admit(self, promised: int = 0) -> list[Session]:
        """Start waiting sessions, and return them. `promised` cells are for texts being embedded."""
        admitted = []
        for session in list(self.waiting):
            if len(self.running) >= self._sequences:
                break
            # The same seed must give the same text again. Sums round differently when the cells lie elsewhere in the
            # cache, so a seeded session that runs alone begins with an empty cache.
            afresh = session.request.sampling.seed >= 0 and not self.running
            if afresh:
                self._evict_all()
            wanted = session.tokens[:-1]  # the last one is computed in any case: its logits are needed
            source, length = (None, 0) if session.reads_all else self._pool.match(wanted, session.adapters)
            if not session.reads_all and self._soon_better(session, wanted, length):
                continue
            committed = self.committed_cells() + promised
            if (self.running or promised) and committed + self._need(session) - length > self._pool.cells:
                break
            if not (afresh or session.reads_all) and self._pool.recall(wanted, length, session.adapters):
                source, length = self._pool.match(wanted, session.adapters)
            checkpoints = self._pool.checkpoint_positions(session.tokens, length, session.stable, session.adapters)
            seq = self._pool.start(source, length, session.adapters)
            if seq is None:
                break
            session.checkpoints = checkpoints
            session.seq = seq
            session.phase = "prefill" if session.pending > 1 else "decode"
            self.waiting.remove(session)
            self.running.append(session)
            admitted.append(session)
        if admitted:
            self._pool.trim()
        return admitted

    def _evict_all(self) -> None:
        while self._pool.evict():
            pass

    def _soon_better(self, session: Session, wanted: array[int], length: int) -> bool:
        """Whether a prompt in prefill will leave clearly more of `wanted` in the cache than the `length` there now."""
        for running in self.running:
            if running.phase == "prefill" and running.adapters == session.adapters:
                common = common_prefix(running.tokens, wanted)
                if self._pool.memory != "cells":  # a prefix is usable only up to its last checkpoint
                    common = max((position for position in running.checkpoints if position <= common), default=0)
                if common >= length + WORTH_WAITING:
                    return True
        return False

    def committed_cells(self) -> int:
        """Cells that running sessions hold or were promised."""
        return self._pool.busy_cells + sum(self._need(session) for session in self.running)

    def _need(self, session: Session) -> int:
        """Cells that `session` will take: its pending tokens, and a reserve for the answer."""
        return session.pending + min(session.left, RESERVE, self._pool.cells // (2 * self._sequences))

    def plan(self) -> Step:
        """The next step."""
        ending = self._make_room()
        prompts = [session for session in self.running if session.phase == "prefill"]
        decoding = [session for session in self.running if session.phase == "decode" and session not in ending]
        # An answer holds prompts back only when it has two tokens or more. Before that its user still waits for text,
        # like the users of the prompts. So requests that come together start together.
        flowing = bool(prompts) and any(session.answer_tokens > 1 for session in decoding)
        in_steps, side = prompts, None
        if self._side:
            in_steps, side = self._choose_side(self._side, prompts, flowing)
        if decoding or in_steps:
            self.turns.choose(session.adapters for session in (*decoding, *in_steps))
        in_steps = [session for session in in_steps if session.adapters == self.turns.now]
        stretches = [self._answer(session) for session in decoding if session.adapters == self.turns.now]
        rows = sum(stretch.size for stretch in stretches)
        left = self._pace.budget(0) - rows
        if flowing:
            left = min(left, self._prompt_rows(len(decoding), len(prompts)))
        outputs = self._outputs - len(stretches) - sum(not session.reads_all for session in in_steps)
        for session in in_steps:
            most = min(left, session.until_checkpoint)
            if session.reads_all:
                most = min(most, outputs)
            size = self._room(rows, most)
            if size > 0:
                pending = session.pending
                wanted = size if session.reads_all else int(size == pending)
                stretches.append(Stretch(session, len(session.tokens) - pending, size, wanted))
                rows += size
                left -= size
                outputs -= size if session.reads_all else 0
        if not stretches and not ending and self.running and not side:
            self.set_back(self.running[-1])  # prompts alone fill the cache: the oldest go first
        seconds = self._pace.side_seconds(len(decoding), len(prompts)) if side else 0.0
        return Step(stretches, ending, side, seconds, self.turns.now)

    def _answer(self, session: Session) -> Stretch:
        """The new tokens of a session in decode."""
        pending, size = session.pending, self._rows(session)
        return Stretch(session, len(session.tokens) - pending, size, int(size == pending))

    def _choose_side(
        self, side: SidePrefill, prompts: list[Session], flowing: bool
    ) -> tuple[list[Session], Session | None]:
        """The `prompts` for the step itself, and the one to read beside the steps."""
        long = [session for session in prompts if flowing and not session.reads_all and side.suits(session)]
        if not (side.busy and self._side_session in prompts):  # a chunk that has begun is read to its end
            self._side_session = next(iter(long), None)
        chosen = self._side_session
        return [session for session in prompts if session not in long and session is not chosen], chosen

    def _prompt_rows(self, answering: int, reading: int) -> int:
        """Rows of prompts that the pace allows beside answers."""
        patience = 1.0 if self._side and self._side.usable else PATIENCE
        return self._pace.budget(answering, reading, patience)

    def _make_room(self) -> list[Session]:
        """Make cells free for the next tokens of every session in decode.

        A session that runs alone and finds none is returned: it has to end.
        """
        while self._pool.free < sum(map(self._rows, self.running)):
            decoding = [session for session in self.running if session.phase == "decode"]
            if self._pool.free >= sum(map(self._rows, decoding)):
                break
            if self._pool.evict():
                continue
            prompts = [session for session in self.running if session.phase == "prefill"]
            youngest = prompts[-1] if prompts else decoding[-1]
            if len(self.running) > 1:
                self.set_back(youngest)
            elif not (self._give_way() or self._shift(youngest)):
                return [youngest]
        return []

    def _rows(self, session: Session) -> int:
        """Rows of a session in decode in the next step; 1 for a prompt, which may take more where there is room."""
        return min(session.pending, self._answer_rows) if session.phase == "decode" else 1

    def _room(self, rows: int, wanted: int) -> int:
        """How many of `wanted` cells are free beside those for `rows`; parked sequences give way."""
        while self._pool.free < rows + wanted and self._pool.evict():
            pass
        return min(wanted, self._pool.free - rows)

    def _shift(self, session: Session) -> bool:
        """Drop the older half of a full context, but for its beginning, if the request allows it and the model can."""
        if not (session.request.shift and session.seq):
            return False
        size = len(session.seq.tokens)
        keep = min(session.prompt_tokens, size // 4)
        count = (size - keep) // 2
        if not self._pool.shift(session.seq, keep, count):
            return False
        del session.tokens[keep : keep + count]
        return True

    def computed(self, stretch: Stretch) -> None:
        """Record that `stretch` is in the KV cache now, and make the checkpoint that is due at its end."""
        session, start, size, *_ = stretch
        assert session.seq
        self._pool.grow(session.seq, session.tokens[start : start + size])
        if session.phase == "prefill":
            if session.checkpoints and session.checkpoints[0] == start + size:
                self._pool.make_checkpoint(session.seq)
                session.checkpoints.pop(0)
            self.settle(session)

    def settle(self, session: Session) -> None:
        """End a session's prefill if its prompt is in the KV cache, but for the token whose logits are needed."""
        if session.phase == "prefill" and session.pending <= 1:
            session.phase = "decode"

    def set_back(self, session: Session) -> None:
        """Take the room of a running session for others; it waits at the head of the queue."""
        if session.seq:
            self._pool.interrupt(session.seq)
            session.seq = None
        session.phase = "waiting"
        self.running.remove(session)
        self.waiting.appendleft(session)

    def leave(self, session: Session, step: int) -> None:
        """Remove a session that has ended at `step`; its sequence is parked."""
        if session.seq:
            self._pool.park(session.seq, step)
            session.seq = None
            self.running.remove(session)
        elif session in self.waiting:
            self.waiting.remove(session)
