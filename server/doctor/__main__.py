"""`python -P -m server.doctor`: looks at the machine, llama.cpp and the home, and prints the findings as JSON.

A process of its own, so that `lm doctor` works where the daemon does not start.
"""

from __future__ import annotations

import sys

import msgspec

from server.config import Config
from server.doctor.bounds import bounds
from server.doctor.exposure import exposure
from server.doctor.findings import examine, unreadable
from server.doctor.frames import FAIL
from server.doctor.governance import governance
from server.doctor.observations import observe
from server.settings import BadSetting


def main() -> int:
    """Print the findings; the exit status is 1 where one of them is a failure."""
    try:
        config = Config.load()
    except BadSetting as error:
        findings = [unreadable(error)]
    else:
        findings = [*examine(config, observe(config)), *exposure(config), *governance(config), *bounds(config)]
    print(msgspec.json.encode(findings).decode())
    return int(any(finding.state == FAIL for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
