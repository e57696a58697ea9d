"""Drafts in steps: tokens that are computed before they are drawn, and taken where the sampler draws the same.

A step computes an answer's last token and the tokens of a draft behind it. Then the answer's own sampler draws from one
row after the other, as it would in steps of one token. Penalties and grammars see the tokens that were drawn and
nothing else, and random numbers come in the same order. Where it draws another token than the draft has, the rest of
the draft is cut from the KV cache. So the distribution is the model's own, whatever the draft.

Drafts come from known text (`runtime/drafts/lookup.py`) or from a draft model (`runtime/engine/guessing.py`), whichever
is likelier.

Kernels round differently in steps of different sizes, which can change a text where two tokens are almost equally
likely. Therefore an answer with a seed, which is to be the same again, has drafts only where its request asks for them.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

from runtime import messages as m
from runtime.cache.pool import CellPool
from runtime.cache.spill import common_prefix
from runtime.defaults import DRAFT_ROWS
from runtime.drafts.drafting import Drafting, SharedRates
from runtime.drafts.lookup import Lookup
from runtime.drafts.payoff import best_lengths
from runtime.engine.answering import Answering
from runtime.engine.guessing import Guessing
from runtime.engine.pace import Pace
from runtime.engine.schedule import Step, Stretch
from runtime.engine.session import Session
from runtime.errors import LoadFailed
from runtime.llama.context import Context, ContextParams
from runtime.llama.model import LlamaModel


class Speculation:
    """Adds drafts to steps while they pay. It belongs to the engine's thread, but for `begin`."""

    def __init__(
        self,
        pool: CellPool,
        pace: Pace,
        context: Context,
        answering: Answering,
        obstacle: str,
        guessing: Guessing | None = None,
        missing: str = "",
    ) -> None:
        """`obstacle` says why there are no drafts, "" where there are. A draft model guesses where there is one.

        `missing` says why the model's own heads do not, although it has some.
        """
        self._pool, self._pace, self._context, self._answering = pool, pace, context, answering
        self.obstacle, self._missing = obstacle, missing
        self._guessing = guessing
        self._rates = SharedRates()
        self.drafted = self.accepted = 0
        self._last_choice = ""
        """Why the last step that could have had drafts has some, or none."""
        self._plain = self._extra = 0
        """Rows of the step without drafts, and of its drafts."""

    @staticmethod
    def hindrance(model: LlamaModel, wanted: bool, rollback: int = 0) -> str:
        """Why answers of `model` never have drafts; "" where they may.

        `rollback` is the number of tokens that its context can go back.
        """
        if not wanted:
            return "switched off by the setting `speculation`"
        if model.memory != "cells" and not rollback:
            return "a recurrent state cannot go back behind tokens that were drafted in vain"
        return ""

    @property
    def buffers(self) -> dict[str, int]:
        """Bytes of the draft model by kind; empty where there is none."""
        return self._guessing.buffers if self._guessing else {}

    @property
    def drafts(self) -> m.Drafts:
        """Tokens of drafts so far, and what speaks for or against them."""
        reason = self.obstacle
        if self.drafted:
            reason = f"{self.accepted:,} of {self.drafted:,} drafted tokens were accepted; {self._last_choice}"
        if self._guessing and not self.obstacle:
            reason += f"{'; ' if reason else ''}{self._guessing.report}"
        if self._missing:
            reason += f"{'; ' if reason else ''}its own heads are not used: {self._missing}"
        return m.Drafts(self.drafted, self.accepted, reason)

    def begin(self, sessions: list[Session], prediction: Sequence[int]) -> None:
        """Let the answers to one prompt have drafts, where the request does not speak against it."""
        request = sessions[0].request
        most = request.drafts
        if most < 0:
            most = DRAFT_ROWS if request.sampling.seed < 0 else 0
        if self.obstacle or not most:
            return
        most = min(most, self._context.rollback or most)
        lookup = Lookup(sessions[0].tokens, prediction)
        for session in sessions:
            session.drafting = Drafting(lookup if session is sessions[0] else lookup.copy(), self._rates, most)

    def follow(self, step: Step) -> None:
        """Take note of a step that was just computed, before tokens are drawn from it."""
        if self._guessing:
            self._guessing.follow(step.stretches)

    def leave(self, session: Session) -> None:
        """Take note that an answer has ended."""
        if self._guessing:
            self._guessing.leave(session)

    def extended(self, step: Step) -> Step:
        """The step with drafts behind its answers, where these pay."""
        stretches = step.stretches
        self._plain, self._extra = sum(stretch.size for stretch in stretches), 0
        # A prompt's rows have their own measure of how long a step may take.
        if any(stretch.session.phase == "prefill" for stretch in stretches):
            return step
        context = self._context
        if context.rollback and any(stretch.size > 1 or not stretch.session.drafting for stretch in stretches):
            return self._without(step)
        cells = min(context.batch_size, self._pool.free) - self._plain
        room = min(DRAFT_ROWS, context.outputs - len(stretches), cells)
        drafts = [self._draft(stretch, room) for stretch in stretches]
        if self._guessing and room > 0:
            self._guessing.replace(stretches, drafts, room)
        lengths = self._lengths(stretches, drafts, room) if any(drafts) else [0] * len(drafts)
        if context.rollback:  # states go back behind steps alone in which all answers have as many rows
            lengths = [min(lengths, default=0)] * len(lengths)
        self._extra = sum(lengths)
        for stretch, length in zip(stretches, lengths, strict=True):
            if stretch.session.drafting and not length:
                stretch.session.drafting.rest(self._extra_steps(1))
        if not self._extra:
            return step
        drafted = [
            stretch._replace(draft=draft[:length]) if length else stretch
            for stretch, draft, length in zip(stretches, drafts, lengths, strict=True)
        ]
        return step._replace(stretches=drafted)

    def _without(self, step: Step) -> Step:
        """The step without drafts, which its answers note."""
        for stretch in step.stretches:
            if stretch.session.drafting:
                stretch.session.drafting.rest()
        return step

    def _draft(self, stretch: Stretch, room: int) -> array[int]:
        session = stretch.session
        if session.drafting is None or not stretch.wanted:
            return array("i")
        return session.drafting.propose(min(room, session.left - 1))

    def _lengths(self, stretches: list[Stretch], drafts: list[array[int]], room: int) -> list[int]:
        """How many tokens of each draft to compute, `room` in all at most."""
        chances = [
            stretch.session.drafting.chances(len(draft)) if draft and stretch.session.drafting else []
            for stretch, draft in zip(stretches, drafts, strict=True)
        ]
        pace, plain = self._pace, self._plain
        # Answers without a draft must not wait for the drafts of others longer than for a prompt.
        longest = 0.0 if all(drafts) else pace.gap * pace.answer_seconds(plain)
        if longest and self._guessing:
            longest = max(pace.answer_seconds(plain), longest - self._guessing.spent)
        lengths = best_lengths(chances, plain, room, pace.answer_seconds, longest)
        extra = self._extra_steps(sum(lengths))
        self._last_choice = self._choice(sum(lengths), extra)
        for number, stretch in enumerate(stretches):
            drafting = stretch.session.drafting
            if drafting and lengths[number]:
                lengths[number] = drafting.credit.affordable(lengths[number], extra, 1 - chances[number][0])
        return lengths

    def _choice(self, rows: int, extra: float) -> str:
        """The choice of a step's drafts in words."""
        if rows:
            return f"{rows} in the last step, which takes {1 + rows * extra:.1f} times as long with them"
        known = self._pace.answer_seconds(self._plain)
        return "none in the last step, as they take longer than they save" if known else "steps are not measured yet"

    def _extra_steps(self, rows: int) -> float:
        """The time that each of `rows` drafted rows adds to a step, in usual steps."""
        usual = self._pace.answer_seconds(self._plain)
        if not (rows and usual):
            return 0.0
        return max(0.0, self._pace.answer_seconds(self._plain + rows) / usual - 1) / rows

    def draw(self, session: Session, stretch: Stretch, row: int) -> m.FinishReason | None:
        """Draw a token from the logits of `row`, and go on from the rows of the draft as long as it comes true.

        The result is why the answer ends, None where it goes on. Raises EngineError.
        """
        if not stretch.draft:
            return self._answering.go_on(session, row)
        seq, accepted, reason = session.seq, 0, None
        assert seq
        try:
            while reason is None:
                reason = self._answering.go_on(session, row + accepted)
                new = session.tokens[len(seq.tokens) :]
                same = common_prefix(new, stretch.draft[accepted:])
                self._pool.grow(seq, new[:same])
                accepted += same
                if same < len(new):
                    break
        finally:
            if accepted < len(stretch.draft):
                self._pool.drop_rest(seq)
            self._settle(stretch, accepted, reason is not None)
        return reason

    def _settle(self, stretch: Stretch, accepted: int, ended: bool) -> None:
        """Learn that the first `accepted` tokens of the draft in `stretch` were drawn, and whether the answer ended."""
        drafting, length = stretch.session.drafting, len(stretch.draft)
        assert drafting
        if self._guessing and drafting.guessed:
            self._guessing.note(accepted, length)
        drafting.settle(accepted, length, length * self._extra_steps(self._extra), ended)
        self.drafted += length
        self.accepted += accepted


def make_speculation(
    model: LlamaModel,
    draft: LlamaModel | None,
    load: m.Load,
    params: ContextParams,
    parts: tuple[CellPool, Pace, Context, Answering],
) -> Speculation:
    """The drafts of `model`, by the model `draft` or by its own heads where it has them; `params` are its context's.

    Raises LoadFailed. A model whose heads cannot be run does without, and says why.
    """
    _, pace, context, _ = parts
    hindrance = Speculation.hindrance(model, load.speculation, context.rollback)
    if hindrance or not (draft or model.predicts):
        return Speculation(*parts, hindrance, missing=load.missing)
    if draft:
        return Speculation(*parts, "", Guessing.beside(context, params, draft, load, pace))
    try:
        return Speculation(*parts, "", Guessing.by_heads(model, context, params, pace))
    except LoadFailed as error:
        sys.stderr.write(f"no drafts by the model's own heads: {error}\n")
        return Speculation(*parts, "", missing=str(error))
