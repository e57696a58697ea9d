"""The daemon's HTTP interface as the commands use it: one answer, or a stream of lines; started when there is none."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPException, HTTPResponse, responses
from pathlib import Path
from typing import Any, BinaryIO

from cli import console, daemon
from cli.errors import UNREACHABLE, Failure
from cli.http import request
from server.config import Config
from server.settings import BadSetting
from server.values import is_loopback


def settings(file: Path | None = None) -> Config:
    """The settings of this environment and of `file`, by default the home's `config.toml`; raises Failure."""
    try:
        return Config.load(file=file)
    except BadSetting as error:
        raise Failure(str(error), error.hint, error.code) from None


class Client:
    """Speaks to the daemon of `config`; unless `start` is False, one is started when nobody answers.

    Every method raises Failure: with the daemon's own sentence, hint and code, or with the code `unreachable`.
    """

    def __init__(self, config: Config | None = None, *, start: bool = True) -> None:
        self.config = config or settings()
        self._start = start
        self._url = ""

    @property
    def url(self) -> str:
        """Where the daemon is, which is started if need be. Raises Failure."""
        if not self._url:
            self._url = daemon.find(self.config, self._start)
        return self._url

    def hub(self) -> dict[str, str]:
        """The hub and the token of this environment, as fields of a body: the daemon may have been started in another.

        Empty where they are the defaults, and for a daemon on another machine.
        """
        config = self.config
        if not is_loopback(config.host):
            return {}
        own = {"hf_token": config.hf_token, "hf_endpoint": config.hf_endpoint}
        return {key: value for key, value in own.items() if value and value != getattr(Config, key)}

    def note_settings(self) -> None:
        """Say which settings of this environment the daemon was started without. Raises Failure."""
        for place, wanted, has in daemon.unheard(self.config, self.url):
            console.note(
                f"note: {place} says {wanted}, and the daemon runs with {has}; after `lm stop --daemon` the next "
                "command starts one that has it",
                "yellow",
            )

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One answer, decoded; None where the daemon sends nothing."""
        with self.open(method, path, body) as response:
            data = _read(response)
        return json.loads(data) if data else None

    def stream(self, path: str, body: Any) -> Generator[dict[str, Any]]:
        """The lines of an answer as they come; an error's line is raised as Failure. Closing it cancels the request."""
        with self.open("POST", path, body) as response:
            ended = False
            while line := _read_line(response):
                record = json.loads(line)
                ended = record.get("done") is True or record.get("status") == "success"
                if "error" in record:
                    raise Failure.of(record)
                yield record
            if not ended:
                raise _lost()

    def has(self, path: str) -> bool:
        """Whether the daemon has what a path names, asked by HEAD."""
        with ExitStack() as stack:
            return self._send(stack, "HEAD", path, None).status == 200

    def send_file(self, path: str, file: BinaryIO, size: int) -> None:
        """Send a file of `size` bytes."""
        with self.open("POST", path, file, size) as response:
            _read(response)

    @contextmanager
    def open(self, method: str, path: str, body: Any, size: int = -1) -> Iterator[HTTPResponse]:
        """One answer, its body still to come; `body` is sent as JSON, a file as it is, in chunks or of `size` bytes."""
        with ExitStack() as stack:
            response = self._send(stack, method, path, body, size)
            if response.status >= 400:
                raise _refusal(response)
            yield response

    def _send(self, stack: ExitStack, method: str, path: str, body: Any, size: int = -1) -> HTTPResponse:
        """The answer, whose connection ends with `stack`."""
        has_url = self._url != ""
        if not has_url:
            self._url = daemon.find(self.config, self._start)
        try:
            return stack.enter_context(request(self._url, self.config, method, path, body, size=size))
        except ConnectionRefusedError:
            self._url = ""
            if has_url:  # the daemon went away since we last spoke to it
                return self._send(stack, method, path, body, size)
            raise _lost() from None
        except (OSError, HTTPException):
            raise _lost() from None


def _lost() -> Failure:
    return Failure("the daemon ended before it had answered", "`lm logs` may say why", UNREACHABLE)


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read()
    except (OSError, HTTPException):
        raise _lost() from None


def _read_line(response: HTTPResponse) -> bytes:
    try:
        return response.readline()
    except (OSError, HTTPException):
        raise _lost() from None


def _refusal(response: HTTPResponse) -> Failure:
    try:
        return Failure.of(json.loads(_read(response)))
    except (ValueError, KeyError, TypeError):
        words = responses.get(response.status, "no reason given").lower()
        return Failure(f"the daemon answered {response.status} ({words})", "`lm logs` may say why")
