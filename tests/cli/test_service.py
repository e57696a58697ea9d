"""`lm service`: units that systemd takes and finds tight; installed, shown and removed by the service manager."""

from __future__ import annotations

import os
import plistlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cli.units import MARK, Service
from server.config import service_manager
from tests.cli.support import Cli
from tests.daemon import Daemon, allowed

ANALYZE = shutil.which("systemd-analyze")
with_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
TRUE = shutil.which("true") or "/bin/true"
# Stands in for the service manager's programs: writes down how it was called, and fails where the test says so.
STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in *"$FAILS"*) [ -n "$FAILS" ] && { echo "Failed to connect to bus" >&2; exit 1; } ;; esac
exit 0
"""


def exposure(folder: Path, text: str) -> float:
    """systemd's own judgement of a unit, from 0 for none to 10."""
    path = folder / "lm.service"
    path.write_text(text)
    words = [str(ANALYZE), "security", "--offline=true", "--no-pager", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    found = re.search(r"Overall exposure level for lm.service: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    return float(found[1])


@with_systemd
@pytest.mark.parametrize(
    ("service", "most"),
    [(Service((TRUE,)), 1.5), (Service((TRUE,), cards=True), 1.7), (Service((TRUE,), silent=True), 1.3)],
    ids=["plain", "cards", "silent"],
)
def test_systemd_finds_the_unit_tight(tmp_path: Path, service: Service, most: float) -> None:
    assert exposure(tmp_path, service.system_unit()) <= most


@with_systemd
@pytest.mark.parametrize("kind", ["system", "user"])
def test_systemd_understands_every_line(tmp_path: Path, kind: str) -> None:
    service = Service((TRUE,), home=None if kind == "system" else tmp_path / "a b%c", cards=True)
    path = tmp_path / "lm.service"
    path.write_text(service.system_unit() if kind == "system" else service.user_unit())
    done = subprocess.run([str(ANALYZE), "verify", "--man=no", str(path)], capture_output=True, text=True)
    assert str(path) not in done.stderr, done.stderr
    assert "lm.service" not in done.stderr, done.stderr


def test_paths_stay_words() -> None:
    unit = Service(("/opt/a b/$x/python", "-m", "server"), home=Path("/srv/100%")).user_unit()
    assert 'ExecStart="/opt/a b/$$x/python" -m server\n' in unit
    assert "Environment=LM_HOME=/srv/100%%\n" in unit


def test_the_agent_of_launchd_is_a_property_list(tmp_path: Path) -> None:
    text = Service(home=tmp_path).property_list()
    agent = plistlib.loads(text.encode())
    assert MARK in text
    assert agent["ProgramArguments"][1:] == ["-P", "-m", "server"]
    assert agent["EnvironmentVariables"] == {"LM_HOME": str(tmp_path)}


@pytest.fixture
def lm(tmp_path: Path) -> Cli:
    """`lm` of a user whose service manager is a stand-in."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("systemctl", "journalctl", "loginctl"):
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return Cli.at(tmp_path / "home", HOME=str(tmp_path), PATH=path, CALLS=str(tmp_path / "calls"), FAILS="")


linux = pytest.mark.skipif(sys.platform != "linux", reason="units are systemd's")


@linux
def test_a_service_comes_and_goes(lm: Cli, tmp_path: Path) -> None:
    unit = tmp_path / ".config" / "systemd" / "user" / "lm.service"
    assert lm("service", "status").code == 1
    done = lm("service", "install")
    assert done.code == 0, done.err
    assert "LM_HOST" not in unit.read_text()
    assert "host" in done.err.partition("note: ")[2], "a setting that the service will not have is told"
    assert unit.read_text() == lm("service", "--print").out
    assert lm("service", "status").code == 0
    assert lm("service", "logs", "-n", "3").code == 0
    assert lm("service", "uninstall").code == 0
    assert not unit.exists()
    assert (tmp_path / "calls").read_text().splitlines() == [
        "systemctl --user daemon-reload",
        "systemctl --user enable lm.service",
        "systemctl --user restart lm.service",
        "systemctl --user status --no-pager --lines=0 lm.service",
        "journalctl --user --no-pager -u lm.service -n 3",
        "systemctl --user disable --now lm.service",
        "systemctl --user daemon-reload",
    ]


@linux
def test_a_unit_of_somebody_else_stays(lm: Cli, tmp_path: Path) -> None:
    unit = tmp_path / ".config" / "systemd" / "user" / "lm.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    for verb in ("install", "uninstall"):
        refused = lm("service", verb)
        assert refused.code == 1
        assert "was not written by `lm service`" in refused.err
    assert "ExecStart=/bin/true" in unit.read_text()


@linux
def test_a_manager_that_refuses_is_quoted_and_leaves_nothing(lm: Cli, tmp_path: Path) -> None:
    failed = Cli({**lm.env, "FAILS": "daemon-reload"})("service", "install")
    assert failed.code == 1
    assert "Failed to connect to bus" in failed.err
    assert "Traceback" not in failed.err
    assert not (tmp_path / ".config" / "systemd" / "user" / "lm.service").exists()


@linux
def test_a_service_goes_where_its_manager_is_out_of_reach(lm: Cli, tmp_path: Path) -> None:
    unit = tmp_path / ".config" / "systemd" / "user" / "lm.service"
    assert lm("service", "install").code == 0
    link = unit.parent / "default.target.wants" / "lm.service"
    link.parent.mkdir()
    link.symlink_to(unit)
    done = Cli({**lm.env, "FAILS": "disable"})("service", "uninstall")
    assert done.code == 0
    assert "the service manager was not told" in done.err and "Failed to connect to bus" in done.err
    assert not unit.exists() and not link.is_symlink()
    bare = tmp_path / "bare"
    bare.mkdir()
    assert lm("service", "install").code == 0
    done = Cli({**lm.env, "PATH": str(bare)})("service", "uninstall")
    assert done.code == 0 and "this system has no systemd" in done.err and not unit.exists()


@linux
def test_a_daemon_goes_on_where_no_service_takes_its_place(lm: Cli, tmp_path: Path) -> None:
    with Daemon(tmp_path / "home", script={}) as daemon:
        here = {**lm.env, "LM_HOST": f"127.0.0.1:{daemon.port}"}
        for fails in ("daemon-reload", "enable"):
            assert Cli({**here, "FAILS": fails})("service", "install").code == 1
            assert daemon.get("/api/version").status == 200
        assert Cli(here)("service", "install").code == 0
        assert daemon.ended() == 0


@linux
def test_without_systemd_the_unit_can_still_be_printed(lm: Cli, tmp_path: Path) -> None:
    bare = Cli({**lm.env, "PATH": str(tmp_path)})
    refused = bare("service", "install")
    assert refused.code == 1
    assert "this system has no systemd" in refused.err
    assert MARK in bare("service", "--print", "--system").out


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs the system's service")
def test_a_python_that_the_service_cannot_see_is_refused(lm: Cli) -> None:
    if not any(str(Path(sys.executable).resolve()).startswith(f"{folder}/") for folder in ("/root", "/home", "/tmp")):
        pytest.skip("this Python lies where the service may look")
    refused = lm("service", "install", "--system")
    assert refused.code == 1
    assert "cannot look into" in refused.err


def test_only_the_process_that_is_meant_gives_signs_of_life() -> None:
    env = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000"}
    assert service_manager({}) == ("", 0.0)
    assert service_manager(env | {"WATCHDOG_PID": str(os.getpid())}) == ("/run/x", 30.0)
    assert service_manager(env | {"WATCHDOG_PID": "1"}) == ("/run/x", 0.0)
    assert service_manager(env | {"WATCHDOG_USEC": "soon"}) == ("/run/x", 0.0)


@linux
@pytest.mark.parametrize("abstract", [False, True], ids=["file", "abstract"])
def test_the_manager_hears_that_the_daemon_is_ready_lives_and_stops(tmp_path: Path, abstract: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="lm-") as short, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ears:
        place = f"\0lm-test-{os.getpid()}" if abstract else f"{short}/notify"
        ears.bind(place)
        ears.settimeout(allowed(20))
        env = {"NOTIFY_SOCKET": place.replace("\0", "@"), "WATCHDOG_USEC": "300000"}
        with Daemon(tmp_path, script={}, env=env) as daemon:
            first = ears.recv(4096).decode().splitlines()
            assert first == ["READY=1", f"STATUS=answers on {daemon.url}"]
            assert [ears.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            daemon.stop()
        heard = [ears.recv(4096)]
        while not heard[-1].startswith(b"STOPPING=1"):
            assert heard[-1] == b"WATCHDOG=1"
            heard.append(ears.recv(4096))


def test_a_manager_that_is_gone_harms_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path, script={}, env={"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "100000"}) as daemon:
        assert daemon.get("/health").status == 200
