"""Access to the daemon as `lm doctor` judges it: keys, the address, TLS, pages of other origins."""

from __future__ import annotations

import time

from server.config import Config
from server.doctor.frames import FAIL, OK, WARN, Finding
from server.keys.file import BadKeyFile, key_file, read_keys
from server.values import is_loopback

# A key that a person chose and that is shorter can be guessed sooner or later.
SHORTEST_KEY = 20


def exposure(config: Config) -> list[Finding]:
    """Findings about who can get in; one that all is well where nothing weakens it. Reads files."""
    try:
        keys = read_keys(key_file(config))
    except BadKeyFile as error:
        return [Finding("keys", FAIL, str(error), error.hint), *_weak_points(config)]
    weak = _weak_points(config)
    if weak:
        return weak
    now = time.time()
    valid = sum(not key.ended(now) for key in keys or [])
    if valid or config.api_key:
        count = valid + bool(config.api_key)
        return [Finding("access", OK, f"{count} key{'' if count == 1 else 's'} let callers in")]
    place = "this machine alone may ask" if is_loopback(config.host) else "nobody gets in without a key"
    return [Finding("access", OK, f"{place}, and there is no key")]


def _weak_points(config: Config) -> list[Finding]:
    found = []
    wide = not is_loopback(config.host)
    if wide and config.no_auth and not config.api_key:
        message = f"`no_auth` lets every machine that reaches `{config.host}` do everything here"
        found.append(Finding("access", WARN, message, "`lm key create --role infer`, and leave `no_auth` out"))
    if wide and config.tls_cert is None:
        message = f"keys and questions go to `{config.host}` unencrypted"
        hint = "set `tls_cert` and `tls_key`, or put a proxy with TLS before it"
        found.append(Finding("TLS", WARN, message, hint))
    if config.api_key and len(config.api_key) < SHORTEST_KEY:
        message = f"LM_API_KEY has {len(config.api_key)} letters, and the role admin"
        found.append(Finding("LM_API_KEY", WARN, message, "`lm key create --role admin` makes one that nobody guesses"))
    if "*" in config.origins:
        message = "pages of every origin may ask models"
        found.append(Finding("origins", WARN, message, "name the origins that may in LM_ORIGINS"))
    return found
