"""OpenAI's files and batches with its own package, on the scripted engine: a model answers with the last message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from server.keys.file import change_keys
from server.keys.record import Allowance, new_key
from tests.daemon import Daemon, put_model, wait_until

ENDED = ("completed", "failed", "cancelled", "expired")
CHAT = "/v1/chat/completions"
SLOW = {"tokens": ["a"] * 100_000, "delay": 0.005}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("batches")
    put_model(home, capabilities=("completion", "embedding"))
    with Daemon(home, script={"echo": True}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[openai.OpenAI]:
    with connected(daemon) as client:
        yield client


def connected(daemon: Daemon, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{daemon.url}/v1", api_key=key, max_retries=0)


def row(number: int, body: dict[str, Any], url: str = CHAT) -> dict[str, Any]:
    return {"custom_id": f"r{number}", "method": "POST", "url": url, "body": {"model": "tiny"} | body}


def chat(number: int, text: str = "", **more: Any) -> dict[str, Any]:
    return row(number, {"messages": [{"role": "user", "content": text or f"word {number}"}]} | more)


def begin(client: openai.OpenAI, rows: list[Any], endpoint: Any = CHAT) -> Any:
    data = b"".join(each if isinstance(each, bytes) else json.dumps(each).encode() + b"\n" for each in rows)
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"a": "b"})


def ended(client: openai.OpenAI, batch: Any, seconds: float = 20) -> Any:
    wait_until(lambda: client.batches.retrieve(batch.id).status in ENDED, seconds, 0.05)
    return client.batches.retrieve(batch.id)


def rows_of(client: openai.OpenAI, file: str | None) -> dict[str, Any]:
    assert file
    lines = client.files.content(file).text.splitlines()
    found = {line["custom_id"]: line for line in map(json.loads, lines)}
    assert len(found) == len(lines)
    return found


def test_a_file_is_kept_listed_and_deleted(client: openai.OpenAI) -> None:
    data = json.dumps(chat(1)).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    assert (file.filename, file.bytes, file.purpose, file.status) == ("in.jsonl", len(data), "batch", "processed")
    assert client.files.retrieve(file.id) == file
    assert file.id in [each.id for each in client.files.list(purpose="batch")]
    assert client.files.content(file.id).content == data
    assert client.files.delete(file.id).deleted
    for call in (client.files.retrieve, client.files.delete, client.files.content):
        with pytest.raises(openai.NotFoundError):
            call(file.id)


@pytest.mark.parametrize(
    ("endpoint", "bodies"),
    [
        (CHAT, [{"messages": [{"role": "user", "content": "one two"}]}] * 6),
        ("/v1/completions", [{"prompt": "one two"}]),
        ("/v1/embeddings", [{"input": "one two"}]),
        ("/v1/responses", [{"input": "one two"}]),
    ],
)
def test_every_route_has_batches(client: openai.OpenAI, endpoint: Any, bodies: list[dict[str, Any]]) -> None:
    batch = ended(client, begin(client, [row(n, body, endpoint) for n, body in enumerate(bodies)], endpoint))
    assert (batch.status, batch.endpoint, batch.metadata) == ("completed", endpoint, {"a": "b"})
    assert (batch.request_counts.total, batch.request_counts.completed) == (len(bodies), len(bodies))
    assert batch.error_file_id is None
    assert batch.usage.input_tokens == 2 * len(bodies)
    results = rows_of(client, batch.output_file_id)
    assert set(results) == {f"r{n}" for n in range(len(bodies))}
    for line in results.values():
        assert line["error"] is None and line["response"]["status_code"] == 200
        assert "one two" in json.dumps(line["response"]["body"]) or "embedding" in json.dumps(line)
    assert batch.id in [each.id for each in client.batches.list()]


def test_refused_requests_stand_in_the_error_file(client: openai.OpenAI) -> None:
    batch = ended(client, begin(client, [chat(1), chat(2, temperature=-1)]))
    assert (batch.status, batch.request_counts.failed) == ("completed", 1)
    assert set(rows_of(client, batch.output_file_id)) == {"r1"}
    failed = rows_of(client, batch.error_file_id)["r2"]["response"]
    assert (failed["status_code"], failed["body"]["error"]["param"]) == (400, "temperature")


@pytest.mark.parametrize(
    ("rows", "code", "line"),
    [
        ([], "empty_file", None),
        ([chat(1), b"no json\n"], "invalid_json_line", 2),
        ([chat(1), chat(1)], "duplicate_custom_id", 2),
        ([row(1, {}, "/v1/embeddings")], "mismatched_endpoint", 1),
        ([chat(1, stream=True)], "invalid_request", 1),
        ([b"\xff\xfe\n"], "invalid_json_line", 1),
        ([{"custom_id": "", "url": CHAT, "body": {}}], "invalid_custom_id", 1),
    ],
)
def test_an_input_that_is_none_fails_with_its_lines(
    client: openai.OpenAI, rows: list[Any], code: str, line: int | None
) -> None:
    batch = ended(client, begin(client, rows))
    assert batch.status == "failed"
    assert batch.errors and batch.errors.data
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == (code, line)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"metadata": {"a": 1}}, "metadata"),
    ],
)
def test_a_batch_that_cannot_be(daemon: Daemon, client: openai.OpenAI, change: dict[str, Any], param: str) -> None:
    file = client.files.create(file=("in.jsonl", b"x"), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"} | change
    answer = daemon.post("/v1/batches", body)
    assert (answer.status, answer.json["error"]["param"]) == (404 if param == "input_file_id" else 400, param)


def test_uploads_that_cannot_be(daemon: Daemon, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("a", b"x"), purpose="fine-tune")
    assert caught.value.param == "purpose"
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for headers, data in (
        ({}, b"{}"),
        ({"Content-Type": "multipart/form-data"}, b"x"),
        (form, b""),
        (form, b"--x\r\nbroken"),
        (form, b"--y\r\n\r\nx\r\n--y--\r\n"),
        (form, b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n'),
        (form, b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nbatch\r\n--x--\r\n'),
    ):
        assert daemon.ask("POST", "/v1/files", data, headers).status == 400, data
    folders = {path.name for path in (daemon.home / "files").iterdir()}
    assert folders == {file.id for file in client.files.list()}  # nothing is left of them
    large = daemon.ask("POST", "/v1/files", b"x", form | {"Content-Length": str(300 << 20)})
    assert large.status == 413


def test_a_batch_outlives_a_daemon_that_is_killed(tmp_path: Path) -> None:
    put_model(tmp_path)
    daemon = Daemon(tmp_path, script={"echo": True, "delay": 0.02})
    with connected(daemon) as client:
        batch = begin(client, [chat(n) for n in range(30)])
        wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 3, 20)
    daemon.kill()
    folders = [path.parent for path in (tmp_path / "files").rglob("content")]
    (folder,) = (folder for folder in folders if not (folder / "file.json").exists())
    before = (folder / "content").read_bytes()
    with (folder / "content").open("ab") as file:
        file.write(b'{"id": "batch_req_torn", "custom_id": "r2')  # a crash in the middle of a line
    with Daemon(tmp_path, script={"echo": True}) as daemon, connected(daemon) as client:
        done = ended(client, batch)
        assert (done.status, done.request_counts.completed) == ("completed", 30)
        results = rows_of(client, done.output_file_id)
        assert set(results) == {f"r{n}" for n in range(30)}
        assert client.files.content(done.output_file_id).content.startswith(before)
        assert done.usage.output_tokens == 60


def test_a_batch_waits_while_somebody_asks(tmp_path: Path) -> None:
    put_model(tmp_path)
    with Daemon(tmp_path, script=SLOW) as daemon, connected(daemon) as client:
        asked = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}
        with daemon.opened("POST", CHAT, asked) as stream:
            stream.readline()
            batch = begin(client, [chat(1, max_tokens=1)])
            wait_until(lambda: client.batches.retrieve(batch.id).status == "in_progress", 10)
            # Its turn comes every 0.2 s: many of them pass while the stream goes on.
            for _ in range(200):
                assert stream.readline()
            assert client.batches.retrieve(batch.id).request_counts.completed == 0
        assert ended(client, batch).request_counts.completed == 1


def test_a_batch_is_cancelled_and_its_results_stay(tmp_path: Path) -> None:
    put_model(tmp_path)
    with Daemon(tmp_path, script=SLOW) as daemon, connected(daemon) as client:
        batch = begin(client, [chat(1, max_tokens=1), *(chat(n) for n in range(2, 9))])
        wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed == 1, 20)
        with pytest.raises(openai.ConflictError):
            client.files.delete(batch.input_file_id)
        assert client.batches.cancel(batch.id).status == "cancelling"
        done = ended(client, batch)
        assert done.status == "cancelled"
        assert set(rows_of(client, done.output_file_id)) == {"r1"}
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(batch.id)


def test_files_and_batches_belong_to_a_key_whose_limits_hold(tmp_path: Path) -> None:
    put_model(tmp_path)
    put_model(tmp_path, "other")
    mine, record = new_key("infer", models=("tiny",), rate=Allowance(1000, 1))
    others, second = new_key("admin")
    change_keys(tmp_path / "keys.json", lambda _: [record, second])
    with Daemon(tmp_path, script={"echo": True}) as daemon:
        with connected(daemon, mine) as client, connected(daemon, others) as stranger:
            batch = ended(client, begin(client, [chat(1), chat(2, model="other")]))
            assert batch.request_counts.completed == 1
            failed = rows_of(client, batch.error_file_id)["r2"]["response"]
            assert failed["status_code"] == 404  # for this key there is no such model
            assert list(stranger.files.list()) == [] and list(stranger.batches.list()) == []
            for call in (stranger.batches.retrieve, stranger.batches.cancel):
                with pytest.raises(openai.NotFoundError):
                    call(batch.id)
            for name in (batch.input_file_id, batch.output_file_id):
                for ask in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
                    with pytest.raises(openai.NotFoundError):
                        ask(name)
            with pytest.raises(openai.NotFoundError):
                stranger.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h")
        assert "word 1" not in daemon.log
