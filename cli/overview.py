"""`lm` alone at a terminal: the models here and the next commands, in ten lines; nothing is started for it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from cli import console
from cli.client import Client, settings
from cli.errors import UNREACHABLE, Failure
from registry.errors import BadName
from registry.names import Name
from runtime.units import size_text
from server.config import VERSION, Config

_NAMED = 3


def show() -> None:
    """Print it. Raises Failure for a setting that cannot be used."""
    config = settings()
    console.out(f"lm {VERSION}: open language models on this machine")
    try:
        client = Client(config, start=False)
        models = [row for row in client.ask("GET", "/api/tags")["models"] if "alias" not in row]
        loaded = client.ask("GET", "/api/ps")["models"]
        first = _tell(models, loaded)
    except Failure as error:
        if error.code != UNREACHABLE:
            raise
        names = _kept(config)
        _row("here", _some(names) if names else "nothing yet")
        _row("loaded", "nothing: no daemon runs; the next command that needs it starts it")
        first = names[0] if names else "demo"
    console.out()
    for command, what in (
        (f"lm run {first}", "chat with a model, or ask it: the words behind its name"),
        ("lm search WORDS", "find a model on the hub"),
        ("lm fit org/repo", "what would fit this machine, before anything is downloaded"),
        ("lm pull org/repo", "bring a model in, at the best level for this machine"),
        ("lm config list", "the settings, and where each comes from"),
        ("lm --help", "all commands"),
    ):
        console.out(f"  {command:<24}  {what}")


def _tell(models: list[dict[str, Any]], loaded: list[dict[str, Any]]) -> str:
    """Say what the daemon has; the model to begin with."""
    names = [row["name"] for row in models]
    total = size_text(sum(row["size"] for row in models))
    _row("here", f"{_some(names)}, {total} in all" if names else "nothing yet; `demo` comes with lm")
    shown = ", ".join(f"{row['name']} ({size_text(row['size'])})" for row in loaded[:_NAMED])
    _row("loaded", shown or "nothing")
    writing: list[str] = [row["name"] for row in models if "completion" in row["capabilities"] and not row.get("base")]
    return (writing or ["demo"])[0]


def _row(title: str, text: str) -> None:
    console.line(f"{title:<8}{text}", 8)


def _some(names: list[str]) -> str:
    """The first names of many."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _kept(config: Config) -> list[str]:
    """The names of models by their manifests, where no daemon can be asked."""
    root, names = config.store / "manifests", []
    with suppress(OSError):
        for path in root.glob("*/*/*/*"):
            with suppress(BadName):
                names.append(Name(*path.relative_to(root).parts).display)
    return sorted(names)
