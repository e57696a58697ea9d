"""`lm serve`: the daemon in the foreground, in the place of this process."""

from __future__ import annotations

import os
import sys

import click

from cli.completing import complete_folders


@click.command()
@click.option("--host", metavar="HOST", help="Address to listen on, with or without a port, or `unix:/path`.")
@click.option("--port", metavar="PORT", help="Port to listen on, 0 for a free one.")
@click.option("--home", metavar="FOLDER", shell_complete=complete_folders, help="Folder of models, logs and settings.")
@click.option("--tls-cert", metavar="FILE", help="Certificates in PEM: speak TLS; SIGHUP reads them anew.")
@click.option("--tls-key", metavar="FILE", help="The certificate's private key in PEM.")
@click.option("--no-auth", is_flag=True, help="Let other machines in without a key.")
@click.option("--runtime", metavar="ENGINE", hidden=True, help="`fake` or `fake:SCRIPT.json`, for tests.")
def command(no_auth: bool, **given: str | None) -> None:
    """Run the daemon in the foreground, with its log on stderr, until Ctrl-C."""
    flags = {f"--{name.replace('_', '-')}": value for name, value in given.items() if value is not None}
    options = [word for flag in flags.items() for word in flag]
    options += ["--no-auth"] if no_auth else []
    os.execv(sys.executable, [sys.executable, "-P", "-m", "server", *options])
