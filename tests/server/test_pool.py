"""Workers: room, time to live, queues, and every way to lose one. The scripted engine, real processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.daemon import Answer, Daemon, allowed, put_model, wait_until

LONG = {"tokens": ["word "] * 2000, "delay": 0.01}


def say(model: str = "tiny", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "x"}], **more}


def first_text(response: HTTPResponse) -> None:
    line = json.loads(response.readline())
    assert line["message"]["content"]


class Asking(threading.Thread):
    """A request in the background."""

    def __init__(self, daemon: Daemon, body: dict[str, Any], path: str = "/api/chat") -> None:
        super().__init__(daemon=True)
        self._ask = lambda: daemon.post(path, body)
        self.answer: Answer | None = None
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # the daemon may be killed meanwhile
            self.answer = self._ask()

    def result(self) -> Answer:
        self.join(30)
        assert self.answer is not None
        return self.answer


def test_a_killed_worker_is_told_within_a_second_and_replaced(home: Path) -> None:
    with Daemon(home, script=LONG) as daemon:
        for _ in range(5):
            with daemon.opened("POST", "/api/chat", say()) as response:
                first_text(response)
                (pid,) = daemon.workers()
                os.kill(pid, signal.SIGKILL)
                killed = time.monotonic()
                last = json.loads(response.read().splitlines()[-1])
                assert time.monotonic() - killed < allowed(1)
            assert last["code"] == "worker_died"
            assert "SIGKILL" in last["error"]
            assert last["hint"]
            again = daemon.post("/api/chat", say(options={"num_predict": 3}))
            assert again.lines[-1]["eval_count"] == 3


def test_only_a_whole_answer_has_its_tokens_in_the_log(home: Path) -> None:
    with Daemon(home, script={"tokens": ["word "] * 4, "die_after": 6}) as daemon:
        lines = [daemon.post("/api/chat", say()).lines[-1] for _ in range(2)]
        assert [line.get("done", "error" in line) for line in lines] == [True, True]
        # The line is written after the answer's last byte.
        wait_until(lambda: daemon.log.count("POST /api/chat") == 2, 5)
        logged = [line for line in daemon.log.splitlines() if "POST /api/chat" in line]
        assert ["+4 tokens" in line for line in logged] == [True, False]
        assert "tokens" not in logged[1]


def test_a_killed_worker_is_told_in_openais_way_too(home: Path) -> None:
    with Daemon(home, script=LONG) as daemon:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}
        with daemon.opened("POST", "/v1/chat/completions", body) as response:
            response.readline()
            os.kill(daemon.workers()[0], signal.SIGKILL)
            last = response.read().strip().split(b"\n\n")[-1]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "worker_died"
        waiting = Asking(daemon, body | {"stream": False}, "/v1/chat/completions")
        wait_until(daemon.workers, 5)
        os.kill(daemon.workers()[0], signal.SIGKILL)
        assert waiting.result().status == 500


def test_other_models_notice_nothing_of_a_death(home: Path) -> None:
    put_model(home, "other")
    with Daemon(home, script={"tokens": ["word "] * 50, "delay": 0.01}) as daemon:
        other = Asking(daemon, say("other"))
        wait_until(daemon.workers, 5)
        with daemon.opened("POST", "/api/chat", say("tiny")) as response:
            first_text(response)
            rows = daemon.get("/api/ps").json["models"]
            os.kill(next(row["pid"] for row in rows if row["model"] == "tiny:F32"), signal.SIGKILL)
            assert b"worker_died" in response.read()
        assert other.result().lines[-1]["eval_count"] == 50


def test_a_worker_that_crashes_again_and_again_gets_a_rest(home: Path) -> None:
    with Daemon(home, script={"die_after": 0}) as daemon:
        answers = [daemon.post("/api/chat", say()) for _ in range(3)]
        assert [(answer.status, answer.json["code"]) for answer in answers] == [(500, "worker_died")] * 3
        resting = daemon.post("/api/chat", say())
        assert (resting.status, resting.json["code"]) == (503, "worker_unstable")
        assert 0 < int(resting.headers["Retry-After"]) <= 30


def test_a_model_that_cannot_load_says_why_every_time(home: Path) -> None:
    with Daemon(home, script={"load_error": "the file makes no sense"}) as daemon:
        for _ in range(4):
            answer = daemon.post("/api/chat", say())
            assert (answer.status, answer.json["code"]) == (500, "load_failed")
            assert answer.json["error"] == "the file makes no sense"
        wait_until(lambda: not daemon.children(), 2)


def test_a_damaged_file_never_reaches_a_worker(home: Path) -> None:
    with Daemon(home) as daemon:
        (blob,) = [path for path in (home / "store" / "blobs").iterdir() if path.read_bytes()[:4] == b"GGUF"]
        data = bytearray(blob.read_bytes())
        blob.chmod(0o600)
        blob.write_bytes(b"GGUX" + bytes(data[4:]))
        answer = daemon.post("/api/chat", say())
        assert (answer.status, answer.json["code"]) == (500, "store_damaged")
        assert daemon.children() == []


def test_the_last_user_gone_starts_the_clock(home: Path) -> None:
    with Daemon(home) as daemon:
        daemon.post("/api/chat", say(keep_alive=0.5))
        assert daemon.workers()
        wait_until(lambda: not daemon.workers(), 2)
        wait_until(lambda: not daemon.children(), 2)
        daemon.post("/api/chat", say(keep_alive=0))
        wait_until(lambda: not daemon.children(), 1)


def test_unloading_and_asking_at_once_loses_nobody(home: Path) -> None:
    with Daemon(home, script={"tokens": ["a"]}) as daemon:
        for _ in range(5):
            asked = [Asking(daemon, say(keep_alive=0)) for _ in range(6)]
            assert all(asking.result().lines[-1].get("done") for asking in asked)
        assert "Traceback" not in daemon.log


def test_a_deleted_model_answers_to_its_end_and_its_file_goes_then(home: Path) -> None:
    with Daemon(home, script={"tokens": ["a"] * 20, "delay": 0.02}) as daemon:
        asking = Asking(daemon, say(keep_alive=0))
        wait_until(daemon.workers, 5)
        assert daemon.ask("DELETE", "/api/delete", {"model": "tiny"}).status == 200
        assert daemon.get("/api/tags").json["models"] == []
        assert asking.result().lines[-1]["eval_count"] == 20
        wait_until(lambda: not list((home / "store" / "blobs").iterdir()), 2)


def test_a_removed_model_is_unloaded_though_it_was_to_stay_for_ever(home: Path) -> None:
    with Daemon(home, script={"tokens": ["a"] * 20, "delay": 0.02}) as daemon:
        asking = Asking(daemon, say(keep_alive=-1))
        wait_until(daemon.workers, 5)
        assert daemon.ask("DELETE", "/api/delete", {"model": "tiny"}).status == 200
        assert daemon.post("/lm/stop", {"model": "tiny"}).json["stopped"]  # it is no model any more, but loaded
        assert asking.result().lines[-1]["eval_count"] == 20
        wait_until(lambda: not daemon.children() and not list((home / "store" / "blobs").iterdir()), 2)
        assert daemon.post("/lm/stop", {"model": "tiny"}).status == 404


def test_an_idle_model_that_is_removed_is_unloaded_at_once(home: Path) -> None:
    with Daemon(home) as daemon:
        daemon.post("/api/chat", say(keep_alive=-1))
        assert daemon.ask("DELETE", "/api/delete", {"model": "tiny"}).status == 200
        wait_until(lambda: not daemon.children() and not list((home / "store" / "blobs").iterdir()), 2)


def test_a_request_that_waits_for_room_keeps_the_file_of_its_model(home: Path) -> None:
    put_model(home, "other")
    with Daemon(home, script={"tokens": ["a"] * 40, "delay": 0.02}, env={"LM_MAX_MODELS": "1"}) as daemon:
        busy = Asking(daemon, say("other"))
        wait_until(daemon.workers, 5)
        waiting = Asking(daemon, say("tiny", options={"num_predict": 2}))
        wait_until(lambda: "tiny:F32 waits for room" in daemon.log, 5)
        assert daemon.ask("DELETE", "/api/delete", {"model": "tiny"}).status == 200
        assert busy.result().lines[-1]["eval_count"] == 40
        assert waiting.result().lines[-1]["eval_count"] == 2
        blobs = home / "store" / "blobs"
        wait_until(lambda: len([path for path in blobs.iterdir() if path.read_bytes()[:4] == b"GGUF"]) == 1, 3)


def test_a_client_that_leaves_stops_its_answer(home: Path) -> None:
    with Daemon(home, script=LONG | {"tokens": ["word "] * 100_000}) as daemon:
        for path, body in (
            ("/api/chat", say()),
            ("/api/chat", say(stream=False)),
            ("/v1/chat/completions", say(stream=True)),
            ("/api/generate", {"model": "tiny", "prompt": "x"}),
        ):
            with daemon.opened("POST", path, body) if body.get("stream") is not False else _gone(daemon, path, body):
                wait_until(lambda: any(row["active"] for row in daemon.get("/api/ps").json["models"]), 5)
            wait_until(lambda: not any(row["active"] for row in daemon.get("/api/ps").json["models"]), 1)
        # The engine has really stopped: the next answer does not wait for a place.
        answers = [Asking(daemon, say(options={"num_predict": 1})) for _ in range(8)]
        assert [asking.result().lines[-1]["eval_count"] for asking in answers] == [1] * 8


class _gone:
    """A request whose client does not wait for the answer's first byte."""

    def __init__(self, daemon: Daemon, path: str, body: dict[str, Any]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", daemon.port)
        self._connection.request("POST", path, json.dumps(body))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def test_a_full_queue_is_refused_at_once(home: Path) -> None:
    daemon = Daemon(home, script=LONG, env={"LM_QUEUE": "2", "LM_SEQUENCES": "1"})
    for _ in range(3):
        Asking(daemon, say())
    wait_until(lambda: any(row["active"] == 3 for row in daemon.get("/api/ps").json["models"]), 5)
    began = time.monotonic()
    refused = daemon.post("/api/chat", say())
    assert time.monotonic() - began < allowed(0.2)
    assert (refused.status, refused.json["code"]) == (503, "queue_full")
    assert int(refused.headers["Retry-After"]) > 0
    assert daemon.post("/v1/chat/completions", say()).status == 429
    daemon.kill()


def test_many_that_ask_at_once_share_one_worker(home: Path) -> None:
    with Daemon(home, script={"load_delay": 0.2}) as daemon:
        asked = [Asking(daemon, say()) for _ in range(20)]
        assert all(asking.result().lines[-1]["done"] for asking in asked)
        assert len(daemon.children()) == 1


def test_the_one_used_longest_ago_makes_room(home: Path) -> None:
    for name in ("one", "two", "three"):
        put_model(home, name)
    with Daemon(home, env={"LM_MAX_MODELS": "2"}) as daemon:
        for name in ("one", "two", "one", "three"):
            daemon.post("/api/chat", say(name))
        assert {row["model"] for row in daemon.get("/api/ps").json["models"]} == {"one:F32", "three:F32"}


def test_a_busy_model_is_not_thrown_out_but_waited_for(home: Path) -> None:
    put_model(home, "other")
    with Daemon(home, script={"tokens": ["a"] * 20, "delay": 0.02}, env={"LM_MAX_MODELS": "1"}) as daemon:
        first = Asking(daemon, say("tiny"))
        wait_until(daemon.workers, 5)
        second = daemon.post("/api/chat", say("other"))
        assert second.lines[-1]["eval_count"] == 20
        assert first.result().lines[-1]["eval_count"] == 20


def test_stopping_a_busy_model_waits_for_its_answer(home: Path) -> None:
    with Daemon(home, script={"tokens": ["a"] * 20, "delay": 0.02}) as daemon:
        asking = Asking(daemon, say())
        wait_until(daemon.workers, 5)
        assert daemon.post("/lm/stop", {"model": "tiny"}).json["stopped"]
        assert asking.result().lines[-1]["eval_count"] == 20
        wait_until(lambda: not daemon.children(), 1)


def test_a_larger_context_reloads_an_idle_model_once(home: Path) -> None:
    put_model(home, "wide", context=32_768)
    with Daemon(home) as daemon:
        daemon.post("/api/chat", say("wide"))
        before = daemon.workers()
        assert daemon.get("/api/ps").json["models"][0]["context_length"] == 8192
        assert "num_ctx" not in daemon.post("/api/chat", say("wide", options={"num_ctx": 10_000})).lines[-1]
        (row,) = daemon.get("/api/ps").json["models"]
        assert (row["context_length"], row["pid"] != before[0]) == (10_240, True)
        for asked in (1_000, 10_240, 8_192):
            daemon.post("/api/chat", say("wide", options={"num_ctx": asked}))
        assert daemon.workers() == [row["pid"]]


def test_rotary_factors_for_short_texts_stay_until_a_larger_context_is_asked_for(home: Path) -> None:
    factors = {f"rope_factors_{length}.weight": (16,) for length in ("long", "short")}
    put_model(home, "long", 131_072, more=factors, **{"rope.scaling.original_context_length": 4096})
    with Daemon(home) as daemon:
        shown = daemon.post("/api/show", {"model": "long"}).json
        assert (shown["default_context"], "up to 4,096" in shown["context_reason"]) == (4096, True)
        last = daemon.post("/api/chat", say("long")).lines[-1]
        (row,) = daemon.get("/api/ps").json["models"]
        assert row["context_length"] == 4096
        assert "up to 4,096 tokens" in last["context_reason"] == row["context_reason"] == shown["context_reason"]
        assert "context_reason" not in daemon.post("/api/chat", say("long")).lines[-1]
        assert "a context of 4096: rotary factors" in daemon.log
        last = daemon.post("/api/chat", say("long", options={"num_ctx": 5000})).lines[-1]
        (row,) = daemon.get("/api/ps").json["models"]
        assert row["context_length"] == 5120
        assert "long texts are in use" in last["context_reason"] == row["context_reason"]
    with Daemon(home, env={"LM_CONTEXT": "8192"}) as daemon:
        assert daemon.post("/api/show", {"model": "long"}).json["default_context"] == 8192
        assert "long texts are in use" in daemon.post("/api/chat", say("long")).lines[-1]["context_reason"]


def test_a_larger_context_does_not_disturb_a_busy_model(home: Path) -> None:
    put_model(home, "wide", context=32_768)
    with Daemon(home, script={"tokens": ["a"] * 30, "delay": 0.02}) as daemon:
        asking = Asking(daemon, say("wide"))
        wait_until(daemon.workers, 5)
        before = daemon.workers()
        last = daemon.post("/api/chat", say("wide", options={"num_ctx": 16_384})).lines[-1]
        assert last["num_ctx"] == 8192
        assert daemon.workers() == before
        assert asking.result().lines[-1]["done"]


def test_a_model_that_cannot_fit_is_refused_with_numbers(home: Path) -> None:
    huge = 1 << 14
    put_model(home, "vast", **{f"attention.{key}": huge for key in ("head_count_kv", "key_length", "value_length")})
    with Daemon(home) as daemon:
        answer = daemon.post("/api/chat", say("vast"))
        assert (answer.status, answer.json["code"]) == (507, "does_not_fit")
        assert answer.json["error"].count("GB") == 2


def test_a_pinned_model_stays_and_the_other_is_refused(home: Path) -> None:
    put_model(home, "other")
    with Daemon(home, env={"LM_MAX_MODELS": "1"}) as daemon:
        daemon.post("/api/chat", say(keep_alive=-1))
        answer = daemon.post("/api/chat", say("other"))
        assert (answer.status, answer.json["code"]) == (507, "does_not_fit")
        assert "does not fit beside `tiny:F32`, loaded for ever" in answer.json["error"]
        daemon.post("/api/chat", say(keep_alive=60))
        assert daemon.post("/api/chat", say("other")).status == 200


def test_loaded_models_say_why_long_prompts_slow_running_answers(home: Path) -> None:
    with Daemon(home, script={"obstacle": "there is no memory"}) as daemon:
        daemon.post("/api/chat", say())
        wait_until(lambda: daemon.get("/api/ps").json["models"][0]["prompts_in_steps"] == "there is no memory", 3)


def test_loaded_models_say_what_was_predicted_and_what_they_hold(home: Path) -> None:
    with Daemon(home) as daemon:
        daemon.post("/api/chat", say())
        (row,) = daemon.get("/api/ps").json["models"]
        assert 0 < row["predicted_anonymous_bytes"] < row["predicted_bytes"]
        assert 1e6 < row["measured_anonymous_bytes"] < 1e9


@pytest.mark.slow
def test_a_worker_that_stands_still_is_killed(home: Path) -> None:
    with Daemon(home, script=LONG) as daemon, daemon.opened("POST", "/api/chat", say()) as response:
        first_text(response)
        (pid,) = daemon.workers()
        psutil.Process(pid).suspend()
        last = json.loads(response.read().splitlines()[-1])
        assert (last["code"], "no sign of life" in last["error"]) == ("worker_died", True)


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.long(name="kills"))])
def test_workers_killed_in_mid_answer(home: Path, kills: int) -> None:
    slowest = 0.0
    with Daemon(home, script=LONG) as daemon:
        for _ in range(kills):
            with daemon.opened("POST", "/api/chat", say()) as response:
                first_text(response)
                os.kill(daemon.workers()[0], signal.SIGKILL)
                killed = time.monotonic()
                assert b"worker_died" in response.read()
                slowest = max(slowest, time.monotonic() - killed)
            assert daemon.post("/api/chat", say(options={"num_predict": 1})).lines[-1]["eval_count"] == 1
        assert slowest < allowed(1)
        assert len(daemon.children()) == 1
