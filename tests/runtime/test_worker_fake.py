"""The worker's protocol, with the scripted engine: order of frames, limits, cancel, how failures look from outside."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import msgspec
import pytest

from runtime import messages as m
from runtime.confinement import Confinement
from runtime.conversation import Turn
from runtime.options import Limits
from tests.daemon import allowed
from tests.runtime.working import Answer, Worker, load_frame, working


def load(**script: Any) -> m.Load:
    options = {key: script.pop(key) for key in ("context", "sequences", "queue") if key in script}
    return load_frame("", **{"context": 100, "sequences": 2, "queue": 2, **options}, engine="fake", script=script)


def submit(prompt: str = "one two", **options: Any) -> m.Submit:
    return m.Submit(0, prompt=prompt, **options)


def ask(load: m.Load, *requests: Any) -> tuple[Worker, list[Answer]]:
    async def talk() -> tuple[Worker, list[Answer]]:
        async with working(load) as worker:
            return worker, await asyncio.gather(*(worker.ask(request) for request in requests))

    return asyncio.run(talk())


def test_an_answer_comes_in_order() -> None:
    worker, (answer,) = ask(load(tokens=["Hello", ",", " you"]), submit())
    assert msgspec.structs.replace(worker.ready, confinement=Confinement()) == m.Ready(100, 2, 0, 0, 0, 0)
    assert answer.started == m.Started(1, 2)
    assert answer.text == "Hello, you"
    assert answer.end == m.Finished(1, "stop", 2, 3, 0, 1, 1)


def test_limits_hold() -> None:
    _, answers = ask(
        load(echo=True, sequences=3, queue=8),
        submit("a b c d", limits=Limits(max_tokens=2)),
        submit("a b c d", limits=Limits(stop=["b c"])),
        submit("word " * 100),
        submit(turns=[Turn.of("user", "hi there")]),
    )
    assert [answer.text for answer in answers] == ["a b", "a ", "", "hi there"]
    assert [answer.end.reason for answer in (answers[0], answers[1], answers[3])] == ["length", "stop", "stop"]
    assert answers[2].end.code == "prompt_too_long"
    assert "101 tokens" in answers[2].end.message


def test_no_part_of_a_stop_string_is_shown() -> None:
    _, answers = ask(
        load(tokens=["a", " <", "st", "op", "> b"], sequences=3, queue=8),
        submit(limits=Limits(stop=["<stop>"])),
        submit(limits=Limits(stop=["<stopped>"])),
        submit(limits=Limits(stop=["<stop>"], max_tokens=3)),
    )
    assert [answer.text for answer in answers] == ["a ", "a <stop> b", "a <st"]
    assert [answer.end.reason for answer in answers] == ["stop", "stop", "length"]


def test_who_finds_the_queue_full_is_told() -> None:
    _, answers = ask(load(delay=0.01, sequences=1, queue=2), *(submit() for _ in range(8)))
    codes = [getattr(answer.end, "code", "") for answer in answers]
    assert codes.count("queue_full") >= 1
    assert codes[0] == ""


def test_tokens_vectors_and_scripted_failures() -> None:
    _, answers = ask(
        load(embedding=4), m.Submit(0, prompt="a b c", give_ids=True), m.Embed(0, inputs=["a b", [1, 2, 3]])
    )
    assert answers[0].end.ids == [0, 1, 2, 0, 1, 2]  # three words, three tokens
    assert [len(vector) for vector in answers[1].end.vectors] == [16, 16]
    assert answers[1].end.tokens == 5
    _, (failed,) = ask(load(fail={"code": "bad_request", "message": "no", "hint": "do"}), submit())
    assert failed.end == m.Failed(1, "bad_request", "no", "do")
    worker, _ = ask(load(load_error="cannot"))
    assert worker.ready == m.Failed(0, "load_failed", "cannot", "")


def test_cancel_ends_an_answer_and_one_that_waits() -> None:
    async def talk() -> list[m.Finished]:
        async with working(load(tokens=["x"] * 10**5, delay=0.001, sequences=1)) as worker:
            running = worker.frames(submit())
            while not isinstance(await anext(running), m.Delta):
                pass
            waiting = await worker.begin(submit())
            await worker.child.send(m.Cancel(2), m.Cancel(1))
            return [[frame async for frame in frames][-1] for frames in (running, waiting)]

    assert [end.reason for end in asyncio.run(talk())] == ["cancelled", "cancelled"]


@pytest.mark.parametrize(
    ("key", "ending"), [("die_after", "was killed by SIGKILL"), ("exit_after", "exited with status 1")]
)
def test_a_worker_that_dies_is_seen_to(key: str, ending: str) -> None:
    async def talk() -> tuple[Answer, str]:
        async with working(load(**{key: 2})) as worker:
            answer = await worker.ask(submit())
            await worker.child.wait()
            return answer, worker.child.ending

    answer, said = asyncio.run(talk())
    assert (answer.text, answer.end, said) == ("Once upon", None, ending)


def test_a_worker_that_hangs_still_beats_but_its_step_stands_still() -> None:
    async def talk() -> list[m.Beat]:
        async with working(load(hang_after=1)) as worker:
            frames = worker.frames(submit())
            while not isinstance(await anext(frames), m.Delta):
                pass
            while sum(beat.busy for beat in worker.beats) < 2:
                await asyncio.wait_for(worker.beat(), allowed(10))
            return worker.beats[-2:]

    first, second = asyncio.run(talk())
    assert first.step == second.step
    assert second.busy


def test_a_stopped_worker_is_silent() -> None:
    async def talk() -> int:
        async with working(load(delay=0.001, tokens=["x"] * 10**5)) as worker:
            frames = worker.frames(submit())
            while not isinstance(await anext(frames), m.Delta):
                pass
            os.kill(worker.child.pid, signal.SIGSTOP)
            worker.child.kill()
            return await worker.child.wait()

    assert asyncio.run(talk()) == -signal.SIGKILL
