"""`lm run --batch`: many questions from a file, answers in their order, errors on their lines, nothing asked twice."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import Cli, Terminal
from tests.daemon import Daemon, put_model, wait_until

WEATHER = {"name": "weather", "description": "The weather", "input_schema": {"type": "object", "properties": {}}}
ENDLESS = {"tokens": ["word"] * 100_000, "delay": 0.01}
SHORT = {"prompt": "short", "options": {"num_predict": 1}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
CALLED = {"name": "weather", "arguments": {"city": "Oslo"}}


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    home = tmp_path_factory.mktemp("batch")
    put_model(home, "tiny", capabilities=("completion", "tools"))
    put_model(home, "vectors", capabilities=("embedding",))
    with Daemon(home, script={"echo": True}) as daemon:
        yield Cli.at(home, f"127.0.0.1:{daemon.port}")


def lines(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def read(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_answers_come_in_order_and_errors_stand_on_their_lines(echo: Cli, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(
        lines(
            {"id": "a", "prompt": "one two"},
            "three",
            b"",
            b"{nonsense",
            {"id": 5, "messages": [{"role": "user", "content": "four"}], "options": {"temperature": 0}},
            {"prompt": "warm", "options": {"temperature": "hot"}},
            {"promt": "typo"},
            {"prompt": "cut here", "options": {"num_predict": 1}},
        )
    )
    done = echo("run", "tiny", "--batch", str(source))
    rows = read(done.out)
    assert [row["line"] for row in rows] == [1, 2, 4, 5, 6, 7, 8]
    assert [row.get("response") for row in rows] == ["one two", "three", None, "four", None, None, "cut"]
    assert [row.get("id") for row in rows] == ["a", None, None, 5, None, None, None]
    assert [row["code"] for row in rows if "error" in row] == ["bad_body", "bad_request", "bad_body"]
    assert "`temperature`" in rows[4]["error"] and rows[6]["done_reason"] == "length" and rows[0]["eval_count"] == 2
    assert done.code == 1 and done.err.splitlines()[-1] == "4 answers, 3 errors"


def test_a_batch_from_a_pipe_and_vectors(echo: Cli) -> None:
    done = echo("run", "tiny", "--batch", "-", stdin=lines(*(f"n{number}" for number in range(100))))
    assert [row["response"] for row in read(done.out)] == [f"n{number}" for number in range(100)] and done.code == 0
    (row,) = read(echo("run", "vectors", "--batch", "-", stdin=lines("words")).out)
    assert len(row["embedding"]) == 8


def test_a_batch_goes_on_where_it_was(echo: Cli, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(lines("one", "two", b"{broken", "four"))
    arguments = ("run", "tiny", "--batch", str(source), "--out", str(out))
    assert echo(*arguments).code == 1
    first = out.read_text()
    torn = first.splitlines(keepends=True)
    out.write_text(torn[0].replace('"one"', '"kept"') + torn[2] + torn[1][:20])  # another order, and the last is torn
    source.write_bytes(lines("one", "two", "three", "four"))
    done = echo(*arguments)
    assert (done.code, done.out) == (0, "")
    assert [row["response"] for row in read(out.read_text())] == ["kept", "two", "three", "four"]
    assert done.err.splitlines()[-1] == "3 answers, 0 errors, 1 were there"
    source.write_bytes(lines("another", "two"))  # a changed line is asked again, a line that is gone leaves
    assert echo(*arguments).code == 0
    assert [row["response"] for row in read(out.read_text())] == ["another", "two"]


def test_a_file_of_something_else_is_left_alone(echo: Cli, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(lines({"prompt": "one"}))
    done = echo("run", "tiny", "--batch", str(source), "--out", str(source))
    assert done.code == 2 and "holds other lines than answers of a batch" in done.err
    assert source.read_bytes() == lines({"prompt": "one"})
    assert echo("run", "tiny", "--batch", str(tmp_path / "no")).code == 2
    assert echo("run", "tiny", "words", "--batch", str(source)).code == 2
    assert echo("run", "tiny", "words", "--out", str(source)).code == 2


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    put_model(tmp_path)
    out = tmp_path / "out.jsonl"
    with Daemon(tmp_path, script=ENDLESS) as daemon:
        lm = Cli.at(tmp_path, f"127.0.0.1:{daemon.port}")
        source = lines(SHORT, SHORT, "long")
        process = lm.popen("run", "tiny", "--batch", "-", "--out", str(out), stdin=subprocess.PIPE)
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(source)
        process.stdin.flush()
        wait_until(lambda: out.exists() and out.read_bytes().count(b"\n") == 2, 10)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read().decode()
        process.stdin.close()
        assert process.wait(20) == 130
        process.stderr.close()
        process.stdout.close()
        assert "2 answers are kept; the same command goes on with it" in err
        wait_until(lambda: "generate gone" in daemon.log, 10)
    assert [row["response"] for row in read(out.read_text())] == ["word", "word"]


def test_a_daemon_that_dies_ends_a_batch_and_not_its_lines(tmp_path: Path) -> None:
    put_model(tmp_path)
    with Daemon(tmp_path, script=ENDLESS) as daemon:
        lm = Cli.at(tmp_path, f"127.0.0.1:{daemon.port}")
        process = lm.popen("run", "tiny", "--batch", "-", "--parallel", "2", stdin=subprocess.PIPE)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(lines(SHORT, "long"))
        process.stdin.close()
        process.stdin = None
        assert json.loads(process.stdout.readline())["response"] == "word"
        daemon.kill()
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (4, b"") and b"the daemon ended before it had answered" in err


@pytest.mark.parametrize("form", ["function", "list", "object"])
def test_calls_of_tools_are_printed(echo: Cli, tmp_path: Path, form: str) -> None:
    path = tmp_path / "tools.json"
    wrapped = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    path.write_text(json.dumps({"function": WEATHER, "list": [wrapped], "object": {"tools": [WEATHER]}}[form]))
    done = echo("run", "tiny", "--tools", str(path), f"Looking.{CALL}")
    assert done.code == 0, done.err
    first, call = done.out.splitlines()
    assert (first, json.loads(call)) == ("Looking.", CALLED)
    (row,) = read(echo("run", "tiny", "--tools", str(path), "--batch", "-", stdin=lines(CALL)).out)
    assert row["tool_calls"][0]["function"].items() >= CALLED.items()


@pytest.mark.parametrize("content", ["[]", "{}", "[1]", '"x"', "{", '[{"description": "no name"}]'])
def test_a_file_without_tools_is_refused(echo: Cli, tmp_path: Path, content: str) -> None:
    path = tmp_path / "tools.json"
    path.write_text(content)
    done = echo("run", "tiny", "--tools", str(path), "hi")
    assert (done.code, done.out) == (2, "") and f"`{path}`" in done.err and "hint: " in done.err


def test_tools_and_schemas_in_a_chat(echo: Cli, tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(json.dumps(WEATHER))
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"a": {"type": "integer"}}}')
    prompt = "Send a message (/? for help)"
    with Terminal(echo, "run", "tiny", "--nowordwrap", "--tools", str(tmp_path / "tools.json")) as terminal:
        for typed, shown in (
            (CALL, '{"name": "weather", "arguments": {"city": "Oslo"}}\n'),
            ("and then?", "and then?\n"),  # the call is a part of the conversation that the engine takes
            (f"/set format {schema}", "answers are as the schema in"),
            ("/set format nothing.json", "`nothing.json` cannot be read"),
        ):
            terminal.wait_for(prompt)
            terminal.type(f"{typed}\r")
            terminal.wait_for(shown)
        terminal.wait_for(prompt)
        terminal.type("/load ti\t")
        terminal.wait_for("/load tiny:F32")
        terminal.type("\r")
        terminal.wait_for("the conversation begins anew")
