"""The drafts of one answer: their sources, their credit, and how many came true."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from runtime.drafts.lookup import Lookup
from runtime.drafts.payoff import FIRST_ANY, FIRST_GUESSED, FIRST_LOOKED_UP, Credit, DraftRates


class SharedRates:
    """How often drafts of all answers came true: tokens that were looked up, and tokens that a model guessed."""

    def __init__(self) -> None:
        self.looked_up = DraftRates(FIRST_LOOKED_UP)
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
        self._guessed = DraftRates(FIRST_GUESSED, shared.guessed)
        self._guessed_any = DraftRates(FIRST_ANY, shared.guessed_any)
        self._places: list[int] = []
        """The place of each token of the last draft in the table of its source."""

    def propose(self, most: int) -> array[int]:
        """A draft of at most `most` tokens; empty where nothing is known that may come next."""
        most = min(most, self.most)
        draft = self.lookup.propose(most) if most > 0 else array("i")
        last = len(FIRST_LOOKED_UP) - 1
        self.guessed, self.spent = False, 0.0
        self._places = [min((self.lookup.matched + i).bit_length(), last) for i in range(len(draft))]
        return draft

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
        self.guessed, self._places = True, _places(confidences)

    def pass_over(self) -> None:
        """A step in which guesses do not pay: what is known of them grows old, so that they are tried again."""
        self._guessed_any.forget()

    def chances(self, length: int) -> list[float]:
        """For each of the first `length` tokens of the last draft the chance that it and all before it come true."""
        rates = self._guessed if self.guessed else self._looked_up
        return rates.chances(self._places[:length])

    def rest(self) -> None:
        """A step without a draft."""
        self.credit.settle(0, self.spent)
        self.credit.wait()
        self.spent = 0.0

    def settle(self, accepted: int, length: int, extra: float, ended: bool) -> None:
        """Learn that the first `accepted` tokens of a draft of `length` were drawn, for `extra` usual steps.

        Where the answer `ended`, nobody knows what would have followed.
        """
        self.drafted += length
        self.accepted += accepted
        self.credit.settle(accepted, extra + self.spent)
        self.spent = 0.0
        if ended:
            return
        places = self._places[:length]
        if self.guessed:
            self._guessed.note(places, accepted)
            self._guessed_any.note([0] * length, accepted)
        else:
            self._looked_up.note(places, accepted)


def _places(confidences: Sequence[float]) -> list[int]:
    steps = len(FIRST_GUESSED)
    return [min(int(confidence * steps), steps - 1) for confidence in confidences]
