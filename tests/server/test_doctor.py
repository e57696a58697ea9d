"""`lm doctor` on this machine, with things broken on purpose; and findings that this machine cannot show."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from runtime.machine.hardware import Gpu, Hardware, amd_gpus
from runtime.machine.inspection import Device, Examined
from server import doctor
from tests.cli.support import Cli

GB = 10**9
HARDWARE = Hardware(16 * GB, 16 * GB, 12 * GB, 4, 20e9)
ENGINE = Examined("0.3.36", "0.5.0", {"AVX2": "1"}, gpu=False, devices=[], amx_is_broken=False)


def findings(out: str) -> dict[str, tuple[str, str]]:
    return {finding["check"]: (finding["state"], finding["hint"]) for finding in json.loads(out)}


def test_a_sound_machine_passes(tmp_path: Path) -> None:
    ended = Cli.at(tmp_path)("doctor", "--json")
    assert ended.code == 0, ended.out + ended.err
    found = findings(ended.out)
    assert list(found)[:4] == ["memory", "disk", "home", "processor"]
    assert found["llama.cpp"] == found["daemon"] == ("ok", "")
    assert all(hint for state, hint in found.values() if state != "ok")
    assert not list(tmp_path.iterdir())


def test_what_is_broken_fails_with_a_hint(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        broken = Cli.at(tmp_path, f"127.0.0.1:{taken.getsockname()[1]}", LLAMA_CPP_LIB_PATH="/nowhere")
        ended = broken("doctor", "--json")
        assert ended.code == 1
        found = findings(ended.out)
        assert found["llama.cpp"][0] == found["daemon"][0] == "fail"
        assert "pip install" in found["llama.cpp"][1]
        assert "LM_PORT" in found["daemon"][1]
    wrong = Cli.at(tmp_path, LM_CONTEXT="much")("doctor")
    assert wrong.code == 1
    assert wrong.out.startswith("FAIL  settings")


def test_a_card_that_the_build_cannot_use_is_told() -> None:
    card = replace(HARDWARE, gpus=(Gpu("NVIDIA X", 24 * GB, 20 * GB),))
    assert doctor._graphics(HARDWARE, ENGINE)[1] == "ok"
    name, state, found, hint = doctor._graphics(card, ENGINE)
    assert (name, state) == ("graphics", "warn")
    assert found == "NVIDIA X (20.0 GB of 24.0 GB free): there, and llama.cpp was built for the processor alone"
    assert "-DGGML_CUDA=on" in hint
    devices = [Device("CUDA0", "NVIDIA X", "gpu", 20 * GB, 24 * GB), Device("CPU", "EPYC", "cpu")]
    able = Examined("0.3.36", "0.5.0", {}, gpu=True, devices=devices, amx_is_broken=False)
    assert doctor._graphics(card, able)[1:3] == ("ok", "CUDA0 (NVIDIA X), 20.0 GB of 24.0 GB free")
    blind = msgspec.structs.replace(able, devices=devices[1:])
    assert doctor._graphics(card, blind)[1] == "warn"


@pytest.mark.parametrize(("limit", "state"), [(16 * GB, "ok"), (2 * GB, "warn"), (GB // 2, "fail")])
def test_memory_by_what_models_may_use(limit: int, state: str) -> None:
    name, judged, found, hint = doctor._memory(replace(HARDWARE, memory_limit=limit))
    assert (name, judged, bool(hint)) == ("memory", state, state != "ok")
    assert ("control group" in found) == (limit < HARDWARE.memory_total)


def test_a_build_without_the_processors_instructions_and_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_flags", lambda: {"avx2", "avx512_vnni"})
    assert doctor._instructions(ENGINE)[1:3] == (
        "warn",
        "this processor has AVX512_VNNI, and llama.cpp was built without",
    )
    monkeypatch.setattr(doctor, "_flags", lambda: {"avx2"})
    assert doctor._instructions(ENGINE)[1:3] == ("ok", "AVX2")
    broken = Examined("0.3.36", "0.5.0", {}, gpu=False, devices=[], amx_is_broken=True)
    assert doctor._amx(broken)[1] == "warn"
    assert doctor._amx(ENGINE)[1] == "ok"


def test_amd_cards_by_vendor(tmp_path: Path) -> None:
    for card, vendor in (("card0", "0x1002"), ("card1", "0x8086")):
        (tmp_path / card / "device").mkdir(parents=True)
        (tmp_path / card / "device" / "vendor").write_text(vendor + "\n")
    assert amd_gpus(tmp_path, tmp_path) == ("AMD graphics card (card0)",)
    assert amd_gpus(tmp_path, tmp_path / "none") == ()
