"""`lm completion`: a script for the shell that completes commands, options and the names of models."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from cli import console


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a script that makes a shell complete commands and names: `eval "$(lm completion bash)"`."""
    completion = get_completion_class(shell)
    assert completion is not None
    console.out(completion(ctx.find_root().command, {}, "lm", "_LM_COMPLETE").source())
