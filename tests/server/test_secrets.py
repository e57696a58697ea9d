"""Secrets that users give to lm stay in no log, no list of processes, no environment of a child, no crash's output."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil

from server.config import Config
from server.keys.file import change_keys, key_file
from server.keys.record import new_key
from tests.daemon import Daemon, put_model, wait_until


def test_twenty_secrets_leave_no_trace(tmp_path: Path) -> None:
    """Keys, tokens, passwords in URLs and questions go in by every door; then everything that stays is searched."""
    put_model(tmp_path, "tiny")
    keys = [new_key(role) for role in ("infer", "operator", "admin")]
    change_keys(key_file(Config(home=tmp_path)), lambda _: [key for _, key in keys])
    marks = {name: f"planted{number:02}secret" for number, name in enumerate("abcdefghijklmnop")}
    env = {
        "LM_API_KEY": f"{marks['a']}-long-enough",
        "HF_TOKEN": f"hf_{marks['b']}",
        "REGISTRY_PASSWORD": marks["c"],
        "AWS_SECRET_ACCESS_KEY": marks["d"],
        "DATABASE_URL": f"postgres://user:{marks['e']}@db/x",
    }
    with Daemon(tmp_path, script={"tokens": [marks["f"]]}, env=env) as daemon:
        admin = {"Authorization": f"Bearer {keys[2][0]}"}
        chat = {"model": "tiny", "messages": [{"role": "user", "content": marks["g"]}]}
        for secret, _ in keys:
            assert daemon.ask("POST", "/api/chat", chat, {"Authorization": f"Bearer {secret}"}).status == 200
        generate = {"model": "tiny", "prompt": marks["h"], "system": marks["i"]}
        assert daemon.ask("POST", "/api/generate", generate, admin).status == 200
        daemon.ask("POST", "/api/embed", {"model": "tiny", "input": marks["j"]}, admin)
        daemon.ask("POST", "/api/chat", chat, {"Authorization": f"Bearer {marks['k']}"})
        daemon.ask("POST", "/api/chat", {"model": keys[0][0], "messages": []}, admin)
        daemon.ask("GET", f"/v1/models/{keys[1][0]}", None, admin)
        pull = {"model": f"http://127.0.0.1:1/x.gguf?token={marks['l']}", "stream": False}
        daemon.ask("POST", "/api/pull", pull, admin)
        login = {"registry": "127.0.0.1:1", "username": "me", "password": marks["m"]}
        daemon.ask("POST", "/lm/login", login, admin)
        hub = {"model": "hf.co/a/b", "hf_endpoint": "http://127.0.0.1:1", "hf_token": marks["n"], "stream": False}
        daemon.ask("POST", "/api/pull", hub, admin)
        daemon.ask("POST", "/api/chat", {"model": "tiny", "messages": marks["o"]}, admin)
        daemon.ask("POST", "/api/generate", {"model": "tiny", "prompt": [marks["p"]]}, admin)
        seen = {}
        for child in daemon.children():
            try:
                seen[f"process {child.pid}"] = " ".join([*child.cmdline(), *child.environ().values()])
            except psutil.Error:
                continue
        seen["daemon"] = " ".join(psutil.Process(daemon.pid).cmdline())
        assert len(seen) > 1
        # A worker dies as by an assertion of llama.cpp, then the daemon itself.
        (worker,) = [row["pid"] for row in daemon.ask("GET", "/api/ps", None, admin).json["models"]]
        os.kill(worker, signal.SIGABRT)
        wait_until(lambda: not psutil.pid_exists(worker), 10)
        assert daemon.ask("POST", "/api/chat", chat, admin).status == 200
        os.kill(daemon.pid, signal.SIGABRT)
        daemon.ended()
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "script.json"]
    seen |= {str(path): path.read_text(errors="replace") for path in files}
    names = {path.name for path in files}
    assert names >= {"audit.jsonl", "stderr", "daemon.log"} and not any(name.startswith("core") for name in names)
    planted = [*marks.values(), *(secret for secret, _ in keys), json.loads(json.dumps(env["LM_API_KEY"]))]
    assert len(planted) == 20
    hits = [(name, secret) for name, text in seen.items() for secret in planted if secret in text]
    assert hits == []
