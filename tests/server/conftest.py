"""Daemons that several tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemon import Daemon, put_model


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose model `tiny` answers with the words of the last message."""
    home = tmp_path_factory.mktemp("echo")
    put_model(home)
    with Daemon(home, script={"echo": True}) as daemon:
        yield daemon
