"""The lines of one pull as its followers read them, and what pausing and removing make of its state."""

from __future__ import annotations

import asyncio
from typing import Any

from registry.names import parse
from registry.net.hub import Hub
from server.pulls.job import Job, PullOptions


def job() -> Job:
    return Job(parse("demo"), PullOptions(Hub("http://hub.example")))


def progress(phase: str, completed: int) -> dict[str, Any]:
    return {"phase": phase, "completed": completed}


def test_a_follower_who_comes_late_reads_each_phase_once() -> None:
    async def follow() -> list[dict[str, Any]]:
        pull = job()
        for line in ({"phase": "planned"}, progress("writing", 1), progress("writing", 2), {"phase": "committing"}):
            pull.add(line)
        pull.end()
        return [line async for line in pull.lines()]

    assert asyncio.run(follow()) == [{"phase": "planned"}, progress("writing", 2), {"phase": "committing"}]


def test_a_follower_reads_each_change_though_equal_lines_follow_each_other() -> None:
    async def follow() -> list[dict[str, Any]]:
        pull, seen = job(), []
        pull.add(progress("writing", 1))
        async for line in pull.lines():
            seen.append(line)
            if len(seen) == 1:  # twice the same, while nobody waits
                pull.add(progress("writing", 2))
                pull.add(progress("writing", 2))
            elif len(seen) == 2:
                pull.add(progress("writing", 2))
                pull.add({"phase": "note"})
                pull.end()
        return seen

    assert asyncio.run(follow()) == [
        progress("writing", 1),
        progress("writing", 2),
        progress("writing", 2),
        {"phase": "note"},
    ]


def test_lines_with_figures_follow_a_note_within_their_phase() -> None:
    pull = job()

    async def follow() -> list[dict[str, Any]]:
        for line in (progress("writing", 1), {"phase": "note"}, progress("writing", 2)):
            pull.add(line)
        pull.end()
        return [line async for line in pull.lines()]

    assert asyncio.run(follow()) == [progress("writing", 1), {"phase": "note"}, progress("writing", 2)]


def test_removing_goes_before_pausing() -> None:
    pull = job()
    pull.pause()
    assert pull.state == "pausing"
    pull.remove()
    assert pull.state == "removing"
    pull.pause()
    assert pull.state == "removing"
    pull.end()
    pull.remove()
    assert pull.state == "ended"
