"""`python -P -m server`: the daemon in the foreground.

Started in the background (`--ready-fd`), it writes `ready` to that descriptor once it answers, or one line of JSON with
`error`, `hint` and `code` when it cannot start, and keeps its log in `logs/daemon.log`, rotated.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import logging.handlers
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import StoreLocked
from server.children.child_log import LOG_BYTES
from server.config import Config
from server.locked import check_home
from server.settings import BadSetting

if TYPE_CHECKING:
    from server.loaded.pool import Runtime

LOG_FILES = 3


def main(argv: list[str]) -> int:
    """Run the daemon; the exit status is 1 when it could not start, 2 where a setting is wrong."""
    arguments = _parser().parse_args(argv)
    os.umask(0o077)
    try:
        flags = {name: getattr(arguments, name) for name in ("host", "port", "home", "no_auth", "tls_cert", "tls_key")}
        config = Config.load(flags)
    except BadSetting as error:
        _fail(error, arguments.ready_fd)
        return 2
    _log_to(config.log_file if arguments.ready_fd is not None else None)
    try:
        check_home(config)
    except StoreLocked as error:
        return _fail(error, arguments.ready_fd)
    from server.daemon import serve  # aiohttp takes longer to import than everything above to run
    from server.errors import PUBLIC_ERRORS

    try:
        asyncio.run(serve(config, _runtime(arguments.runtime), lambda _: _say(arguments.ready_fd, "ready")))
    except PUBLIC_ERRORS as error:
        return _fail(error, arguments.ready_fd)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -P -m server", description="The lm daemon, in the foreground.")
    parser.add_argument("--host", help="address to listen on, with or without a port")
    parser.add_argument("--port", help="port to listen on, 0 for a free one")
    parser.add_argument("--home", help="folder of models, logs and settings")
    parser.add_argument("--no-auth", action="store_const", const=True, help="let other machines in without a key")
    parser.add_argument("--tls-cert", help="file of certificates in PEM: the daemon speaks TLS")
    parser.add_argument("--tls-key", help="file of its private key in PEM")
    parser.add_argument("--ready-fd", type=int, help="descriptor to say `ready` on; the log goes to a file then")
    parser.add_argument("--runtime", default="llama", help="`llama`, `fake`, or `fake:SCRIPT.json` (for tests)")
    return parser


def _runtime(text: str) -> Runtime:
    from server.loaded.pool import Runtime

    name, _, script = text.partition(":")
    return Runtime(name, json.loads(Path(script).read_bytes()) if script else {})


def _log_to(path: Path | None) -> None:
    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        with contextlib.suppress(OSError):  # on a disk that is full or read-only there may be no file
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.raiseExceptions = False  # a full disk costs lines of the log, and no more
    logging.getLogger("aiohttp.server").addFilter(_is_ours)


def _is_ours(record: logging.LogRecord) -> bool:
    """False for aiohttp's records about requests that are no HTTP: a client's fault, told with a traceback."""
    return not (record.exc_info and type(record.exc_info[1]).__module__ == "aiohttp.http_exceptions")


def _fail(error: Exception, ready_fd: int | None) -> int:
    hint, code = getattr(error, "hint", ""), getattr(error, "code", "internal")
    if ready_fd is not None:  # the log of a daemon in the foreground is the terminal, where the line below is enough
        logging.getLogger("lm").error("%s (%s)", error, hint)
    print(f"Error: {error}" + (f"\nhint: {hint}" if hint else ""), file=sys.stderr)
    _say(ready_fd, json.dumps({"error": str(error), "hint": hint, "code": code}))
    return 1


def _say(descriptor: int | None, line: str) -> None:
    if descriptor is not None:
        os.write(descriptor, line.encode() + b"\n")
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
