"""Every setting: its default, its environment variables, its check. The only place that reads settings.

A setting comes from a flag, else from the environment, else from `config.toml` in the home folder, else it has its
default. The command line imports this module too, so it imports nothing that is slow to import. A child process gets
its settings in frames: `child_environment` in `runtime/child.py` withholds the variables that are named here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from registry.net.hub import OLLAMA_URL, Hub
from runtime.defaults import CONTEXT_RANGE, GAP, SEQUENCES, SEQUENCES_RANGE
from server.values import (
    DEFAULT_HOST,
    FOREVER,
    HTTPS,
    Role,
    address,
    duration,
    factor,
    file_path,
    flag,
    hosts,
    http_url,
    listed,
    listening,
    plain_text,
    role_name,
    socket_path,
    whole_number,
)

VERSION = "0.1.0"
# The version of Ollama whose HTTP API we answer: clients refuse a server that is older than they need.
OLLAMA_VERSION = "0.14.0"


class BadSetting(ValueError):
    """A setting that cannot be used; the message names it and where it came from, `hint` says what it should be."""

    code = "bad_setting"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Config:
    """All settings, checked.

    `context` counts the tokens of a model's KV cache, and `sequences` the texts that share it. `context` is None where
    nobody chose it; then it is the usual one, or a smaller one that suits the model better. `queue` counts the
    requests that may wait for a model, `max_models` the loaded models. `keep_alive` is in seconds, `FOREVER` for no
    end. `gap` is how many times as long as usual a step may take while prompts are read (`runtime/engine/pace.py`).
    With `speculation` tokens are drafted where that pays (`runtime/engine/speculation.py`).
    """

    home: Path
    host: str = DEFAULT_HOST
    port: int = 11434
    context: int | None = None
    sequences: int = SEQUENCES
    queue: int = 64
    gap: float = GAP
    speculation: bool = True
    keep_alive: float = 300.0
    max_models: int = 4
    origins: tuple[str, ...] = ()
    tls: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    socket_group: str = ""
    socket_role: Role = "infer"
    api_key: str = ""
    no_auth: bool = False
    hf_endpoint: str = "https://huggingface.co"
    hf_token: str = ""
    proxy: str = ""
    no_proxy: tuple[str, ...] = ()
    ollama_registry: str = OLLAMA_URL
    registries: tuple[str, ...] = ()
    docker_config: Path = Path("~/.docker")
    ollama_models: Path = Path("~/.ollama/models")
    hf_home: Path = Path("~/.cache/huggingface")
    lm_studio: Path = Path("~/.lmstudio/models")

    @classmethod
    def load(
        cls,
        flags: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
        file: Path | None = None,
    ) -> Config:
        """Settings from `flags` (None is absent), `env` (default: the process's) and `file`; raises BadSetting."""
        env = os.environ if env is None else env  # noqa: TID251
        from_flags = {
            key: (value, f"`--{key.replace('_', '-')}`") for key, value in (flags or {}).items() if value is not None
        }
        home = _first("home", from_flags, env, {})
        base = Path(home) if home is not None else default_home()
        path = file or base / "config.toml"
        table = _read_toml(path)
        values = {"home": base}
        for name in SETTINGS:
            if name not in ("home", "port") and (value := _first(name, from_flags, env, table)) is not None:
                values[name] = value
        return cls(**_split_address(values, _first("port", from_flags, env, table)))

    @property
    def lasting(self) -> dict[str, Any]:
        """The settings that hold for as long as the daemon runs, as JSON has them."""
        values = {name: getattr(self, name) for name in LASTING}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def unheard(self, running: Mapping[str, Any], env: Mapping[str, str] | None = None) -> list[tuple[str, str, str]]:
        """Settings of the environment (default: the process's) and of `config.toml` that a running daemon has not.

        `running` are the daemon's settings, by `lasting`. Each row says where the setting stands, its value here, and
        the daemon's.
        """
        env = os.environ if env is None else env  # noqa: TID251
        table = _read_toml(self.home / "config.toml")
        rows = []
        for name, value in self.lasting.items():
            place = _place(name, {}, env, table)
            if place is not None and name in running and running[name] != value:
                rows.append((place[1], _shown(value), _shown(running[name])))
        return rows

    @property
    def home_mark(self) -> str:
        """A digest that tells one home from another without saying where it lies."""
        return hashlib.sha256(os.fsencode(self.home.resolve())).hexdigest()[:16]

    @property
    def hub(self) -> Hub:
        """The hub that models come from, and the way there."""
        return Hub(self.hf_endpoint, self.hf_token, self.proxy, self.no_proxy, self.ollama_registry, self.registries)

    @property
    def store(self) -> Path:
        """Blobs and manifests."""
        return self.home / "store"

    @property
    def model_stores(self) -> tuple[Path, Path, Path]:
        """Folders in which other programs keep models: Ollama's store, Hugging Face's cache, LM Studio's folder."""
        found = (self.ollama_models, self.hf_home / "hub", self.lm_studio)
        return (found[0].expanduser(), found[1].expanduser(), found[2].expanduser())

    @property
    def cache(self) -> Path:
        """Folder of files that can be made again: compiled kernels, measured speeds."""
        return self.home / "cache"

    @property
    def logs(self) -> Path:
        """Folder of `daemon.log` and the children's logs."""
        return self.home / "logs"

    @property
    def log_file(self) -> Path:
        """The log of a daemon that runs in the background."""
        return self.logs / "daemon.log"

    @property
    def daemon_file(self) -> Path:
        """Where a running daemon says its process id, URL and version (JSON)."""
        return self.home / "daemon.json"

    @property
    def client_host(self) -> str:
        """The host at which clients of this machine ask: loopback where the daemon listens everywhere."""
        return "127.0.0.1" if self.host in ("0.0.0.0", "") else "::1" if self.host == "::" else self.host

    @property
    def url(self) -> str:
        """Where clients find the daemon."""
        if socket_path(self.host):
            return self.host
        host, scheme = self.client_host, "https" if self.tls or self.tls_cert else "http"
        return f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"


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
    "queue": _number((1, 100_000), "LM_QUEUE"),
    "gap": Setting(factor, "a number from 1 to 1000", ("LM_GAP",)),
    "speculation": Setting(flag, "true or false", ("LM_SPECULATION",)),
    "keep_alive": Setting(duration, "a duration such as `5m`, or -1 for ever", ("LM_KEEP_ALIVE", "OLLAMA_KEEP_ALIVE")),
    "max_models": _number((1, 1000), "LM_MAX_MODELS"),
    "origins": Setting(
        listed, "origins such as `https://chat.example`, separated by commas", ("LM_ORIGINS", "OLLAMA_ORIGINS")
    ),
    "tls": Setting(flag, "true or false", ("LM_TLS",)),
    "tls_cert": Setting(file_path, "a file of certificates in PEM", ("LM_TLS_CERT",)),
    "tls_key": Setting(file_path, "a file with a private key in PEM", ("LM_TLS_KEY",)),
    "tls_ca": Setting(file_path, "a file of certificates in PEM", ("LM_TLS_CA",)),
    "socket_group": Setting(plain_text, "a group of this machine", ("LM_SOCKET_GROUP",)),
    "socket_role": Setting(role_name, "`infer`, `operator` or `admin`", ("LM_SOCKET_ROLE",)),
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
}
assert set(SETTINGS) == {field.name for field in fields(Config)}


# Settings that hold for as long as a daemon runs; others travel with requests, or are the daemon's address.
LASTING = (
    "context",
    "sequences",
    "queue",
    "gap",
    "speculation",
    "keep_alive",
    "max_models",
    "origins",
    "socket_group",
    "socket_role",
    "no_auth",
    "proxy",
    "no_proxy",
    "ollama_registry",
    "registries",
)


def host_variable(host: str, env: Mapping[str, str] | None = None) -> str:
    """The environment variable that names this host, "" where it comes from elsewhere."""
    env = os.environ if env is None else env  # noqa: TID251
    name = next((name for name in SETTINGS["host"].env if env.get(name)), "")
    with contextlib.suppress(ValueError):
        return name if name and address(listening(env[name]))[0] == host else ""
    return ""


def default_home() -> Path:
    """The folder that is used where none is given."""
    import platformdirs  # only where no home is given: 5 ms that most commands save

    return platformdirs.user_data_path("lm", appauthor=False)


def _shown(value: object) -> str:
    """A setting's value in words, for a sentence."""
    if value is None:
        return "the default"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "nothing"
    if isinstance(value, float):
        return "for ever" if value == FOREVER else f"{value:g}"
    return str(value) or "nothing"


def _read_toml(path: Path) -> dict[str, object]:
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


def _first(
    name: str, flags: Mapping[str, tuple[object, str]], env: Mapping[str, str], table: Mapping[str, object]
) -> Any:
    """The checked value of the first place that has `name`, None if none has."""
    setting = SETTINGS[name]
    place = _place(name, flags, env, table)
    if place is None:
        return None
    value, origin = place
    try:
        return setting.check(value)
    except (ValueError, OverflowError):
        shown = "" if name in ("api_key", "hf_token", "proxy") else f": {str(value)[:80]!r}"
        raise BadSetting(f"{origin} is not usable{shown}", f"it wants {setting.wants}") from None


def _place(
    name: str, flags: Mapping[str, tuple[object, str]], env: Mapping[str, str], table: Mapping[str, object]
) -> tuple[object, str] | None:
    """The first place that has `name`: its value, and words for the place."""
    places = [flags[name]] if name in flags else []
    places += [(env[key], f"`{key}`") for key in SETTINGS[name].env if env.get(key)]
    places += [(table[name], f"`{name}` in `config.toml`")] if name in table else []
    return places[0] if places else None


def _split_address(values: dict[str, Any], port: int | None) -> dict[str, Any]:
    """The settings with `host` and `port` apart: a host may carry a port, which the setting `port` overrides."""
    if "host" in values:
        secure = str(values["host"]).lower().startswith(HTTPS)
        values = values | ({"tls": True} if secure else {})
        values["host"], own = address(values["host"])
        port = own if port is None else port
    return values if port is None else values | {"port": port}
