"""`lm doctor` on this machine, with things broken on purpose; and findings that this machine cannot show."""

from __future__ import annotations

import json
import socket
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime.llama.library import PACKAGE_VERSION
from runtime.machine.hardware import Gpu, Hardware, amd_cards
from runtime.machine.inspection import Device, Examined, Refused
from server.config import Config
from server.doctor.exposure import exposure
from server.doctor.findings import examine
from server.doctor.frames import Finding
from server.doctor.observations import Address, Home, Observations
from tests.cli.support import Cli

ROOT = Path(__file__).parents[2]
GB = 10**9
HARDWARE = Hardware(16 * GB, 16 * GB, 12 * GB, 4, 20e9)
LLAMA = Examined(PACKAGE_VERSION, "0.5.0", {"AVX2": "1"}, gpu=False, devices=[], amx_is_broken=False)
NVIDIA = replace(HARDWARE, gpus=(Gpu("NVIDIA X", 24 * GB, 20 * GB),))
SOUND = Observations(
    hardware=HARDWARE,
    llama=LLAMA,
    processor="EPYC",
    hardware_threads=8,
    instructions=frozenset({"avx2"}),
    amd_cards=(),
    swap=False,
    disk_free=100 * GB,
    home=Home(Path("/home/x/.lm")),
    store_error=None,
    rates=None,
    address=Address(),
)


def found(check: str, **changed: Any) -> Finding:
    findings = examine(Config.load({"home": "/home/x/.lm"}, {}), replace(SOUND, **changed))
    return next(finding for finding in findings if finding.check == check)


def printed(out: str) -> dict[str, tuple[str, str]]:
    return {finding["check"]: (finding["state"], finding["hint"]) for finding in json.loads(out)}


def test_a_sound_machine_passes(tmp_path: Path) -> None:
    ended = Cli.at(tmp_path)("doctor", "--json")
    assert ended.code == 0, ended.out + ended.err
    findings = printed(ended.out)
    assert list(findings)[:4] == ["memory", "disk", "home", "processor"]
    assert findings["llama.cpp"] == findings["daemon"] == ("ok", "")
    assert all(hint for state, hint in findings.values() if state != "ok")
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifests").symlink_to(tmp_path / "unmounted")
    ended = Cli.at(tmp_path)("doctor", "--json")
    assert ended.code == 1
    assert printed(ended.out)["store"] == ("fail", "mount its disk, or remove the link")


def test_what_is_broken_fails_with_a_hint(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        broken = Cli.at(tmp_path, f"127.0.0.1:{taken.getsockname()[1]}", LLAMA_CPP_LIB_PATH="/nowhere")
        ended = broken("doctor", "--json")
        assert ended.code == 1
        findings = printed(ended.out)
        assert findings["llama.cpp"][0] == findings["daemon"][0] == "fail"
        assert "pip install" in findings["llama.cpp"][1]
        assert "LM_PORT" in findings["daemon"][1]
    wrong = Cli.at(tmp_path, LM_CONTEXT="much")("doctor")
    assert wrong.code == 1
    assert wrong.out.startswith("FAIL  settings")


def test_all_is_well_where_nothing_is_wrong() -> None:
    findings = examine(Config.load({"home": "/home/x/.lm"}, {}), SOUND)
    assert {finding.state for finding in findings} == {"ok"}
    assert not any(finding.hint for finding in findings)


def test_a_card_that_the_build_cannot_use_is_told() -> None:
    assert found("graphics").state == "ok"
    unused = found("graphics", hardware=NVIDIA)
    assert unused.state == "warn"
    assert unused.found == "NVIDIA X (20.0 GB of 24.0 GB free): there, and llama.cpp was built for the processor alone"
    assert "-DGGML_CUDA=on" in unused.hint
    assert "-DGGML_HIP=on" in found("graphics", amd_cards=("AMD graphics card (card0)",)).hint
    devices = [Device("CUDA0", "NVIDIA X", "gpu", 20 * GB, 24 * GB), Device("CPU", "EPYC", "cpu")]
    able = msgspec.structs.replace(LLAMA, gpu=True, devices=devices)
    used = found("graphics", hardware=NVIDIA, llama=able)
    assert (used.state, used.found) == ("ok", "CUDA0 (NVIDIA X), 20.0 GB of 24.0 GB free")
    blind = msgspec.structs.replace(able, devices=devices[1:])
    assert found("graphics", hardware=NVIDIA, llama=blind).state == "warn"


@pytest.mark.parametrize(("limit", "state"), [(16 * GB, "ok"), (2 * GB, "warn"), (GB // 2, "fail")])
def test_memory_by_what_models_may_use(limit: int, state: str) -> None:
    memory = found("memory", hardware=replace(HARDWARE, memory_limit=limit))
    assert (memory.state, bool(memory.hint)) == (state, state != "ok")
    assert ("control group" in memory.found) == (limit < HARDWARE.memory_total)


def test_what_cannot_be_found_out_is_told() -> None:
    sentence = "the memory limits of control groups cannot be read: Permission denied"
    machine = found("machine", hardware=replace(HARDWARE, unknown=(sentence,)))
    assert (machine.state, machine.found) == ("warn", sentence)


@pytest.mark.parametrize(("free", "state"), [(100 * GB, "ok"), (5 * GB, "warn"), (GB // 2, "fail"), (None, "warn")])
def test_the_disk_and_a_disk_that_does_not_say(free: int | None, state: str) -> None:
    disk = found("disk", disk_free=free)
    assert (disk.state, bool(disk.hint)) == (state, state != "ok")


def test_a_home_that_cannot_be_written_and_one_that_anybody_can() -> None:
    home = Path("/home/x/.lm")
    assert found("home", home=Home(home, "Read-only file system")).state == "fail"
    assert found("home", home=Home(home, writable_by_others=True)).hint == f"chmod go-w {home}"


def test_a_build_without_the_processors_instructions() -> None:
    slow = found("instructions", instructions=frozenset({"avx2", "avx512_vnni"}))
    assert slow.state == "warn"
    assert slow.found == "this processor has AVX512_VNNI, and llama.cpp was built without"
    assert found("instructions") == Finding("instructions", "ok", "AVX2")
    assert "cannot be found out" in found("instructions", instructions=None).found


def test_another_machine_that_does_not_answer_is_told() -> None:
    daemon = found("daemon", address=Address(silent="No route to host"))
    assert (daemon.state, daemon.found) == ("warn", "http://127.0.0.1:11434 does not answer: No route to host")
    assert "LM_HOST" in daemon.hint


def test_broken_amx_and_a_build_that_does_not_load() -> None:
    assert found("AMX").state == "ok"
    assert found("AMX", llama=msgspec.structs.replace(LLAMA, amx_is_broken=True)).state == "warn"
    refused = found("llama.cpp", llama=Refused("no such library"))
    assert (refused.state, refused.found) == ("fail", "no such library")


def test_the_version_that_is_installed_again_is_the_one_that_is_required() -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"llama-cpp-python=={PACKAGE_VERSION}" in required
    assert f"llama-cpp-python=={PACKAGE_VERSION}" in found("llama.cpp", llama=Refused("it died")).hint


def test_amd_cards_by_vendor(tmp_path: Path) -> None:
    for card, vendor in (("card0", "0x1002"), ("card1", "0x8086")):
        (tmp_path / card / "device").mkdir(parents=True)
        (tmp_path / card / "device" / "vendor").write_text(vendor + "\n")
    assert amd_cards(tmp_path, tmp_path) == ("AMD graphics card (card0)",)
    assert amd_cards(tmp_path, tmp_path / "none") == ()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, []),
        ({"host": "0.0.0.0", "no_auth": True}, ["every machine", "unencrypted"]),
        ({"host": "0.0.0.0", "api_key": "short"}, ["unencrypted", "5 letters"]),
        ({"origins": ("*",)}, ["every origin"]),
        ({"tls_key": "key", "tls_cert": "cert", "host": "0.0.0.0", "api_key": "x" * 30}, []),
        ({"keys": "nonsense"}, ["keys.json"]),
    ],
    ids=range(6),
)
def test_whatever_weakens_access_is_named(tmp_path: Path, settings: dict[str, Any], words: list[str]) -> None:
    if text := settings.pop("keys", None):
        (tmp_path / "keys.json").write_text(text)
        (tmp_path / "keys.json").chmod(0o600)
    for name in ("tls_key", "tls_cert"):
        if name in settings:
            settings[name] = tmp_path / settings[name]
            settings[name].write_text("")
            settings[name].chmod(0o644)
    found = exposure(Config(tmp_path, **settings))
    weak = [finding for finding in found if finding.state != "ok"]
    assert len(weak) == len(words) and all(finding.hint for finding in weak)
    assert all(word in finding.found for word, finding in zip(words, weak, strict=True))
    assert weak or [finding.check for finding in found] == ["access"]
