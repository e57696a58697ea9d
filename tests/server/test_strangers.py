"""GGUF files that others have made: what llama.cpp takes is taken and answers; what does not work is not kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import ollama
import pytest

from quant.gguf.header import read_file
from runtime.machine import hardware
from server.errors import CheckFailed
from server.pulls import checking
from tests.daemon import Daemon
from tests.publishing import make
from tests.runtime.mutants import Mutant, with_entry

GO = "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user\n{{ .Prompt }}<|im_end|>"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("original") / "m.gguf", "Q4_K_M")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("daemon"), runtime="llama") as daemon:
        yield daemon


def changed(original: Path, folder: Path, **entries: Any) -> Path:
    """The file with other entries: `__` stands for a dot, and a pair is a value and its kind."""
    mutant = Mutant.none(original)
    for key, value in entries.items():
        mutant = with_entry(mutant, key.replace("__", "."), *(value if isinstance(value, tuple) else (value,)))
    folder.mkdir(parents=True, exist_ok=True)
    mutant.write(folder / "m.gguf", original)
    return folder / "m.gguf"


def pull(daemon: Daemon, path: Path) -> list[dict[str, Any]]:
    return daemon.post("/api/pull", {"model": str(path)}).lines


def test_texts_that_are_not_utf_8_and_long_ones_are_taken(daemon: Daemon, original: Path, tmp_path: Path) -> None:
    path = changed(original, tmp_path / "latin", general__name="Caf\udce9", general__description="x" * (17 << 20))
    last = pull(daemon, path)[-1]
    assert last["status"] == "success", last
    shown = daemon.post("/api/show", {"model": last["name"]}).json
    assert shown["model_info"]["general.name"] == "Caf\N{REPLACEMENT CHARACTER}"
    answer = daemon.post("/api/generate", {"model": last["name"], "prompt": "Once", "stream": False})
    assert answer.json["done"], answer.json


def test_an_id_of_no_token_is_said_and_does_no_harm(daemon: Daemon, original: Path, tmp_path: Path) -> None:
    lines = pull(daemon, changed(original, tmp_path / "far", tokenizer__ggml__padding_token_id=70_000))
    assert lines[-1]["status"] == "success", lines[-1]
    assert any("`padding_token_id` 70000 is none of the 4096 tokens" in line["status"] for line in lines)
    none = pull(daemon, changed(original, tmp_path / "none", tokenizer__ggml__padding_token_id=(1 << 32) - 1))
    assert none[-1]["status"] == "success" and not any("none of the" in line["status"] for line in none)


@pytest.mark.parametrize("broken", [False, True])
def test_a_template_in_another_language_is_rendered_or_costs_the_chat_alone(
    daemon: Daemon, original: Path, tmp_path: Path, broken: bool
) -> None:
    template = GO.replace("{{ end }}", "{{ fin }}") if broken else GO
    lines = pull(daemon, changed(original, tmp_path / f"go-{broken}", tokenizer__chat_template=template))
    name = lines[-1]["name"]
    said = [line["status"] for line in lines if "chat template is broken" in line["status"]]
    assert len(said) == broken
    assert all(each.endswith(("written in ChatML", "written in plain labels")) for each in said)
    for route, body in (
        ("/api/generate", {"prompt": "Once", "raw": True, "stream": False}),
        ("/v1/completions", {"prompt": "Once"}),
        ("/api/chat", {"messages": [{"role": "user", "content": "Hello"}], "stream": False}),
    ):
        answer = daemon.post(route, {"model": name, **body})
        assert answer.status == 200, answer.json


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"tokenizer.ggml.eos_token_id": (-1, "i32")}, "wrong type i32 but expected type u32"),
        ({"llama.block_count": (6, "u64")}, "wrong type u64 but expected type u32"),
        ({"llama.embedding_length": (256.0, "f32")}, "embedding_length"),
        ({"tokenizer.ggml.merges": ([], "arr[str]")}, ""),
    ],
)
def test_kinds_that_llama_cpp_does_not_read_are_refused(
    daemon: Daemon, original: Path, tmp_path: Path, entries: dict[str, Any], reason: str
) -> None:
    path = changed(original, tmp_path / "kind", **{key.replace(".", "__"): value for key, value in entries.items()})
    lines = pull(daemon, path)
    if not reason:  # a vocabulary without merges is read
        assert lines[-1]["status"] == "success"
        return
    assert lines[-1]["phase"] == "failed" and reason in lines[-1]["error"], lines[-1]
    assert "writing" not in {line["phase"] for line in lines} and "copying" not in {line["phase"] for line in lines}


def broken(original: Path, folder: Path, value: float) -> Path:
    """The file with every weight of its last norm replaced: all logits are 0, or none is a number."""
    path = changed(original, folder)
    header = read_file(path)
    (norm,) = (tensor for tensor in header.tensors if tensor.name == "output_norm.weight")
    with path.open("r+b") as file:
        file.seek(header.data_offset + norm.offset)
        file.write(np.full(norm.shape, value, "<f4").tobytes())
    return path


@pytest.mark.parametrize(("value", "seen"), [(3e38, "not finite"), (0.0, "equally likely")])
def test_a_model_of_nonsense_is_not_kept_and_the_one_before_stays(
    daemon: Daemon, original: Path, tmp_path: Path, value: float, seen: str
) -> None:
    folder = tmp_path / "model"
    lines = pull(daemon, changed(original, folder))
    phases = [line["phase"] for line in lines]
    assert phases.index("copying") < phases.index("checking") < phases.index("committing")
    name = lines[-1]["name"]
    before = daemon.get("/api/tags").json["models"]
    broken(original, folder, value)
    last = pull(daemon, folder / "m.gguf")[-1]
    assert (last["phase"], last["code"]) == ("failed", "check_failed")
    assert seen in last["error"] and "nothing of it was kept" in last["hint"]
    assert daemon.get("/api/tags").json["models"] == before
    assert not list((daemon.home / "store" / "ingest").iterdir())
    assert daemon.post("/api/generate", {"model": name, "prompt": "Once", "stream": False}).status == 200


def test_ollamas_client_reads_the_lines_of_the_check(daemon: Daemon, original: Path, tmp_path: Path) -> None:
    path = changed(original, tmp_path / "client")
    with ollama.Client(host=daemon.url) as client:
        parts = list(client.pull(str(path), stream=True))
    assert "checking that it works" in [part.status for part in parts]
    assert parts[-1].status == "success"


def check(path: Path, log: Path) -> list[str]:
    notes: list[str] = []
    asyncio.run(checking.check_file(path, "Q4_K_M", log, notes.append))
    return notes


def test_a_model_for_which_there_is_no_memory_is_not_checked(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check(original, tmp_path / "log") == []
    small = hardware.Hardware(1 << 30, 1 << 30, 1 << 20, 1, 1e9)
    monkeypatch.setattr(checking, "detect", lambda bandwidth: small)
    (said,) = check(original, tmp_path / "log")
    assert said.startswith("the finished model is not checked: it needs ") and "1.0 MB are free" in said


def test_a_check_that_takes_too_long_or_cannot_begin_fails_no_pull(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "_SECONDS", 0.0)
    monkeypatch.setattr(checking, "_BYTES_PER_SECOND", 1e12)
    assert "it took longer" in check(original, tmp_path / "log")[0]
    monkeypatch.setattr(checking, "INSPECTOR", "nowhere.at.all")
    monkeypatch.setattr(checking, "_SECONDS", 60.0)
    assert "exited with status 1" in check(original, tmp_path / "log")[0]


def test_a_file_at_which_llama_cpp_crashes_is_not_kept(original: Path, tmp_path: Path) -> None:
    mutant = Mutant.none(original)
    types = {"blk.0.attn_q.weight": gguf.GGMLQuantizationType.I8}
    tensors = tuple(
        type(each)(each.name, each.shape, type(each.type).by_id(types[each.name]), 0) if each.name in types else each
        for each in mutant.tensors
    )
    Mutant("", mutant.metadata, mutant.kinds, tensors).write(tmp_path / "m.gguf", original)
    with pytest.raises(CheckFailed, match="SIGSEGV"):
        check(tmp_path / "m.gguf", tmp_path / "log")
