"""Offline: no command and no process of lm connects to another machine, and what needs none works without a network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli.main import COMMANDS
from registry.errors import Offline
from registry.net.address import HttpAddress
from registry.net.dialing import Sockets, dial
from registry.net.network import Network
from registry.store.store import Store
from server.config import Config
from server.doctor.bounds import bounds
from server.telemetry.ring import Ring
from server.values import on_this_machine
from tests.cli.support import LM, Cli
from tests.daemon import Daemon, environment, put_model
from tests.storing import put, put_better

OFFLINE = Network(offline=True)
# Runs in a namespace without a network: the daemon on a Unix socket, then each command of a list, and prints what each
# one left behind.
RUN = """
import json, subprocess, sys, time
program, server, commands = json.loads(sys.argv[1])
receiver, sender = __import__("os").pipe()
daemon = subprocess.Popen([*server, "--ready-fd", str(sender)], pass_fds=(sender,), stdin=subprocess.DEVNULL)
__import__("os").close(sender)
assert open(receiver).readline() == "ready\\n"
rows = {}
for name, (arguments, given) in commands.items():
    done = subprocess.run([program, *arguments], input=given, capture_output=True, text=True)
    rows[name] = [done.returncode, done.stdout, done.stderr]
daemon.wait(60)
print(json.dumps(rows))
"""
# What needs another machine.
OUTWARD = {
    "pull": ["pull", "org/repo"],
    "run": ["run", "nothing-here", "Hello"],
    "search": ["search", "qwen"],
    "fit": ["fit", "org/repo"],
    "push": ["push", "tiny", "registry.example/ns/tiny"],
    "sync": ["sync", "registry.example/ns/list"],
    "login": ["login", "registry.example", "-u", "me", "--password-stdin"],
    "url": ["pull", "https://files.example/x.gguf"],
    "ollama": ["pull", "llama3.2"],
    "audit": ["audit", "push", "https://collector.example/lines"],
    "quality": ["quality", "tiny", "--against", "org/repo"],
    "compare": ["compare", "tiny", "other", "--against", "org/repo"],
    "improve": ["improve", "org/far"],
    "quantize": ["quantize", "org/kept", "--level", "Q4_K_M", "--effort", "quick"],
    "metrics": ["metrics", "push", "https://collector.example/v1/metrics"],
}
# What needs none, in this order; the first word of each is a command.
INWARD = {
    "key": ["key", "list"],
    "config": ["config", "list"],
    "doctor": ["doctor"],
    "audit": ["audit", "verify"],
    "report": ["report"],
    "bom": ["bom"],
    "list": ["list"],
    "show": ["show", "tiny"],
    "load": ["load", "tiny"],
    "ps": ["ps"],
    "run": ["run", "tiny", "Hello"],
    "bench": ["bench", "tiny", "--prompt", "8", "--gen", "2"],
    "default": ["default", "tiny"],
    "cp": ["cp", "tiny", "second"],
    "create": ["create", "third", "-f", "-"],
    "verify": ["verify", "tiny"],
    "sign": ["sign", "tiny", "--key", "acme.key"],
    "export": ["export", "tiny", "-o", "out.tar"],
    "import": ["import", "out.tar"],
    "unload": ["unload", "tiny"],
    "rm": ["rm", "second"],
    "du": ["du"],
    "rollback": ["rollback", "org/better"],
    "jobs": ["jobs"],
    "prune": ["prune", "--yes"],
    "logout": ["logout", "registry.example"],
    "completion": ["completion", "bash"],
    "logs": ["logs"],
    "service": ["service", "--print", "--system"],
    "stop": ["stop", "--daemon"],
}
# `serve` is the daemon of the test itself; `launch` wants an address that another program can ask, and here is none;
# `tune` and `compress` are `fit`, `quantize`, `bench` and `quality`, and want a real model.
SELF = {"serve", "launch", "tune", "compress"}
INPUT = {"create": "FROM tiny\nPARAMETER temperature 0.5\n", "login": "secret\n"}


def write_key(path: Path) -> None:
    """A private key to sign with; skips where the extra `signing` is not installed."""
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    form, locked = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key = ec.generate_private_key(ec.SECP256R1())
    path.touch(0o600)
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, locked))


def namespace() -> list[str]:
    """The words before a command that runs without a network interface; skips where that is not allowed."""
    words = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
    if shutil.which("unshare") is None or subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("this system does not allow a network namespace")
    return words


@pytest.mark.parametrize("host", ["hub.example", "192.0.2.7", "10.0.0.2", "169.254.169.254", "localhost.example"])
def test_no_other_machine_is_asked(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    for proxies in ({}, {"all": "http://127.0.0.1:1"}):
        with pytest.raises(Offline, match=re.escape(f"`offline` is set, so `{host}` is not asked")):
            dial(replace(OFFLINE, proxies=proxies), Sockets(), HttpAddress.parse(f"https://{host}/x"), public=False)


def test_a_name_of_this_machine_that_leads_elsewhere_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("192.0.2.7", 80))])
    with pytest.raises(Offline):
        dial(OFFLINE, Sockets(), HttpAddress.parse("http://localhost/x"), public=False)


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("unix:/x", True), ("192.0.2.7", False), ("box", False)],
)
def test_what_counts_as_this_machine(host: str, here: bool) -> None:
    assert on_this_machine(host) == here


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("offline")
    put_model(home)
    with Daemon(home, script={}, env={"LM_OFFLINE": "1"}) as running:
        yield running


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/api/pull", {"model": "org/repo"}),
        ("/api/pull", {"model": "org/repo", "hf_endpoint": "https://other.example"}),
        ("/api/pull", {"model": "https://files.example/x.gguf"}),
        ("/api/pull", {"model": "registry.example/ns/model:tag"}),
        ("/lm/search", {"query": "qwen"}),
        ("/lm/login", {"registry": "registry.example", "username": "a", "password": "b"}),
    ],
)
def test_no_request_lifts_the_setting(daemon: Daemon, route: str, body: Any) -> None:
    answer = daemon.post(route, body)
    last = answer.lines[-1]
    assert last["code"] == "offline", answer.body
    assert "is not asked" in last["error"]


def test_the_setting_is_shown(daemon: Daemon, tmp_path: Path) -> None:
    assert daemon.get("/health").json["offline"] is True
    assert daemon.get("/api/version").json["offline"] is True
    findings = bounds(Config.load({"home": tmp_path}, {"LM_OFFLINE": "1"}))
    assert any(finding.check == "offline" and "this machine alone" in finding.found for finding in findings)


def test_a_command_that_is_to_be_offline_refuses_a_daemon_that_is_not(tmp_path: Path) -> None:
    with Daemon(tmp_path / "home", script={}) as daemon:
        lm = Cli.at(tmp_path / "home", f"127.0.0.1:{daemon.port}", LM_OFFLINE="1")
        refused = lm("list")
        assert refused.code == 4
        assert "the daemon runs without it" in refused.err
        assert lm("stop", "--daemon").code == 0


def test_a_daemon_of_another_machine_is_not_asked(tmp_path: Path) -> None:
    for command in (["list"], ["run", "tiny", "Hello"], ["stop", "--daemon"]):
        refused = Cli.at(tmp_path, "192.0.2.7:11434", LM_OFFLINE="1")(*command)
        assert refused.code == 4
        assert "`192.0.2.7` is not asked" in refused.err


def test_every_command_is_tried_without_a_network() -> None:
    tried = {words[0] for words in (*OUTWARD.values(), *INWARD.values())} | SELF
    assert tried == set(COMMANDS), "a new command belongs into one of the tables of this file"


@pytest.mark.slow
@pytest.mark.parametrize("traced", [False, True], ids=["plain", "traced"])
def test_every_command_without_a_network(tmp_path: Path, traced: bool) -> None:
    if traced and shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    home = tmp_path / "home"
    put_model(home)
    put_model(home, "other")
    with Store.open(home / "store") as store:
        notes = {"source": "org/kept", "level": "Q8_0", "content": "abc"}
        put(store, "org/kept:Q8_0", config={"model_format": "gguf", "file_type": "Q8_0", "lm": notes})
        put_better(store, put(store, "org/better:Q8_0", b"plain weights"))
        notes = {"source": "org/far", "level": "Q4_K_M", "content": "abc"}
        put(store, "org/far:Q4_K_M", config={"model_format": "gguf", "file_type": "Q4_K_M", "lm": notes})
    Ring(home / "metrics", 1 << 20).append(b"{}")
    write_key(tmp_path / "acme.key")
    script = tmp_path / "script.json"
    script.write_text("{}")
    commands = {f"out {name}": [words, INPUT.get(name, "")] for name, words in OUTWARD.items()}
    commands |= {f"in {name}": [words, INPUT.get(name, "")] for name, words in INWARD.items()}
    server = [sys.executable, "-P", "-m", "server", "--home", str(home), "--runtime", f"fake:{script}"]
    trace = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(tmp_path / "trace")]
    with tempfile.TemporaryDirectory(prefix="lm-") as short:  # the path of a socket has at most 100 letters
        env = {"LM_HOME": str(home), "LM_HOST": f"unix:{short}/lm.sock", "LM_OFFLINE": "1"}
        env |= {"LM_OLLAMA_REGISTRY": "https://registry.example"}
        done = subprocess.run(
            [*namespace(), *(trace if traced else []), sys.executable, "-c", RUN, json.dumps([LM, server, commands])],
            env=environment() | env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
    rows = json.loads(done.stdout)
    assert not {name: row for name, row in rows.items() if "Traceback" in row[1] + row[2]}
    assert not {name: row for name, row in rows.items() if name.startswith("in ") and row[0] != 0}
    refused = {name: row for name, row in rows.items() if name.startswith("out ")}
    assert not {name: row for name, row in refused.items() if row[0] != 1 or "`offline` is set" not in row[2]}
    if traced:
        lines = (tmp_path / "trace").read_text().splitlines()
        calls = [line for line in lines if "AF_INET" in line]
        assert any("AF_UNIX" in line for line in lines), "the trace saw nothing"
        assert [line for line in calls if '"127.' not in line and '"::1"' not in line] == []
