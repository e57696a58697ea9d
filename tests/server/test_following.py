"""Work that a client follows: what is left of it where the client leaves."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

from server.carrying.following import Line, Send, follow


def test_work_that_fails_behind_a_client_that_left_is_not_logged() -> None:
    logged: list[dict[str, Any]] = []
    going, failing = threading.Event(), threading.Event()

    def work(send: Send) -> Line | None:
        send({"status": "begun"})
        going.wait()
        failing.set()
        raise ValueError("the registry is gone")

    async def leave() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
        lines = follow(work, going.set)
        assert await anext(lines) == {"status": "begun"}
        going.set()
        while not failing.is_set() or len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)
        await lines.aclose()
        del lines
        gc.collect()

    asyncio.run(leave())
    assert not logged
