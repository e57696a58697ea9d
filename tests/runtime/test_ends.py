"""Ends of an answer: every token that the model's makers list ends it, whatever its text."""

from __future__ import annotations

import asyncio
from pathlib import Path

from quant.convert.planning import plan_model
from runtime import messages as m
from runtime.options import Limits, Sampling
from tests.converting import write
from tests.quant.support import Folder as Stored
from tests.runtime.test_tokenizer import flagged, qwen
from tests.runtime.tiny import load, with_added
from tests.runtime.working import Worker, load_frame, working

NAMES = tuple(f"<fin {number}>" for number in range(6))


async def _reasons(path: Path, tokens: list[int]) -> list[tuple[str, int]]:
    """Why an answer ends that would consist of one token all the way, and how long it is."""

    def sampling(token: int, ignore: bool = False) -> Sampling:
        return Sampling(temperature=0, logit_bias={token: 50.0}, ignore_eos=ignore)

    async def reason(worker: Worker, token: int) -> tuple[str, int]:
        asked = m.Submit(0, prompt="Hi", sampling=sampling(token), limits=Limits(max_tokens=4))
        end = (await worker.ask(asked)).end
        assert isinstance(end, m.Finished)
        return end.reason, end.answer_tokens

    request = load_frame(path, 64, 2)
    async with working(request) as worker:
        return await asyncio.gather(*(reason(worker, token) for token in tokens))


def test_every_listed_end_ends_an_answer(tmp_path: Path) -> None:
    tokenizer = with_added(qwen(), *(flagged("special", content=name) for name in NAMES))
    ids = [token["id"] for token in tokenizer["added_tokens"][-len(NAMES) :]]
    listed = {"generation_config": {"eos_token_id": ids[:5]}, "tokenizer_config": {"eos_token": "<|endoftext|>"}}
    load(tokenizer, tmp_path / "m.gguf", **listed)
    # The same once more, made of that file as if it had been published.
    copy = tmp_path / "copy.gguf"
    stored = Stored(tmp_path)
    write(plan_model(stored), "F16", stored.stream, copy, threads=1)
    for path in (tmp_path / "m.gguf", copy):
        found = asyncio.run(_reasons(path, [ids[0] - 1, *ids]))
        assert [reason for reason, _ in found] == ["stop"] * 6 + ["length"], path.name
