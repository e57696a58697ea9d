"""The page's Markdown and its reader of streams, tested by Node where it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.daemon import environment

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("name", ["markdown", "growing"])
def test_scripts(name: str) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no `node`")
    command = [node, "--test", str(FOLDER / f"{name}.test.mjs")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
