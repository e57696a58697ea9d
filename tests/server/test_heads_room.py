"""Own heads are loaded where there is room for them, else the model alone, and the reason is said."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.machine.fit import ModelSize, Need
from runtime.machine.inspection import NO_DRAFTS, DraftMeans
from runtime.messages import CacheConfig
from server.loaded.admission import Admission

ALONE, WITH_HEADS = 1000, 1400


def fitted(room: int, *, speculation: bool = True, predicts: bool = True) -> tuple[int, Need, DraftMeans, str]:
    size = ModelSize(2, 64, 128, 300, 4096, 128, state_values=9, predicts=predicts, goes_back=True)

    async def facts(model: Any) -> Any:
        return SimpleNamespace(model_size=size, plan=None)

    async def need(digest: str, facts: Any, weights: int, config: CacheConfig, cards: Any, drafts: DraftMeans) -> Need:
        return Need((WITH_HEADS if drafts.heads else ALONE) * config.context // 1024, 0, 0)

    parts: Any = (SimpleNamespace(facts=facts), SimpleNamespace(need=need))
    config: Any = SimpleNamespace(speculation=speculation)
    admission = Admission(config, *parts, lambda: None, {})  # type: ignore[arg-type,return-value]
    model: Any = SimpleNamespace(name="m", blob_digest="d", size=1, draft=None)
    hardware: Any = SimpleNamespace(cards=())
    return asyncio.run(admission._fit(model, CacheConfig(1024, 4), room, hardware, None))


@pytest.mark.parametrize(
    ("room", "context", "means"),
    [(WITH_HEADS, 1024, DraftMeans(True, 3)), (WITH_HEADS - 1, 1024, NO_DRAFTS), (ALONE - 1, 512, NO_DRAFTS)],
    ids=["both", "alone", "a smaller context"],
)
def test_heads_go_before_the_context_is_halved(room: int, context: int, means: DraftMeans) -> None:
    found, _, drafts, missing = fitted(room)
    assert (found, drafts) == (context, means)
    assert bool(missing) is not means.heads and ("are free" in missing) is not means.heads


@pytest.mark.parametrize("off", [{"speculation": False}, {"predicts": False}], ids=["switched off", "none"])
def test_nothing_is_said_where_there_are_no_heads_to_load(off: dict[str, bool]) -> None:
    assert fitted(WITH_HEADS, **off)[2:] == (NO_DRAFTS, "")
