"""All settings of a process, read and checked (the table is `server/settings.py`). The only place that reads them.

A setting comes from a flag, else from the environment, else from `config.toml` in the home folder, else it has its
default. The command line imports this module too, so it imports nothing that is slow to import. A child process gets
its settings in frames: `child_environment` in `runtime/child.py` withholds the variables that the table names.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from registry.net.hub import OLLAMA_URL, Hub
from runtime.defaults import CACHE_TYPE, GAP, SEQUENCES
from server.settings import LASTING, SETTINGS, first, place, read_toml
from server.values import DEFAULT_HOST, FOREVER, HTTPS, Extent, Improve, Role, address, listening, socket_path

VERSION = "0.1.0"
# The version of Ollama whose HTTP API we answer: clients refuse a server that is older than they need.
OLLAMA_VERSION = "0.14.0"


@dataclass(frozen=True)
class Config:
    """All settings, checked.

    `context` counts the tokens of a model's KV cache, and `sequences` the texts that share it. `context` is None where
    nobody chose it; then it is the usual one, or a smaller one that suits the model better. `kv_type` is the type of
    the KV cache's keys and values. `queue` counts the
    requests that may wait for a model, `max_models` the loaded models. `keep_alive` is in seconds, `FOREVER` for no
    end. `gap` is how many times as long as usual a step may take while prompts are read (`runtime/engine/pace.py`).
    `offline`: no other machine is asked. `sandbox`: a worker gives up what it does not need (`runtime/confinement.py`).
    With `speculation` tokens are drafted where that pays (`runtime/engine/speculation.py`). `model_aliases` are entries
    `PATTERN=NAME`. Full files of the audit log go after `audit_keep` seconds, `FOREVER` for never. A sample of the
    metrics is kept every `metrics_every` seconds (0 or `FOREVER` for never) in at most `metrics_mib` MiB.
    Models are improved, by sources that `improve` says, where nobody has asked for `improve_after` seconds, within
    `improve_hours` (`22:00-06:00`, "" for any), for `improve_share` percent of the time.
    """

    home: Path
    host: str = DEFAULT_HOST
    port: int = 11434
    context: int | None = None
    kv_type: str = CACHE_TYPE
    sequences: int = SEQUENCES
    queue: int = 64
    gap: float = GAP
    speculation: bool = True
    keep_alive: float = 300.0
    max_models: int = 4
    model_aliases: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    tls: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    socket_group: str = ""
    socket_role: Role = "infer"
    audit: Extent = "all"
    audit_text: bool = False
    audit_keep: float = 365 * 86400.0
    metrics_every: float = 0.0
    metrics_mib: int = 16
    improve: Improve = "local"
    improve_after: float = 300.0
    improve_hours: str = ""
    improve_share: int = 50
    api_key: str = ""
    no_auth: bool = False
    hf_endpoint: str = "https://huggingface.co"
    hf_token: str = ""
    proxy: str = ""
    no_proxy: tuple[str, ...] = ()
    ollama_registry: str = OLLAMA_URL
    registries: tuple[str, ...] = ()
    offline: bool = False
    sandbox: bool = True
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
        home = first("home", from_flags, env, {})
        base = Path(home) if home is not None else default_home()
        path = file or base / "config.toml"
        table = read_toml(path)
        values = {"home": base}
        for name in SETTINGS:
            if name not in ("home", "port") and (value := first(name, from_flags, env, table)) is not None:
                values[name] = value
        return cls(**_split_address(values, first("port", from_flags, env, table)))

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
        table = read_toml(self.config_file)
        rows = []
        for name, value in self.lasting.items():
            found = place(name, {}, env, table)
            if found is not None and name in running and running[name] != value:
                rows.append((found[1], _shown(value), _shown(running[name])))
        return rows

    def origins_of(self, env: Mapping[str, str] | None = None) -> dict[str, tuple[str, str]]:
        """For each setting where it comes from: `environment` and the variable, `file` and its path, or `default`."""
        env = os.environ if env is None else env  # noqa: TID251
        table = read_toml(self.config_file)
        rows = {}
        for name, setting in SETTINGS.items():
            variable = next((each for each in setting.env if env.get(each)), "")
            named = name in table and name != "home"
            rows[name] = (
                ("environment", variable) if variable else ("file", str(self.config_file)) if named else ("default", "")
            )
        if rows["port"][0] != "environment" and self.port != Config.port and "port" not in table:
            rows["port"] = rows["host"]  # a host may carry a port
        return rows

    @property
    def config_file(self) -> Path:
        """The file of settings."""
        return self.home / "config.toml"

    @property
    def home_mark(self) -> str:
        """A digest that tells one home from another without saying where it lies."""
        return hashlib.sha256(os.fsencode(self.home.resolve())).hexdigest()[:16]

    @property
    def hub(self) -> Hub:
        """The hub that models come from, and the way there."""
        return Hub(
            self.hf_endpoint,
            self.hf_token,
            self.proxy,
            self.no_proxy,
            self.ollama_registry,
            self.registries,
            offline=self.offline,
        )

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
    def audit_folder(self) -> Path:
        """The audit log."""
        return self.home / "audit"

    @property
    def metrics_folder(self) -> Path:
        """Samples of the metrics."""
        return self.home / "metrics"

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


assert set(SETTINGS) == {field.name for field in fields(Config)}


def host_variable(host: str, env: Mapping[str, str] | None = None) -> str:
    """The environment variable that names this host, "" where it comes from elsewhere."""
    env = os.environ if env is None else env  # noqa: TID251
    name = next((name for name in SETTINGS["host"].env if env.get(name)), "")
    with contextlib.suppress(ValueError):
        return name if name and address(listening(env[name]))[0] == host else ""
    return ""


def service_manager(env: Mapping[str, str] | None = None) -> tuple[str, float]:
    """The socket on which a service manager hears of this process, "" without one, and its patience in seconds.

    The patience is the time between two signs of life, 0 where it waits for none. Source: sd_watchdog_enabled(3).
    """
    env = os.environ if env is None else env  # noqa: TID251
    mine = env.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    patience = env.get("WATCHDOG_USEC", "") if mine else ""
    return env.get("NOTIFY_SOCKET", ""), int(patience) / 1e6 if patience.isdecimal() else 0.0


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


def _split_address(values: dict[str, Any], port: int | None) -> dict[str, Any]:
    """The settings with `host` and `port` apart: a host may carry a port, which the setting `port` overrides."""
    if "host" in values:
        secure = str(values["host"]).lower().startswith(HTTPS)
        values = values | ({"tls": True} if secure else {})
        values["host"], own = address(values["host"])
        port = own if port is None else port
    return values if port is None else values | {"port": port}
