"""Steps that llama.cpp cannot compute, though the books count enough free cells: they are not tried for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime import messages as m
from runtime.engine.loop import LlamaEngine
from runtime.llama.context import NO_ROOM
from tests.runtime.test_engine import load, submit


def test_a_step_without_room_is_not_tried_for_ever(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[Any] = []

    def send(*sent: Any) -> None:
        frames.extend(sent)
        if sum(isinstance(frame, m.Failed) for frame in frames) == 2:
            engine.take(m.Shutdown())

    engine, _ = LlamaEngine.open(load(demo), send)
    tries = 0

    def decode(*_: Any) -> int:
        nonlocal tries
        tries += 1
        assert tries < 20
        return NO_ROOM

    monkeypatch.setattr(engine._context, "decode", decode)
    for number in (1, 2):
        request = submit(f"Once {number}")
        request.id = number
        engine.take(request)
    engine.run()
    assert [frame.code for frame in frames if isinstance(frame, m.Failed)] == ["engine_failed"] * 2
