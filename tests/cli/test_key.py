"""`lm key` as a user runs it, with a daemon and without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.keys.record import is_secret
from tests.cli.support import Cli
from tests.daemon import Daemon, put_model, wait_until


def test_keys_are_made_listed_rotated_and_revoked_without_a_daemon(tmp_path: Path) -> None:
    lm = Cli.at(tmp_path / "home")
    made = lm(
        "key", "create", "--role", "infer", "--name", "ci", "--models", "tiny,org/repo:Q4_K_M", "--expires", "30d",
        "--rate", "60/m", "--tokens", "1M/day",
    )  # fmt: skip
    secret = made.out.strip()
    assert made.code == 0 and is_secret(secret) and secret not in made.err
    row = json.loads(lm("key", "list", "--json").out)[0]
    assert (row["name"], row["role"], row["state"]) == ("ci", "infer", "valid")
    assert (row["rate"], row["tokens"], row["models"]) == ("60/m", "1000000/d", ["tiny", "hf.co/org/repo:Q4_K_M"])
    assert "hash" not in row and secret not in lm("key", "list").out
    rotated = lm("key", "rotate", "ci", "--grace", "1h", "--json")
    new = json.loads(rotated.out)
    assert is_secret(new["key"]) and new["owner"] == row["id"] and new["models"] == row["models"]
    assert [each["state"] for each in json.loads(lm("key", "list", "--json").out)] == ["valid", "valid"]
    assert lm("key", "revoke", "ci").code == 0
    assert [each["state"] for each in json.loads(lm("key", "list", "--json").out)] == ["revoked", "revoked"]
    assert lm("key", "rotate", "ci").code == 1
    assert not (tmp_path / "home" / "daemon.json").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("create",), "--role"),
        (("create", "--role", "god"), "admin"),
        (("create", "--role", "infer", "--name", "a\x1b[2J"), "control characters"),
        (("create", "--role", "infer", "--models", "a:b:c:d"), "names look like"),
        (("create", "--role", "infer", "--rate", "60"), "60/m"),
        (("create", "--role", "infer", "--expires", "soon"), "30d"),
        (("create", "--role", "infer", "--rate", "1.5/m"), "60/m"),
        (("create", "--role", "infer", "--expires", "-1d"), "30d"),
        (("create", "--role", "infer", "--models", ""), "names no model"),
        (("create", "--role", "infer", "--models", " ,"), "names no model"),
        (("rotate", "a", "--grace", "-1d"), "12h"),
        (("revoke", "lm_" + "x" * 43), "list of processes"),
    ],
    ids=range(12),
)
def test_wrong_uses_are_told_and_change_nothing(tmp_path: Path, arguments: tuple[str, ...], word: str) -> None:
    done = Cli.at(tmp_path)("key", *arguments)
    assert done.code == 2 and word in done.err and "\x1b" not in done.err and "x" * 43 not in done.err
    assert not (tmp_path / "keys.json").exists()


def test_the_user_of_the_daemon_needs_no_key_and_others_are_told_the_role(tmp_path: Path) -> None:
    put_model(tmp_path / "home")
    lm = Cli.at(tmp_path / "home")
    secret = lm("key", "create", "--role", "infer").out.strip()
    with Daemon(tmp_path / "home", script={"echo": True}) as daemon:
        assert "tiny" in lm("list").out
        other = Cli.at(tmp_path / "other", f"127.0.0.1:{daemon.port}")
        assert "API key" in other("list").err
        keyed = Cli.at(tmp_path / "other", f"127.0.0.1:{daemon.port}", LM_API_KEY=secret)
        del keyed.env["LM_HOME"]  # type: ignore[attr-defined]
        assert "tiny" in keyed("list").out
        refused = keyed("rm", "tiny")
        assert refused.code == 1 and "takes `operator`" in refused.err and "--role operator" in refused.err
        only = lm("key", "create", "--role", "operator", "--models", "another").out.strip()
        wait_until(lambda: daemon.get("/api/version", Authorization=f"Bearer {only}").status == 200, 1)
        keyed.env["LM_API_KEY"] = only  # type: ignore[index]
        assert "tiny" not in keyed("list").out
        assert keyed("rm", "tiny").code == 3
        warned = other("key", "create", "--role", "infer")
        assert warned.code == 0 and "another home" in warned.err
        assert lm("stop", "--daemon").code == 0
