"""A home that another daemon has: said at once, before anything is imported that takes long."""

from __future__ import annotations

import contextlib
import json

from registry.errors import StoreLocked
from registry.store import owner
from server.config import Config


def check_home(config: Config) -> None:
    """Raise StoreLocked where another daemon has the home. Takes nothing."""
    try:
        owner.check_free(config.store)
    except StoreLocked as error:
        raise with_address(config, error) from None


def with_address(config: Config, error: StoreLocked) -> StoreLocked:
    """The error with the address of the daemon that has the home, where it is known."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        url = json.loads(config.daemon_file.read_bytes())["url"]
        # With its address: the settings may lead elsewhere.
        return StoreLocked(str(error), f"it answers on {url}; `LM_HOST={url} lm stop --daemon` ends it")
    return error
