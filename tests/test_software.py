"""Software without a network: a folder of wheels is installed, updated, taken back; what it does not know stays."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.daemon import Daemon, environment
from tests.test_architecture import ROOT

INSTALL = ROOT / "scripts" / "software" / "install"


def bundle(folder: Path, release: str, **other: str) -> Path:
    """A folder as `scripts/bundle-software` makes it, with a small program in the place of lm."""
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    name = f"lm-{release}"
    files = {
        "cli/__init__.py": "",
        "cli/start.py": f"print({release!r})\n",
        f"{name}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: lm\nVersion: {release}\n",
        f"{name}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{name}.dist-info/RECORD"] = "".join(f"{each},,\n" for each in [*files, f"{name}.dist-info/RECORD"])
    wheel = wheels / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    made = {
        "version": release,
        "cpu": "any",
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "system": platform.system(),
        "machine": platform.machine(),
        "wheels": {wheel.name: hashlib.sha256(wheel.read_bytes()).hexdigest()},
    }
    (folder / "software.json").write_text(json.dumps(made | other))
    shutil.copy(INSTALL, folder / "install")
    return folder


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a program, on a machine whose settings for pip would put packages elsewhere."""
    env = environment() | {"PYTHONPATH": "", "PIP_TARGET": "/nonexistent/elsewhere"}
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, env=env)


@pytest.mark.slow
def test_a_version_is_installed_updated_and_taken_back(tmp_path: Path) -> None:
    first, second = bundle(tmp_path / "1", "1.0"), bundle(tmp_path / "2", "2.0")
    target = tmp_path / "lm at home"
    lm = target / "bin" / "lm"
    assert "no version before" in run(sys.executable, first / "install", "--back", target).stderr
    for folder, version in ((first, "1.0"), (second, "2.0"), (first, "1.0"), (second, "2.0")):
        done = run(sys.executable, folder / "install", target)
        assert done.returncode == 0, done.stderr
        assert run(lm).stdout.strip() == version
    strange = target / "versions" / "3.0-of-a-later-lm"
    strange.mkdir()
    for version in ("1.0", "2.0", "1.0"):
        assert run(sys.executable, first / "install", "--back", target).returncode == 0
        assert run(lm).stdout.strip() == version
    assert strange.is_dir()
    assert len(list((target / "versions").iterdir())) == 3


@pytest.mark.slow
def test_an_installation_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    target = tmp_path / "lm"
    assert run(sys.executable, bundle(tmp_path / "1", "1.0") / "install", target).returncode == 0
    broken = bundle(tmp_path / "2", "2.0", version="9.0")
    failed = run(sys.executable, broken / "install", target)
    assert failed.returncode == 1
    assert "pip" in failed.stderr or "python failed" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert run(target / "bin" / "lm").stdout.strip() == "1.0"


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"machine": "sparc"}, "this is for machine sparc"),
        ({"python": "2.7"}, "run this with Python 2.7"),
        ({"system": "Plan9"}, "this is for system Plan9"),
    ],
)
def test_another_kind_of_machine_is_refused(tmp_path: Path, other: dict[str, str], words: str) -> None:
    refused = run(sys.executable, bundle(tmp_path / "b", "1.0", **other) / "install", tmp_path / "lm")
    assert refused.returncode == 1
    assert words in refused.stderr
    assert not (tmp_path / "lm").exists()


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b", "1.0")
    wheel = next((folder / "wheels").iterdir())
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"!")
    assert "missing or damaged" in run(sys.executable, folder / "install", tmp_path / "lm").stderr
    wheel.unlink()
    assert "missing or damaged" in run(sys.executable, folder / "install", tmp_path / "lm").stderr
    (folder / "software.json").write_text("{")
    assert "no readable `software.json`" in run(sys.executable, folder / "install", tmp_path / "lm").stderr


def test_what_a_later_lm_left_in_the_home_stays(tmp_path: Path) -> None:
    """Going back: the store is swept by digests that manifests name, and other files and folders are left alone."""
    later = ["later.json", "later/file", "store/later/file", "store/later.json", "cache/later/file", "logs/later.log"]
    for name in later:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("of a later version")
    with Daemon(tmp_path, script={}) as daemon:
        assert daemon.post("/lm/prune", {}).status == 200
    assert [name for name in later if not (tmp_path / name).exists()] == []
