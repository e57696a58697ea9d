"""Where a daemon listens is written down, or it does not begin where nobody would find it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import NoReturn

import pytest

from server import daemon
from server.config import Config
from server.errors import StartFailed


def test_any_free_port_on_a_full_disk_is_refused_because_no_command_would_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(daemon, "replace_file", full)
    config = Config(home=tmp_path, port=4711)
    daemon._write_daemon_file(config, "token", findable=True)
    with pytest.raises(StartFailed, match="nobody would find") as caught:
        daemon._write_daemon_file(config, "token", findable=False)
    assert "LM_PORT" in caught.value.hint
