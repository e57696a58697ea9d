"""The wheel, alone in a fresh environment: nothing is missing from it, and `lm run demo` answers."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.cli.support import Cli
from tests.daemon import environment
from tests.test_architecture import PACKAGES, ROOT

pytestmark = pytest.mark.slow
SETUPTOOLS = 77  # `build-system` in pyproject.toml
ALONE = {"PYTHONPATH": ""}  # the checkout is not to be found


def ran(*command: object) -> str:
    line, env = [str(part) for part in command], environment() | ALONE
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT.anchor, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def isolation() -> list[str]:
    """How pip gets setuptools: from here where it is new enough, else from a package index."""
    try:
        here = int(importlib.metadata.version("setuptools").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        here = 0
    return ["--no-build-isolation"] if here >= SETUPTOOLS else []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A copy, because setuptools leaves `build/` beside the sources, and packs what lies there the next time.
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*pip, *isolation(), "--wheel-dir", out, copy], capture_output=True, text=True, check=False, cwd=out
    )
    if done.returncode and ("No module named pip" in done.stderr or not isolation()):
        pytest.skip(f"no wheel without pip and setuptools {SETUPTOOLS}: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of an environment with the wheel; the libraries are those of this environment."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, symlinks=True)
    python = place / "bin" / "python"
    ran(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    (site,) = place.glob("lib/python*/site-packages")
    # Folders that a .pth names have no .pth of their own read, so an editable install there stays unseen.
    (site / "libraries.pth").write_text("".join(f"{folder}\n" for folder in sys.path if "site-packages" in folder))
    return python.parent


def test_no_file_is_missing_from_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        packed = {name for name in file.namelist() if ".dist-info/" not in name}
    sources = {path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    folders = (ROOT / "registry" / "demo", ROOT / "runtime" / "meter" / "texts")
    data = {path for folder in folders for path in folder.iterdir() if path.is_file()}
    data.add(ROOT / "quant" / "convert" / "keys.json")
    data |= {path for path in (ROOT / "server" / "static").rglob("*") if path.is_file()}
    assert packed == {path.relative_to(ROOT).as_posix() for path in sources | data}


def test_the_wheel_alone_answers(installed: Path, tmp_path: Path) -> None:
    code = f"import json, importlib as i; print(json.dumps([i.import_module(name).__file__ for name in {PACKAGES}]))"
    found = json.loads(ran(installed / "python", "-c", code))
    assert [Path(file).parents[1] for file in found] == [next(installed.parent.glob("lib/python*/site-packages"))] * 5
    cli = Cli.at(tmp_path / "home", program=str(installed / "lm"), **ALONE)
    try:
        answer = cli("run", "demo", "Once upon a time", "--temperature", "0", "--max-tokens", "16", cwd=tmp_path)
        assert answer.code == 0, answer.err
        assert len(answer.out.split()) > 5
    finally:
        assert cli("stop", "--daemon").code == 0
