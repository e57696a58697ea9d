"""`lm tune`: the level of a model that meets goals on this machine, found by measuring."""

from __future__ import annotations

from pathlib import Path

import click

from cli import console
from cli.client import Client
from cli.completing import complete_names
from cli.errors import Failure
from cli.measuring import text_of, text_option, windows_option
from cli.naming import explaining, reference
from cli.tuning import TuneWish, Tuning
from server.tuning.goals import METRICS, BadGoal, Goals, shown
from server.tuning.search import Move
from server.values import duration

_COLUMNS = ("size", "memory", "tokens/s", "prompt tokens/s", "kl", "kl99.9", "top1")


@click.command()
@click.argument("name", shell_complete=complete_names)
@click.option(
    "--goal",
    required=True,
    metavar="GOALS",
    help=f"Bounds and priorities, such as `kl<=0.02, tokens/s>=8, max tokens/s`. Figures: {', '.join(METRICS)}.",
)
@click.option("--max-time", default="20m", show_default=True, metavar="TIME", help="Begin no step after this long.")
@click.option("--try", "levels", metavar="LEVELS", help="Try these alone, such as `Q4_K_M,Q5_K_M,4.5bpw`.")
@click.option(
    "--effort",
    type=click.Choice(("quick", "importance", "best")),
    default="importance",
    show_default=True,
    help="How levels are made, as for `lm quantize`.",
)
@text_option
@windows_option
@click.option("--keep", is_flag=True, help="Keep every level that was made, and not the best one alone.")
@click.option("--picture", metavar="FILE", help="Draw what was measured into a file (.svg or .png).")
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
def command(  # noqa: PLR0913  click gives each option by its name
    name: str,
    *,
    goal: str,
    max_time: str,
    levels: str | None,
    effort: str,
    text: str | None,
    windows: int | None,
    keep: bool,
    picture: str | None,
    as_json: bool,
) -> None:
    """Find the level of a model that meets goals on this machine, by measuring, and let the bare name mean it.

    Levels are made, timed and measured against the original, the cheapest information first; a level that cannot be
    the best by what is known already is not made. Figures are kept: the next tune begins with them. Ctrl-C stops, and
    the same command goes on.
    """
    try:
        goals = Goals.parse(goal)
    except BadGoal as error:
        raise Failure(error.args[0], error.args[1], "usage") from None
    wanted = tuple(part.strip() for part in (levels or "").split(",") if part.strip())
    if picture:
        from cli.picturing import check_picture

        check_picture(picture)
    client = Client()
    client.note_settings()
    wish = TuneWish(goals, wanted, effort, text_of(text), windows, _seconds(max_time))
    with explaining(name):
        tuning = Tuning(client, reference(name), wish)
        tuning.run(_tell)
        best = tuning.finish(keep)
    if picture:
        from cli.picturing import draw

        draw(tuning.search, Path(picture))
    if as_json:
        console.as_json(_facts(tuning, best))
    else:
        _print(tuning)
    _conclude(tuning, best)


def _seconds(text: str) -> float:
    """Raises Failure."""
    try:
        seconds = duration(text)
    except ValueError:
        raise Failure(f"`{text[:40]}` is no length of time", "write it like `20m` or `1h30m`", "usage") from None
    return seconds if seconds >= 0 else float("inf")


def _tell(move: Move) -> None:
    act = "its speed" if move.act == "speed" else "its quality"
    console.note(f"{move.level}, {act}: {move.why}")


def _print(tuning: Tuning) -> None:
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
                trial.candidate.level,
                *(shown(name, trial.figures[name]) if name in trial.figures else "" for name in columns),
                "yes" if trial.candidate.level in front else "",
            )
            for trial in measured
        ],
    )
    console.note()
    for trial in search.trials.values():
        if trial is not best and (why := search.lost(trial)):
            console.note(f"  {trial.candidate.level} {why}")
    if any(trial.recorded for trial in measured):
        console.note("figures of earlier tunes are among them")


def _conclude(tuning: Tuning, best: str) -> None:
    """The end in a sentence. Raises Failure where no level meets the goals."""
    if tuning.unfinished:
        console.note(f"{tuning.unfinished}, and levels are left; the same command goes on", "yellow")
    if best:
        console.note(f"`{tuning.model}` means `{best}` now; `lm default {tuning.model}:auto` ends that")
        return
    nearest = tuning.search.nearest()
    hint = "ask for less, or name other levels with `--try`"
    if nearest is not None:
        hint = f"{nearest.candidate.level} comes nearest, and {tuning.search.lost(nearest)}"
    raise Failure(f"no level of `{tuning.model}` that was tried meets the goals", hint)


def _facts(tuning: Tuning, best: str) -> dict[str, object]:
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
                "level": trial.candidate.level,
                "predicted": dict(trial.candidate.predicted),
                "figures": trial.figures,
                "recorded": trial.recorded,
                "front": trial.candidate.level in front,
                "why_not": "" if trial is search.best else search.lost(trial),
            }
            for trial in search.trials.values()
        ],
    }
