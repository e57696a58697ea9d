"""The table of settings: for each its check, its words and its variables; and the places that a value comes from.

The command line imports this module too, so it imports nothing that is slow to import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.defaults import CACHE_TYPES, CONTEXT_RANGE, SEQUENCES_RANGE
from server.values import (
    aliases,
    audit_extent,
    cache_type,
    duration,
    factor,
    file_path,
    flag,
    hosts,
    hours,
    http_url,
    improvement_extent,
    listed,
    listening,
    plain_text,
    role_name,
    whole_number,
)


class BadSetting(ValueError):
    """A setting that cannot be used; the message names it and where it came from, `hint` says what it should be."""

    code = "bad_setting"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Setting:
    """How one field of `Config` is checked, and the environment variables that set it: the first that is set wins.

    `check` returns the value or raises ValueError, `wants` completes the sentence "it wants …".
    """

    check: Callable[[object], Any]
    wants: str
    env: tuple[str, ...] = ()


def _number(limits: tuple[int, int], variable: str) -> Setting:
    low, high = limits
    return Setting(whole_number(low, high), f"a number from {low} to {high}", (variable,))


SETTINGS: dict[str, Setting] = {
    "home": Setting(file_path, "a folder", ("LM_HOME",)),
    "host": Setting(
        listening,
        "`host`, `host:port`, `[v6]:port` or `unix:/path`; LM_HOST goes before OLLAMA_HOST",
        ("LM_HOST", "OLLAMA_HOST"),
    ),
    "port": Setting(whole_number(0, 65535), "a port from 0 to 65535", ("LM_PORT",)),
    "context": Setting(
        whole_number(*CONTEXT_RANGE), f"tokens, {CONTEXT_RANGE[0]} or more", ("LM_CONTEXT", "OLLAMA_CONTEXT_LENGTH")
    ),
    "sequences": _number(SEQUENCES_RANGE, "LM_SEQUENCES"),
    "kv_type": Setting(
        cache_type,
        f"one of {', '.join(CACHE_TYPES[:-1])} and {CACHE_TYPES[-1]}",
        ("LM_KV_TYPE", "OLLAMA_KV_CACHE_TYPE"),
    ),
    "queue": _number((1, 100_000), "LM_QUEUE"),
    "gap": Setting(factor, "a number from 1 to 1000", ("LM_GAP",)),
    "speculation": Setting(flag, "true or false", ("LM_SPECULATION",)),
    "keep_alive": Setting(duration, "a duration such as `5m`, or -1 for ever", ("LM_KEEP_ALIVE", "OLLAMA_KEEP_ALIVE")),
    "max_models": _number((1, 1000), "LM_MAX_MODELS"),
    "model_aliases": Setting(
        aliases, "names with the models that they mean, such as `claude-*=qwen3`", ("LM_MODEL_ALIASES",)
    ),
    "origins": Setting(
        listed, "origins such as `https://chat.example`, separated by commas", ("LM_ORIGINS", "OLLAMA_ORIGINS")
    ),
    "tls": Setting(flag, "true or false", ("LM_TLS",)),
    "tls_cert": Setting(file_path, "a file of certificates in PEM", ("LM_TLS_CERT",)),
    "tls_key": Setting(file_path, "a file with a private key in PEM", ("LM_TLS_KEY",)),
    "tls_ca": Setting(file_path, "a file of certificates in PEM", ("LM_TLS_CA",)),
    "socket_group": Setting(plain_text, "a group of this machine", ("LM_SOCKET_GROUP",)),
    "socket_role": Setting(role_name, "`infer`, `operator` or `admin`", ("LM_SOCKET_ROLE",)),
    "audit": Setting(audit_extent, "`all`, `acts` or `off`", ("LM_AUDIT",)),
    "audit_text": Setting(flag, "true or false", ("LM_AUDIT_TEXT",)),
    "audit_keep": Setting(duration, "a duration such as `365d`, or -1 for ever", ("LM_AUDIT_KEEP",)),
    "metrics_every": Setting(duration, "a duration such as `1m`, or 0 for never", ("LM_METRICS_EVERY",)),
    "metrics_mib": _number((1, 100_000), "LM_METRICS_MIB"),
    "improve": Setting(improvement_extent, "`off`, `local` or `hub`", ("LM_IMPROVE",)),
    "improve_after": Setting(duration, "a duration such as `5m`", ("LM_IMPROVE_AFTER",)),
    "improve_hours": Setting(hours, "a part of the day such as `22-6`", ("LM_IMPROVE_HOURS",)),
    "improve_share": _number((1, 100), "LM_IMPROVE_SHARE"),
    "api_key": Setting(plain_text, "a text", ("LM_API_KEY",)),
    "no_auth": Setting(flag, "true or false", ("LM_NO_AUTH",)),
    "hf_endpoint": Setting(http_url, "an http(s) URL", ("HF_ENDPOINT",)),
    "hf_token": Setting(plain_text, "a text", ("HF_TOKEN",)),
    "proxy": Setting(http_url, "an http(s) URL", ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")),
    "no_proxy": Setting(listed, "hosts, separated by commas", ("NO_PROXY", "no_proxy")),
    "ollama_registry": Setting(http_url, "an http(s) URL", ("LM_OLLAMA_REGISTRY",)),
    "ollama_models": Setting(file_path, "a folder", ("OLLAMA_MODELS",)),
    "hf_home": Setting(file_path, "a folder", ("HF_HOME",)),
    "lm_studio": Setting(file_path, "a folder", ("LM_STUDIO_MODELS",)),
    "docker_config": Setting(file_path, "a folder", ("DOCKER_CONFIG",)),
    "registries": Setting(
        hosts, "hosts such as `registry.lan:5000` or `http://box:5000`, separated by commas", ("LM_REGISTRIES",)
    ),
    "offline": Setting(flag, "true or false", ("LM_OFFLINE",)),
    "sandbox": Setting(flag, "true or false", ("LM_SANDBOX",)),
}

# Settings that hold for as long as a daemon runs; others travel with requests, or are the daemon's address.
LASTING = (
    "context",
    "kv_type",
    "sequences",
    "queue",
    "gap",
    "speculation",
    "keep_alive",
    "max_models",
    "model_aliases",
    "origins",
    "socket_group",
    "socket_role",
    "audit",
    "audit_text",
    "audit_keep",
    "metrics_every",
    "metrics_mib",
    "improve",
    "improve_after",
    "improve_hours",
    "improve_share",
    "no_auth",
    "proxy",
    "no_proxy",
    "ollama_registry",
    "registries",
    "offline",
    "sandbox",
)


# Settings whose values are not shown.
SECRETS = ("api_key", "hf_token", "proxy")
# Settings that commands read anew each time; a running daemon keeps the others until it ends.
IMMEDIATE = ("hf_endpoint", "hf_token", "tls", "tls_ca")


def read_toml(path: Path) -> dict[str, object]:
    """The settings of a file, unchecked, none where there is no file; raises BadSetting for one that cannot be read."""
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        hint = "give yourself the right to read it, or set LM_HOME to a folder of your own"
        raise BadSetting(f"`{path}` cannot be read: {error.strerror}", hint) from None
    import tomllib  # only where there is a file: most homes have none

    try:
        table = tomllib.loads(text.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSetting(f"`{path}` cannot be read: {error}", "correct it or move it away") from None
    unknown = sorted(set(table) - set(SETTINGS))
    if unknown:
        raise BadSetting(f"`{path}` has no setting `{unknown[0]}`", f"settings are {', '.join(SETTINGS)}")
    return table


def first(
    name: str, flags: Mapping[str, tuple[object, str]], env: Mapping[str, str], table: Mapping[str, object]
) -> Any:
    """The checked value of the first place that has `name`, None if none has; raises BadSetting for an unusable one."""
    setting = SETTINGS[name]
    found = place(name, flags, env, table)
    if found is None:
        return None
    value, origin = found
    try:
        return setting.check(value)
    except (ValueError, OverflowError):
        shown = "" if name in SECRETS else f": {str(value)[:80]!r}"
        raise BadSetting(f"{origin} is not usable{shown}", f"it wants {setting.wants}") from None


def place(
    name: str, flags: Mapping[str, tuple[object, str]], env: Mapping[str, str], table: Mapping[str, object]
) -> tuple[object, str] | None:
    """The first place that has `name`: its value, and words for the place."""
    places = [flags[name]] if name in flags else []
    places += [(env[key], f"`{key}`") for key in SETTINGS[name].env if env.get(key)]
    places += [(table[name], f"`{name}` in `config.toml`")] if name in table else []
    return places[0] if places else None
