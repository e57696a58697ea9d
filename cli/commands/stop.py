"""`lm stop`: pause pulls, unload models, or end the daemon; starts nothing."""

from __future__ import annotations

import os
from pathlib import Path

import click

from cli import console, daemon
from cli.client import Client, settings
from cli.completing import complete_names
from cli.errors import Failure
from cli.naming import explaining, reference


@click.command()
@click.argument("names", nargs=-1, shell_complete=complete_names, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="Pause every pull and unload every model.")
@click.option("--daemon", "whole", is_flag=True, help="End the daemon, and with it everything that is loaded.")
def command(names: tuple[str, ...], everything: bool, whole: bool) -> int:
    """Pause the pulls of models, or unload models, after the answers that are under way; or end the daemon.

    NAME without a level means all levels of a model.
    """
    if [bool(names), everything, whole].count(True) != 1:
        raise Failure("say either models, `--all` or `--daemon`", "`lm ps` shows what is loaded", "usage")
    if whole:
        _end_daemon()
        return 0
    client = Client(start=False)
    code = 0
    for name in names or ("",):
        try:
            with explaining(name):
                body = {"model": reference(name)} if name else {"all": True}
                answer = client.ask("POST", "/lm/stop", body)
        except Failure as error:
            console.complain(str(error), error.hint)
            code = code or error.exit_code
        else:
            _tell(answer["models"])
    return code


def _tell(rows: list[dict[str, str]]) -> None:
    """Rows of the answer of `/lm/stop` for people."""
    for row in rows:
        model = row["model"]
        words = {
            "paused": f"paused the pull of `{model}`; `lm pull {model}` goes on with it",
            "stopped": f"stopped `{model}`",
            "stopping": f"`{model}` still answers; it is unloaded when that has ended",
            "not loaded": f"`{model}` was not loaded",
        }
        console.note(words[row["state"]])
    if not rows:
        console.note("nothing is loaded or under way")


def _end_daemon() -> None:
    try:
        config = settings()
    except Failure:
        config = settings(Path(os.devnull))  # a daemon that runs can be ended whatever `config.toml` says by now
    if daemon.end(config):
        console.note("the daemon has ended")
    else:
        console.note("no daemon is running")
