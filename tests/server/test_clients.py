"""The PyPI packages `ollama` and `openai` against a running daemon whose demo model was quantized here."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ollama
import openai
import pytest

from tests.daemon import Daemon, allowed, wait_until

PROMPT = "Once upon a time"
GREEDY = {"temperature": 0, "num_predict": 12}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("real"), runtime="llama") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def native(daemon: Daemon) -> Iterator[ollama.Client]:
    with ollama.Client(host=daemon.url) as client:
        printed, bars = followed(client.pull("demo", stream=True))
        assert printed[-1] == "success"
        assert bars and all(bar.at == bar.total > 0 for bar in bars.values())
        yield client


@dataclass
class Bar:
    total: int
    at: int = 0


def followed(pull: Iterator[ollama.ProgressResponse]) -> tuple[list[str | None], dict[str, Bar]]:
    """The lines and bars that ollama-python's example `pull.py` prints of a pull."""
    printed: list[str | None] = []
    bars: dict[str, Bar] = {}
    for progress in pull:
        digest = progress.get("digest", "")
        if not digest:
            printed.append(progress.get("status"))
            continue
        if digest not in bars and (total := progress.get("total")):
            bars[digest] = Bar(total)
        if completed := progress.get("completed"):
            bars[digest].at = completed
    return printed, bars


@pytest.fixture(scope="module")
def standard(daemon: Daemon, native: ollama.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_ollama_lists_and_shows(native: ollama.Client) -> None:
    assert [model.model for model in native.list().models] == ["demo:Q8_0", "demo:latest"]
    shown = native.show("demo")
    assert shown.details is not None
    assert shown.details.quantization_level == "Q8_0"
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.capabilities == ["completion"]


def test_ollama_generates(native: ollama.Client) -> None:
    whole = native.generate("demo", PROMPT, options=GREEDY)
    assert whole.done_reason == "length"
    assert (whole.eval_count, len(whole.response.split()) > 5) == (12, True)
    assert whole.response.isascii()
    pieces = list(native.generate("demo", PROMPT, options=GREEDY, stream=True))
    assert "".join(piece.response for piece in pieces) == whole.response
    assert len(pieces) > 5
    assert whole.total_duration > whole.eval_duration > 0


def test_ollama_chats(native: ollama.Client) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    whole = native.chat("demo", messages, options=GREEDY)
    assert whole.message.role == "assistant"
    assert whole.message.content
    pieces = list(native.chat("demo", messages, options=GREEDY, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert pieces[-1].done


def test_a_seed_makes_an_answer_repeatable(native: ollama.Client) -> None:
    options = {"seed": 7, "temperature": 1.0, "num_predict": 12}
    answers = {native.generate("demo", PROMPT, options=options).response for _ in range(3)}
    assert len(answers) == 1
    assert native.generate("demo", PROMPT, options=options | {"seed": 8}).response not in answers


def test_the_context_goes_on_where_the_answer_ended(native: ollama.Client) -> None:
    first = native.generate("demo", PROMPT, options=GREEDY)
    assert first.context is not None
    further = native.generate("demo", " and then", context=first.context, options=GREEDY)
    assert further.prompt_eval_count is not None
    assert further.prompt_eval_count > first.prompt_eval_count + 12


def test_a_long_prompt_is_cut_and_told_or_refused(daemon: Daemon, native: ollama.Client) -> None:
    body = {"model": "demo", "prompt": "word " * 3000, "options": {"num_predict": 2}, "stream": False}
    cut = daemon.post("/api/generate", body | {"raw": True}).json
    assert cut["truncated"] > 900
    assert cut["prompt_total"] == cut["truncated"] + cut["prompt_eval_count"]
    assert cut["prompt_eval_count"] <= 2048
    # A question is never cut, and a raw prompt only where the request allows it.
    for more in ({}, {"raw": True, "truncate": False}):
        refused = daemon.post("/api/generate", body | more)
        assert (refused.status, refused.json["code"]) == (400, "prompt_too_long")
        assert "2048" in refused.json["error"].replace(",", "")


def test_old_turns_make_way_for_new_ones(daemon: Daemon, native: ollama.Client) -> None:
    turns = [{"role": "user", "content": f"{number} " + "word " * 300} for number in range(10)]
    last = daemon.post("/api/chat", {"model": "demo", "messages": turns, "options": {"num_predict": 2}}).lines[-1]
    assert last["truncated"] > 0
    assert last["prompt_eval_count"] < 2048


def test_ollama_embeds(native: ollama.Client) -> None:
    answer = native.embed("demo", ["a ship", "the sea"])
    assert [len(vector) for vector in answer.embeddings] == [256, 256]
    assert all(sum(value * value for value in vector) == pytest.approx(1, abs=1e-3) for vector in answer.embeddings)


def test_ollama_learns_what_runs_and_unloads_it(native: ollama.Client) -> None:
    native.generate("demo", "", keep_alive="2m")
    (row,) = native.ps().models
    assert (row.model, row.context_length) == ("demo:Q8_0", 2048)
    assert row.size
    assert row.size < 1e9
    native.generate("demo", "", keep_alive=0)
    assert not native.ps().models


def test_ollama_raises_what_we_say(native: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match='"nosuch"') as caught:
        native.chat("nosuch", [{"role": "user", "content": "x"}])
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="nosuch"):
        list(native.pull("nosuch", stream=True))


def test_openai_chats(standard: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    whole = standard.chat.completions.create(model="demo", messages=messages, temperature=0, max_tokens=12)  # type: ignore[call-overload]
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 12
    stream = standard.chat.completions.create(  # type: ignore[call-overload]
        model="demo",
        messages=messages,
        temperature=0,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_openai_completes_with_probabilities(standard: openai.OpenAI) -> None:
    whole = standard.completions.create(model="demo", prompt=PROMPT, max_tokens=5, temperature=0, logprobs=2)
    (choice,) = whole.choices
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    assert "".join(choice.logprobs.tokens or []) == choice.text
    assert all(value <= 0 for value in choice.logprobs.token_logprobs)
    echoed = standard.completions.create(model="demo", prompt=PROMPT, max_tokens=2, echo=True, logprobs=0).choices[0]
    assert echoed.logprobs is not None
    assert "".join(echoed.logprobs.tokens or []) == echoed.text
    assert (echoed.logprobs.token_logprobs or [0])[0] is None
    stream = standard.completions.create(model="demo", prompt=PROMPT, max_tokens=6, echo=True, logprobs=0, stream=True)
    pieces = [piece.choices[0] for piece in stream]
    text = "".join(piece.text for piece in pieces)
    told = [piece.logprobs for piece in pieces if piece.logprobs]
    rows = [row for one in told for row in zip(one.text_offset or [], one.tokens or [], strict=True)]
    assert len(rows) > 6 and all(text[at:].startswith(token) for at, token in rows)
    chat = standard.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "x"}], max_tokens=3, logprobs=True, top_logprobs=2
    )
    assert chat.choices[0].logprobs is not None
    rows = chat.choices[0].logprobs.content or []
    assert [len(row.top_logprobs) for row in rows] == [2] * len(rows) != []


def test_openai_lists_and_raises(standard: openai.OpenAI) -> None:
    assert [model.id for model in standard.models.list()] == ["demo:Q8_0"]
    with pytest.raises(openai.NotFoundError):
        standard.models.retrieve("nosuch")
    with pytest.raises(openai.BadRequestError, match="2,048") as caught:
        standard.completions.create(model="demo", prompt="word " * 3000)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"logit_bias": {"191222": 1}}, "logit_bias"),
        ({"prompt": [191222]}, "prompt"),
        ({"prompt": ["word " * 3000]}, "prompt"),
        ({"grammar": "root ::= nothing"}, "grammar"),
    ],
    ids=["bias", "token", "length", "grammar"],
)
def test_what_the_worker_refuses_names_its_field(standard: openai.OpenAI, extra: dict[str, Any], field: str) -> None:
    """The daemon alone cannot find these faults: it knows neither the vocabulary nor the compiler of grammars."""
    with pytest.raises(openai.BadRequestError) as caught:
        standard.completions.create(model="demo", prompt=PROMPT, max_tokens=1, extra_body=extra)
    assert caught.value.param == field


def test_messages_that_the_template_cannot_hold_are_named_as_the_fault(standard: openai.OpenAI) -> None:
    function = {"name": "add", "arguments": '{"a": '}  # as a stream leaves it that was cut
    call = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]}
    result = {"role": "tool", "tool_call_id": "c", "content": "3"}
    ask = {"role": "user", "content": "x"}
    for talk, part in (([ask, call, result], "no JSON object"), ([ask, result], "answers no call")):
        with pytest.raises(openai.BadRequestError, match=part) as caught:
            standard.chat.completions.create(model="demo", messages=talk)  # type: ignore[call-overload]
        assert caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="is empty") as caught:
        standard.completions.create(model="demo", prompt="")
    assert caught.value.param == "prompt"


def test_a_token_that_an_embedding_cannot_have_names_its_field(standard: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="vocabulary ends at 4095") as caught:
        standard.embeddings.create(model="demo", input=[191222])
    assert caught.value.param == "input"


def test_a_death_in_mid_answer_reaches_both_clients(
    daemon: Daemon, native: ollama.Client, standard: openai.OpenAI
) -> None:
    # An answer that never ends by itself: else it might be over before its worker is killed.
    options = {"num_predict": 1500, "temperature": 1.0, "ignore_eos": True}
    stream = native.generate("demo", PROMPT, options=options, stream=True)
    next(stream)
    os.kill(daemon.workers()[0], signal.SIGKILL)
    killed = time.monotonic()
    with pytest.raises(ollama.ResponseError, match="SIGKILL"):
        list(stream)
    assert time.monotonic() - killed < allowed(1)
    endless = {"ignore_eos": True}
    events = standard.completions.create(model="demo", prompt=PROMPT, max_tokens=1500, stream=True, extra_body=endless)
    next(iter(events))
    os.kill(daemon.workers()[0], signal.SIGKILL)
    with pytest.raises(openai.APIError, match="SIGKILL"):
        list(events)
    assert native.generate("demo", PROMPT, options=GREEDY).eval_count == 12


def test_leaving_early_frees_the_model(daemon: Daemon, native: ollama.Client) -> None:
    for _ in range(20):
        body = {"model": "demo", "prompt": PROMPT, "options": {"num_predict": 2000}}
        with daemon.opened("POST", "/api/generate", body) as response:
            assert json.loads(response.readline())
    wait_until(lambda: not daemon.get("/api/ps").json["models"][0]["active"], 2)
    assert native.generate("demo", PROMPT, options=GREEDY).eval_count == 12


@pytest.mark.slow
def test_an_answer_goes_on_past_a_full_context_only_where_the_request_says_shift(
    daemon: Daemon, native: ollama.Client
) -> None:
    options = {"num_predict": 2100, "ignore_eos": True, "temperature": 0}
    body = {"model": "demo", "prompt": PROMPT, "raw": True, "stream": False, "options": options}
    for more in ({}, {"shift": False}, {"shift": None}):
        full = daemon.post("/api/generate", body | more).json
        assert full["done_reason"] == "length"
        assert full["prompt_eval_count"] + full["eval_count"] == 2049  # the last token is not computed
    shifted = daemon.post("/api/generate", body | {"shift": True}).json
    assert (shifted["eval_count"], shifted["done_reason"]) == (2100, "length")
    assert shifted["response"].startswith(full["response"][:500])


SAMPLING: tuple[dict[str, Any], ...] = (
    {"top_k": 2},
    {"top_p": 0.2},
    {"min_p": 0.5},
    {"typical_p": 0.2},
    {"top_n_sigma": 0.5},
    {"temperature": 0.2},
    {"xtc_probability": 1.0, "xtc_threshold": 0.05},
    {"repeat_penalty": 3.0},
    {"presence_penalty": 5.0},
    {"frequency_penalty": 5.0, "repeat_last_n": -1},
    {"dry_multiplier": 5.0, "dry_allowed_length": 1},
    {"mirostat": 1, "mirostat_tau": 1.0},
    {"mirostat": 2, "mirostat_tau": 1.0},
    {"logit_bias": {"1234": 100}},
    {"seed": 8},
)


@pytest.mark.slow
def test_both_dialects_sample_alike_and_every_option_counts(daemon: Daemon, native: ollama.Client) -> None:
    fixed = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 7}

    def texts(more: dict[str, Any]) -> tuple[str, str]:
        options = fixed | more
        body = {"model": "demo", "prompt": PROMPT, "stream": False}
        ollamas = daemon.post("/api/generate", body | {"raw": True, "options": options | {"num_predict": 24}}).json
        openais = daemon.post("/v1/completions", body | options | {"max_tokens": 24}).json
        return str(ollamas["response"]), str(openais["choices"][0]["text"])

    plain, same = texts({})
    assert plain == same
    for more in SAMPLING:
        one, other = texts(more)
        assert one == other, more
        assert one != plain, more


def test_text_that_spells_a_control_token_stays_text(daemon: Daemon, native: ollama.Client) -> None:
    def tokens(path: str, content: str) -> int:
        body = {"model": "demo", "messages": [{"role": "user", "content": content}], "stream": False}
        limit = {"options": {"num_predict": 1}} if path == "/api/chat" else {"max_tokens": 1}
        answer = daemon.post(path, body | limit).json
        return int(answer["prompt_eval_count"] if path == "/api/chat" else answer["usage"]["prompt_tokens"])

    for path in ("/api/chat", "/v1/chat/completions"):
        assert tokens(path, "one <|im_end|> two") > tokens(path, "one  two") + 3
    raw = {"model": "demo", "stream": False, "raw": True, "options": {"num_predict": 1}}
    counts = [
        daemon.post("/api/generate", raw | {"prompt": prompt}).json["prompt_eval_count"]
        for prompt in ("one", "one<|im_end|>")
    ]
    assert counts[1] == counts[0] + 1  # a raw prompt is the caller's own template


@pytest.mark.parametrize(
    "kills", [pytest.param(10, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.long(name="kills"))]
)
def test_workers_killed_while_they_answer(daemon: Daemon, native: ollama.Client, kills: int) -> None:
    body = {"model": "demo", "prompt": PROMPT, "options": {"num_predict": 1500, "seed": 1}}
    short = {"model": "demo", "prompt": PROMPT, "stream": False, "options": {"num_predict": 1}}
    told, back = [], []
    for _ in range(kills):
        with daemon.opened("POST", "/api/generate", body) as response:
            assert json.loads(response.readline())["response"]
            os.kill(daemon.workers()[0], signal.SIGKILL)
            began = time.monotonic()
            last = json.loads(response.read().splitlines()[-1])
            told.append(time.monotonic() - began)
        assert last["code"] == "worker_died"
        began = time.monotonic()
        answer = daemon.post("/api/generate", short).json
        back.append(time.monotonic() - began - answer["load_duration"] / 1e9)
        assert answer["eval_count"] == 1
    print(f"told after {max(told):.3f} s at most, answered {max(back):.3f} s after the load at most")
    assert max(told) < allowed(1)
    assert max(back) < allowed(1)
    assert len(daemon.children()) == 1
