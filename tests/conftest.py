"""What holds for every test: how examples are made, and how long a hanging test is waited for.

Hypothesis makes the same examples each time, so that a commit is red or green, not both;
`HYPOTHESIS_PROFILE=search pytest …` looks for new ones.
"""

import os
import signal

import pytest
from hypothesis import settings

settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

# A shell that puts a command into the background has it ignore Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Seconds after which a long test counts as hung: ten times what the longest takes where nothing else runs.
LONG = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests may be ten times slower on a busy machine, and that is no failure."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONG))
