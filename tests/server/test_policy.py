"""The policy of a box: licences, sources and sizes, kept by pulls, creates, imports and loads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from registry.bundles.fetching import About
from registry.store import manifest
from server.carrying.bundles import inspect
from server.config import Config
from server.doctor.frames import FAIL, WARN
from server.doctor.governance import governance
from server.policy.licenses import UNKNOWN, recognise, recognise_any
from server.policy.rules import PolicyRefused, PolicyRules, contradictions, policy_file, read_policy
from server.settings import BadSetting
from tests.daemon import Daemon, put_model
from tests.publishing import make
from tests.registry.test_bundles import layout


def policy(home: Path, text: str) -> Config:
    config = Config(home=home)
    home.mkdir(exist_ok=True)
    policy_file(config).write_text(text)
    policy_file(config).chmod(0o600)
    return config


@pytest.mark.parametrize(
    ("text", "found", "non_commercial"),
    [
        ("apache-2.0", "Apache-2.0", False),
        ("MIT", "MIT", False),
        ("cc-by-nc-4.0", "CC-BY-NC-4.0", True),
        ("llama3.1", "LicenseRef-llama3.1", False),
        ("LicenseRef-llama3.1", "LicenseRef-llama3.1", False),
        ("qwen-research", "LicenseRef-qwen-research", True),
        ("Apache License\n   Version 2.0, January 2004\n  http://…", "Apache-2.0", False),
        ("MIT License\n\nCopyright (c) 2023", "MIT", False),
        ("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT", "LicenseRef-llama3.2", False),
        ("Attribution-NonCommercial 4.0 International", "CC-BY-NC-4.0", True),
        ("other", "", False),
        ("", "", False),
    ],
)
def test_licences_are_recognised(text: str, found: str, non_commercial: bool) -> None:
    license = recognise(text)
    assert (license.id, license.non_commercial) == (found, non_commercial)


def test_the_first_licence_that_is_known_counts() -> None:
    assert recognise_any(["other", "mit"]).id == "MIT"
    assert recognise_any(["other", "who knows"]) == UNKNOWN


def test_rules_are_kept() -> None:
    rules = PolicyRules(("Apache-2.0", "LicenseRef-llama*"), ("hf.co/Qwen", "registry.lan:5000/*", "here"), 1000)
    for source in ("https://huggingface.co/qwen/Qwen3-0.6B", "hf.co/Qwen", "registry.lan:5000/a/b:v1", ""):
        rules.check_source(source)
    for source in ("hf.co/Qwen2/x", "hf.co", "https://evil.example/hf.co/Qwen", "unknown"):
        with pytest.raises(PolicyRefused, match="allows no models"):
            rules.check_source(source)
    rules.check_size("m", 1000)
    with pytest.raises(PolicyRefused, match="takes"):
        rules.check_size("m", 1001)
    rules.check_license("m", ["llama3.1"])
    for texts in (["mit"], [], ["other"]):
        with pytest.raises(PolicyRefused, match="licence"):
            rules.check_license("m", texts)


def test_no_policy_allows_everything(tmp_path: Path) -> None:
    rules = read_policy(Config(home=tmp_path))
    rules.check_source("anywhere")
    rules.check_file("m", 1 << 50, {}, ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sauces = []", "no rule `sauces`"),
        ("sources = 'hf.co'", "no list of texts"),
        ("max_size = 'big'", "no size"),
        ("allow_licenses = [", "no TOML"),
    ],
    ids=["unknown", "no list", "no size", "no toml"],
)
def test_a_policy_that_cannot_be_read_allows_nothing(tmp_path: Path, text: str, message: str) -> None:
    config = policy(tmp_path, text)
    with pytest.raises(BadSetting, match=message):
        read_policy(config)
    assert [each.state for each in governance(config) if each.check == "policy"] == [FAIL]


def test_a_policy_that_others_can_change_is_refused(tmp_path: Path) -> None:
    config = policy(tmp_path, "max_size = '1GB'")
    policy_file(config).chmod(0o666)
    with pytest.raises(BadSetting, match="other users"):
        read_policy(config)


def test_rules_that_contradict_themselves_are_named(tmp_path: Path) -> None:
    config = policy(tmp_path, "sources = []\nallow_licenses = ['Apache 2']\nmax_size = 0\n")
    found = contradictions(read_policy(config))
    assert len(found) == 3 and "no SPDX identifier" in found[-1]
    assert [each.state for each in governance(config) if each.check == "policy"] == [WARN] * 3


def test_a_daemon_keeps_its_policy(tmp_path: Path) -> None:
    put_model(tmp_path, "tiny")
    policy(tmp_path, "allow_licenses = ['Apache-2.0']\nsources = ['test', 'hf.co/Qwen', 'demo']\n")
    with Daemon(tmp_path, script={"echo": True}) as daemon:
        refused = daemon.post("/api/generate", {"model": "tiny", "prompt": "hi"})
        assert refused.status == 403 and "no licence that is recognised" in refused.json["error"]
        assert refused.json["code"] == "policy_refused" and "policy.toml" in refused.json["hint"]
        last = daemon.post("/api/pull", {"model": "hf.co/elsewhere/model"}).lines[-1]
        assert "allows no models from `hf.co/elsewhere/model`" in last["error"]
        assert "no licence that is recognised" in daemon.post("/api/pull", {"model": "demo"}).lines[-1]["error"]
        assert daemon.get("/api/tags").status == 200
        weights = make(tmp_path / "demo.gguf", "Q8_0").read_bytes()
        brought = daemon.ask("POST", "/lm/import", layout("h.lan/ai/x:v1", [(manifest.MODEL, weights)])).lines[-1]
        assert "allows no models from `unknown`" in brought["error"] and brought["code"] == "policy_refused"
        digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
        assert daemon.ask("POST", f"/api/blobs/{digest}", weights).status == 201
        made = daemon.post("/api/create", {"model": "made", "files": {"demo.gguf": digest}}).lines[-1]
        assert "no models that were made here" in made["error"]
        assert [row["name"] for row in daemon.listed()] == ["tiny:F32"]


def test_what_comes_in_is_judged_by_its_notes_and_the_licences_beside_it(tmp_path: Path) -> None:
    rules, path = PolicyRules(("MIT",), ("hf.co/Qwen",)), make(tmp_path / "demo.gguf", "Q8_0")
    noted = {"lm": {"source": "hf.co/Qwen/x"}}
    inspect(rules, path, manifest.MODEL, "m", About(noted, ("MIT License",)))
    with pytest.raises(PolicyRefused, match="no licence that is recognised"):
        inspect(rules, path, manifest.MODEL, "m", About(noted, ()))
    for config in ({}, {"lm": "hf.co/Qwen"}, {"lm": {"source": "hf.co/else"}}, {"lm": {"parent": "x"}}):
        for kind in (manifest.MODEL, manifest.ADAPTER):
            with pytest.raises(PolicyRefused, match="allows no models"):
                inspect(rules, path, kind, "m", About(config, ("MIT License",)))


def test_pulls_imports_and_creates_keep_the_size(tmp_path: Path) -> None:
    """What is refused leaves nothing behind; what is small enough comes in."""
    put_model(tmp_path / "one", "tiny")
    with Daemon(tmp_path / "one") as one:
        small = one.post("/lm/export", {"models": ["tiny"]}).body
    weights = make(tmp_path / "demo.gguf", "Q8_0").read_bytes()
    large = layout("h.lan/ai/large:v1", [(manifest.MODEL, weights)])
    policy(tmp_path / "two", "max_size = '1MB'\n")
    with Daemon(tmp_path / "two", script={"echo": True}) as two:
        digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
        assert two.ask("POST", f"/api/blobs/{digest}", weights).status == 201
        made = two.post("/api/create", {"model": "made", "files": {"demo.gguf": digest}}).lines[-1]
        pulled = two.post("/api/pull", {"model": "demo:Q8_0"}).lines[-1]
        brought = two.ask("POST", "/lm/import", large).lines[-1]
        for last in (made, pulled, brought):
            assert last["code"] == "policy_refused" and "max_size" in last["hint"], last
        assert two.listed() == []
        assert two.ask("POST", "/lm/import", small).lines[-1]["status"] == "success"
        assert two.post("/api/generate", {"model": "tiny", "prompt": "hi"}).status == 200
