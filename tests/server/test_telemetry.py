"""Samples of the metrics: kept in a bounded ring whatever happens, sent to a collector once, and refused offline."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from registry.errors import Offline, SourceUnavailable
from registry.store import fsops
from server.collector import SENT, SentUnknown
from server.config import Config
from server.telemetry import sending
from server.telemetry.otlp import When, line_of
from server.telemetry.ring import PARTS, Ring, files_of, samples_behind
from server.telemetry.sampler import Clock, MetricsKeeper
from server.telemetry.sending import send
from tests.cli.support import Cli
from tests.collecting import Taking, taking
from tests.daemon import Daemon, put_model, wait_until

SECOND = 1_000_000_000


@pytest.fixture
def collector() -> Iterator[Taking]:
    with taking() as server:
        yield server


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(home=tmp_path)


def line(number: int, size: int = 0) -> bytes:
    return json.dumps({"number": number, "more": "x" * size}).encode()


def filled(folder: Path, count: int, most: int = 1 << 20, size: int = 0) -> Ring:
    """A ring to which so many samples were written, each with its own number."""
    ring = Ring(folder, most)
    first = max((number for number, _ in samples_behind(folder, 0)), default=0) + 1
    for number in range(first, first + count):
        assert ring.append(line(number, size)) == number
    return ring


def kept(folder: Path) -> list[int]:
    found = list(samples_behind(folder, 0))
    assert [number for number, _ in found] == [json.loads(text)["number"] for _, text in found]
    return [number for number, _ in found]


def taken(collector: Taking) -> list[int]:
    """The samples that were acknowledged, as they came."""
    return [sample["number"] for body in collector.acknowledged for sample in json.loads(body)["resourceMetrics"]]


def test_the_ring_takes_no_more_than_it_may_and_the_newest_stay(tmp_path: Path) -> None:
    most = 64_000
    folder = tmp_path / "ring"
    filled(folder, 700, most, 400)
    total = sum(path.stat().st_size for _, path in files_of(folder))
    assert most * (PARTS - 2) // PARTS < total <= most
    numbers = kept(folder)
    assert numbers == list(range(numbers[0], 701)) and numbers[0] > 500
    filled(folder, 5, 8_000, 400)  # the setting was lowered
    assert sum(path.stat().st_size for _, path in files_of(folder)) <= 8_000 and kept(folder)[-1] == 705


@pytest.mark.parametrize("torn", [b"{", b'{"number": 6, "more": "', b"\0\0\0"])
def test_a_torn_line_is_not_read_and_the_next_writer_goes_on(tmp_path: Path, torn: bytes) -> None:
    filled(tmp_path, 5)
    fsops.append(files_of(tmp_path)[-1][1], torn)
    assert kept(tmp_path) == [1, 2, 3, 4, 5]
    filled(tmp_path, 2)
    assert kept(tmp_path) == list(range(1, 8))


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_whole_samples(tmp_path: Path) -> None:
    code = (
        "import sys, json; from pathlib import Path; from server.telemetry.ring import Ring\n"
        "ring = Ring(Path(sys.argv[1]), 1 << 18); print(flush=True)\n"
        "for number in range(int(sys.argv[2]), 10 ** 9):\n"
        "    ring.append(json.dumps({'number': number, 'more': 'x' * 500}).encode())"
    )
    for _ in range(3):
        first = (kept(tmp_path) or [0])[-1] + 1
        words = [sys.executable, "-c", code, str(tmp_path), str(first)]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as writer:
            wait_until(lambda first=first: (kept(tmp_path) or [0])[-1] >= first + 20, 60)  # type: ignore[misc]
            writer.kill()
        numbers = kept(tmp_path)
        assert numbers == list(range(numbers[0], numbers[-1] + 1))


def test_a_full_disk_costs_samples_and_nothing_else(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sampler = MetricsKeeper(config, lambda: lambda: [GaugeMetricFamily("lm_x", "", value=1)])
    append: Callable[[Path, bytes], None] = fsops.append

    def full(path: Path, data: bytes) -> None:
        append(path, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with caplog.at_level(logging.WARNING):
        asyncio.run(sampler.take())
        monkeypatch.setattr(fsops, "append", full)
        asyncio.run(sampler.take())
        asyncio.run(sampler.take())
        monkeypatch.setattr(fsops, "append", append)
        asyncio.run(sampler.take())
    texts = [record.getMessage() for record in caplog.records]
    assert texts == [
        "samples of metrics cannot be kept: No space left on device",
        "samples of metrics are kept again; 2 are lost",
    ]
    found = list(samples_behind(config.metrics_folder, 0))
    assert [number for number, _ in found] == [1, 2] and all(json.loads(text) for _, text in found)


def test_no_counter_begins_in_the_future_when_the_clock_is_set() -> None:
    wall, steady = [1000 * SECOND], [0]
    clock = Clock(lambda: wall[0], lambda: steady[0])
    seen = []
    for jump in (0, 0, -500 * SECOND, 0, 90_000 * SECOND, 0):
        wall[0] += 60 * SECOND + jump
        steady[0] += 60 * SECOND
        seen.append(clock.now())
    assert all(when.start <= when.now for when in seen)
    assert [(when.now - when.start) // SECOND for when in seen] == [60, 120, 180, 240, 300, 360]
    assert len({when.start for when in seen}) == 3, "the start changes with the clock alone"


def sample_of(metrics: Iterable[Metric]) -> dict[str, Any]:
    """What a collector gets, by the names of metrics."""
    sample = json.loads(line_of(metrics, When(5, 7)))
    named = {pair["key"]: pair["value"]["stringValue"] for pair in sample["resource"]["attributes"]}
    assert named["service.name"] == "lm" and named["host.name"]
    return {metric["name"]: metric for metric in sample["scopeMetrics"][0]["metrics"]}


def test_metrics_are_as_opentelemetry_has_them() -> None:
    counter = CounterMetricFamily("lm_tokens", "Tokens", labels=["model"])
    counter.add_metric(["tiny"], 12)
    gauge = GaugeMetricFamily("lm_running", "Requests", value=3)
    histogram = HistogramMetricFamily("lm_seconds", "Time", labels=["model"])
    histogram.add_metric(["tiny"], [("0.1", 2), ("1.0", 5), ("+Inf", 6)], 4.5)
    other = CounterMetricFamily("vllm:tokens", "The same again", value=12)
    empty = GaugeMetricFamily("lm_none", "Nothing yet", labels=["model"])
    found = sample_of([counter, gauge, histogram, other, empty])
    attributes = [{"key": "model", "value": {"stringValue": "tiny"}}]
    times = {"startTimeUnixNano": "5", "timeUnixNano": "7"}
    assert list(found) == ["lm_tokens", "lm_running", "lm_seconds"]
    assert found["lm_tokens"]["sum"] == {
        "dataPoints": [{"attributes": attributes, **times, "asDouble": 12.0}],
        "aggregationTemporality": 2,
        "isMonotonic": True,
    }
    assert found["lm_running"]["gauge"]["dataPoints"] == [{"attributes": [], "timeUnixNano": "7", "asDouble": 3.0}]
    (point,) = found["lm_seconds"]["histogram"]["dataPoints"]
    counts = {"count": "6", "sum": 4.5, "explicitBounds": [0.1, 1.0], "bucketCounts": ["2", "3", "1"]}
    assert point == {"attributes": attributes, **times, **counts}


def test_every_sample_goes_once_and_in_order(
    config: Config, collector: Taking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "MOST_BYTES", 1000)
    filled(config.metrics_folder, 30, 64_000, 400)
    first = send(config, collector.url, "a-token")
    assert (first.sent, first.last, first.missing) == (30, 30, 0)
    assert taken(collector) == list(range(1, 31)) and len(collector.bodies) > 5
    assert {headers["Content-Type"] for *_, headers in collector.bodies} == {"application/json"}
    assert {headers["Authorization"] for *_, headers in collector.bodies} == {"Bearer a-token"}
    assert send(config, collector.url).sent == 0
    filled(config.metrics_folder, 3, 64_000, 400)
    assert send(config, collector.url).sent == 3 and taken(collector) == list(range(1, 34))


@pytest.mark.parametrize("status", [503, 307, 401, 0])
def test_what_was_not_acknowledged_goes_again(
    config: Config, collector: Taking, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(sending, "MOST_BYTES", 1000)
    filled(config.metrics_folder, 10, 64_000, 400)
    collector.statuses = [200, status]
    with pytest.raises(Exception, match="the collector `127"):
        send(config, collector.url)
    assert send(config, collector.url).last == 10
    assert taken(collector) == list(range(1, 11))


def test_what_the_ring_gave_up_unsent_is_told(config: Config, collector: Taking) -> None:
    folder = config.metrics_folder
    filled(folder, 20, 64_000, 400)
    assert send(config, collector.url).last == 20
    filled(folder, 500, 64_000, 400)
    left = [number for number in kept(folder) if number > 20]
    shipment = send(config, collector.url)
    assert (shipment.sent, shipment.missing) == (len(left), 500 - len(left)) and shipment.missing > 300
    assert sum(path.stat().st_size for _, path in files_of(folder)) <= 64_000


def test_other_bytes_in_the_ring_are_not_sent(config: Config, collector: Taking) -> None:
    ring = filled(config.metrics_folder, 2)
    ring.append(b"\0\0\0")
    ring.append(line(4))
    shipment = send(config, collector.url)
    assert (shipment.sent, shipment.missing, taken(collector)) == (3, 1, [1, 2, 4])


def test_nothing_is_sent_offline_or_by_a_damaged_note(config: Config, collector: Taking) -> None:
    filled(config.metrics_folder, 2)
    with pytest.raises(Offline, match="`offline` is set"):
        send(Config(home=config.home, offline=True), "https://collector.example/v1/metrics")
    with pytest.raises(SourceUnavailable, match="cannot be reached"):
        send(config, "http://127.0.0.1:1/v1/metrics")
    (config.metrics_folder / SENT).write_text("[")
    with pytest.raises(SentUnknown, match="does not tell what"):
        send(config, collector.url)
    assert collector.bodies == []


@pytest.mark.slow
def test_a_daemon_keeps_samples_and_the_command_sends_them(tmp_path: Path, collector: Taking) -> None:
    home = tmp_path / "home"
    put_model(home)
    with Daemon(home, script={"echo": True}, env={"LM_METRICS_EVERY": "0.05"}) as daemon:
        lm = Cli.at(home, f"127.0.0.1:{daemon.port}")
        assert daemon.post("/api/generate", {"model": "tiny", "prompt": "a b", "stream": False}).status == 200
        folder = home / "metrics"
        wait_until(lambda: any(b"lm_answer_tokens" in text for _, text in samples_behind(folder, 0)), 30)
        done = lm("metrics", "push", collector.url)
        assert done.code == 0 and "samples sent" in done.err
    samples = [sample for body in collector.acknowledged for sample in json.loads(body)["resourceMetrics"]]
    names = {metric["name"] for sample in samples for metric in sample["scopeMetrics"][0]["metrics"]}
    assert {"lm_answer_tokens", "lm_request_seconds", "lm_build_info", "lm_audit_lines"} <= names
    assert all(name.startswith("lm_") for name in names)


def test_a_home_without_samples_is_told_how_to_have_them(tmp_path: Path) -> None:
    told = Cli.at(tmp_path, "127.0.0.1:1")("metrics", "push", "http://127.0.0.1:1/v1/metrics")
    assert told.code == 1 and "there are no samples" in told.err and "metrics_every" in told.err
