"""Prompts and inputs of no tokens: refused alone, with nothing lost beside them."""

from __future__ import annotations

import asyncio
from array import array
from pathlib import Path

import pytest

from quant.convert.planning import plan_model
from runtime import messages as m
from runtime.conversation import Turn
from runtime.engine.embedding import EmbedJob
from runtime.errors import BadRequest
from tests.converting import write
from tests.quant.support import DEMO, Folder
from tests.runtime.test_engine import load, submit, with_worker
from tests.runtime.working import Worker


def test_a_chat_of_no_tokens_is_refused_beside_a_running_answer(tmp_path: Path) -> None:
    source = Folder(DEMO).with_file("chat_template.jinja", b"{% for message in messages %}{% endfor %}")
    path = tmp_path / "silent.gguf"
    write(plan_model(source), "BF16", source.stream, path, threads=1)

    async def talk(worker: Worker) -> None:
        long, silent = await asyncio.gather(
            worker.ask(submit(tokens=100)), worker.ask(m.Submit(0, turns=[Turn.of("user", "Hi")]))
        )
        assert isinstance(silent.end, m.Failed)
        assert silent.end.code == "bad_request"
        assert isinstance(long.end, m.Finished)
        assert long.end.answer_tokens == 100
        assert isinstance((await worker.ask(submit(tokens=1))).end, m.Finished)  # the worker still lives

    with_worker(load(path), talk)


def test_a_text_of_no_tokens_has_no_vector() -> None:
    with pytest.raises(BadRequest, match="an input is empty"):
        EmbedJob(1, [array("i", [1]), array("i")])
