"""Answers have the shapes that OpenAI's API reference publishes: the files in `golden/`, and the types of its package.

A golden file has the answer of the reference's example, with the kind of each value in its place. Fields of lm's own
stand beside the published ones: they are named here, and nowhere else are there any.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types import (
    Batch,
    Completion,
    CreateEmbeddingResponse,
    FileObject,
    Model,
)
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.daemon import Daemon, put_model

GOLDEN = Path(__file__).parent / "golden"
# The context of a model, by the names of vLLM and of OpenRouter.
OWN = {"max_model_len", "context_length"}
ASKED = [{"role": "user", "content": "one two"}]
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("shapes")
    put_model(home, "able", capabilities=("completion", "tools", "embedding"))
    with Daemon(home, script={"echo": True}) as daemon:
        yield daemon


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"openai_{name}.json").read_text())


def shape(value: Any) -> Any:
    """The kinds of a value: of a list that of its first entry."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items() if key not in OWN}
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
    return kinds[type(value)]


def check(name: str, answer: Any, published: Any) -> None:
    """The answer has the shape of the golden file, and its values are those of the published type."""
    assert shape(answer) == golden(name)
    TypeAdapter(published).validate_json(json.dumps(answer), strict=True)


def test_chats_and_completions(daemon: Daemon) -> None:
    check("chat", daemon.post(CHAT, {"model": "able", "messages": ASKED}).json, ChatCompletion)
    called = [{"role": "user", "content": CALL}]
    check("chat_call", daemon.post(CHAT, {"model": "able", "messages": called, "tools": [TOOL]}).json, ChatCompletion)
    check("completion", daemon.post("/v1/completions", {"model": "able", "prompt": "one two"}).json, Completion)


def test_a_stream_of_a_chat(daemon: Daemon) -> None:
    body = {"model": "able", "messages": ASKED, "stream": True, "stream_options": {"include_usage": True}}
    events = daemon.post(CHAT, body).events
    first, text, *_, finish, usage = events
    assert [shape(each) for each in (first, text, finish, usage)] == golden("chat_stream")
    for event in events:
        TypeAdapter(ChatCompletionChunk).validate_json(json.dumps(event), strict=True)


def test_responses(daemon: Daemon) -> None:
    check("response", daemon.post("/v1/responses", {"model": "able", "input": "one two"}).json, Response)


def test_a_stream_of_a_response(daemon: Daemon) -> None:
    raw = daemon.post("/v1/responses", {"model": "able", "input": "one two", "stream": True}).body.decode()
    found: dict[str, Any] = {}
    for part in raw.strip().split("\n\n"):
        name, data = part.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert event["type"] == name.removeprefix("event: ")
        TypeAdapter(ResponseStreamEvent).validate_json(json.dumps(event), strict=True)
        found.setdefault(event["type"], shape(event))
    assert list(found) == list(golden("response_stream"))  # their order, too
    assert found == golden("response_stream")


def test_models_and_embeddings(daemon: Daemon) -> None:
    listed = daemon.get("/v1/models").json
    assert shape(listed) == golden("models")
    TypeAdapter(Model).validate_json(json.dumps(listed["data"][0]), strict=True)
    vectors = daemon.post("/v1/embeddings", {"model": "able", "input": "one", "encoding_format": "float"}).json
    check("embeddings", vectors, CreateEmbeddingResponse)


def test_files_and_batches(daemon: Daemon) -> None:
    row = {"custom_id": "1", "method": "POST", "url": CHAT, "body": {"model": "able", "messages": ASKED}}
    form = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\n'
    form += b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + json.dumps(row).encode()
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    file = daemon.ask("POST", "/v1/files", form + b"\r\n--x--\r\n", headers).json
    check("file", file, FileObject)
    assert shape(daemon.get("/v1/files").json) == golden("files")
    body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h", "metadata": {"a": "b"}}
    check("batch", daemon.post("/v1/batches", body).json, Batch)


def test_errors(daemon: Daemon) -> None:
    for path, body in ((CHAT, {"messages": []}), ("/v1/responses", {"input": 5}), ("/v1/embeddings", {})):
        assert shape(daemon.post(path, {"model": "able"} | body).json) == golden("error")
