"""Drafts by a draft model or by own heads, only while they pay: as many tokens are guessed as make text come fastest.

A guess costs a step of the draft model, and a row of the step that checks it. Before each, this time is weighed
against the tokens that are likely to come true: by how many have so far, and by the probability that the draft model
gives to each. Before its first guess the draft model has to read the text, in pieces between steps; it
does where the rest of the answer earns that back. An answer that text before it suggests is not guessed.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Self

from runtime.drafts.payoff import Costs, Prospect, prospect
from runtime.engine.draft_model import AT_ONCE, DraftModel, Guess
from runtime.engine.own_heads import OwnHeads
from runtime.engine.pace import Pace
from runtime.engine.schedule import Stretch
from runtime.engine.session import Session
from runtime.llama.context import Context, ContextParams
from runtime.llama.model import LlamaModel
from runtime.messages import Load

# Reading a text for the draft model has to be earned back twice within this many tokens.
_EARNING = 256
# The share of the trust in measured costs that is left after a step without them, and the least trust.
_AGING, _LEAST_TRUST = 0.997, 0.5


class Guessing:
    """`spent` is the seconds that guesses for the present step took."""

    def __init__(self, model: DraftModel | OwnHeads, pace: Pace) -> None:
        """`model` guesses; `pace` knows the steps of the large model."""
        self._model, self._pace = model, pace
        self._costs = Costs(pace.answer_seconds, self._seconds)
        self.spent = 0.0
        self._drafted = self._accepted = 0
        self._trust = 1.0
        """Costs that were measured long ago are taken to be lower by this factor, so that they are measured again."""

    @classmethod
    def beside(cls, large: Context, params: ContextParams, draft: LlamaModel, load: Load, pace: Pace) -> Self:
        """With the model `draft` beside the context of a large one, which has `params`. Raises LoadFailed."""
        tokens = min(large.tokens, draft.n_ctx_train)
        shape = replace(params, tokens=tokens, outputs=load.cache_config.sequences)
        return cls(DraftModel(draft, shape, load.draft[1], large.vocabulary_size, load.gap), pace)

    @classmethod
    def by_heads(cls, model: LlamaModel, large: Context, params: ContextParams, pace: Pace) -> Self:
        """With the heads of the model itself, whose context `large` has `params`. Raises LoadFailed."""
        return cls(OwnHeads(model, params, large, pace.gap), pace)

    def follow(self, stretches: Sequence[Stretch]) -> None:
        """Take note of a step that was just computed, before tokens are drawn from it."""
        if isinstance(self._model, OwnHeads):
            self._model.follow(stretches)

    @property
    def buffers(self) -> dict[str, int]:
        """Bytes of the draft model by kind."""
        return self._model.buffers

    @property
    def report(self) -> str:
        """The draft model's tokens so far and its cost, in words."""
        model = self._model
        if model.problem:
            return model.problem
        usual, guess = self._pace.answer_seconds(1), model.seconds(1)
        cost = f", and a guess takes {guess / usual:.2f} of a step" if usual and guess else ""
        return f"{model.name} guessed {self._drafted:,} of them, {self._accepted:,} accepted{cost}"

    def note(self, accepted: int, length: int) -> None:
        """Count a draft of `length` tokens that were guessed, of which `accepted` were drawn."""
        self._drafted += length
        self._accepted += accepted

    def leave(self, session: Session) -> None:
        """Take note that an answer has ended."""
        self._model.leave(session)

    def replace(self, stretches: Sequence[Stretch], drafts: list[array[int]], room: int) -> None:
        """Replace `drafts` of known text by guesses where these are likelier to come true, and pay."""
        self.spent = 0.0
        plain = sum(stretch.size for stretch in stretches)
        usual = self._pace.answer_seconds(plain)
        chosen = self._wanted(stretches, drafts, room) if usual else {}
        if not chosen:
            return
        # Answers without a draft must not wait for the drafts of others longer than for a prompt.
        longest = 0.0 if len(chosen) == len(stretches) else self._pace.gap * usual
        promise = prospect(_rates(chosen.values()), plain, plain, room, self._costs, longest=longest)
        if not promise.count:
            self._trust = max(_LEAST_TRUST, self._trust * _AGING)
            for guess in chosen.values():
                guess.drafting.pass_over()
            return
        began = time.perf_counter()
        ready = {number: guess for number, guess in chosen.items() if guess.behind <= AT_ONCE}
        if len(ready) < len(chosen):
            late = next(guess for guess in chosen.values() if guess.behind > AT_ONCE)
            self._read(late, promise, plain)

        def go_on(open_: Sequence[Guess]) -> bool:
            done = [guess.drafting.guess_chances(guess.confidences) for guess in ready.values()]
            rows, tokens = sum(map(len, done)), sum(map(sum, done))
            spent = time.perf_counter() - began
            rates = _rates(open_)
            return bool(prospect(rates, plain + tokens, plain + rows, room - rows, self._costs, spent, longest).count)

        if ready:
            self._trust = 1.0
        self._model.guess(ready.values(), go_on)
        self.spent = time.perf_counter() - began
        for number, guess in ready.items():
            drafts[number] = guess.tokens
            guess.drafting.offer(guess.confidences)
            guess.drafting.spent = self.spent / usual / len(ready)

    def _wanted(self, stretches: Sequence[Stretch], drafts: list[array[int]], room: int) -> dict[int, Guess]:
        """The answers that may be guessed, by their number in `stretches`."""
        chosen = {}
        for number, stretch in enumerate(stretches):
            session, drafting = stretch.session, stretch.session.drafting
            if drafting is None or not stretch.wanted or drafting.credit.steps <= 0 or session.left < 2:
                continue
            looked_up = drafting.chances(1)[0] if drafts[number] else 0.0
            if looked_up < drafting.guess_rate and (behind := self._model.behind(session)):
                chosen[number] = Guess(session, drafting, min(drafting.most, session.left - 1, room), behind)
        return chosen

    def _read(self, guess: Guess, promise: Prospect, plain: int) -> None:
        """Read a piece of a text, if the rest of the answer is likely to earn that back."""
        saved = (1 - 1 / promise.gain) * self._pace.answer_seconds(plain) * min(guess.session.left, _EARNING)
        if 2 * self._trust * self._model.read_seconds(guess.behind) < saved:
            self._model.read(guess.session, self._pace.side_seconds(plain))
        else:
            self._trust = max(_LEAST_TRUST, self._trust * _AGING)

    def _seconds(self, rows: int) -> float:
        return self._trust * self._model.seconds(rows)


def _rates(guesses: Iterable[Guess]) -> list[tuple[float, float]]:
    """For each answer the chance that its guesses so far come true, and the chance of a further one."""
    return [(guess.chance, guess.drafting.guess_rate) for guess in guesses]
