"""Finding, starting and ending the daemon."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from cli import daemon
from registry.store import owner
from server.config import VERSION, Config
from tests.cli.support import Cli
from tests.daemon import Daemon, put_model, wait_until


@contextmanager
def peer(version: dict[str, str]) -> Iterator[str]:
    """Another program's HTTP server, which answers everything with `version`; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(version).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def lm(tmp_path: Path) -> Iterator[Cli]:
    cli = Cli.at(tmp_path / "home")
    try:
        yield cli
    finally:
        assert cli("stop", "--daemon").code == 0


def daemon_of(home: Path) -> dict[str, object]:
    told = json.loads((home / "daemon.json").read_bytes())
    assert isinstance(told, dict)
    return told


def test_a_command_starts_the_daemon_and_leaves_it_running(lm: Cli, tmp_path: Path) -> None:
    assert (lm("list").code, lm("ps").code) == (0, 0)
    process = psutil.Process(int(str(daemon_of(tmp_path / "home")["pid"])))
    assert process.cmdline()[1:4] == ["-P", "-m", "server"]
    assert psutil.Process().pid not in [parent.pid for parent in process.parents()]
    assert (tmp_path / "home").stat().st_mode & 0o077 == 0
    assert "is ready" in lm("logs").out


def test_two_commands_at_once_start_one_daemon(lm: Cli, tmp_path: Path) -> None:
    for process in [lm.popen("list") for _ in range(4)]:
        process.communicate()
        assert process.returncode == 0
    assert lm("logs").out.count("is ready") == 1


def test_stop_daemon_waits_for_its_end(lm: Cli, tmp_path: Path) -> None:
    lm("list")
    pid = int(str(daemon_of(tmp_path / "home")["pid"]))
    done = lm("stop", "--daemon")
    assert (done.code, done.out, done.err) == (0, "", "the daemon has ended\n")
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert not (tmp_path / "home" / "daemon.json").exists()
    assert lm("list").code == 0  # home and port are free at once


@pytest.mark.parametrize(
    ("arguments", "code"), [(["stop", "--daemon"], 0), (["stop", "tiny"], 4), (["logs"], 1), (["completion", "zsh"], 0)]
)
def test_what_only_looks_starts_no_daemon(tmp_path: Path, arguments: list[str], code: int) -> None:
    assert Cli.at(tmp_path)(*arguments).code == code
    assert not (tmp_path / "daemon.json").exists()


def test_why_it_cannot_start_is_told_in_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").write_text('{"format": 99}')
    done = Cli.at(tmp_path)("list")
    assert done.code == 4
    assert done.err.startswith("Error: the daemon cannot start: ") and "newer version (99)" in done.err
    assert "\nhint: " in done.err


def test_a_home_that_cannot_be_made() -> None:
    done = Cli.at(Path("/dev/null/home"))("list")
    assert done.code == 1
    assert (
        done.err
        == "Error: `/dev/null/home` cannot be used: Not a directory\nhint: set LM_HOME to a folder of your own\n"
    )


def test_a_setting_that_cannot_be_used(tmp_path: Path) -> None:
    done = Cli.at(tmp_path, LM_CONTEXT="much")("list")
    assert done.code == 2
    assert "`LM_CONTEXT`" in done.err


def test_a_port_of_somebody_else_is_named(tmp_path: Path) -> None:
    with peer({"version": "0.15.2"}) as address:
        done = Cli.at(tmp_path, address)("list")
        assert done.code == 4
        assert f"{address} is taken by Ollama 0.15.2" in done.err
        found = re.search(r"hint: port (\d+) is free: set LM_PORT=\1 for all commands", done.err)
        assert found, done.err
        socket.create_server(("127.0.0.1", int(found[1]))).close()
        ended = Cli.at(tmp_path, address)("stop", "--daemon")
        assert (ended.code, ended.err) == (0, "no daemon is running\n")


@pytest.mark.parametrize(("version", "age"), [("0.0.9", "older"), ("99.0.0", "newer")])
def test_a_daemon_of_another_version_is_named(tmp_path: Path, version: str, age: str) -> None:
    with peer({"version": "0.14.0", "lm": version}) as address:
        done = Cli.at(tmp_path, address)("list")
        assert done.code == 4
        assert f"is lm {version}, {age} than this lm" in done.err and "`lm stop --daemon`" in done.err


def test_the_daemon_of_this_home_is_found_on_any_port(tmp_path: Path) -> None:
    with Daemon(tmp_path):
        assert Cli.at(tmp_path)("list").code == 0
    assert "Daemon" not in Cli.at(tmp_path)("stop", "--daemon").err


def test_a_daemon_of_another_home_is_named(tmp_path: Path) -> None:
    with Daemon(tmp_path / "one") as daemon:
        for arguments in (["list"], ["stop", "--daemon"]):
            done = Cli.at(tmp_path / "two", f"127.0.0.1:{daemon.port}")(*arguments)
            assert done.code == 4 and f"has another home than `{tmp_path / 'two'}`" in done.err
            assert "LM_PORT" in done.err
        without = Cli({key: value for key, value in Cli.at(tmp_path, daemon.url).env.items() if key != "LM_HOME"})
        assert without("list").code == 0
        assert Cli.at(tmp_path / "one", daemon.url)("list").code == 0


def test_a_stale_note_of_the_daemon_does_no_harm(lm: Cli, tmp_path: Path) -> None:
    with Daemon(tmp_path / "home") as daemon:
        daemon.kill()
        assert (tmp_path / "home" / "daemon.json").exists()
    assert lm("list").code == 0


def test_the_key_is_sent(tmp_path: Path) -> None:
    with Daemon(tmp_path, env={"LM_API_KEY": "secret"}):
        assert Cli.at(tmp_path, LM_API_KEY="secret")("list").code == 0
        done = Cli.at(tmp_path, LM_API_KEY="wrong")("list")
        assert done.code == 1
        assert "API key" in done.err


def test_no_daemon_is_started_for_another_machine(tmp_path: Path) -> None:
    done = Cli.at(tmp_path, "no-such-machine.invalid:11434")("list")
    assert done.code == 4
    assert "no-such-machine.invalid:11434" in done.err
    assert not (tmp_path / "daemon.json").exists()


def test_serve_is_the_daemon_in_the_foreground(lm: Cli, tmp_path: Path) -> None:
    process = lm.popen("serve", "--runtime", "fake")
    wait_until((tmp_path / "home" / "daemon.json").exists, 20)
    assert daemon_of(tmp_path / "home")["pid"] == process.pid
    assert lm("stop", "--daemon").code == 0
    err = process.communicate(timeout=10)[1]
    assert process.returncode == 0
    assert b"is ready" in err and b"Traceback" not in err


def test_a_daemon_file_that_cannot_be_read_is_not_taken_for_no_daemon(tmp_path: Path) -> None:
    (tmp_path / "daemon.json").symlink_to("daemon.json")
    done = Cli.at(tmp_path)("stop", "--daemon")
    assert done.code != 0
    assert "daemon.json" in done.err
    assert "no daemon is running" not in done.err


def test_a_setting_that_the_running_daemon_does_not_have_is_said(tmp_path: Path) -> None:
    put_model(tmp_path)
    with Daemon(tmp_path, env={"LM_CONTEXT": "4096"}):
        for setting in ({}, {"LM_CONTEXT": "4096"}, {"LM_KEEP_ALIVE": "300"}):
            assert Cli.at(tmp_path, **setting)("run", "tiny", "hi").err == ""
        done = Cli.at(tmp_path, LM_CONTEXT="2048", OLLAMA_KEEP_ALIVE="-1")("run", "tiny", "hi")
        context, stay = done.err.splitlines()
        assert context.startswith(
            "note: `LM_CONTEXT` says 2048, and the daemon runs with 4096; after `lm stop --daemon`"
        )
        assert stay.startswith("note: `OLLAMA_KEEP_ALIVE` says for ever, and the daemon runs with 300;")
        (tmp_path / "config.toml").write_text("max_models = 2")
        assert "`max_models` in `config.toml` says 2, and the daemon runs with 4" in Cli.at(tmp_path)("fit", "demo").err


def test_the_doctor_looks_where_the_commands_look(tmp_path: Path) -> None:
    def finding(lm: Cli) -> tuple[str, str]:
        found = {each["check"]: each for each in json.loads(lm("doctor", "--json").out)}["daemon"]
        return found["state"], found["found"]

    with Daemon(tmp_path / "home") as daemon:
        assert finding(Cli.at(tmp_path / "home"))[1].startswith(f"lm 0.1.0 on {daemon.url}")
        assert finding(Cli.at(tmp_path / "home", "127.0.0.1:1")) == ("ok", "does not run; any command starts it")
        state, found = finding(Cli.at(tmp_path / "other", f"127.0.0.1:{daemon.port}"))
        assert state == "fail" and f"{daemon.url} is taken by lm 0.1.0, process {daemon.pid}" in found


def test_a_daemon_that_has_begun_and_does_not_listen_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([None, None, None, ("http://127.0.0.1:1", VERSION)])
    monkeypatch.setattr(daemon, "running_daemon", lambda config: next(looks))
    (tmp_path / "store").mkdir(mode=0o700)
    lock = owner.take(tmp_path / "store")
    try:
        assert daemon.find(Config(home=tmp_path, port=0), start=True) == "http://127.0.0.1:1"
    finally:
        os.close(lock)
    assert next(looks, "all were taken") == "all were taken"
