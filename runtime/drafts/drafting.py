"""The drafts of one answer: their source, their credit, and how many came true."""

from __future__ import annotations

from array import array

from runtime.drafts.lookup import Lookup
from runtime.drafts.payoff import Credit, DraftRates


class Drafting:
    """`drafted` counts the drafted tokens that were computed, `accepted` the drafted tokens that were drawn then."""

    def __init__(self, lookup: Lookup, shared: DraftRates, most: int) -> None:
        """`shared` are the rates of all answers; a draft has at most `most` tokens."""
        self.lookup = lookup
        self._most = most
        self.credit = Credit()
        self.drafted = self.accepted = 0
        self._rates = DraftRates(shared)
        self._agreeing = 0
        """Tokens before the last draft that agree with its source."""

    def propose(self, most: int) -> array[int]:
        """A draft of at most `most` tokens; empty where nothing is known that may come next."""
        most = min(most, self._most)
        draft = self.lookup.propose(most) if most > 0 else array("i")
        self._agreeing = self.lookup.matched
        return draft

    def chances(self, length: int) -> list[float]:
        """For each of the first `length` tokens of the last draft the chance that it and all before it come true."""
        return self._rates.chances(self._agreeing, length)

    def settle(self, accepted: int, length: int, extra: float, ended: bool) -> None:
        """Learn that the first `accepted` tokens of a draft of `length` were drawn, for `extra` usual steps.

        Where the answer `ended`, nobody knows what would have followed.
        """
        self.drafted += length
        self.accepted += accepted
        self.credit.settle(accepted, extra)
        if not ended:
            self._rates.note(self._agreeing, accepted, length)
