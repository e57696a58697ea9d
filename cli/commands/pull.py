"""`lm pull`: bring a model in, and show how it goes or print it as NDJSON."""

from __future__ import annotations

import json
import re
from typing import Any

import click

from cli import console
from cli.client import Client
from cli.completing import complete_levels, complete_sources
from cli.errors import Failure
from cli.naming import reference
from cli.outdated import newer
from cli.pulling import bring_in, lines


@click.command()
@click.argument("names", nargs=-1, shell_complete=complete_sources, metavar="NAME...")
@click.option(
    "--level",
    metavar="LEVEL",
    shell_complete=complete_levels,
    help="A level of your own choosing, such as Q4_K_M; otherwise the best one.",
)
@click.option("--detach", is_flag=True, help="Leave once the level is known; the daemon brings the model in.")
@click.option(
    "--limit-rate",
    metavar="RATE",
    help="Bytes per second at most that this pull takes from the network, such as `20M`.",
)
@click.option("--pre", metavar="NAME", help="The pre-tokenizer, where a pull could not recognise it and asks for it.")
@click.option("--accept-unknown-keys", is_flag=True, help="Go on where nobody knows a key of the model's settings.")
@click.option("--base", metavar="NAME", help="The model that an adapter is for, where the adapter does not say it.")
@click.option("--copy", is_flag=True, help="Copy a GGUF file of this machine, where it could be shared with its owner.")
@click.option(
    "--outdated", is_flag=True, help="Bring in anew what has a newer revision at its source: of NAME, or of all models."
)
@click.option("--yes", is_flag=True, help="Do not ask before that.")
@click.option("--json", "as_json", is_flag=True, help="Print progress as lines of JSON.")
def command(  # noqa: PLR0913  click gives each option by its name
    names: tuple[str, ...],
    level: str | None,
    detach: bool,
    limit_rate: str | None,
    pre: str | None,
    accept_unknown_keys: bool,
    base: str | None,
    copy: bool,
    outdated: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Bring models in, each quantized while it is read to the best level that this machine can hold.

    NAME is `demo`, the model of an installed package, `llama3.2` of Ollama's registry, `org/repo` on the hub,
    `host/namespace/model:tag` of a registry, `https://…/x.gguf`, or a folder or file that begins with `/`, `./`, `../`
    or `~`. `:LEVEL` may follow, except for a model of a registry; `:FILE.gguf` where such files are published.
    LoRA adapters (PEFT's layout, or GGUF) are brought in likewise.
    Ctrl-C pauses: the next `lm pull` of that name goes on, `lm rm --partial` removes what is there.
    """
    if not names and not outdated:
        raise Failure(
            "there is no NAME to pull", "`lm search WORDS` finds models, `lm pull demo` has one at once", "usage"
        )
    client = Client()
    client.note_settings()
    if outdated:
        names = newer(client, [reference(name) for name in names], yes=yes, as_json=as_json)
    options = {"detach": detach, "limit_rate": _rate(limit_rate), "pre": pre or ""}
    options |= client.hub() | ({"accept_unknown_keys": True} if accept_unknown_keys else {})
    options |= {"base": reference(base)} if base else {}
    options |= {"copy": True} if copy else {}
    code = 0
    for name in names:
        try:
            _pull(client, {"model": reference(name, level)} | options, name, as_json)
        except Failure as error:
            if len(names) == 1:
                raise
            console.complain(str(error), error.hint)
            code = code or error.exit_code
    return code


def _pull(client: Client, body: dict[str, Any], name: str, as_json: bool) -> None:
    """Bring one model in. Raises Failure."""
    if as_json:
        try:
            for line in lines(client, body):
                console.out(json.dumps(line, ensure_ascii=False))
        except Failure as error:
            console.out(json.dumps({"status": "error", "error": str(error), "hint": error.hint, "code": error.code}))
            raise
    else:
        bring_in(client, body, name)


def _rate(text: str | None) -> float:
    """Bytes per second. Raises Failure."""
    if text is None:
        return 0.0
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([KMG]?)B?(?:/s)?", text, re.IGNORECASE)
    rate = float(match[1]) * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}[match[2].upper()] if match else 0.0
    if rate < 1000:
        raise Failure(f"`{ascii(text)[1:-1]}` is no rate", "bytes per second, at least 1000: `500K`, `20M`", "usage")
    return rate
