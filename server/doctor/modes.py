"""Files with secrets or rules that other users may read or change, as `lm doctor` and the start of the daemon tell."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from server.config import Config
from server.doctor.frames import WARN, Finding
from server.logins import credentials_file
from server.settings import SECRETS, read_toml

_READ, _WRITE = 0o044, 0o022


def open_files(config: Config) -> list[Finding]:
    """Findings about files that are open to others. The file of keys is none of them: it is refused as it is read."""
    return [
        Finding(check, WARN, found, hint) for path, check, what in _files(config) for found, hint in _of(path, what)
    ]


def _files(config: Config) -> Iterator[tuple[Path, str, str]]:
    """Files with the name of the check and what they hold, "" where they are no secret but must not be changed."""
    if config.tls_cert is not None:
        yield config.tls_key or config.tls_cert, "TLS", "a private key"
    secrets = [name for name in SECRETS if name in read_toml(config.config_file)]
    yield config.config_file, "settings", f"`{secrets[0]}`" if secrets else ""
    yield credentials_file(config), "logins", "logins at registries"


def _of(path: Path, what: str) -> Iterator[tuple[str, str]]:
    """Sentences and hints about one file; nothing about one that is not there, which is told elsewhere."""
    try:
        mode, folder = path.stat().st_mode, path.resolve().parent.stat().st_mode
    except OSError:
        return
    # Whoever cannot search the folder gets no file in it: bits of the group and of others, each by its own.
    reach = (0o070 if folder & stat.S_IXGRP else 0) | (0o007 if folder & stat.S_IXOTH else 0)
    if mode & reach & _WRITE:
        yield f"other users may change `{path}`", f"`chmod go-w {path}`"
    if what and mode & reach & _READ:
        yield f"other users may read `{path}`, which holds {what}", f"`chmod go= {path}`"
