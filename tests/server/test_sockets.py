"""The daemon on a Unix socket, whose peers the kernel names, and behind TLS, whose certificate may change."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cli.http import UnixConnection
from server.access.peers import Credentials, peers_role
from server.config import Config
from server.keys.file import change_keys
from server.keys.record import new_key
from server.settings import BadSetting
from tests.cli.support import Cli
from tests.daemon import Daemon, put_model, wait_until

NOBODY = 65534
# Sends a request over the socket at argv[1] as another user of the group argv[2], and prints the status.
AS_ANOTHER = """
import os, sys
from cli.http import UnixConnection
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(65534)
for method, path in (("GET", "/api/tags"), ("DELETE", "/api/delete"), ("POST", "/lm/shutdown")):
    connection = UnixConnection(sys.argv[1], 10)
    try:
        connection.request(method, path, b'{"model": "missing"}')
        print(connection.getresponse().status)
    except OSError as error:
        print(type(error).__name__)
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


def over(path: str, method: str, route: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection = UnixConnection(path, 30)
    try:
        connection.request(method, route, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_a_socket_serves_its_own_user(tmp_path: Path) -> None:
    put_model(tmp_path / "home")
    path = tmp_path / "lm.sock"
    with socket.socket(socket.AF_UNIX) as left:  # as a daemon that was killed leaves it
        left.bind(str(path))
    host = f"unix:{path}"
    with Daemon(tmp_path / "home", arguments=("--host", host), script={"echo": True}) as daemon:
        assert daemon.url == host
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        status, tags = over(str(path), "GET", "/api/tags", Host="anything")
        assert (status, len(tags["models"])) == (200, 2)
        body = {"model": "tiny", "messages": [{"role": "user", "content": "a b"}], "stream": False}
        assert over(str(path), "POST", "/api/chat", body)[1]["message"]["content"] == "a b"
        second = Daemon(tmp_path / "second", arguments=("--host", host))
        assert second.ended() == 1 and "listens on" in second.ready_line
        lm = Cli.at(tmp_path / "home", host)
        assert "tiny" in lm("list").out
        assert lm("stop", "--daemon").code == 0
        assert daemon.ended() == 0
    assert not path.exists()


@pytest.mark.parametrize("host", ["unix:", "unix:lm.sock", "unix:/" + "x" * 200])
def test_what_is_no_path_of_a_socket_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="LM_HOST"):
        Config.load(env={"LM_HOST": host, "LM_HOME": str(tmp_path)})


def test_a_file_in_the_place_of_the_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    refused = Daemon(tmp_path / "home", arguments=("--host", f"unix:{path}"))
    assert refused.ended() == 1 and "is no socket" in refused.ready_line
    assert path.read_text() == "mine"
    refused = Daemon(tmp_path / "home", arguments=("--host", f"unix:{tmp_path}/none/lm.sock"))
    assert refused.ended() == 1 and "folder" in refused.ready_line


@as_root
@pytest.mark.parametrize(
    ("group", "role", "expected"),
    [
        (NOBODY, "infer", ["200", "403", "403"]),
        (NOBODY, "operator", ["200", "404", "403"]),
        (12345, "infer", ["PermissionError"] * 3),
    ],
)
def test_the_group_of_a_socket_has_a_role(tmp_path: Path, group: int, role: str, expected: list[str]) -> None:
    import grp

    put_model(tmp_path / "home")
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    folder.chmod(0o755)
    path = str(folder / "lm.sock")
    env = {"LM_SOCKET_GROUP": grp.getgrgid(NOBODY).gr_name, "LM_SOCKET_ROLE": role}
    with Daemon(tmp_path / "home", arguments=("--host", f"unix:{path}"), env=env):
        done = subprocess.run([sys.executable, "-c", AS_ANOTHER, path, str(group)], capture_output=True, check=False)
        assert done.stdout.decode().split() == expected, done.stderr
    folder.rmdir()


def test_the_role_of_a_peer(tmp_path: Path) -> None:
    config = Config(tmp_path)
    own = peers_role(config, Credentials(os.geteuid(), 1))
    root = peers_role(config, Credentials(0, 0))
    assert own is not None and own.role == "admin" and root is not None and root.role == "admin"
    assert peers_role(config, Credentials(NOBODY, NOBODY)) is None
    assert peers_role(config, Credentials(-1, -1)) is None


def test_a_key_goes_before_the_user_of_a_socket(tmp_path: Path) -> None:
    secret, key = new_key("infer")
    change_keys(tmp_path / "home" / "keys.json", lambda _: [key])
    path = str(tmp_path / "lm.sock")
    with Daemon(tmp_path / "home", arguments=("--host", f"unix:{path}")):
        assert over(path, "DELETE", "/api/delete", {"model": "missing"}, Authorization=f"Bearer {secret}")[0] == 403
        assert over(path, "DELETE", "/api/delete", {"model": "missing"}, Authorization="Bearer none")[0] == 404


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for `localhost` that signs itself."""
    folder.mkdir(exist_ok=True)
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


def shown(port: int) -> str:
    """The certificate that a server shows."""
    return ssl.get_server_certificate(("127.0.0.1", port))


@needs_openssl
def test_tls_by_files_that_are_read_anew(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path / "tls", "one")
    first = cert.read_text()
    arguments = ("--tls-cert", str(cert), "--tls-key", str(key))
    with Daemon(tmp_path / "home", arguments=arguments) as daemon:
        assert daemon.url.startswith("https://")
        context = ssl.create_default_context(cafile=cert)
        connection = http.client.HTTPSConnection("localhost", daemon.port, context=context, timeout=30)
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"Ollama is running"
        connection.close()
        assert Cli.at(tmp_path / "home")("list").code == 0  # the daemon's own user trusts its file
        elsewhere = dict(Cli.at(tmp_path, f"https://localhost:{daemon.port}", XDG_DATA_HOME=str(tmp_path)).env)
        del elsewhere["LM_HOME"]
        refused = Cli(elsewhere)("list")
        assert refused.code == 4 and "LM_TLS_CA" in refused.err
        assert Cli(elsewhere | {"LM_TLS_CA": str(cert)})("list").code == 0
        cert.write_text("broken")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "stays as it was" in daemon.log, 5)
        assert shown(daemon.port).split() == first.split()
        certificate(tmp_path / "tls", "two")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: shown(daemon.port).split() != first.split(), 5)
        assert shown(daemon.port).split() == cert.read_text().split()


@needs_openssl
def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path / "tls", "one")
    other = certificate(tmp_path / "other", "two")[1]
    for arguments in ((str(cert), str(other)), (str(tmp_path / "none"), str(key)), (str(key), str(key))):
        refused = Daemon(tmp_path / "home", arguments=("--tls-cert", arguments[0], "--tls-key", arguments[1]))
        assert refused.ended() == 1
        assert arguments[0] in refused.ready_line and "Traceback" not in refused.errors
