"""`lm bom`: a bill of materials in CycloneDX, of a model or of the software."""

from __future__ import annotations

from pathlib import Path

import click

from cli.completing import complete_names
from cli.reporting import made, put


@click.command()
@click.argument("name", required=False, shell_complete=complete_names)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A new file, not stdout.")
def command(name: str | None, output: Path | None) -> None:
    """Print a bill of materials (CycloneDX 1.6): of the model NAME, with its card, or of the software."""
    put(made("bom", *([name] if name else [])), output)
