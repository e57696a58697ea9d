"""Vectors of causal models: in stretches, beside running answers, as llama-cpp-python computes them in one piece."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.convert.planning import plan_model
from runtime import messages as m
from runtime.engine.embedding import MAX_OVERTAKING
from runtime.options import Sampling
from tests.converting import write
from tests.quant.support import DEMO, Folder
from tests.runtime.test_engine import WARM, load, submit, with_worker
from tests.runtime.working import Worker

TEXTS = ["The sea", "It was a dark night, and the wind blew. " * 40, "A", "“Who’s there?” she asked. " * 9]
ORACLE = """
import json, sys
from llama_cpp import Llama
options = dict(embedding=True, n_ctx=2048, n_batch=2048, n_ubatch=2048, n_threads=1, flash_attn=True, verbose=False)
model = Llama(sys.argv[1], pooling_type=int(sys.argv[2]), **options)
print(json.dumps([model.embed(text, normalize=True) for text in json.loads(sys.argv[3])]))
"""
MODULES = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
POOLINGS = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2, "pooling_mode_lasttoken": 3}
OTHERS = ("pooling_mode_cls_token", "pooling_mode_lasttoken", "none")


@pytest.fixture(
    scope="module",
    params=["pooling_mode_mean_tokens", *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS)],
)
def pooled(request: pytest.FixtureRequest, exact: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The demo model as an embedding model of each kind, and as it is."""
    if request.param == "none":
        return exact, 3
    folder = tmp_path_factory.mktemp("model")
    source = Folder(DEMO).with_file("modules.json", json.dumps(MODULES).encode())
    source = source.with_file("1_Pooling/config.json", json.dumps({request.param: True}).encode())
    write(plan_model(source), "F32", source.stream, folder / "model.gguf", threads=1)
    return folder / "model.gguf", POOLINGS[request.param]


def cosines(vectors: list[bytes], expected: Any) -> list[float]:
    found = np.stack([np.frombuffer(vector, "<f4") for vector in vectors])
    return [float(a @ b) for a, b in zip(found, np.asarray(expected), strict=True)]


def test_vectors_are_those_of_llama_cpp_python(pooled: tuple[Path, int]) -> None:
    path, pooling = pooled
    command = [sys.executable, "-c", ORACLE, str(path), str(pooling), json.dumps(TEXTS)]
    expected = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    async def talk(worker: Worker) -> list[list[bytes]]:
        alone = await worker.ask(m.Embed(0, inputs=list(TEXTS)))
        answers = [asyncio.create_task(worker.ask(submit(text, 60, sampling=WARM))) for text in TEXTS[::2]]
        beside = await worker.ask(m.Embed(0, inputs=[*TEXTS, *["The sea"] * 100]))
        await asyncio.gather(*answers)
        return [alone.end.vectors, beside.end.vectors]

    alone, beside = with_worker(load(path, context=1024, kv_type="F32"), talk)
    assert min(cosines(alone, expected)) > 0.9999
    assert min(cosines(beside, expected + [expected[0]] * 100)) > 0.9999


def test_a_long_text_does_not_hold_up_an_answer(exact: Path) -> None:
    # Tokens of the answer that come between the text and its vector.
    async def between(worker: Worker) -> tuple[int, Any]:
        frames = worker.frames(submit("Once", 700, sampling=Sampling(temperature=0.0, ignore_eos=True)))
        await anext(frames)
        await anext(frames)
        vector = asyncio.create_task(worker.ask(m.Embed(0, inputs=["so it goes " * 300])))
        tokens = 0
        async for frame in frames:
            if vector.done():
                break
            tokens += frame.tokens if isinstance(frame, m.Delta) else 0
        return tokens, await vector

    tokens, vector = with_worker(load(exact, context=2048), between)
    assert vector.end.tokens > 600
    assert tokens >= 4


def test_a_request_that_is_cancelled_gives_its_sequences_back(exact: Path) -> None:
    async def talk(worker: Worker) -> list[Any]:
        ends = []
        for _ in range(20):
            frames = await worker.begin(m.Embed(0, inputs=["word " * 900, "word"] * 3))
            await worker.child.send(m.Cancel(worker.last))
            ends.append(await anext(frames))
        return [*ends, (await worker.ask(m.Embed(0, inputs=["word " * 900]))).end]

    ends = with_worker(load(exact), talk)
    assert any(isinstance(end, m.Finished) and end.reason == "cancelled" for end in ends[:-1])
    assert isinstance(ends[-1], m.Vectors)


def test_a_text_that_needs_the_room_of_answers_is_not_overtaken_without_end(exact: Path) -> None:
    # It takes the whole pool, and there is always another answer that wants to begin when one has ended.
    async def talk(worker: Worker) -> tuple[int, Any]:
        sampling = Sampling(temperature=0.0, ignore_eos=True)
        lengths = [6 + i % 5 for i in range(60)]
        answers = [asyncio.create_task(worker.ask(submit("Once", i, sampling=sampling))) for i in lengths]
        vector = await worker.ask(m.Embed(0, inputs=["word " * 300]))
        done = sum(answer.done() for answer in answers)
        await asyncio.gather(*answers)
        return done, vector.end

    done, vector = with_worker(load(exact, context=256, sequences=2), talk)
    assert isinstance(vector, m.Vectors)
    assert done < 60 - 2 * MAX_OVERTAKING, done
