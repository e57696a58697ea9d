"""`lm serve`: the daemon in the foreground, in the place of this process."""

from __future__ import annotations

import os
import sys

import click

from cli.completing import complete_folders


@click.command()
@click.option("--host", metavar="HOST", help="Address to listen on, with or without a port.")
@click.option("--port", metavar="PORT", help="Port to listen on, 0 for a free one.")
@click.option("--home", metavar="FOLDER", shell_complete=complete_folders, help="Folder of models, logs and settings.")
@click.option("--no-auth", is_flag=True, help="Let other machines in without a key.")
@click.option("--runtime", metavar="ENGINE", hidden=True, help="`fake` or `fake:SCRIPT.json`, for tests.")
def command(no_auth: bool, **given: str | None) -> None:
    """Run the daemon in the foreground, with its log on stderr, until Ctrl-C."""
    options = [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
    options += ["--no-auth"] if no_auth else []
    os.execv(sys.executable, [sys.executable, "-P", "-m", "server", *options])
