"""Room for models by memory: who goes, who stays, what would fit; a machine whose memory is given as data."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from registry.store.store import Store
from runtime.errors import DoesNotFit
from runtime.machine.hardware import Hardware
from server.config import Config
from server.library import Library
from server.loaded.pool import Pool, Runtime
from server.loaded.wish import LoadWish
from tests.daemon import put_model

GB = 10**9
# Of a cache of 4096 values for a token in F16: 33.6 MB at 2,048 tokens, and the process itself.
WIDE = {"attention.key_length": 1 << 11, "attention.value_length": 1 << 11}
NAMES = ("one", "two", "three")


class Machine:
    """So much memory, less what each of the loaded models is said to take."""

    def __init__(self) -> None:
        self.free, self.each = 64 * GB, 0
        self.pool: Pool | None = None

    def __call__(self) -> Hardware:
        taken = self.each * len(self.pool.models()) if self.pool else 0
        return Hardware(64 * GB, 64 * GB, self.free - taken, 1, 1e9)


Scenario = Callable[[Pool, Library], Awaitable[None]]


def play(home: Path, free: float, scenario: Scenario) -> None:
    """Run with so many times the memory that one of three equal models takes; workers are the scripted engine's."""
    for name in NAMES:
        put_model(home, name, **WIDE)

    async def main() -> None:
        config = Config.load({"home": home}, {})
        with Store.open(home / "store") as store:
            library, machine = Library(store), Machine()
            pool = machine.pool = Pool(config, library, machine, Runtime("fake", {"echo": True}))
            try:
                async with pool.use(await library.resolve("one")) as worker:
                    machine.each, machine.free = worker.need.total, int(free * worker.need.total)
                await scenario(pool, library)
            finally:
                await pool.drain(1)

    asyncio.run(main())


async def touch(pool: Pool, library: Library, name: str, keep_alive: float | None = None) -> None:
    async with pool.use(await library.resolve(name), LoadWish(keep_alive=keep_alive)):
        pass


def held(pool: Pool) -> set[str]:
    return {worker.model.name.partition(":")[0] for worker, _ in pool.loaded()}


def test_the_idle_one_used_longest_ago_makes_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lm.pool")

    async def scenario(pool: Pool, library: Library) -> None:
        await touch(pool, library, "two")
        assert held(pool) == {"one", "two"}
        await touch(pool, library, "one")
        await touch(pool, library, "three")
        assert held(pool) == {"one", "three"}

    play(tmp_path, 2.5, scenario)
    assert "two:F32 makes room for three:F32" in caplog.text


def test_neither_a_pinned_nor_a_busy_one_goes(tmp_path: Path) -> None:
    async def scenario(pool: Pool, library: Library) -> None:
        await touch(pool, library, "one", keep_alive=-1)
        async with AsyncExitStack() as busy:
            await busy.enter_async_context(pool.use(await library.resolve("two")))
            waiting = asyncio.create_task(touch(pool, library, "three"))
            async with pool.use(await library.resolve("one"), LoadWish(keep_alive=-1)):
                assert held(pool) == {"one", "two"}
        await waiting
        assert held(pool) == {"one", "three"}

    play(tmp_path, 2.5, scenario)


def test_what_cannot_fit_beside_pinned_ones_is_refused_with_both_numbers(tmp_path: Path) -> None:
    async def scenario(pool: Pool, library: Library) -> None:
        await touch(pool, library, "one", keep_alive=-1)
        with pytest.raises(
            DoesNotFit, match=r"`two:F32` needs [\d.]+ MB with a context of 512 tokens, and .* are free"
        ):
            await touch(pool, library, "two")
        assert held(pool) == {"one"}

    play(tmp_path, 1.1, scenario)


def test_a_context_that_does_not_fit_is_halved(tmp_path: Path) -> None:
    async def scenario(pool: Pool, library: Library) -> None:
        await touch(pool, library, "one", keep_alive=-1)
        await touch(pool, library, "two")
        ready: Mapping[str, int] = {worker.model.name: worker.context for worker, _ in pool.loaded()}
        assert ready == {"one:F32": 2048, "two:F32": 1024}

    play(tmp_path, 1.8, scenario)
