"""Repositories of GGUF files: the one that fits is taken, or the one that is asked for; split ones are joined."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.sources.opening import DEMO
from tests.daemon import Daemon, wait_until
from tests.hub import Hub
from tests.publishing import make, publish, split

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four levels, and what lies beside them in such repositories."""
    folder = publish(tmp_path_factory.mktemp("repo"), "BF16", "Q8_0", "Q4_K_M", "Q2_K")
    for name in ("mmproj-F16.gguf", "Demo-6M.imatrix.gguf", "imatrix_unsloth.gguf"):
        (folder / name).write_bytes(b"GGUF")
    shutil.copy(folder / "Demo-6M-Q2_K.gguf", folder / "mtp-Demo-6M-Q2_K.gguf")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def hub(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    lying, few, both, parts, broken = (tmp_path_factory.mktemp(name) for name in ("l", "f", "b", "p", "x"))
    shutil.copy(repo / "Demo-6M-Q8_0.gguf", lying / "Demo-Q4_K_M.gguf")
    shutil.copy(repo / "Demo-6M-Q2_K.gguf", lying / "Demo-UD-Q2_K_XL.gguf")
    shutil.copy(repo / "Demo-6M-BF16.gguf", few)
    shutil.copy(repo / "Demo-6M-Q2_K.gguf", few)
    low = publish(tmp_path_factory.mktemp("w"), "Q2_K_S")
    shutil.copy(repo / "Demo-6M-Q2_K.gguf", low)
    shutil.copytree(DEMO, both, dirs_exist_ok=True)
    shutil.copy(repo / "Demo-6M-Q2_K.gguf", both)
    for level in ("Q8_0", "Q4_K_M"):
        split(repo / f"Demo-6M-{level}.gguf", parts / level / f"Demo-{level}.gguf", 20)
    shutil.copytree(parts, broken, dirs_exist_ok=True)
    (broken / "Q8_0" / "Demo-Q8_0-00002-of-00003.gguf").unlink()
    names = {"repo": repo, "lying": lying, "few": few, "low": low, "both": both, "parts": parts, "broken": broken}
    with Hub({f"org/{name}": folder for name, folder in names.items()}) as hub:
        yield hub


def pull(daemon: Daemon, model: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last line of a pull that must succeed, and what is shown of the model."""
    last = daemon.post("/api/pull", {"model": model, "stream": False}).json
    assert last["status"] == "success", last
    return last, daemon.post("/api/show", {"model": last["name"]}).json


def has(daemon: Daemon, path: Path) -> bool:
    """Whether the store holds the file to the byte."""
    return (daemon.home / "store" / "blobs" / digest(path).replace(":", "-")).is_file()


def digest(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_the_rule_picks_among_what_is_published_from_headers(daemon: Daemon, hub: Hub, repo: Path) -> None:
    sent = hub.bytes_sent
    advice = daemon.advice("org/repo")
    assert hub.bytes_sent - sent < 2_000_000
    assert [(row["level"], row["file"]) for row in advice["levels"]] == [
        (level, f"Demo-6M-{level}.gguf") for level in ("BF16", "Q8_0", "Q4_K_M", "Q2_K")
    ]
    sizes = {row["level"]: (row["file_bytes"], row["memory_bytes"]) for row in advice["levels"]}
    assert all(size == (repo / f"Demo-6M-{level}.gguf").stat().st_size for level, (size, _) in sizes.items())
    assert advice["level"] == "Q8_0" and advice["reason"].startswith("Q8_0: 6.1 MB weights")
    smaller = daemon.advice("org/repo", memory=sizes["Q4_K_M"][1] + 1000)
    assert (smaller["level"], [lost["level"] for lost in smaller["rejected"]]) == ("Q4_K_M", ["Q8_0"])
    lines = daemon.post("/api/pull", {"model": "huggingface.co/org/repo"}).lines
    assert next(line for line in lines if line["phase"] == "planned")["reason"] == advice["reason"]
    assert lines[-1]["name"] == "hf.co/org/repo:Q8_0" and has(daemon, repo / "Demo-6M-Q8_0.gguf")


@pytest.mark.parametrize(
    ("typed", "name", "level"),
    [
        ("hf.co/org/repo:q4_k_m", "hf.co/org/repo:Q4_K_M", "Q4_K_M"),
        pytest.param("org/repo:Demo-6M-Q2_K.gguf", "hf.co/org/repo:Demo-6M-Q2_K.gguf", "Q2_K", marks=SLOW),
        pytest.param("org/lying:ud-q2_k_xl", "hf.co/org/lying:UD-Q2_K_XL", "UD-Q2_K_XL", marks=SLOW),
    ],
)
def test_a_tag_or_a_file_takes_that_one(daemon: Daemon, repo: Path, typed: str, name: str, level: str) -> None:
    last, shown = pull(daemon, typed)
    assert (last["name"], shown["details"]["quantization_level"]) == (name, level)
    assert has(daemon, repo / f"Demo-6M-{level.removeprefix('UD-').removesuffix('_XL')}.gguf")
    assert daemon.post("/api/show", {"model": typed}).status == 200


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("org/lying:Q6_K", "publishes no Q6_K"),
        pytest.param("org/lying:Q4_K_M", "`Demo-Q4_K_M.gguf` is quantized already, at Q8_0", marks=SLOW),
        pytest.param("org/repo:other.gguf", "has no file `other.gguf`", marks=SLOW),
        pytest.param("org/repo:Q4_K_X", "publishes no Q4_K_X", marks=SLOW),
        ("org/broken:Q8_0", "`Q8_0/Demo-Q8_0-00002-of-00003.gguf` is missing"),
    ],
)
def test_what_is_not_published_is_said_with_what_is(daemon: Daemon, typed: str, sentence: str) -> None:
    answer = daemon.post("/api/pull", {"model": typed, "stream": False})
    assert answer.status == 400 and sentence in answer.json["error"], answer.json
    assert answer.json["hint"]


def test_the_tensors_tell_the_level(daemon: Daemon) -> None:
    assert [row["level"] for row in daemon.advice("org/lying")["levels"]] == ["Q8_0", "UD-Q2_K_XL"]


@SLOW
def test_whole_weights_serve_what_is_not_published(daemon: Daemon) -> None:
    made, shown = pull(daemon, "org/few")
    assert made["name"] == "hf.co/org/few:Q8_0"
    assert shown["lm"]["reason"].endswith(
        "made of `Demo-6M-BF16.gguf`, because the best published one that fits is Q2_K"
    )
    assert pull(daemon, "org/few:Q5_K_M")[1]["details"]["quantization_level"] == "Q5_K_M"
    assert daemon.advice("org/few")["level"] == "Q8_0"


@SLOW
def test_where_only_coarse_levels_are_published_the_best_of_them_is_taken(daemon: Daemon) -> None:
    assert daemon.advice("org/low")["level"] == "Q2_K"


@SLOW
def test_weights_of_the_authors_go_before_files_unless_one_is_named(daemon: Daemon, repo: Path) -> None:
    assert len(daemon.advice("org/both")["levels"]) > 20
    assert "asked for" in pull(daemon, "org/both:Q3_K_M")[1]["lm"]["reason"]
    name = "hf.co/org/both:Demo-6M-Q2_K.gguf"
    assert pull(daemon, "org/both:Demo-6M-Q2_K.gguf")[0]["name"] == name and has(daemon, repo / "Demo-6M-Q2_K.gguf")


@SLOW
def test_parts_become_one_file_after_a_kill_too(daemon: Daemon, hub: Hub, repo: Path) -> None:
    assert daemon.advice("org/parts")["level"] == "Q8_0"
    hub.bandwidth = 3e6
    with daemon.opened("POST", "/api/pull", {"model": "org/parts"}) as response:
        wait_until(lambda: daemon.get("/lm/partials").json["partials"], 20)
        (puller,) = [child for child in daemon.children() if "server.pulls.puller" in child.cmdline()]
        os.kill(puller.pid, signal.SIGKILL)
        response.read()
    hub.bandwidth = None
    lines = daemon.post("/api/pull", {"model": "org/parts"}).lines
    assert lines[-1]["name"] == "hf.co/org/parts:Q8_0"
    assert next(line for line in lines if line["phase"] == "planned")["resumed"] > 0
    manifest = json.loads((daemon.home / "store/manifests/hf.co/org/parts/Q8_0").read_bytes())
    assert {digest(repo / "Demo-6M-Q8_0.gguf")} == {layer["digest"] for layer in manifest["layers"]}


@SLOW
def test_what_is_here_is_judged_without_its_hub(daemon: Daemon, hub: Hub) -> None:
    pull(daemon, "org/repo:Q4_K_M")
    asked = len(hub.requests)
    advice = daemon.advice("org/repo:Q4_K_M")
    assert ([row["level"] for row in advice["levels"]], advice["level"]) == (["Q4_K_M"], "Q4_K_M")
    assert len(hub.requests) == asked
    assert len(daemon.advice("org/repo")["levels"]) == 4


@SLOW
def test_what_is_here_is_judged_when_its_hub_is_gone(daemon: Daemon) -> None:
    pull(daemon, "org/repo:Q4_K_M")
    advice = daemon.advice("org/repo", hf_endpoint="http://127.0.0.1:1")
    assert [row["level"] for row in advice["levels"]] == ["Q4_K_M"]
    assert advice["unseen"] == "`127.0.0.1` cannot be reached: connection refused"
    assert daemon.advice("org/repo")["unseen"] == ""


@SLOW
def test_a_folder_of_files_is_like_a_repository(daemon: Daemon, repo: Path) -> None:
    assert daemon.advice(str(repo))["level"] == "Q8_0"
    assert pull(daemon, f"{repo}:Q4_K_M")[1]["details"]["quantization_level"] == "Q4_K_M"


@SLOW
def test_several_models_must_be_named(daemon: Daemon, hub: Hub, repo: Path, tmp_path: Path) -> None:
    shutil.copy(repo / "Demo-6M-Q2_K.gguf", tmp_path / "one.gguf")
    make(tmp_path / "other.gguf", "Q2_K")
    answer = daemon.post("/api/pull", {"model": str(tmp_path), "stream": False})
    assert answer.status == 400 and "several models" in answer.json["error"]
    named = re.findall(r"`([^`]+[.]gguf)`", answer.json["hint"])
    assert sorted(named) == [f"{tmp_path}:one.gguf", f"{tmp_path}:other.gguf"]
    assert pull(daemon, named[0])
