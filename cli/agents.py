"""Coding agents: the environment and the arguments by which each one finds a model here, and where it is installed.

Nothing is written into a file of theirs. Sources: the documentation of Claude Code (environment variables), of Codex
(`config.toml`, `-c key=value` in TOML) and of OpenCode (`OPENCODE_CONFIG_CONTENT`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Offer:
    """A model as an agent is told of it: its name, the daemon's URL, a key, and the context in tokens.

    `authorities` is a file of certificates for the daemon's TLS, "" where the system's are enough.
    """

    model: str
    url: str
    key: str
    context: int
    authorities: str = ""

    @property
    def node(self) -> dict[str, str]:
        """The variable by which programs on Node trust the certificates."""
        return {"NODE_EXTRA_CA_CERTS": self.authorities} if self.authorities else {}


@dataclass(frozen=True)
class Start:
    """Variables to set, and arguments that come before the user's own."""

    env: dict[str, str]
    arguments: list[str]


@dataclass(frozen=True)
class Agent:
    """A program: its name at the shell and for people, a page that says how to get it, and places off PATH."""

    program: str
    title: str
    page: str
    start: Callable[[Offer], Start]
    places: tuple[str, ...] = ()

    def path(self) -> str | None:
        """The installed program, None where there is none."""
        found = shutil.which(self.program)
        others = (Path(place).expanduser() for place in self.places)
        return found or next((str(place) for place in others if place.is_file()), None)


def _claude(offer: Offer) -> Start:
    models = ["ANTHROPIC_MODEL", "CLAUDE_CODE_SUBAGENT_MODEL"]
    models += [f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("OPUS", "SONNET", "HAIKU")]
    env = {
        "ANTHROPIC_BASE_URL": offer.url,
        "ANTHROPIC_AUTH_TOKEN": offer.key,
        "ANTHROPIC_API_KEY": "",  # one for the hosted service would go before the token
        **dict.fromkeys(models, offer.model),
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # it changes with each request, and the cache would start anew
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(offer.context),
    }
    return Start(env | offer.node, ["--model", offer.model])


def _codex(offer: Offer) -> Start:
    provider = {"name": "lm", "base_url": f"{offer.url}/v1", "wire_api": "responses", "env_key": "OPENAI_API_KEY"}
    settings = {"model_provider": "lm", **{f"model_providers.lm.{key}": value for key, value in provider.items()}}
    pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]  # such texts are the same in TOML
    pairs.append(f"model_context_window={offer.context}")
    arguments = [word for pair in pairs for word in ("-c", pair)]
    return Start({"OPENAI_API_KEY": offer.key}, [*arguments, "-m", offer.model])


def _opencode(offer: Offer) -> Start:
    limit = {"context": offer.context, "output": max(1, offer.context // 4)}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "lm",
        "options": {"baseURL": f"{offer.url}/v1", "apiKey": offer.key},
        "models": {offer.model: {"name": offer.model, "limit": limit}},
    }
    model = f"lm/{offer.model}"
    config = {"provider": {"lm": provider}, "model": model, "small_model": model}
    return Start({"OPENCODE_CONFIG_CONTENT": json.dumps(config)} | offer.node, ["--model", model])


AGENTS = {
    agent.program: agent
    for agent in (
        Agent(
            "claude",
            "Claude Code",
            "https://code.claude.com/docs",
            _claude,
            ("~/.local/bin/claude", "~/.claude/local/claude"),
        ),
        Agent("codex", "Codex", "https://developers.openai.com/codex/cli", _codex),
        Agent("opencode", "OpenCode", "https://opencode.ai/docs", _opencode, ("~/.opencode/bin/opencode",)),
    )
}
