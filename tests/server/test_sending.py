"""`lm audit push`: lines go to a collector in order, once acknowledged never again, whatever happens between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.errors import AccessDenied, Offline, SourceUnavailable
from server.audit import sending
from server.audit.files import CURRENT, full_files
from server.audit.line import AuditEvent
from server.audit.log import AuditLog
from server.audit.sending import OtherLog, send
from server.audit.verify import verify
from server.collector import SENT
from server.config import Config
from tests.cli.support import Cli
from tests.collecting import Taking, taking


@pytest.fixture
def collector() -> Iterator[Taking]:
    with taking() as server:
        yield server


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(home=tmp_path)


def taken(collector: Taking) -> list[int]:
    """The numbers of the lines that were acknowledged, as they came."""
    return [json.loads(line)["seq"] for body in collector.acknowledged for line in body.splitlines()]


def written(config: Config, count: int, full_bytes: int = 4000) -> None:
    log = AuditLog(config.audit_folder, full_bytes=full_bytes)
    for number in range(count):
        log.append([AuditEvent("lm", "load", str(number))], durable=False)
    log.close()


def test_every_line_goes_once_and_in_order(config: Config, collector: Taking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "MOST_BYTES", 1000)
    written(config, 40)
    assert len(full_files(config.audit_folder)) > 1
    first = send(config, collector.url, "a-token")
    assert taken(collector) == list(range(1, first.head.seq + 1)) and first.lines == first.head.seq
    assert first.head == verify(config.audit_folder).head and len(collector.bodies) > 2
    assert b"".join(body for _, body, _ in collector.bodies) == b"".join(
        path.read_bytes() for path in (*full_files(config.audit_folder), config.audit_folder / CURRENT)
    )
    assert {headers["Authorization"] for *_, headers in collector.bodies} == {"Bearer a-token"}
    assert send(config, collector.url).lines == 0
    written(config, 5)
    assert send(config, collector.url).lines >= 5
    assert taken(collector) == list(range(1, verify(config.audit_folder).head.seq + 1))


@pytest.mark.parametrize("status", [503, 307, 401, 0])
def test_what_was_not_acknowledged_goes_again_and_nothing_else(
    config: Config, collector: Taking, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(sending, "MOST_BYTES", 1000)
    written(config, 20)
    collector.statuses = [200, status]
    with pytest.raises(AccessDenied if status == 401 else SourceUnavailable):
        send(config, collector.url)
    assert send(config, collector.url).head == verify(config.audit_folder).head
    assert taken(collector) == list(range(1, verify(config.audit_folder).head.seq + 1))
    keys = [headers["Idempotency-Key"] for _, _, headers in collector.bodies]
    assert keys[1] == keys[2] != keys[0]


def test_a_collector_that_is_not_there_is_told_once(config: Config) -> None:
    written(config, 1)
    with pytest.raises(SourceUnavailable, match="cannot be reached: connection refused") as refused:
        send(config, "http://127.0.0.1:1/lm")
    assert str(refused.value).count("cannot be reached") == 1


def test_another_log_is_not_taken_for_the_one_that_was_sent(config: Config, collector: Taking) -> None:
    written(config, 5)
    send(config, collector.url)
    (config.audit_folder / CURRENT).unlink()
    for count in (3, 4):  # shorter than the one before, then longer
        written(config, count)
        with pytest.raises(OtherLog, match="line 5"):
            send(config, collector.url)
    assert len(collector.bodies) == 1


def test_lines_that_went_before_they_were_sent_are_counted(config: Config, collector: Taking) -> None:
    written(config, 40)
    full_files(config.audit_folder)[0].unlink()
    shipment = send(config, collector.url)
    assert shipment.missing > 0 and taken(collector)[0] == shipment.missing + 1


def test_offline_and_plain_text_are_refused(config: Config, tmp_path: Path) -> None:
    written(config, 1)
    with pytest.raises(Offline):
        send(Config(home=tmp_path, offline=True), "https://collector.example/lines")
    with pytest.raises(AccessDenied, match="plain text"):
        send(config, "http://collector.example/lines", "a-token")
    with pytest.raises(AccessDenied, match="characters"):
        send(config, "https://collector.example/lines", "two words")
    assert not (config.audit_folder / SENT).exists()


def test_the_command_says_what_it_did(config: Config, collector: Taking) -> None:
    written(config, 3)
    lm = Cli.at(config.home)
    done = lm("audit", "push", collector.url)
    assert done.code == 0 and "3 lines sent" in done.err and "up to line 3" in done.err
    assert "0 lines sent" in lm("audit", "push", collector.url).err
    wrong = lm("audit", "push", "ftp://x")
    assert wrong.code == 1 and "Traceback" not in wrong.err and "no HTTP URL" in wrong.err
