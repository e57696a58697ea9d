"""The launcher: frames in both directions, and no child that outlives its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from runtime.child import FRAME_LIMIT, Child, ask
from runtime.machine import inspection
from server.settings import SETTINGS
from tests.daemon import alive, wait_until
from tests.runtime.echo_child import Answer, Say

MODULE = "tests.runtime.echo_child"
ROOT = str(Path(__file__).parents[2])


@pytest.fixture(autouse=True)
def children_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ROOT)


async def spawn(*args: str, **options: object) -> Child:
    return await Child.spawn(MODULE, args, frames=Answer, **options)


async def end(child: Child) -> int:
    child.kill()
    return await child.wait()


def test_frames_travel_in_both_directions_and_output_goes_to_the_log(tmp_path: Path) -> None:
    async def talk() -> None:
        child = await spawn("a", "b", nice=5, log=tmp_path / "log")
        long = "ü" * (1 << 20)
        await child.send(Say("hello"), Say(long))
        assert await child.receive() == Answer("hello", min(19, os.nice(0) + 5), ["a", "b"])
        assert (await child.receive()).text == long
        assert await end(child) == -signal.SIGKILL
        assert child.ending == "was killed by SIGKILL"
        assert await child.receive() is None
        await child.send(Say("to nobody"))

    asyncio.run(talk())
    # Its own stdout is block-buffered and the child was killed, so only that nothing came to ours is certain.
    assert (tmp_path / "log").exists()


def test_many_frames_keep_their_order(tmp_path: Path) -> None:
    async def talk() -> list[str]:
        child = await spawn(log=tmp_path / "log")
        await child.send(*(Say(str(i)) for i in range(2000)))
        texts = [(await child.receive()).text for _ in range(2000)]
        await end(child)
        return texts

    assert asyncio.run(talk()) == [str(i) for i in range(2000)]


def test_killing_a_child_that_has_ended_keeps_its_status() -> None:
    async def talk() -> str:
        child = await spawn("exit")
        process = psutil.Process(child.pid)
        # Nobody runs the loop meanwhile, so that the status is still to be told when `kill` comes.
        wait_until(lambda: not alive(process), 20)
        child.kill()
        await child.wait()
        return child.ending

    for _ in range(3):
        assert asyncio.run(talk()) == "exited with status 3"


def test_a_child_that_sends_nonsense_is_killed(tmp_path: Path) -> None:
    async def talk() -> tuple[object, int, str]:
        child = await spawn("nonsense", log=tmp_path / "log")
        return await child.receive(), await child.wait(), child.problem

    frame, status, problem = asyncio.run(talk())
    assert frame is None
    assert status == -signal.SIGKILL
    assert "malformed frame" in problem


def test_a_frame_above_the_limit_is_never_sent(tmp_path: Path) -> None:
    async def talk() -> None:
        child = await spawn(log=tmp_path / "log")
        with pytest.raises(ValueError, match="above the limit"):
            await child.send(Say("x" * (FRAME_LIMIT + 1)))
        await end(child)

    asyncio.run(talk())


def test_a_child_that_exits_says_how(tmp_path: Path) -> None:
    async def talk() -> tuple[object, int, str]:
        child = await Child.spawn("tests.runtime.no_such_module", log=tmp_path / "log")
        return await child.receive(), await child.wait(), child.ending

    assert asyncio.run(talk()) == (None, 1, "exited with status 1")
    assert "no_such_module" in (tmp_path / "log").read_text()


def test_one_question_gets_one_answer_within_its_time() -> None:
    assert ask(MODULE, Say("hello"), Answer, 30) == Answer("hello", os.nice(0), [])
    with pytest.raises(EOFError):
        ask("tests.runtime.no_such_module", Say("hello"), Answer, 30)
    with pytest.raises(TimeoutError):
        ask(MODULE, Say("hello"), Answer, 0.001)


async def spawn_and_wait() -> None:
    await (await Child.spawn("server.pulls.puller")).wait()


@pytest.mark.parametrize(
    "start", [lambda: asyncio.run(spawn_and_wait()), lambda: inspection.ask(inspection.Examine(), 30)]
)
def test_no_child_inherits_a_secret(
    start: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    withheld = {name for setting in SETTINGS.values() for name in setting.env}
    withheld |= {"OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "GH_TOKEN", "DB_PASSWORD", "ftp_proxy"}
    withheld |= {"LITELLM_MASTER_KEY", "KAGGLE_KEY", "GITHUB_PAT", "SENTRY_DSN", "NPM_AUTH", "SESSION_COOKIE"}
    for name in (*withheld, "OF_NO_CONCERN"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("DATABASE_URL", "postgres://me:hush@db/x")
    withheld.add("DATABASE_URL")
    monkeypatch.setenv("A_PAGE", "https://example.org:8080/a@b")
    listing = tmp_path / "names"
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nenv > {listing}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    start()
    inherited = {line.partition("=")[0] for line in listing.read_text().splitlines()}
    assert {"OF_NO_CONCERN", "A_PAGE"} <= inherited
    assert not withheld & inherited


PARENT = """
import asyncio
from runtime.child import Child
from tests.runtime.echo_child import Answer

async def main():
    child = await Child.spawn("tests.runtime.echo_child", ["sleep"], frames=Answer)
    await child.receive()
    print(child.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_no_child_outlives_a_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    wait_until(lambda: not alive(child), 2)
    parent.wait()
    parent.stdout.close()
