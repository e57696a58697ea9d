"""Both halves of a process with one task: its result, its errors, its end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.children.child_log import LOG_BYTES, log_file
from server.children.daemon_side import task_process
from server.children.frames import ErrorReport
from server.errors import INTERNAL, ChildError, ServerError
from server.http.problems import Problem
from tests.server.task_child import Result, Work

ROOT = str(Path(__file__).parents[2])


@pytest.fixture(autouse=True)
def children_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ROOT)


def first_frame(how: str, log: Path) -> Any:
    async def ask() -> Any:
        process = task_process(
            "tests.server.task_child", Work(how), frames=Result | ErrorReport, log=log, purpose="was tried"
        )
        async with process as child:
            return await child.receive()

    return asyncio.run(ask())


def test_a_result_comes_and_the_process_is_gone(tmp_path: Path) -> None:
    for how in ("answer", "hang"):
        result = first_frame(how, tmp_path / "log")
        assert isinstance(result, Result)
        assert not psutil.pid_exists(result.pid)


def test_an_error_for_the_user_arrives_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="there is no such name") as caught:
        first_frame("refuse", tmp_path / "log")
    assert (caught.value.code, caught.value.hint) == ("bad_name", "give another")
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_fault_of_the_program_is_told_to_the_log_alone(tmp_path: Path) -> None:
    with pytest.raises(ChildError) as caught:
        first_frame("fail", tmp_path / "log")
    assert (caught.value.code, str(caught.value), caught.value.hint) == INTERNAL
    assert Problem.of(caught.value).status("ollama") == 500
    assert "RuntimeError: a detail" in (tmp_path / "log").read_text()


def test_a_process_that_ends_without_a_result_says_how(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="the process that was tried exited with status 3"):
        first_frame("exit", tmp_path / "log")


def test_a_long_log_makes_way_for_a_new_one(tmp_path: Path) -> None:
    log = log_file(tmp_path / "logs", "puller")
    log.write_bytes(b"x" * (LOG_BYTES + 1))
    assert log_file(tmp_path / "logs", "puller") == log
    assert not log.exists()
    assert log.with_suffix(".log.1").stat().st_size == LOG_BYTES + 1
