"""The doctor that the daemon asks: `python -P -m server.doctor.reporter` looks at the machine for `/lm/doctor`.

It gets one `ExamineTask` and answers with one `Report` or `ErrorReport`. Access is judged by the daemon itself: the
settings that matter to it hold secrets, and no child process gets any.
"""

from __future__ import annotations

import sys

from server.children.child_side import exit_now, run_task
from server.config import Config
from server.doctor.findings import examine, unreadable
from server.doctor.frames import ExamineTask, Report
from server.doctor.observations import observe
from server.settings import BadSetting


def main(argv: list[str]) -> int:
    """Answer one question; the exit status is 1 when that failed."""
    return run_task(argv, ExamineTask, lambda task, _: look(task))


def look(task: ExamineTask) -> Report:
    """The findings about the machine, llama.cpp and the daemon's home."""
    try:
        config = Config.load({"home": task.home, "host": task.host, "port": task.port}, {})
    except BadSetting as error:
        return Report([unreadable(error)])
    return Report(examine(config, observe(config)))


if __name__ == "__main__":
    exit_now(main(sys.argv[1:]))
