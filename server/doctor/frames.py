"""The frames that the daemon and its doctor exchange, and a finding, of which both reports consist."""

from __future__ import annotations

from typing import Literal

import msgspec

from server.children.frames import ErrorReport

State = Literal["ok", "warn", "fail"]
OK: State = "ok"
WARN: State = "warn"
FAIL: State = "fail"


class Finding(msgspec.Struct, frozen=True):
    """One line of the report. `hint` says what to do, "" where all is well."""

    check: str
    state: State
    found: str
    hint: str = ""


class ExamineTask(msgspec.Struct, tag="examine"):
    """Daemon to doctor, the only frame: the home and the address of the daemon that asks."""

    home: str
    host: str
    port: int


class Report(msgspec.Struct, tag="report"):
    """Doctor to daemon, the last frame."""

    findings: list[Finding]


FromDoctor = Report | ErrorReport
