"""Logins at registries: tried before they are kept, kept for their owner alone, used where they belong."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.errors import AccessDenied
from registry.net.authorize import Authorizer
from registry.net.network import Network
from server.api.lm import login
from server.config import Config
from server.logins import host_of, read_logins, save_login
from tests.daemon import Daemon
from tests.oci import OLLAMA, Registry
from tests.publishing import make


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry(login="me:secret") as registry:
        yield registry


def test_a_login_is_tried_kept_and_used(registry: Registry, tmp_path: Path) -> None:
    registry.add("ns/tale", "latest", [(OLLAMA + "model", make(tmp_path / "x.gguf", "Q4_0").read_bytes())])
    name = f"{registry.host}/ns/tale"
    with Daemon(tmp_path / "home", script={"echo": True}) as daemon:
        refused = daemon.post("/api/pull", {"model": name, "stream": False})
        assert (refused.status, refused.json["code"]) == (403, "access_denied")
        assert f"lm login {registry.host}" in refused.json["hint"]
        body = {"registry": f"http://{registry.host}/v2", "username": "me", "password": "wrong"}
        assert daemon.post("/lm/login", body).json["code"] == "access_denied"
        file = daemon.home / "credentials.json"
        assert not file.exists()
        assert daemon.post("/lm/login", body | {"password": "secret"}).json == {"registry": registry.host}
        assert file.stat().st_mode & 0o777 == 0o600
        assert daemon.pull(name)["name"] == f"{name}:latest"
        assert "secret" not in daemon.log
        assert daemon.post("/lm/logout", {"registry": registry.host}).json["forgotten"] is True
        assert daemon.post("/lm/logout", {"registry": registry.host}).json["forgotten"] is False
        for bad in ({"registry": "../x"}, {"username": "a:b", "password": "c", "registry": "x"}, {"registry": "x"}):
            assert daemon.post("/lm/login", bad).json["code"] == "bad_body"


def test_a_login_that_another_host_would_check_is_not_said_to_be_right(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Docker Hub does: whoever sends no login gets a token for what everybody may read.
    registry.tokens, registry.realm = True, "https://auth.example/token"
    monkeypatch.setattr(Authorizer, "_ask", lambda *_: b'{"token": "secret-token"}')
    with pytest.raises(AccessDenied, match=r"checked by `auth\.example`"):
        login.check(Config(tmp_path), registry.host, "me:wrong")
    both = Authorizer(Network(), registry.url, "", {registry.host: "me:secret", "auth.example": "me:other"})
    assert both.renew("", f'Bearer realm="{registry.realm}"') and both.logged_in


def test_dockers_own_logins_count_after_ours_and_no_helper_is_run(tmp_path: Path) -> None:
    auth = base64.b64encode(b"docker:pass").decode()
    auths = {"https://index.docker.io/v1/": {"auth": auth}, "ghcr.io": {"auth": auth}, "x": {"auth": "%"}, "y": {}}
    helpers = {"credsStore": "nothing", "credHelpers": {"gcr.io": "nothing"}}
    (tmp_path / "config.json").write_text(json.dumps({"auths": auths} | helpers))
    config = Config(tmp_path, docker_config=tmp_path)
    assert dict(read_logins(config)) == {"registry-1.docker.io": "docker:pass", "ghcr.io": "docker:pass"}
    save_login(config, "ghcr.io", "me:own")
    assert dict(read_logins(config))["ghcr.io"] == "me:own"
    (tmp_path / "config.json").write_text("{")
    assert dict(read_logins(config)) == {"ghcr.io": "me:own"}


@pytest.mark.parametrize("text", ["", "../x", "a b", "x/..", "http://", "u:p@h", "a..b"])
def test_a_host_is_a_host(text: str) -> None:
    if text == "x/..":
        assert host_of(text) == "x"
    else:
        with pytest.raises(ValueError, match="no host"):
            host_of(text)


@pytest.mark.parametrize(
    ("home", "realm", "sent"),
    [
        ("https://registry-1.docker.io", "https://auth.docker.io/token", True),
        ("https://registry-1.docker.io", "https://auth.docker.io:8443/token", False),
        ("https://registry-1.docker.io", "https://auth.docker.io.evil.example/token", False),
        ("https://registry-1.docker.io", "https://docker.io/token", False),
        ("https://registry.example", "https://auth.docker.io/token", False),
        ("https://registry.example", "https://registry.example/token", True),
        ("https://registry.example", "https://auth.registry.example/token", False),
    ],
)
def test_a_login_goes_to_another_host_only_where_that_is_docker_hubs_own(
    monkeypatch: pytest.MonkeyPatch, home: str, realm: str, sent: bool
) -> None:
    asked: list[tuple[str, str]] = []

    def ask(_: Authorizer, url: str, header: str) -> bytes:
        asked.append((url, header))
        return b'{"token": "x"}'

    monkeypatch.setattr(Authorizer, "_ask", ask)
    host = home.removeprefix("https://")
    authorizer = Authorizer(Network(), home, "", {host: "me:secret"})
    assert authorizer.renew("", f'Bearer realm="{realm}",service="s"')
    ((url, header),) = asked
    assert url.startswith(realm) and bool(header) is sent and bool(authorizer.elsewhere) is not sent
