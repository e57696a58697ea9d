"""`lm stop`: pause a pull, unload a model, or end the daemon; starts nothing."""

from __future__ import annotations

import click

from cli import console, daemon
from cli.client import Client, settings
from cli.errors import Failure
from cli.naming import complete, explaining, reference


@click.command()
@click.argument("name", required=False, shell_complete=complete)
@click.option("--daemon", "whole", is_flag=True, help="End the daemon, and with it everything that is loaded.")
def command(name: str | None, whole: bool) -> None:
    """Pause the pull of a model, or unload a model, after the answers that are under way; or end the daemon."""
    if (name is None) != whole:
        raise Failure("say either a model or `--daemon`", "`lm ps` shows what is loaded", "usage")
    if name is None:
        _end_daemon()
    else:
        _unload(name)


def _unload(name: str) -> None:
    with explaining(name):
        answer = Client(start=False).ask("POST", "/lm/stop", {"model": reference(name)})
    if answer.get("paused"):
        console.note(f"paused the pull of `{answer['model']}`; `lm pull {answer['model']}` goes on with it")
    else:
        console.note(f"stopped `{answer['model']}`" if answer["stopped"] else f"`{answer['model']}` was not loaded")


def _end_daemon() -> None:
    config = settings()
    if daemon.end(config):
        console.note("the daemon has ended")
    else:
        console.note("no daemon is running")
