"""Frames that every process with one task may send to the daemon, whatever its task is."""

from __future__ import annotations

import msgspec


class ErrorReport(msgspec.Struct, tag="error"):
    """Child to daemon, the last frame: the task ended in an error.

    `code` is the code of an exception in one of the `errors.py`, or `internal`. `message` and `hint` are sentences for
    the user.
    """

    code: str
    message: str
    hint: str
