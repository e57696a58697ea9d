"""`lm sign`: a signature on a model, by a private key, or one that another program made."""

from __future__ import annotations

import sys
from typing import Any

import click

from cli import console
from cli.carrying import show
from cli.client import Client
from cli.completing import complete_names
from cli.errors import Failure
from cli.naming import explaining, reference
from cli.signing import ask_signer


@click.command()
@click.argument("name", shell_complete=complete_names)
@click.option("--key", metavar="KEY.pem", help="A private key on P-256, P-384 or P-521, in PEM.")
@click.option(
    "--signature", "file", metavar="FILE", help="A signature that `model_signing` made of `lm export --format files`."
)
def command(name: str, key: str | None, file: str | None) -> None:
    """Sign a model, after its blobs were hashed again: OpenSSF model signing, a part of the model from then on.

    The key is read here and never sent to the daemon. The signature is for the weights, adapters, template,
    instructions, parameters and licences of the model; it goes along with `cp`, `push`, `pull`, `export` and `import`.
    """
    if (key is None) == (file is None):
        raise Failure("a signature comes from `--key` or from `--signature`", "give one of them", "usage")
    client = Client()
    with explaining(name):
        last = show(client.stream("/lm/verify", {"model": reference(name), "signed": True}))
    rows = last["models"]
    if len(rows) > 1:
        names = ", ".join(f"`{row['name']}`" for row in rows)
        raise Failure(f"`{name}` is here at several levels: {names}", "name one of them", "several_levels")
    row = rows[0]
    if row["problem"]:
        raise Failure(f"`{row['name']}` is not signed, because it is hurt: {row['problem']}", "bring it in again")
    if file is not None:
        signature = ask_signer({"read": file})["signature"]
    else:
        title = row["name"].rpartition("/")[2]
        signature = _signed({"title": title, "files": row["files"], "key": key})
    answer = client.ask("POST", "/lm/sign", {"model": row["name"], "signature": signature})
    latest = answer["signatures"][-1]
    console.note(f"`{answer['model']}` is signed by {latest['signer']}: {len(row['files'])} files")


def _signed(task: dict[str, Any]) -> Any:
    """The signature; the password of an encrypted key is asked for. Raises Failure."""
    try:
        return ask_signer({"sign": task})["signature"]
    except Failure as failure:
        if failure.code != "needs_password" or sys.stdin is None or not sys.stdin.isatty():
            raise
    password = str(click.prompt(f"Password of {task['key']}", hide_input=True, err=True))
    return ask_signer({"sign": task | {"password": password}})["signature"]
