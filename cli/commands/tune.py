"""`lm tune`: the level of a model that meets goals on this machine, found by measuring."""

from __future__ import annotations

from pathlib import Path

import click

from cli import console
from cli.client import Client
from cli.completing import complete_names
from cli.measuring import text_of, text_option, windows_option
from cli.naming import explaining, reference
from cli.showing import conclude, effort_option, facts, goal_option, goals_of, print_tune, seconds_of, tell, time_option
from cli.tuning import TuneWish, Tuning


@click.command()
@click.argument("name", shell_complete=complete_names)
@goal_option("`kl<=0.02, tokens/s>=8, max tokens/s`")
@time_option("20m")
@click.option("--try", "levels", metavar="LEVELS", help="Try these alone, such as `Q4_K_M,Q5_K_M,4.5bpw`.")
@effort_option("importance")
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
    goals = goals_of(goal)
    wanted = tuple(part.strip() for part in (levels or "").split(",") if part.strip())
    if picture:
        from cli.picturing import check_picture

        check_picture(picture)
    client = Client()
    client.note_settings()
    wish = TuneWish(goals, wanted, effort, text_of(text), windows, seconds_of(max_time))
    with explaining(name):
        tuning = Tuning(client, reference(name), wish)
        tuning.run(tell)
        best = tuning.finish(keep)
    if picture:
        from cli.picturing import draw

        draw(tuning.search, Path(picture))
    if as_json:
        console.as_json(facts(tuning, best))
    else:
        print_tune(tuning)
    conclude(tuning, best)
