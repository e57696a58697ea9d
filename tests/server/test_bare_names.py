"""What a bare name means: what is here, `demo`, an installed package's model, Ollama's registry; and it is said."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon, environment
from tests.publishing import make
from tests.registry.test_packages import package


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    package(folder, "llm-tale", {"tale.gguf": make(folder / "made.gguf", "Q4_K_M").read_bytes()})
    return folder


@pytest.fixture(scope="module")
def daemon(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    path = ":".join(filter(None, (environment().get("PYTHONPATH"), str(site))))
    with Daemon(tmp_path_factory.mktemp("home"), script={"echo": True}, env={"PYTHONPATH": path}) as daemon:
        yield daemon


def notes(daemon: Daemon, name: str) -> list[str]:
    """The sentences of a pull that must succeed."""
    lines = daemon.post("/api/pull", {"model": name}).lines
    assert lines[-1]["status"] == "success", lines
    return [line["status"] for line in lines if line["phase"] == "note"]


def test_a_package_is_found_by_its_bare_name_and_stays_what_that_name_means(daemon: Daemon, tmp_path: Path) -> None:
    assert "model" in daemon.advice("tale")
    assert notes(daemon, "tale") == ["`tale` is the model in the installed package llm-tale 1.0"]
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
