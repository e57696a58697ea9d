"""`lm compress`: a smaller model by every way that is worth a try, beside the plain ladder of levels."""

from __future__ import annotations

import click

from cli import console
from cli.client import Client
from cli.completing import complete_names
from cli.compressing import techniques, ways
from cli.errors import Failure
from cli.measuring import windows_option
from cli.naming import explaining, reference
from cli.showing import conclude, effort_option, facts, goal_option, goals_of, print_tune, seconds_of, tell, time_option
from cli.tuning import TuneWish, Tuning
from server.tuning.goals import shown


@click.command()
@click.argument("name", shell_complete=complete_names)
@goal_option("`size<=1.5GB` or `tokens/s>=10`")
@click.option("--for", "purpose", metavar="LANGUAGES|FILE", help="What the model is for: `en`, `de,fr`, or a text's.")
@time_option("2h")
@click.option("--try", "tried", metavar="WAYS", help="Of `vocabulary`, `experts`, `layers`, `width`; by default all.")
@effort_option("best")
@windows_option
@click.option("--dry-run", is_flag=True, help="Only say what would be tried, and what is expected.")
@click.option("--keep", is_flag=True, help="Keep every model that was made, and not the best one alone.")
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
def command(  # noqa: PLR0913  click gives each option by its name
    name: str,
    *,
    goal: str,
    purpose: str | None,
    max_time: str,
    tried: str | None,
    effort: str,
    windows: int | None,
    dry_run: bool,
    keep: bool,
    as_json: bool,
) -> None:
    """Make a model smaller or faster by whatever pays: a lower level, fewer tokens, experts, layers or channels.

    Each way is measured beside the plain ladder of levels, and the best model that meets the goals stays. A lower
    level wins nearly always; then it is made, and the figures say why the others lost. NAME itself stays as it is.
    """
    goals, wanted = goals_of(goal), techniques(tried)
    client = Client()
    client.note_settings()
    with explaining(name):
        model = reference(name)
        described = client.ask("POST", "/api/show", {"model": model})
        cuts = ways(client, model, described, wanted, purpose)
        wish = TuneWish(goals, (), effort, "", windows, seconds_of(max_time), cuts)
        tuning = Tuning(client, model, wish)
        if dry_run:
            return _print_plan(tuning, as_json)
        tuning.run(tell)
        best = tuning.finish(keep)
    if as_json:
        console.as_json(facts(tuning, best))
    else:
        print_tune(tuning)
    return conclude(tuning, best)


def _print_plan(tuning: Tuning, as_json: bool) -> None:
    """The levels and cuts that could be tried, with what is expected of each."""
    search = tuning.search
    if as_json:
        return console.as_json(facts(tuning, ""))
    columns = ("size", "memory", "tokens/s")
    rows = []
    for trial in search.trials.values():
        expected = {**trial.candidate.predicted, **trial.figures}
        cells = (shown(each, expected[each]) if each in expected else "" for each in columns)
        rows.append((trial.candidate.name, *cells, search.lost(trial)))
    console.table(("LEVEL", *(each.upper() for each in columns), "WHY NOT"), rows)
    console.note()
    if not any(search.lost(trial) == "" for trial in search.trials.values()):
        raise Failure("nothing that could be tried meets the goals", "ask for less")
    if move := search.next():
        console.note(f"the first would be {move.name}: {move.why}")
    return None
