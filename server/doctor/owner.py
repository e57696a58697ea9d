"""Whose port is it? Asked only when ours turns out to be taken."""

from __future__ import annotations

import contextlib
import http.client
import json
from typing import Any

from server.config import VERSION, Config
from server.values import is_loopback

_SECONDS = 1.0


def who_listens(config: Config) -> tuple[str, str]:
    """Who holds the address: `lm 0.0.9 (older than this 0.1.0), process 1234`, `Ollama 0.14.0`, …, and lm's home.

    The home is the mark of an lm's home (`Config.home_mark`), "" for other programs. Asks `GET /api/version` there and
    the system for the process; says what it could find out, and never raises.
    """
    answer = _by_asking(config)
    who = _described(answer) or "another program"
    process = _process(config.port) if is_loopback(config.client_host) else ""
    mark = answer.get("home") if isinstance(answer, dict) and "lm" in answer else ""
    return f"{who}, process {process}" if process else who, mark if isinstance(mark, str) else ""


def _by_asking(config: Config) -> Any:
    connection = http.client.HTTPConnection(config.client_host, config.port, timeout=_SECONDS)
    try:
        connection.request("GET", "/api/version")
        answer = json.loads(connection.getresponse().read(4096))
    except (OSError, ValueError, http.client.HTTPException):
        return ""
    finally:
        connection.close()
    return answer


def _described(answer: Any) -> str:
    if not isinstance(answer, dict):
        return ""
    ours, theirs = answer.get("lm"), answer.get("version")
    if isinstance(ours, str):
        age = "" if _numbers(ours) >= _numbers(VERSION) else f" (older than this {VERSION})"
        return f"lm {ours[:20]}{age}"
    return f"Ollama {theirs[:20]}" if isinstance(theirs, str) else ""


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def _process(port: int) -> str:
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,)
            if listens and connection.pid:
                return f"{connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""
