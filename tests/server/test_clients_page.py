"""The programs in `docs/clients.md`, each run as it stands but for the address and the model."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.daemon import Daemon, environment, put_model

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
PROGRAMS = dict(re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("page")
    put_model(home, "qwen3", capabilities=("completion", "tools"))
    with Daemon(home, script={"tokens": ["Rayleigh", " scatters"]}) as daemon:
        yield daemon


@pytest.mark.parametrize("title", sorted(PROGRAMS))
def test_a_program_of_the_page_answers(talker: Daemon, title: str) -> None:
    program = PROGRAMS[title]
    for package in re.findall(r"^(?:import|from) (\w+)", program, re.MULTILINE):
        if find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")
    program = program.replace("http://127.0.0.1:11434", talker.url)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=environment(), timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert "Rayleigh scatters" in done.stdout.decode()
