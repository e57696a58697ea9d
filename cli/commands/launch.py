"""`lm launch`: a coding agent that asks a model here."""

from __future__ import annotations

import os
import shlex
from typing import Any

import click

from cli import console
from cli.agents import AGENTS, Agent, Offer, Start
from cli.client import Client
from cli.completing import complete_names
from cli.errors import Failure
from cli.naming import explaining, reference
from server.values import socket_path

# The tools and instructions of agents alone take more tokens than that.
_SMALL_CONTEXT = 32_768
_NO_KEY = "lm"


@click.command()
@click.argument("agent", type=click.Choice(list(AGENTS)))
@click.option("--model", metavar="NAME", shell_complete=complete_names, help="The model that it asks.")
@click.option("--print", "printed", is_flag=True, help="Print the environment and the command, and start nothing.")
@click.argument("arguments", nargs=-1, metavar="[-- ARGUMENTS...]")
def command(agent: str, model: str | None, printed: bool, arguments: tuple[str, ...]) -> None:
    """Start AGENT, which is installed, with a model of this daemon; ARGUMENTS behind `--` are its own.

    Nothing is written into its settings: it finds the model by its environment and its arguments.
    """
    chosen = AGENTS[agent]
    path = chosen.path()
    if path is None and not printed:
        hint = f"{chosen.page} says how to get it; `lm launch {agent} --print` shows how it is started"
        raise Failure(f"{chosen.title} is not installed: there is no `{agent}` on PATH", hint)
    client = Client()
    client.note_settings()
    start = chosen.start(_offer(client, chosen, model))
    words = [*start.arguments, *arguments]
    if path is None or printed:
        _show(start, [agent, *words])
        return
    for name, value in start.env.items():
        os.putenv(name, value)
    os.execv(path, [path, *words])


def _show(start: Start, words: list[str]) -> None:
    """The lines for a shell."""
    for name, value in start.env.items():
        console.out(f"export {name}={shlex.quote(value)}")
    console.out(shlex.join(words))


def _offer(client: Client, agent: Agent, name: str | None) -> Offer:
    rows = client.ask("GET", "/api/tags")["models"]
    able = [row["name"] for row in rows if "tools" in row["capabilities"] and "alias" not in row]
    loaded = {row["name"]: row["context_length"] for row in client.ask("GET", "/api/ps")["models"]}
    if name is None:
        model = _only(agent, able, [each for each in loaded if each in able])
        console.note(f"{agent.title} asks `{model}`")
    else:
        model = reference(name)
    with explaining(model):
        shown: dict[str, Any] = client.ask("POST", "/api/show", {"model": model})
    if "tools" not in shown["capabilities"]:
        raise Failure(f"`{model}` knows no tools, and {agent.title} works by them", _those(able))
    context = max(shown.get("default_context", 0), loaded.get(model, 0))
    if context < _SMALL_CONTEXT:
        console.note(
            f"note: `{model}` has a context of {context:,} tokens, and {agent.title} fills more; the daemon gives more "
            "where it starts with LM_CONTEXT=65536 and memory allows",
            "yellow",
        )
    if socket_path(client.url):
        hint = "let the daemon listen at an address: LM_HOST=127.0.0.1"
        raise Failure(f"{agent.title} cannot ask a daemon that listens at `{client.url}`", hint)
    authorities = str(client.config.tls_ca or "")
    return Offer(model, client.url, client.config.api_key or _NO_KEY, context, authorities)


def _only(agent: Agent, able: list[str], loaded: list[str]) -> str:
    """The model that can only be meant: the one with tools that is loaded, or that is here. Raises Failure."""
    for found in (loaded, able):
        if len(found) == 1:
            return found[0]
    if able:
        raise Failure(f"{agent.title} may ask several models", f"say which by `--model`: {_listed(able)}", "usage")
    raise Failure(f"no model here knows tools, and {agent.title} works by them", _those(able))


def _those(able: list[str]) -> str:
    return f"{_listed(able)} {'knows' if len(able) == 1 else 'know'} tools" if able else "`lm pull qwen3` brings one in"


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
