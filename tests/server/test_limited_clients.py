"""The PyPI packages `openai`, `ollama` and `anthropic` at a limit: each has its own error, and tries again in time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.keys.file import change_keys
from server.keys.record import Allowance, new_key
from tests.daemon import Daemon, put_model

TURNS: Any = [{"role": "user", "content": "one two"}]


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[tuple[Daemon, str]]:
    """A daemon, and a key with one request in a second."""
    put_model(tmp_path)
    secret, key = new_key("infer", rate=Allowance(1, 1))
    change_keys(tmp_path / "keys.json", lambda _: [key])
    with Daemon(tmp_path, script={"echo": True}) as daemon:
        yield daemon, secret


def test_openai_knows_the_limit_and_tries_again(limited: tuple[Daemon, str]) -> None:
    openai = pytest.importorskip("openai")
    daemon, secret = limited
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key=secret, max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(model="tiny", messages=TURNS)
        assert raw.headers["x-ratelimit-limit-requests"] == "1"
        with pytest.raises(openai.RateLimitError) as refused:
            while True:  # a slow machine may take longer than the bucket
                client.models.list()
        assert refused.value.code == "rate_limit_exceeded"
        assert int(refused.value.response.headers["retry-after"]) == 1
        patient = client.with_options(max_retries=5)
        assert patient.chat.completions.create(model="tiny", messages=TURNS).choices[0].message.content == "one two"
    stranger = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="lm_wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_ollama_tells_the_limit(limited: tuple[Daemon, str]) -> None:
    ollama = pytest.importorskip("ollama")
    daemon, secret = limited
    with ollama.Client(host=daemon.url, headers={"Authorization": f"Bearer {secret}"}) as client:
        assert client.chat("tiny", TURNS).message.content == "one two"
        with pytest.raises(ollama.ResponseError) as refused:
            while True:
                client.list()
    assert refused.value.status_code == 429
    assert "1 requests within a second" in refused.value.error
    with ollama.Client(host=daemon.url) as stranger, pytest.raises(ollama.ResponseError) as denied:
        stranger.list()
    assert denied.value.status_code == 401


def test_anthropic_knows_the_limit_and_tries_again(limited: tuple[Daemon, str]) -> None:
    anthropic = pytest.importorskip("anthropic")
    daemon, secret = limited

    def ask(client: Any) -> None:
        client.messages.create(model="tiny", max_tokens=8, messages=TURNS)

    with anthropic.Anthropic(base_url=daemon.url, api_key=secret, max_retries=0) as client:
        with pytest.raises(anthropic.RateLimitError) as refused:
            while True:
                ask(client)
        assert refused.value.body["error"]["type"] == "rate_limit_error"
        assert refused.value.response.headers["retry-after"] == "1"
        ask(client.with_options(max_retries=5))  # its own waits are enough
    stranger = anthropic.Anthropic(base_url=daemon.url, api_key="lm_wrong", max_retries=0)
    with stranger, pytest.raises(anthropic.AuthenticationError):
        ask(stranger)
