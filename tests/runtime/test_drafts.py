"""Drafts without a model: what is looked up in known text, and when it pays to compute it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from runtime.drafts.drafting import Drafting, SharedRates
from runtime.drafts.lookup import Lookup
from runtime.drafts.payoff import FIRST_LOOKED_UP, Costs, Credit, DraftRates, best_lengths, prospect


def written(lookup: Lookup, answer: list[int], most: int = 16) -> int:
    """Steps in which `answer` is written with drafts."""
    at = steps = 0
    while at < len(answer):
        draft, steps = lookup.propose(most), steps + 1
        for place in range(len(draft) + 1):
            if at == len(answer):
                break
            lookup.feed(answer[at])
            at += 1
            if place == len(draft) or draft[place] != answer[at - 1]:
                break
    return steps


def edited(text: list[int], kind: str, chance: random.Random) -> list[int]:
    """`text` with a tenth of its tokens replaced, left out, or preceded by a new one."""
    answer: list[int] = []
    for token in text:
        new = chance.randrange(50_000, 60_000)
        touched = chance.random() < 0.1
        answer += {"replaced": [new], "left out": [], "inserted": [new, token]}[kind] if touched else [token]
    return answer


@pytest.mark.parametrize("source", ["prompt", "prediction"])
@pytest.mark.parametrize(("kind", "limit"), [("replaced", 1.3), ("left out", 2.3), ("inserted", 2.2)])
def test_an_edited_text_takes_few_steps_more_than_it_has_edits(source: str, kind: str, limit: float) -> None:
    chance = random.Random(7)
    text = [chance.randrange(50_000) for _ in range(1000)]
    answer = edited(text, kind, chance)
    lookup = Lookup(text) if source == "prompt" else Lookup([1, 2, 3], text)
    assert written(lookup, answer) < limit * (100 + len(answer) / 17)


def test_text_that_repeats_nothing_has_no_draft() -> None:
    lookup = Lookup(range(100))
    for token in range(100, 200):
        lookup.feed(token)
        assert not lookup.propose(8)


def test_an_answer_that_repeats_itself_is_drafted_beyond_its_end() -> None:
    assert list(Lookup([7, 8, 9, 7, 8, 9]).propose(7)) == [7, 8, 9, 7, 8, 9, 7]


def test_a_draft_comes_from_the_place_that_agrees_longest() -> None:
    assert list(Lookup([1, 2, 3, 4, 5, 9, 2, 3, 4, 6, 1, 2, 3, 4]).propose(1)) == [5]


def test_a_prediction_is_drafted_from_its_beginning_and_not_beyond_its_end() -> None:
    lookup = Lookup([1, 2, 3], [10, 11, 12])
    assert list(lookup.propose(8)) == [10, 11, 12]
    for token in (10, 11, 12):
        lookup.feed(token)
    assert not lookup.propose(8)


def test_a_copy_grows_alone() -> None:
    lookup = Lookup([1, 2, 3, 4, 1, 2])
    twin = lookup.copy()
    twin.feed(3)
    assert list(twin.propose(1)) == [4]
    lookup.feed(9)
    assert not lookup.propose(1)


def flat(rows: int) -> float:
    return 1.0


def steep(rows: int) -> float:
    return float(rows)


def test_long_drafts_are_chosen_where_rows_cost_nothing_and_none_where_each_costs_a_step() -> None:
    sure = [[0.95**i for i in range(1, 33)]]
    assert best_lengths(sure, 1, 32, flat) == [32]
    assert best_lengths([*sure, *sure], 2, 20, flat) == [10, 10]
    assert best_lengths(sure, 1, 32, steep) == [0]
    assert best_lengths(sure, 1, 32, lambda rows: 0.0) == [0]  # nothing is known yet
    assert best_lengths(sure, 1, 32, lambda rows: 1 + 0.1 * rows) == [15]


def test_the_rows_of_a_step_go_to_the_drafts_that_are_likely() -> None:
    chances = [[0.9**i for i in range(1, 17)], [0.3**i for i in range(1, 17)], []]
    lengths = best_lengths(chances, 3, 32, lambda rows: 1 + 0.15 * max(0, rows - 3))
    assert lengths[0] > 3 > lengths[1] and lengths[2] == 0


def test_a_step_is_no_longer_than_answers_without_drafts_may_wait() -> None:
    sure = [[0.99**i for i in range(1, 33)], []]
    assert best_lengths(sure, 2, 32, lambda rows: 1 + 0.1 * rows, longest=2.0) == [6, 0]


def test_rates_follow_what_happens_and_others_begin_with_them() -> None:
    shared = DraftRates(FIRST_LOOKED_UP)
    answer = DraftRates(FIRST_LOOKED_UP, shared)
    for _ in range(60):
        answer.note([5] * 8, 0)
    assert answer.chance(5) < 0.1 and shared.chance(5) < 0.4
    assert answer.chance(0) == FIRST_LOOKED_UP[0]
    assert DraftRates(FIRST_LOOKED_UP, shared).chance(5) < 0.4


def test_a_source_that_failed_is_tried_again_when_that_is_long_ago() -> None:
    rates = DraftRates([0.7], DraftRates([0.7]))
    for _ in range(40):
        rates.note([0], 0)
    failed = rates.chance(0)
    for _ in range(3000):
        rates.forget()
    assert failed < 0.15 and rates.chance(0) > 0.65


@pytest.mark.parametrize("seconds", [flat, steep, lambda rows: 0.5 + 0.5 * rows], ids=["flat", "steep", "half"])
def test_drafts_that_always_fail_cost_three_hundredths_at_most(seconds: Callable[[int], float]) -> None:
    drafting = Drafting(Lookup([]), SharedRates(), 32)
    drafting.lookup.propose = lambda most: [5] * most  # type: ignore[assignment, method-assign, return-value]
    drafting.lookup.matched = 40
    taken, tokens = 0.0, 400
    for _ in range(tokens):
        draft = drafting.propose(16)
        (length,) = best_lengths([drafting.chances(len(draft))], 1, 32, seconds)
        extra = seconds(1 + length) / seconds(1) - 1
        if length:
            length = drafting.credit.affordable(length, extra / length, 1 - drafting.chances(1)[0])
        taken += seconds(1 + length)
        if length:
            drafting.settle(0, length, seconds(1 + length) / seconds(1) - 1, ended=False)
        else:
            drafting.rest(seconds(2) / seconds(1) - 1)
        drafting.feed(1)
    assert taken <= tokens * seconds(1) / 0.97


def test_a_draft_that_costs_nothing_is_affordable_without_credit() -> None:
    credit = Credit()
    credit.settle(0, 9.0)
    assert credit.affordable(5, 0.0, 0.5) == 5


def test_drafts_are_tried_again_after_a_while() -> None:
    credit = Credit()
    credit.settle(0, 5.0)
    assert not credit.affordable(3, 0.5, 0.8)
    for _ in range(800):
        credit.wait()
    assert credit.affordable(3, 0.5, 0.8) == 3


@pytest.mark.parametrize(
    "seconds", [flat, lambda rows: 0.5 + 0.5 * rows, lambda rows: 0.8 + 0.2 * rows], ids=["flat", "half", "fifth"]
)
def test_an_answer_that_comes_back_to_its_source_soon_has_drafts_again(seconds: Callable[[int], float]) -> None:
    source = list(range(100, 400))
    drafting = Drafting(Lookup(source), SharedRates(), 32)
    drafting.credit.settle(0, 5.0)  # drafts that failed have used up the credit

    def length() -> int:
        draft = drafting.propose(16)
        (best,) = best_lengths([drafting.chances(len(draft))], 1, 32, seconds) if draft else [0]
        extra = seconds(1 + best) / seconds(1) - 1
        return drafting.credit.affordable(best, extra / best, 1 - drafting.chances(1)[0]) if best else 0

    waited = 0
    for token in source[100:]:
        if length():
            break
        drafting.rest(seconds(2) / seconds(1) - 1)
        drafting.feed(token)
        waited += 1
    assert 3 <= waited < 20


def test_drafts_that_are_not_computed_move_the_credit_between_nothing_and_what_an_answer_begins_with() -> None:
    credit = Credit()
    first = credit.steps
    for _ in range(10):
        credit.watch(True, 0.2)
    assert credit.steps == first
    for _ in range(10):
        credit.watch(False, 0.2)
    assert credit.steps == 0
    credit.settle(0, 2.0)
    credit.watch(False, 0.2)
    assert credit.steps == -2.0


def test_a_prediction_is_trusted_whatever_became_of_texts_that_merely_look_alike() -> None:
    shared = SharedRates()
    for _ in range(20):
        other = Drafting(Lookup([1, 2, 3, 4, 5, 1, 2, 3]), shared, 32)
        other.propose(1)
        other.settle(0, 1, 1.0, ended=False)
    alike = Drafting(Lookup([1, 2, 3, 4, 5, 1, 2, 3]), shared, 32)
    predicted = Drafting(Lookup([1, 2, 3], [7, 8, 9]), shared, 32)
    assert list(alike.propose(1)) == [4] and list(predicted.propose(1)) == [7]
    assert alike.chances(1)[0] < 0.3 and predicted.chances(1)[0] > 0.5


def cheap(share: float) -> Costs:
    """A step takes a second and a fortieth for each further row; a guess a share of a step."""
    return Costs(lambda rows: 1 + (rows - 1) / 40, lambda rows: share)


@pytest.mark.parametrize(
    ("rate", "share", "least", "most"),
    [(0.9, 0.1, 6, 12), (0.9, 0.5, 0, 3), (0.5, 0.1, 1, 3), (0.9, 1.0, 0, 0), (0.1, 0.2, 0, 0), (0.99, 0.02, 25, 32)],
)
def test_as_many_tokens_are_guessed_as_pay(rate: float, share: float, least: int, most: int) -> None:
    found = prospect([(1.0, rate)], 1, 1, 32, cheap(share))
    assert least <= found.count <= most
    assert (found.gain > 1) == (found.count > 0)


def test_guesses_of_several_answers_share_the_draft_models_steps() -> None:
    shared = Costs(lambda rows: 1.0, lambda rows: 0.4)
    alone = prospect([(1.0, 0.8)], 1, 1, 8, shared)
    together = prospect([(1.0, 0.8)] * 4, 4, 4, 32, shared)
    assert together.gain == pytest.approx(alone.gain) and together.count == alone.count > 0


def test_nothing_is_guessed_before_steps_are_measured_nor_beyond_the_time_that_others_wait() -> None:
    assert prospect([(1.0, 0.9)], 1, 1, 32, Costs(lambda rows: 0.0, lambda rows: 0.0)).count == 0
    free = prospect([(1.0, 0.95)], 2, 2, 32, cheap(0.2)).count
    held = prospect([(1.0, 0.95)], 2, 2, 32, cheap(0.2), longest=1.5).count
    assert 0 < held < free


def test_guessing_ends_where_the_draft_model_becomes_unsure() -> None:
    sure = prospect([(0.8, 0.8)], 1.8, 2, 31, cheap(0.15), spent=0.15)
    unsure = prospect([(0.1, 0.8)], 1.1, 2, 31, cheap(0.15), spent=0.15)
    assert sure.count and not unsure.count


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_guesses_that_always_fail_cost_four_hundredths_at_most(share: float) -> None:
    shared, costs, taken, tokens = SharedRates(), cheap(share), 0.0, 0
    for _ in range(4):  # answers of 250 tokens, one after the other
        drafting = Drafting(Lookup([]), shared, 32)
        for _ in range(250):
            tokens += 1
            drafting.propose(0)
            wanted = drafting.credit.steps > 0
            count = prospect([(1.0, drafting.guess_rate)], 1, 1, 32, costs).count if wanted else 0
            if count:
                drafting.offer([0.95] * count)
                drafting.spent = count * share
                (length,) = best_lengths([drafting.chances(count)], 1, 32, costs.step)
                taken += count * share + costs.step(1 + length)
                extra = costs.step(1 + length) - 1
                drafting.settle(0, length, extra, ended=False) if length else drafting.rest()
            else:
                if wanted:
                    drafting.pass_over()
                drafting.rest()
                taken += 1
    assert taken < 1.04 * tokens
