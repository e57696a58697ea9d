"""An iterator whose items are made ahead of time in a thread: in order, and no more of them than a given depth."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


@contextmanager
def ahead(items: Iterable[Item], depth: int) -> Generator[Iterator[Item]]:
    """Iterate over `items` in a thread of its own, which is at most `depth` items ahead of the consumer.

        with ahead(slabs(), 4) as items:
            for item in items:
                …

    An exception in `items` is raised to the consumer, in its place among the items. When the block is left, early or
    not, the thread has ended and `items`, if it is a generator, is closed. So the caller may close its source next.
    """
    ready: queue.SimpleQueue[tuple[bool, Item | BaseException | None]] = queue.SimpleQueue()
    slots = threading.Semaphore(depth)
    stopped = threading.Event()

    def produce() -> None:
        try:
            for item in items:
                slots.acquire()
                if stopped.is_set():
                    return
                ready.put((True, item))
            ready.put((False, None))
        except BaseException as error:
            ready.put((False, error))
        finally:
            if isinstance(items, Generator):
                items.close()

    def consume() -> Iterator[Item]:
        while True:
            more, item = ready.get()
            if not more:
                if isinstance(item, BaseException):
                    raise item
                return
            slots.release()
            yield item  # type: ignore[misc]

    thread = threading.Thread(target=produce, name="ahead", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stopped.set()
        slots.release()
        thread.join()
