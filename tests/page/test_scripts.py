"""The page's Markdown and its reader of streams, tested by Node where it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.daemon import environment


def test_markdown_and_streams() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no `node`")
    command = [node, "--test", str(Path(__file__).parent / "markdown.test.mjs")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
