"""Unix sockets and TLS: what the daemon listens on beside a plain port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from server.access.peers import group_id
from server.config import Config
from server.errors import StartFailed
from server.values import socket_path

log = logging.getLogger("lm")
_MODE = 0o660


def unix_listener(config: Config) -> socket.socket:
    """A socket at the path of the settings, for its user and the members of the group. Raises StartFailed."""
    path = Path(socket_path(config.host))
    group = group_id(config.socket_group) if config.socket_group else -1
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        listener.bind(str(path))
        os.chown(path, -1, group)
        path.chmod(_MODE)
    except OSError as error:
        listener.close()
        hint = "its folder must be there, and yours to write in; for LM_SOCKET_GROUP be a member of that group"
        raise StartFailed(f"cannot listen on `{path}` ({error.strerror})", hint) from None
    except StartFailed:
        listener.close()
        raise
    return listener


@contextmanager
def closing_socket(config: Config, listener: socket.socket) -> Generator[None]:
    """Remove the file of a Unix socket after the block; does nothing about other sockets."""
    try:
        yield
    finally:
        if listener.family == socket.AF_UNIX:
            with contextlib.suppress(OSError):
                Path(socket_path(config.host)).unlink()


def tls_context(config: Config) -> ssl.SSLContext | None:
    """TLS by the certificate of the settings, None without one. Raises StartFailed."""
    if config.tls_cert is None:
        if config.tls_key is not None:
            raise StartFailed("`tls_key` is given without `tls_cert`", "give both, or neither")
        return None
    if socket_path(config.host):
        raise StartFailed("a Unix socket needs no TLS", "leave `tls_cert` out, or listen on a port")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        _load(context, config)
    except (OSError, ValueError) as error:
        why = _words(error)
        hint = "`tls_cert` and `tls_key` are PEM files that belong together, without a password"
        raise StartFailed(f"the certificate `{config.tls_cert}` cannot be used: {why}", hint) from None
    return context


@contextmanager
def reloading(config: Config, context: ssl.SSLContext | None) -> Generator[None]:
    """While the block runs, SIGHUP reads the certificate anew; one that cannot be used changes nothing."""
    if context is None:
        yield
        return

    def reload() -> None:
        try:
            _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), config)  # so that a half-loaded pair is never served
            _load(context, config)
        except (OSError, ValueError) as error:
            log.error("the certificate stays as it was: `%s`: %s", config.tls_cert, _words(error))
        else:
            log.info("read the certificate `%s` anew", config.tls_cert)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def _load(context: ssl.SSLContext, config: Config) -> None:
    """Raises OSError (ssl.SSLError), ValueError; a key with a password is refused rather than asked for."""
    assert config.tls_cert is not None

    def refuse() -> str:
        raise ValueError("the key has a password")

    context.load_cert_chain(config.tls_cert, config.tls_key, password=refuse)


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on. Raises StartFailed for one that is used, and for any other file."""
    if not os.path.lexists(path):
        return
    if not path.is_socket():
        raise StartFailed(f"`{path}` is no socket", "move it away, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        try:
            trial.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise StartFailed(f"`{path}` cannot be used ({error.strerror})", "choose another path") from None
    raise StartFailed(f"another program listens on `{path}`", "end it, or choose another path")
