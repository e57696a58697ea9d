"""`lm login`: a login at a registry, for models that are not for everybody."""

from __future__ import annotations

import sys

import click

from cli import console
from cli.client import Client
from cli.errors import Failure


@click.command()
@click.argument("registry", metavar="HOST")
@click.option("--username", "-u", metavar="NAME", help="The name; it is asked for otherwise.")
@click.option("--password-stdin", is_flag=True, help="Read the password, or a token, from standard input.")
def command(registry: str, username: str | None, password_stdin: bool) -> None:
    """Log in at the registry HOST (`ghcr.io`, `localhost:5000`), which is asked whether it takes the login.

    It is kept in the home folder, for its owner alone. Logins in Docker's config count as well. `lm logout` forgets it.
    """
    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n") if sys.stdin else ""
    elif sys.stdin is None or not sys.stdin.isatty():
        raise Failure("there is no terminal to ask for the password on", "pipe it in: `--password-stdin`", "usage")
    if username is None:
        if password_stdin:
            raise Failure("the name is missing", "give it: `--username NAME`", "usage")
        username = str(click.prompt("Name", err=True))
    if not password_stdin:
        password = str(click.prompt("Password or token", hide_input=True, err=True))
    body = {"registry": registry, "username": username, "password": password}
    answer = Client().ask("POST", "/lm/login", body)
    console.note(f"`{answer['registry']}` takes the login")
