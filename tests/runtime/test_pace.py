"""How prompts are paced, on machines that are given by what a step of so many rows takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runtime.engine.pace import Pace

BATCH, GAP = 512, 6.0
# Milliseconds of a 1.1 B model at Q4_K_M on two processors, as measured: four rows cost almost what each would alone.
MEASURED = {1: 32, 4: 84, 8: 149, 12: 168, 16: 188, 20: 268, 24: 276, 32: 314, 64: 410, 512: 3320}


def measured(rows: int) -> float:
    sizes = sorted(MEASURED)
    above = next(size for size in sizes if size >= rows)
    below = max((size for size in sizes if size <= rows), default=above)
    share = (rows - below) / (above - below) if above > below else 0.0
    return (MEASURED[below] + share * (MEASURED[above] - MEASURED[below])) / 1000


def steps(pace: Pace, seconds: Callable[[int], float], answering: int, prompt: int) -> list[float]:
    """What the steps take in which a prompt is read, after some without it."""
    for _ in range(20):
        pace.note(answering, 0, seconds(answering))
    taken = []
    while prompt > 0:
        rows = min(prompt, pace.budget(answering))
        assert rows > 0
        taken.append(seconds(answering + rows))
        pace.note(answering, rows, taken[-1])
        prompt -= rows
    return taken


def test_a_prompt_alone_fills_the_batch() -> None:
    assert Pace(BATCH, GAP).budget(0) == BATCH


@pytest.mark.parametrize("answering", [1, 3, 8])
@pytest.mark.parametrize(
    "seconds",
    [measured, lambda rows: 0.02 + 0.004 * rows, lambda rows: 0.02 + 0.0001 * rows],
    ids=["measured", "steep", "flat"],
)
def test_a_step_takes_about_as_long_as_the_dial_says(seconds: Callable[[int], float], answering: int) -> None:
    pace = Pace(BATCH, GAP)
    taken = sorted(steps(pace, seconds, answering, 1200))
    least = seconds(answering + 7)  # some rows go in, however dear they are
    assert taken[int(0.95 * (len(taken) - 1))] <= max(GAP * seconds(answering), least) * 1.05
    # And no smaller than need be: the next size would have been too slow, or the prompt went in whole.
    again = steps(pace, seconds, answering, 4096)
    assert sum(again[:-1]) / len(again[:-1]) > 0.6 * min(GAP * seconds(answering), seconds(BATCH))


def test_many_that_wait_count_for_more_than_one_that_is_answered() -> None:
    pace = Pace(BATCH, GAP)
    steps(pace, measured, 1, 4000)
    alone = pace.budget(1)
    pace.note(1, 31, measured(32))
    assert pace.budget(1, reading=7) > alone == pace.budget(1, reading=1)


@pytest.mark.parametrize(
    "seconds",
    [measured, lambda rows: 0.02 + 0.004 * rows, lambda rows: 0.02 + 0.0001 * rows],
    ids=["measured", "steep", "flat"],
)
def test_seven_that_come_after_the_first_are_soon_answered(seconds: Callable[[int], float]) -> None:
    pace = Pace(BATCH, 10.0)
    left, answers = [0] + [100] * 7, [32] * 8
    best = seconds(512) * 700 / 512 + 32 * seconds(8)
    taken = 0.0
    while any(answers):
        answering = sum(not rows and answer > 0 for rows, answer in zip(left, answers, strict=True))
        budget = pace.budget(answering, sum(rows > 0 for rows in left)) if any(left) else 0
        for i in range(8):
            if not left[i] and answers[i]:
                answers[i] -= 1
        prompts = 0
        for i in range(8):
            rows = min(left[i], budget - prompts)
            left[i], prompts = left[i] - rows, prompts + rows
        step = seconds(answering + prompts)
        pace.note(answering, prompts, step)
        taken += step
    assert taken < 1.3 * best, taken / best


def test_a_machine_that_was_busy_for_a_moment_is_tried_again() -> None:
    pace = Pace(BATCH, GAP)
    calm = steps(pace, measured, 1, 4000)[-2]
    pace.note(1, 15, 10 * calm)
    assert pace.budget(1) < 15
    assert max(steps(pace, measured, 1, 1000)) == pytest.approx(calm)


def test_a_machine_that_becomes_slower_keeps_the_ratio() -> None:
    pace = Pace(BATCH, GAP)
    steps(pace, measured, 1, 2000)
    assert max(steps(pace, lambda rows: 3 * measured(rows), 1, 2000)) <= GAP * 3 * measured(1) * 1.01
