"""Probabilities of a prompt's own tokens (`echo` with `logprobs`): those of llama-cpp-python, alone and in company."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime import messages as m
from server.api.openai.writer import text_logprobs
from tests.runtime.test_engine import PROMPTS, WARM, ask, load, one_by_one, submit
from tests.runtime.working import Answer

TEXT = "It was a dark night, and the old man said: “Who’s there?” Nobody answered. " * 3
ORACLE = """
import json, sys
import numpy as np
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=1024, n_threads=1, logits_all=True, flash_attn=True, verbose=False)
ids = model.tokenize(sys.argv[2].encode(), add_bos=True, special=False)
model.eval(ids)
scores = np.asarray(model.scores[: len(ids)], dtype=np.float64)
scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
print(json.dumps([ids, [float(scores[i, token]) for i, token in enumerate(ids[1:])]]))
"""


def rows(answer: Answer) -> list[m.TokenLogprob]:
    return [row for delta in answer.deltas if delta.kind == "prompt" for row in delta.logprobs]


def test_every_token_of_a_prompt_has_its_probability(demo: Path) -> None:
    command = [sys.executable, "-c", ORACLE, str(demo), TEXT]
    ids, expected = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    asked: list[Any] = [submit(TEXT, 2, echo=True, logprobs=2) for _ in range(8)]
    answers = ask(load(demo), *asked, *(submit(prompt, 30) for prompt in PROMPTS))
    warm = one_by_one(load(demo), submit(TEXT, 1, sampling=WARM), submit(TEXT, 0, echo=True, logprobs=2))[1]
    for answer in (*answers[:8], warm):
        found = rows(answer)
        assert [row.id for row in found] == ids
        assert found[0].logprob is None
        assert [row.logprob for row in found[1:]] == pytest.approx(expected, abs=0.05)
        assert "".join(delta.text for delta in answer.deltas if delta.kind == "prompt") == TEXT
        assert all(len(row.top) == 2 for row in found[1:])
    assert [answer.end.answer_tokens for answer in (*answers[:8], warm)] == [2] * 8 + [0]


def test_tokens_of_equal_text_lose_none_and_the_better_one_stands() -> None:
    top = [("a", 1, -0.1, b"a"), ("\ufffd", 2, -0.2, b"\xe2"), ("\ufffd", 3, -0.3, b"\x80"), ("a", 4, -0.4, b"a")]
    row = m.TokenLogprob("\ufffd", 3, -0.3, b"\x80", top)
    found = text_logprobs([m.TokenLogprob("a", 1, None, b"a"), row], 5)
    assert found["top_logprobs"] == [None, {"a": -0.1, "bytes:\\xe2": -0.2, "bytes:\\x80": -0.3}]
    assert found["tokens"] == ["a", "bytes:\\x80"]
    assert found["text_offset"] == [5, 6]
