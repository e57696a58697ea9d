"""Doctor's findings for the page: looked for by a process of its own, one at a time, and kept for a minute.

The process gets no secrets; who can get in is judged here, by the daemon's own settings.
"""

from __future__ import annotations

import asyncio
import time

from server.children.child_log import log_file
from server.children.daemon_side import task_process
from server.config import Config
from server.doctor.frames import ExamineTask, Finding, FromDoctor, Report
from server.errors import ServerError

KEPT_SECONDS = 60.0
DOCTOR_SECONDS = 60.0


class Examiner:
    """Asks the doctor, and remembers what it said."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._one_at_a_time = asyncio.Lock()
        self._findings: list[Finding] = []
        self._began = float("-inf")
        self._at = 0.0

    async def findings(self, anew: bool = False) -> tuple[list[Finding], float]:
        """The findings, and when they were made in s since 1970: at most a minute ago, with `anew` after this call.

        Raises ServerError where the process takes longer than `DOCTOR_SECONDS`, and as `TaskProcess.receive`.
        """
        called = time.monotonic()
        async with self._one_at_a_time:
            if self._began < (called if anew else time.monotonic() - KEPT_SECONDS):
                began = time.monotonic()
                found = [*await self._machine(), *await asyncio.to_thread(self._exposure)]
                self._findings, self._at, self._began = found, time.time(), began
            return self._findings, self._at

    async def _machine(self) -> list[Finding]:
        config = self._config
        task, log = ExamineTask(str(config.home), config.host, config.port), log_file(config.logs, "doctor")
        try:
            async with asyncio.timeout(DOCTOR_SECONDS):
                async with task_process(
                    "server.doctor.reporter", task, frames=FromDoctor, log=log, purpose="looked at this machine"
                ) as doctor:
                    report: Report = await doctor.receive()
                    return report.findings
        except TimeoutError:
            raise ServerError(
                f"the doctor said nothing within {DOCTOR_SECONDS:.0f} s", "`lm doctor` at the terminal shows more"
            ) from None

    def _exposure(self) -> list[Finding]:
        from server.doctor.bounds import bounds  # what judges the machine is not needed before the first question
        from server.doctor.exposure import exposure
        from server.doctor.governance import governance

        return [*exposure(self._config), *governance(self._config), *bounds(self._config)]
