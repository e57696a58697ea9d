"""The search of a tune: goals as they are written, and the best level of described machines, found with few trials."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.tuning.goals import BadGoal, Bound, Goals
from server.tuning.records import FILE, Trials
from server.tuning.search import Search, TuneLevel

NAMES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
KLS = (0.001, 0.004, 0.012, 0.03, 0.12, 0.5)


def test_goals_are_bounds_and_priorities() -> None:
    goals = Goals.parse(" kl<=0.02; tokens/s >= 8, memory<=3GB , top1>=99%, max tokens/s, min KL ")
    assert goals.bounds == (Bound("kl", 0.02), Bound("tokens/s", 8), Bound("memory", 3e9), Bound("top1", 0.99))
    assert goals.priorities == ("tokens/s", "kl", "size")
    assert Goals.parse("size<=2GiB").bounds == (Bound("size", 2 << 30),)
    assert Goals.parse("prompt tokens/s>=200").bounds[0].text == "prompt tokens/s >= 200"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("kl", "neither a bound nor a priority"),
        ("kl>=0.02", "better the lower"),
        ("max kl", "better the lower"),
        ("tokens/s<=8", "better the higher"),
        ("kl=0.02", "better the lower"),
        ("beauty>=3", "no figure"),
        ("kl<=0.02GB", "no value"),
        ("kl<=0..2", "no value"),
        ("size<=3parsec", "no value"),
        ("kl<=0.1, kl<=0.2", "twice"),
        ("kl<=" + "9" * 500, "letters"),
        ("size<=" + "9" * 300, "no value"),
        ("\x00", "no goal"),
    ],
    ids=range(14),
)
def test_a_goal_that_cannot_be_read_says_how_to_write_it(text: str, said: str) -> None:
    with pytest.raises(BadGoal) as caught:
        Goals.parse(text)
    sentence, hint = caught.value.args
    assert said in sentence and hint


@given(st.text(max_size=60))
def test_no_text_is_an_exception(text: str) -> None:
    try:
        Goals.parse(text)
    except BadGoal as error:
        assert len(error.args) == 2


def machine(speeds: list[float]) -> dict[str, dict[str, float]]:
    """What the levels of a described machine really are."""
    return {
        name: {
            "kl": kl,
            "kl99.9": 10 * kl,
            "top1": 1 - kl,
            "perplexity": 1 + kl,
            "size": 8e9 / 1.3**number,
            "memory": 9e9 / 1.3**number,
            "tokens/s": speed,
            "prompt tokens/s": 20 * speed,
        }
        for number, (name, kl, speed) in enumerate(zip(NAMES, KLS, speeds, strict=True))
    }


def with_cuts(real: dict[str, dict[str, float]], cuts: dict[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    """The levels, and each of them without parts: the share of bytes that goes, and the divergence that this costs."""
    more = {}
    for cut, (share, cost) in cuts.items():
        for name, figures in real.items():
            left = dict(figures)
            for each in ("size", "memory"):
                left[each] *= 1 - share
            for each in ("tokens/s", "prompt tokens/s"):
                left[each] /= 1 - share
            left |= {"kl": figures["kl"] + cost, "kl99.9": figures["kl99.9"] + 10 * cost}
            left |= {"top1": figures["top1"] - cost, "perplexity": figures["perplexity"] + cost}
            more[f"{name} without {cut}"] = left
    return real | more


def tune(goals: Goals, real: dict[str, dict[str, float]], off: float = 1.0) -> tuple[Search, list[str]]:
    """A tune whose speeds were predicted `off` times too high."""
    candidates = []
    for name, f in real.items():
        level, _, cut = name.partition(" without ")
        predicted = {"size": f["size"], "memory": f["memory"], "tokens/s": off * f["tokens/s"]}
        candidates.append(TuneLevel(level, predicted, cut, real[level]["size"] if cut else 0.0))
    search, tried = Search(goals, candidates, {}), []
    while move := search.next():
        assert move.why and len(tried) < 40
        tried.append(f"{move.name} {move.act}")
        names = ("size", "memory", "tokens/s", "prompt tokens/s")
        figures = real[move.name]
        search.add(
            move.name, {name: value for name, value in figures.items() if (name in names) == (move.act == "speed")}
        )
    return search, tried


def test_the_largest_that_is_fast_enough_wins_with_one_level_made() -> None:
    search, tried = tune(Goals.parse("tokens/s>=10"), machine([4, 6, 8, 11, 14, 18]))
    assert search.best is not None and search.best.candidate.level == "Q4_K_M"
    assert "Q8_0 speed" not in tried and not [each for each in tried if each.startswith(("Q3", "Q2"))]
    reasons = {level: search.lost(trial) for level, trial in search.trials.items() if trial is not search.best}
    assert "the goal is tokens/s >= 10" in reasons["Q5_K_M"]
    assert reasons["Q2_K"] == "is smaller than Q4_K_M, which meets the goals"


def test_the_fastest_that_is_good_enough_is_found_by_halves() -> None:
    search, tried = tune(Goals.parse("kl<=0.02, max tokens/s"), machine([4, 6, 8, 11, 14, 18]))
    assert search.best is not None and search.best.candidate.level == "Q5_K_M"
    assert len({each.split()[0] for each in tried}) <= 3


def test_without_a_level_that_meets_the_goals_the_nearest_is_told() -> None:
    search, _ = tune(Goals.parse("kl<=0.0005, tokens/s>=3"), machine([4, 6, 8, 11, 14, 18]))
    assert search.best is None
    nearest = search.nearest()
    assert nearest is not None and nearest.candidate.level == "Q8_0"


GOALS = st.lists(
    st.sampled_from(
        [
            *(f"kl<={value}" for value in (0.002, 0.02, 0.2)),
            *(f"tokens/s>={value}" for value in (5, 10, 20)),
            "size<=5GB",
            "memory<=6GB",
            "top1>=0.98",
            "max tokens/s",
            "min kl",
            "min size",
            "max prompt tokens/s",
        ]
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda text: text.split("<")[0].split(">")[0],
)


CUTS = st.dictionaries(
    st.sampled_from(["tokens", "layers", "experts"]),
    st.tuples(st.floats(0.05, 0.4), st.sampled_from([0.0, 0.001, 0.03, 0.3])),
    max_size=2,
)


@settings(max_examples=200)
@given(GOALS, st.lists(st.floats(1.05, 1.6), min_size=6, max_size=6), st.floats(0.55, 1.8), CUTS)
def test_the_known_best_of_a_described_machine_is_found(
    texts: list[str], steps: list[float], off: float, cuts: dict[str, tuple[float, float]]
) -> None:
    speeds = [3.0]
    for step in steps[1:]:
        speeds.append(speeds[-1] * step)
    goals, real = Goals.parse(", ".join(texts)), with_cuts(machine(speeds), cuts)
    search, _ = tune(goals, real, off)
    good = [name for name, figures in real.items() if not goals.lacks(figures)]
    known = min(good, key=lambda name: goals.rank(real[name]), default=None)
    found = search.best.candidate.name if search.best else None
    assert found == known or (known and found and goals.rank(real[found]) == goals.rank(real[known]))


def test_figures_of_an_earlier_tune_are_not_measured_again(tmp_path: Path) -> None:
    real = machine([4, 6, 8, 11, 14, 18])
    kept = Trials(tmp_path, "a processor")
    kept.add("m", "weights", "Q4_K_M best", real["Q4_K_M"])
    kept.add("m", "weights", "Q4_K_M best", {"kl": 0.02})
    assert kept.of("m", "weights") == {"Q4_K_M best": real["Q4_K_M"] | {"kl": 0.02}}
    assert not kept.of("m", "others") and not Trials(tmp_path, "another").of("m", "weights")
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"torn": \n[1]\n\xff\n')
    assert kept.of("m", "weights")
    candidates = [TuneLevel(name, figures) for name, figures in real.items()]
    assert Search(Goals.parse("tokens/s>=11"), candidates, {"Q4_K_M": real["Q4_K_M"]}).next() is None
