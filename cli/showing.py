"""A tune or a compression at the terminal: its options, its steps, its table, the reasons why levels lost, its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from cli import console
from cli.errors import Failure
from cli.tuning import Tuning
from server.tuning.goals import METRICS, BadGoal, Goals, shown
from server.tuning.search import Move
from server.values import duration

_COLUMNS = ("size", "memory", "tokens/s", "prompt tokens/s", "kl", "kl99.9", "top1")


def goal_option(example: str) -> Callable[[Any], Any]:
    """`--goal`, with an example for the help."""
    text = f"Bounds and priorities, such as {example}. Figures: {', '.join(METRICS)}."
    return click.option("--goal", required=True, metavar="GOALS", help=text)


def time_option(default: str) -> Callable[[Any], Any]:
    """`--max-time`."""
    text = "Begin no step after this long."
    return click.option("--max-time", default=default, show_default=True, metavar="TIME", help=text)


def effort_option(default: str) -> Callable[[Any], Any]:
    """`--effort`."""
    kinds = click.Choice(("quick", "importance", "best"))
    text = "How levels are made, as for `lm quantize`."
    return click.option("--effort", type=kinds, default=default, show_default=True, help=text)


def goals_of(text: str) -> Goals:
    """The goals that an option has. Raises Failure."""
    try:
        return Goals.parse(text)
    except BadGoal as error:
        raise Failure(error.args[0], error.args[1], "usage") from None


def seconds_of(text: str) -> float:
    """A length of time in seconds, infinite for a negative one. Raises Failure."""
    try:
        seconds = duration(text)
    except ValueError:
        raise Failure(f"`{text[:40]}` is no length of time", "write it like `20m` or `1h30m`", "usage") from None
    return seconds if seconds >= 0 else float("inf")


def tell(move: Move) -> None:
    """Say the next step and its reason."""
    act = "its speed" if move.act == "speed" else "its quality"
    console.note(f"{move.name}, {act}: {move.why}")


def print_tune(tuning: Tuning) -> None:
    """The table of figures, then the reasons why the others lost."""
    search = tuning.search
    front, best = search.front(), search.best
    columns = [name for name in _COLUMNS if any(name in trial.figures for trial in search.trials.values())]
    measured = [trial for trial in search.trials.values() if trial.figures]
    console.table(
        ("", "LEVEL", *(name.upper() for name in columns), "FRONT"),
        [
            (
                "→" if trial is best else "",
                trial.candidate.name,
                *(shown(name, trial.figures[name]) if name in trial.figures else "" for name in columns),
                "yes" if trial.candidate.name in front else "",
            )
            for trial in measured
        ],
    )
    console.note()
    for trial in search.trials.values():
        if trial is not best and (why := search.lost(trial)):
            console.note(f"  {trial.candidate.name} {why}")
    if any(trial.recorded for trial in measured):
        console.note("figures of earlier tunes are among them")


def conclude(tuning: Tuning, best: str) -> None:
    """The end in a sentence. Raises Failure where no level meets the goals."""
    if tuning.unfinished:
        console.note(f"{tuning.unfinished}, and levels are left; the same command goes on", "yellow")
    if best and tuning.search.best and tuning.search.best.cut:
        console.note(f"`{best}` meets the goals best; `{tuning.model}` goes on meaning the whole model")
        return
    if best:
        console.note(f"`{tuning.model}` means `{best}` now; `lm default {tuning.model}:auto` ends that")
        return
    nearest = tuning.search.nearest()
    hint = "ask for less, or name other levels with `--try`"
    if nearest is not None:
        hint = f"{nearest.candidate.name} comes nearest, and {tuning.search.lost(nearest)}"
    raise Failure(f"no level of `{tuning.model}` that was tried meets the goals", hint)


def facts(tuning: Tuning, best: str) -> dict[str, object]:
    """Everything that is known, for programs."""
    search = tuning.search
    front = search.front()
    return {
        "model": tuning.model,
        "best": best,
        "finished": not tuning.unfinished,
        "goals": [bound.text for bound in search.goals.bounds],
        "priorities": list(search.goals.priorities),
        "levels": [
            {
                "level": trial.candidate.name,
                "predicted": dict(trial.candidate.predicted),
                "figures": trial.figures,
                "recorded": trial.recorded,
                "front": trial.candidate.name in front,
                "why_not": "" if trial is search.best else search.lost(trial),
            }
            for trial in search.trials.values()
        ],
    }
