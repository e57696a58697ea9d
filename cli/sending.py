"""Commands that send records to a collector: their option, and their errors in a sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from cli.errors import Failure
from registry.errors import RegistryError

token_option = click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with the bearer token that the collector wants.",
)


@contextlib.contextmanager
def sending(token_file: Path | None, folder: Path) -> Iterator[str]:
    """Send in the block, which gets the token of a file, "" for none. Raises Failure."""
    try:
        yield token_file.read_text("utf-8").strip() if token_file else ""
    except RegistryError as error:
        raise Failure(str(error), error.hint, error.code) from None
    except UnicodeDecodeError:
        raise Failure(f"`{token_file}` is no text", "name a file with the token alone") from None
    except OSError as error:
        place = error.filename or folder
        hint = "it takes its owner, and room on the disk"
        raise Failure(f"`{place}` cannot be used: {error.strerror}", hint) from None
