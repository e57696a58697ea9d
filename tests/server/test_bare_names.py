"""What a bare name means: what is here, `demo`, an installed package's model, Ollama's registry; and it is said."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.sources.opening import DEMO
from tests.daemon import Daemon, environment
from tests.oci import DOCKER, MODELPACK, OLLAMA, Registry, digest
from tests.publishing import make
from tests.registry.test_oci import tarred
from tests.registry.test_packages import package


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    package(folder, "llm-tale", {"tale.gguf": make(folder / "made.gguf", "Q4_K_M").read_bytes()})
    return folder


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


@pytest.fixture(scope="module")
def daemon(site: Path, registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    path = ":".join(filter(None, (environment().get("PYTHONPATH"), str(site))))
    env = {"PYTHONPATH": path, "LM_OLLAMA_REGISTRY": registry.url, "LM_CONTEXT": "256"}
    with Daemon(tmp_path_factory.mktemp("home"), script={"echo": True}, env=env) as daemon:
        yield daemon


def notes(daemon: Daemon, name: str) -> list[str]:
    """The sentences of a pull that must succeed."""
    lines = daemon.post("/api/pull", {"model": name}).lines
    assert lines[-1]["status"] == "success", lines
    return [line["status"] for line in lines if line["phase"] == "note"]


@pytest.mark.parametrize("kind", ["gguf", "safetensors", "packed"])
def test_a_model_in_a_tar_of_a_registry_is_pulled(
    daemon: Daemon, registry: Registry, kind: str, tmp_path: Path
) -> None:
    files = {f"m/{path.name}": path.read_bytes() for path in DEMO.iterdir() if path.is_file()}
    if kind == "gguf":
        files = {"m/x.gguf": make(tmp_path / "x.gguf", "Q4_K_M").read_bytes()}
    layer = (f"{DOCKER}dir.tar", tarred(files))
    if kind == "packed":
        layer = (f"{MODELPACK}weight.v1.tar+gzip", gzip.compress(tarred(files)))
    registry.add(f"me/{kind}", "latest", [layer])
    notes(daemon, f"ollama.com/me/{kind}")
    (row,) = [row for row in daemon.listed() if row["name"] == f"ollama.com/me/{kind}:latest"]
    assert row["details"]["parameter_size"] == "5.8M" and not row["problem"]
    if kind == "gguf":
        blobs = {path.name for path in (daemon.home / "store" / "blobs").iterdir()}
        assert digest(files["m/x.gguf"]).replace(":", "-") in blobs
    assert daemon.ask("DELETE", "/api/delete", {"model": row["name"]}).status == 200


def test_a_draft_of_a_registry_comes_beside_the_weights_and_an_unfit_one_is_left_out(
    daemon: Daemon, registry: Registry, tmp_path: Path
) -> None:
    weights, draft = (make(tmp_path / f"{level}.gguf", level).read_bytes() for level in ("Q5_1", "Q4_0"))
    registry.add("me/fast", "latest", [(OLLAMA + "model", weights), (OLLAMA + "draft", draft)])
    assert not notes(daemon, "ollama.com/me/fast")
    blob = daemon.home / "store" / "blobs" / digest(draft).replace(":", "-")
    assert blob.read_bytes() == draft
    assert notes(daemon, "ollama.com/me/fast") == ["nothing has changed since it was brought in"]
    registry.add("me/slow", "latest", [(OLLAMA + "model", weights), (OLLAMA + "draft", b"GGUF of another kind")])
    (note,) = notes(daemon, "ollama.com/me/slow")
    assert note.startswith("left out is its draft model: ")
    for name in ("fast", "slow"):
        assert daemon.ask("DELETE", "/api/delete", {"model": f"ollama.com/me/{name}"}).status == 200
    assert not blob.exists()


def test_a_package_is_found_by_its_bare_name_and_stays_what_that_name_means(daemon: Daemon, tmp_path: Path) -> None:
    assert "model" in daemon.advice("tale")
    assert notes(daemon, "tale")[0] == "`tale` is the model in the installed package llm-tale 1.0"
    shown = daemon.post("/api/show", {"model": "tale"}).json
    assert shown["details"]["quantization_level"] == "Q4_K_M"
    assert notes(daemon, "tale") == [
        "`tale` is the model here made of `package://llm-tale`",
        "nothing has changed since it was brought in",
    ]
    assert notes(daemon, "llm-tale")[0] == "`llm-tale` is the model in the installed package llm-tale 1.0"
    # A folder of the same name is another model, and is called by its parent too.
    twin = shutil.copytree(make(tmp_path / "mine" / "tale" / "x.gguf", "Q8_0").parent, tmp_path / "b" / "tale")
    last = daemon.pull(str(twin))
    assert last["name"] == "b-tale:Q8_0"
    assert sorted(row["name"] for row in daemon.listed()) == ["b-tale:Q8_0", "tale:Q4_K_M"]


def test_another_word_is_a_model_of_ollamas_registry_with_its_settings(
    daemon: Daemon, registry: Registry, site: Path
) -> None:
    weights = (site / "made.gguf").read_bytes()
    params = {"stop": ["<end>"], "temperature": 0.25, "num_ctx": 2000, "num_gpu": 1, "mirostat_x": 3, "top_p": "much"}
    layers = [
        (OLLAMA + "model", weights),
        (OLLAMA + "params", json.dumps(params).encode()),
        (OLLAMA + "system", b"You tell tales."),
        (OLLAMA + "license", b"Free licence\nof tales"),
        (OLLAMA + "projector", bytes(2000)),
    ]
    registry.add("library/saga", "latest", layers)
    assert notes(daemon, "saga") == [
        "`saga` is looked for in Ollama's registry",
        "text only: left out is a projector (2 kB)",
        "licence: Free licence; `lm show` has its text",
        "settings of the registry that have no effect here: mirostat_x, top_p",
    ]
    shown = daemon.post("/api/show", {"model": "saga"}).json
    assert (shown["system"], shown["license"]) == ("You tell tales.", "Free licence\nof tales")
    assert "temperature" in shown["parameters"] and "num_ctx" in shown["parameters"]
    assert "projector" not in json.dumps(shown["lm"])
    rows = {row["name"]: row for row in daemon.listed()}
    assert rows["saga:latest"]["level"] == "Q4_K_M"
    assert (daemon.home / "store" / "blobs" / digest(weights).replace(":", "-")).is_file()
    daemon.post("/api/chat", {"model": "saga", "messages": [{"role": "user", "content": "x"}], "stream": False})
    loaded = {row["name"]: row["context_length"] for row in daemon.get("/api/ps").json["models"]}
    assert loaded["saga:latest"] == 2048
    # A new manifest under the tag replaces the model, the same one does not.
    assert "nothing has changed" in notes(daemon, "saga:latest")[-1]
    registry.add("library/saga", "latest", layers[:2])
    notes(daemon, "saga")
    assert daemon.post("/api/show", {"model": "saga"}).json["system"] == ""


def test_a_word_that_is_nowhere_is_said_so_with_what_comes_close(daemon: Daemon, registry: Registry) -> None:
    lines = daemon.post("/api/pull", {"model": "tala"}).lines
    assert lines[-1]["code"] == "model_not_found" and lines[-1]["hint"].startswith("did you mean `tale`?")
    assert lines[-1]["error"] == f"`tala` is not here, and `{registry.host}` has no model `tala:latest`"


def test_whole_weights_of_a_tag_are_taken_as_they_are(daemon: Daemon, registry: Registry, site: Path) -> None:
    weights = make(site / "half.gguf", "F16").read_bytes()
    registry.add("library/saga", "fp16", [(OLLAMA + "model", weights)])
    lines = daemon.post("/api/pull", {"model": "saga:fp16"}).lines
    planned = next(line for line in lines if line["phase"] == "planned")
    assert planned["reason"] == "F16: the tag names this file, which is taken as it is"
    assert (daemon.home / "store" / "blobs" / digest(weights).replace(":", "-")).is_file()
