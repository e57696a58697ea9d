"""Every field that Ollama's package and documentation know: honoured, named in `warning`, or refused; by one table.

A field that is honoured has a value that is wrong: that is a 400, so it is read. Sources: the request types of the
package `ollama`, and the fields of the published API that it has not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import pytest

from tests.daemon import Answer, Daemon, put_model

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


class Field(NamedTuple):
    """A field with a value, the verdict about it, and a wrong value."""

    value: Any
    verdict: Literal["honoured", "named", "refused"]
    wrong: Any = None


def honoured(value: Any, wrong: Any) -> Field:
    return Field(value, "honoured", wrong)


def named(value: Any) -> Field:
    return Field(value, "named")


def refused(value: Any) -> Field:
    return Field(value, "refused")


ANSWERS = {
    "model": honoured("able", "nobody"),
    "stream": honoured(False, "x"),
    "options": honoured({"seed": 1}, 5),
    "format": honoured("json", "xml"),
    "keep_alive": honoured("5m", "soon"),
    "think": honoured(False, "deep"),
    "logprobs": honoured(True, "x"),
    "top_logprobs": honoured(2, 99),
    "truncate": honoured(True, "x"),
    "shift": honoured(True, "x"),
    "_debug_render_only": honoured(True, "x"),
    "dimensions": named(5),
    "insecure": named(True),
    "tool_choice": refused("required"),
    "max_tokens": refused(5),
    "stop": refused(["x"]),
    "response_format": refused({"type": "json_object"}),
}
ROUTES: dict[str, dict[str, Field]] = {
    "/api/generate": ANSWERS
    | {
        "prompt": honoured("one two", 5),
        "suffix": honoured("end", 5),
        "system": honoured("Be short", 5),
        "template": honoured("{{ .System }} {{ .Prompt }}", 5),
        "context": honoured([1, 2], "x"),
        "raw": honoured(True, "x"),
        "images": refused(["aGk="]),
        "width": named(64),
        "height": named(64),
        "steps": named(4),
        "tools": refused([ADD]),
        "messages": refused([{"role": "user", "content": "x"}]),
    },
    "/api/chat": ANSWERS
    | {
        "messages": honoured([{"role": "user", "content": "one"}], [{"role": 5}]),
        "tools": honoured([ADD], [5]),
        "prompt": refused("one"),
        "system": named("Be short"),
        "raw": named(True),
        "images": refused(["aGk="]),
    },
    "/api/embed": {
        "model": honoured("able", "nobody"),
        "input": honoured(["one", "two"], 5),
        "truncate": honoured(False, "x"),
        "dimensions": honoured(4, 99),
        "options": honoured({"num_ctx": 64}, 5),
        "keep_alive": honoured(60, "soon"),
        "prompt": refused("x"),
        "images": refused(["aGk="]),
    },
    "/api/embeddings": {
        "model": honoured("able", "nobody"),
        "prompt": honoured("one", 5),
        "options": honoured({"num_ctx": 64}, 5),
        "keep_alive": honoured(60, "soon"),
        "input": refused(["x"]),
        "dimensions": named(4),
        "truncate": named(True),
    },
    "/api/show": {
        "model": honoured("able", "nobody"),
        "name": honoured("able", 5),
        "verbose": honoured(True, "x"),
        "options": named({"seed": 1}),
        "system": named("Be short"),
    },
}
BODIES: dict[str, dict[str, Any]] = {
    "/api/generate": {"model": "able", "prompt": "one two", "stream": False},
    "/api/chat": {"model": "able", "messages": [{"role": "user", "content": "one two"}], "stream": False},
    "/api/embed": {"model": "able", "input": "one"},
    "/api/embeddings": {"model": "able", "prompt": "one"},
    "/api/show": {"model": "able"},
}
# Fields without a meaning alone.
BESIDE = {"top_logprobs": {"logprobs": True}, "name": {"model": None}}
OPTIONS = {
    "num_ctx": honoured(64, 0.5),
    "seed": honoured(1, "x"),
    "num_predict": honoured(5, "x"),
    "top_k": honoured(5, "x"),
    "top_p": honoured(0.5, 2),
    "min_p": honoured(0.1, 2),
    "typical_p": honoured(0.5, 2),
    "repeat_last_n": honoured(5, "x"),
    "temperature": honoured(0.5, "x"),
    "repeat_penalty": honoured(1.1, "x"),
    "presence_penalty": honoured(0.5, "x"),
    "frequency_penalty": honoured(0.5, "x"),
    "mirostat": honoured(1, 9),
    "mirostat_tau": honoured(5.0, "x"),
    "mirostat_eta": honoured(0.1, "x"),
    "stop": honoured(["x"], 5),
    "draft_num_predict": honoured(4, "x"),
    # The engine decides these for itself; no answer depends on them.
    **dict.fromkeys(("num_batch", "num_gpu", "main_gpu", "num_thread"), honoured(1, "x")),
    **dict.fromkeys(
        ("numa", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mmap", "use_mlock", "embedding_only"),
        honoured(True, "x"),
    ),
    "num_keep": named(5),
    "tfs_z": named(0.5),
    "penalize_newline": named(False),
    "temperture": named(0.5),
    "grammar": refused("root ::= x"),
    "min_tokens": refused(5),
}
MESSAGE = {
    "role": honoured("user", 5),
    "content": honoured("one", 5),
    "thinking": honoured("Hm", 5),
    "tool_name": honoured("add", 5),
    "tool_call_id": honoured("c1", 5),
    "tool_calls": honoured([], [{"function": 5}]),
    "images": refused(["aGk="]),
    "weight": named(1),
}
CASES = [(path, name, field) for path, fields in ROUTES.items() for name, field in fields.items()]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("fields")
    put_model(home, "able", capabilities=("completion", "tools", "thinking", "insert"))
    with Daemon(home, script={"tokens": ["{}"]}) as daemon:
        yield daemon


def judge(answer: Answer, name: str, field: Field) -> None:
    """Compare an answer with the verdict about the field that was sent."""
    if field.verdict == "refused":
        assert answer.status == 400 and f"`{name}`" in answer.json["error"], answer.body
        return
    assert answer.status == 200, answer.body
    warning = answer.json.get("warning", "")
    assert (f"`{name}`" in warning or f".{name}`" in warning) == (field.verdict == "named"), warning
    assert answer.headers.get("X-LM-Warning", "") == warning


@pytest.mark.parametrize(("path", "name", "field"), CASES, ids=[f"{path[5:]}-{name}" for path, name, _ in CASES])
def test_a_field_of_a_body(daemon: Daemon, path: str, name: str, field: Field) -> None:
    body = BODIES[path] | BESIDE.get(name, {})
    if name == "context":
        body = body | {"raw": False}
    judge(daemon.post(path, body | {name: field.value}), name, field)
    if field.verdict == "honoured":
        wrong = daemon.post(path, body | {name: field.wrong})
        assert wrong.status == (404 if field.wrong == "nobody" else 400), wrong.body
        assert isinstance(wrong.json["error"], str) and wrong.headers["Content-Type"].startswith("application/json")


@pytest.mark.parametrize("name", list(OPTIONS))
def test_an_option(daemon: Daemon, name: str) -> None:
    field = OPTIONS[name]
    for path in ("/api/generate", "/api/chat"):
        judge(daemon.post(path, BODIES[path] | {"options": {name: field.value}}), name, field)
        if field.verdict == "honoured":
            wrong = daemon.post(path, BODIES[path] | {"options": {name: field.wrong}})
            assert wrong.status == 400 and f"`{name}`" in wrong.json["error"]


@pytest.mark.parametrize("name", list(MESSAGE))
def test_a_field_of_a_message(daemon: Daemon, name: str) -> None:
    field = MESSAGE[name]
    messages = [{"role": "user", "content": "one", name: field.value}]
    judge(daemon.post("/api/chat", BODIES["/api/chat"] | {"messages": messages}), name, field)
    if field.verdict == "honoured":
        messages[0][name] = field.wrong
        assert daemon.post("/api/chat", BODIES["/api/chat"] | {"messages": messages}).status == 400


def test_the_table_has_every_field_of_the_package() -> None:
    types = pytest.importorskip("ollama._types")
    requests = {"generate": "Generate", "chat": "Chat", "embed": "Embed", "embeddings": "Embeddings", "show": "Show"}
    for route, kind in requests.items():
        known = set(getattr(types, f"{kind}Request").model_fields)
        assert known <= set(ROUTES[f"/api/{route}"]), route
    assert set(types.Options.model_fields) <= set(OPTIONS)
    assert set(types.Message.model_fields) <= set(MESSAGE)


@pytest.mark.parametrize(
    "value", ["5m", "1h30m", "1.5h", "300ms", "20us", "9ns", 300, 0.5, "300", "0", "-1", -1, "-5m", None, ""]
)
def test_keep_alive_in_all_its_forms(daemon: Daemon, value: Any) -> None:
    assert daemon.post("/api/chat", BODIES["/api/chat"] | {"keep_alive": value}).status == 200


@pytest.mark.parametrize("path", ["/", "/api/tags", "/api/version", "/api/ps", "/v1/models"])
def test_a_head_is_answered_as_clients_probe_it(daemon: Daemon, path: str) -> None:
    head = daemon.ask("HEAD", path)
    assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_why_an_answer_is_done(daemon: Daemon, path: str) -> None:
    def reason(**more: Any) -> str:
        return str(daemon.post(path, BODIES[path] | more).json["done_reason"])

    nothing: dict[str, Any] = {"prompt": ""} if path == "/api/generate" else {"messages": []}
    assert reason() == "stop"
    assert reason(options={"num_predict": 0}) == "length"
    assert reason(**nothing) == "load"
    assert reason(**nothing, keep_alive=0) == "unload"
    assert daemon.get("/api/ps").json["models"] == []


def test_the_prompt_alone_can_be_asked_for(daemon: Daemon) -> None:
    for path, key in (("/api/generate", "response"), ("/api/chat", "message")):
        told = daemon.post(path, BODIES[path] | {"_debug_render_only": True, "stream": None}).json
        assert told["_debug_info"] == {"rendered_template": "one two"} and key in told and not told["done"]
