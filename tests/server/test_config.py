from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server.config import Config
from server.settings import BadSetting
from server.values import FOREVER, address, duration, is_loopback


def test_a_default_is_overruled_by_file_environment_flag_in_this_order(tmp_path: Path) -> None:
    home = {"LM_HOME": str(tmp_path)}
    assert Config.load({}, home).queue == 64
    (tmp_path / "config.toml").write_text("queue = 5\nkeep_alive = '10m'\n")
    assert (Config.load({}, home).queue, Config.load({}, home).keep_alive) == (5, 600)
    assert Config.load({}, home | {"LM_QUEUE": "6"}).queue == 6
    assert Config.load({"queue": "7", "host": None}, home | {"LM_QUEUE": "6"}).queue == 7


def test_paths_lie_in_the_home(tmp_path: Path) -> None:
    config = Config.load({"home": tmp_path}, {})
    assert (config.store, config.cache) == (tmp_path / "store", tmp_path / "cache")
    assert (config.log_file, config.daemon_file) == (tmp_path / "logs" / "daemon.log", tmp_path / "daemon.json")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("0.0.0.0", "0.0.0.0", None),
        (":8080", "127.0.0.1", 8080),
        ("http://box.lan:80/", "box.lan", 80),
        ("[::1]:9", "::1", 9),
    ],
)
def test_an_address_may_be_written_in_many_ways(text: str, host: str, port: int | None) -> None:
    assert address(text) == (host, port)
    assert Config.load({}, {"LM_HOME": "/x", "OLLAMA_HOST": text}).port == (port or Config.port)


def test_a_port_of_its_own_overrules_that_of_the_host() -> None:
    assert Config.load({"port": 5}, {"LM_HOME": "/x", "LM_HOST": "a:4"}).port == 5


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:1"), ("::", "http://[::1]:1"), ("::1", "http://[::1]:1"), ("b", "http://b:1")],
)
def test_the_url_is_one_that_clients_can_use(host: str, url: str) -> None:
    assert Config(home=Path("/x"), host=host, port=1).url == url


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("5m", 300), ("1h30m", 5400), ("250ms", 0.25), (60, 60), ("60", 60), (0, 0), (-1, FOREVER), ("-1m", FOREVER)],
)
def test_durations(value: object, seconds: float) -> None:
    assert duration(value) == seconds


@pytest.mark.parametrize("value", ["", "5 m", "m", "5x", "٥m", "1e3", True, "99999999999m"])
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration(value)


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"LM_PORT": "65536"}, "LM_PORT"),
        ({"LM_CONTEXT": "many"}, "LM_CONTEXT"),
        ({"OLLAMA_KEEP_ALIVE": "soon"}, "OLLAMA_KEEP_ALIVE"),
        ({"HF_ENDPOINT": "file:///x"}, "HF_ENDPOINT"),
        ({"LM_HOST": "a b"}, "a b"),
    ],
)
def test_a_bad_setting_is_named_with_its_origin(env: dict[str, str], named: str) -> None:
    with pytest.raises(BadSetting, match=named) as caught:
        Config.load({}, {"LM_HOME": "/x"} | env)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["queue = ", "colour = 'red'", "queue = true"])
def test_a_bad_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(BadSetting, match=r"config\.toml"):
        Config.load({"home": str(tmp_path)}, {})


def test_secrets_are_not_shown() -> None:
    with pytest.raises(BadSetting) as caught:
        Config.load({}, {"LM_HOME": "/x", "HF_TOKEN": "hf_secret\x01"})
    assert "secret" not in str(caught.value) + caught.value.hint


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "127.evil"))


def test_it_imports_the_standard_library_only() -> None:
    heavy = "('aiohttp', 'msgspec', 'platformdirs')"
    code = f"import sys, server.config; print([name for name in sys.modules if name in {heavy}])"
    root = Path(__file__).parents[2]
    loaded = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=root)
    assert loaded.stdout == "[]\n", loaded.stderr


def test_settings_that_a_running_daemon_does_not_have_are_told_in_words(tmp_path: Path) -> None:
    running = Config(tmp_path, keep_alive=FOREVER).lasting
    env = {
        "LM_CONTEXT": "1024",
        "LM_KEEP_ALIVE": "90s",
        "LM_ORIGINS": "https://a.example",
        "LM_PORT": "1",
        "HF_TOKEN": "x",
    }
    rows = Config.load({"home": tmp_path}, env).unheard(running, env)
    assert rows == [
        ("`LM_CONTEXT`", "1024", "the default"),
        ("`LM_KEEP_ALIVE`", "90", "for ever"),
        ("`LM_ORIGINS`", "https://a.example", "nothing"),
    ]
    assert Config.load({"home": tmp_path}, env).unheard({}, env) == []


@pytest.mark.parametrize("quoted", ['"0.0.0.0:11500"', "'http://0.0.0.0:11500'", "HTTP://0.0.0.0:11500/"])
def test_a_host_may_stand_in_quotes(quoted: str) -> None:
    config = Config.load({}, {"LM_HOME": "/x", "OLLAMA_HOST": quoted})
    assert (config.host, config.port) == ("0.0.0.0", 11500)


@pytest.mark.parametrize("text", ["ftp://models.example", "not a host", "a:b:c"])
def test_a_host_that_is_none_is_named_with_its_variable(text: str) -> None:
    with pytest.raises(BadSetting, match="`OLLAMA_HOST` is not usable"):
        Config.load({}, {"LM_HOME": "/x", "OLLAMA_HOST": text})


@pytest.mark.parametrize("text", ["1d", "36h", "99999999h", "1" * 100])
def test_long_durations(text: str) -> None:
    expected = {"1d": 86_400.0, "36h": 129_600.0, "99999999h": FOREVER}
    if text in expected:
        assert duration(text) == expected[text]
    else:
        with pytest.raises(ValueError, match="duration"):
            duration(text)
