"""Failures of the CLI: a sentence, a hint, and the exit code that scripts see.

0 done   1 failed   2 usage   3 model not found   4 daemon unreachable   5 does not fit   130 Ctrl-C
"""

from __future__ import annotations

from typing import Any

UNREACHABLE = "unreachable"
INTERRUPTED = 130
_EXIT = {
    "usage": 2,
    "bad_name": 2,
    "bad_body": 2,
    "bad_request": 2,
    "bad_setting": 2,
    "unknown_level": 2,
    "several_levels": 2,
    "model_not_found": 3,
    UNREACHABLE: 4,
    "does_not_fit": 5,
    "disk_full": 5,
}


class Failure(Exception):
    """The command failed; `code` is the code of the daemon's error, or `usage`, `unreachable`; `body` is its answer."""

    def __init__(self, message: str, hint: str = "", code: str = "failed", body: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code
        self.body = body or {}

    @classmethod
    def of(cls, body: dict[str, Any]) -> Failure:
        """The failure that an error body of the daemon tells."""
        return cls(str(body["error"]), str(body.get("hint") or ""), str(body.get("code") or "failed"), body)

    @property
    def exit_code(self) -> int:
        """The exit code of the process."""
        return _EXIT.get(self.code, 1)
