"""A file that lm has made, carried elsewhere: it keeps its level, its sampling settings and its origin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest

from registry.sources.opening import DEMO
from server.pulls.provenance import recommended
from tests.cli.support import Cli
from tests.daemon import Daemon
from tests.quant.test_recipes import bare_plan

SETTINGS = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}
OURS = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repeat_penalty": 1.05}


def pulled(daemon: Daemon, name: str) -> dict[str, Any]:
    last = daemon.post("/api/pull", {"model": name, "stream": False}).json
    assert last["status"] == "success", last
    return {"name": last["name"]} | daemon.post("/api/show", {"model": last["name"]}).json


def parameters(shown: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in (line.split() for line in shown["parameters"].splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize(("level", "name"), [("Q4_K_M", "one"), ("5.5bpw", "another"), ("F16", "third")])
def test_a_carried_file_keeps_level_settings_and_origin(daemon: Daemon, tmp_path: Path, level: str, name: str) -> None:
    folder = tmp_path / "tuned"
    shutil.copytree(DEMO, folder)
    (folder / "generation_config.json").write_text(json.dumps(SETTINGS | {"eos_token_id": 0}))
    first = pulled(daemon, f"{folder}:{level}")
    assert parameters(first) == OURS
    path = daemon.home / "store" / "blobs" / pulled_blob(daemon, first["name"])
    carried = tmp_path / "elsewhere" / f"{name}.gguf"
    carried.parent.mkdir()
    shutil.copy(path, carried)
    assert gguf.GGUFReader(carried).fields["general.sampling.top_k"].contents() == 20
    again = pulled(daemon, f"{carried}:F16" if level == "F16" else str(carried))
    assert again["name"] == f"{name}:{level}"
    assert (again["details"]["quantization_level"], parameters(again)) == (level, OURS)
    if level != "F16":  # whole weights are converted anew, from the file
        assert again["lm"]["origin"].startswith(str(folder))
        shown = Cli.at(daemon.home, daemon.url.removeprefix("http://"))("show", again["name"])
        assert f"made from    {folder}" in shown.out and "temperature       0.6" in shown.out


def pulled_blob(daemon: Daemon, name: str) -> str:
    """The name of the model's file in the store."""
    model, _, level = name.partition(":")
    (manifest,) = (each for each in (daemon.home / "store" / "manifests").rglob(level) if each.parent.name == model)
    layers = json.loads(manifest.read_text())["layers"]
    (digest,) = (layer["digest"] for layer in layers if layer["mediaType"].endswith("image.model"))
    return str(digest).replace(":", "-")


def test_settings_that_no_request_may_have_are_left_out() -> None:
    plan = bare_plan({})
    plan = type(plan)(plan.architecture, plan.metadata, (), (), defaults={"temperature": -3.0, "top_k": 20, "top_p": 7})
    assert recommended(plan) == {"top_k": 20}
