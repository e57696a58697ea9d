"""`lm report`: models with their licences and origins, software, keys, weak settings and the audit log, in one page."""

from __future__ import annotations

from pathlib import Path

import click

from cli.reporting import made, put


@click.command()
@click.option(
    "--format", "form", type=click.Choice(["md", "json", "html"]), default="md", show_default=True, help="Its form."
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A new file, not stdout.")
def command(form: str, output: Path | None) -> None:
    """Report what is on this box: models, licences, software, keys, weak settings, the state of the audit log."""
    put(made(form), output)
