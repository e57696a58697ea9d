"""The drafts of one answer: their sources, their credit, and how many came true."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from runtime.drafts.lookup import Lookup
from runtime.drafts.payoff import FIRST_ANY, FIRST_GUESSED, FIRST_LOOKED_UP, FIRST_PREDICTED, Credit, DraftRates

# Stands for a token where there is none.
_NONE = -1


class SharedRates:
    """How often drafts of all answers came true: tokens that were looked up, and tokens that a model guessed.

    A prediction has rates of its own: who sends one expects it to come true, and texts that merely look alike do not.
    """

    def __init__(self) -> None:
        self.looked_up = DraftRates(FIRST_LOOKED_UP)
        self.predicted = DraftRates(FIRST_PREDICTED)
        self.guessed = DraftRates(FIRST_GUESSED)
        self.guessed_any = DraftRates(FIRST_ANY)


class Drafting:
    """`drafted` counts the drafted tokens that were computed, `accepted` the drafted tokens that were drawn then."""

    def __init__(self, lookup: Lookup, shared: SharedRates, most: int) -> None:
        """`shared` are the rates of all answers; a draft has at most `most` tokens."""
        self.lookup = lookup
        self.most = most
        self.credit = Credit()
        self.drafted = self.accepted = 0
        self.spent = 0.0
        """Usual steps that guessing the last draft took."""
        self.guessed = False
        """Whether the last draft is a model's."""
        self._looked_up = DraftRates(FIRST_LOOKED_UP, shared.looked_up)
        self._predicted = DraftRates(FIRST_PREDICTED, shared.predicted)
        self._rates = self._looked_up
        """The rates of the last draft's source."""
        self._guessed = DraftRates(FIRST_GUESSED, shared.guessed)
        self._guessed_any = DraftRates(FIRST_ANY, shared.guessed_any)
        self._places: list[int] = []
        """The place of each token of the last draft in the table of its source."""
        self._proposed = self._watched = _NONE
        """The first token of a draft from known text: of one that may be computed, and of one that was not."""
        self._watched_extra = 0.0

    def propose(self, most: int) -> array[int]:
        """A draft of at most `most` tokens; empty where nothing is known that may come next."""
        most = min(most, self.most)
        draft = self.lookup.propose(most) if most > 0 else array("i")
        last = len(FIRST_LOOKED_UP) - 1
        self.guessed, self.spent = False, 0.0
        self._rates = self._predicted if self.lookup.in_prediction else self._looked_up
        self._places = [min((self.lookup.matched + i).bit_length(), last) for i in range(len(draft))]
        self._proposed = draft[0] if draft else _NONE
        return draft

    def feed(self, token: int) -> None:
        """Append a token of the answer. It shows whether a draft that was not computed would have come true."""
        if self._watched != _NONE:
            hit = token == self._watched
            self._rates.note(self._places[:1], int(hit))
            self.credit.watch(hit, self._watched_extra)
            self._watched = _NONE
        self.lookup.feed(token)

    @property
    def guess_rate(self) -> float:
        """The chance of any token that a model guesses."""
        return self._guessed_any.chance(0)

    def guess_chances(self, confidences: Sequence[float]) -> list[float]:
        """For each token to which a draft model gives one of these probabilities the chance that it and all before it
        come true."""
        return self._guessed.chances(_places(confidences))

    def offer(self, confidences: Sequence[float]) -> None:
        """Replace the last draft by one that a model guessed with these probabilities."""
        self.guessed, self._places, self._rates = True, _places(confidences), self._guessed
        self._proposed = _NONE

    def pass_over(self) -> None:
        """A step in which guesses do not pay: what is known of them grows old, so that they are tried again."""
        self._guessed_any.forget()

    def chances(self, length: int) -> list[float]:
        """For each of the first `length` tokens of the last draft the chance that it and all before it come true."""
        return self._rates.chances(self._places[:length])

    def rest(self, extra: float = 0.0) -> None:
        """A step without a draft. One token of it would have taken `extra` usual steps."""
        self.credit.settle(0, self.spent)
        self.credit.wait()
        self.spent = 0.0
        self._watched, self._watched_extra, self._proposed = self._proposed, extra, _NONE

    def settle(self, accepted: int, length: int, extra: float, ended: bool) -> None:
        """Learn that the first `accepted` tokens of a draft of `length` were drawn, for `extra` usual steps.

        Where the answer `ended`, nobody knows what would have followed.
        """
        self.drafted += length
        self.accepted += accepted
        self.credit.settle(accepted, extra + self.spent)
        self.spent = 0.0
        self._proposed = _NONE
        if ended:
            return
        self._rates.note(self._places[:length], accepted)
        if self.guessed:
            self._guessed_any.note([0] * length, accepted)


def _places(confidences: Sequence[float]) -> list[int]:
    steps = len(FIRST_GUESSED)
    return [min(int(confidence * steps), steps - 1) for confidence in confidences]
