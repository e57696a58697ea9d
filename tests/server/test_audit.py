"""The audit log: a chain that shows every change, one writer at a time, a reserve for a full disk."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from server.audit import log as audit_module
from server.audit.export import COLUMNS, FORMATS, csv_row, last_records, records, records_behind
from server.audit.files import CURRENT, all_files, full_files
from server.audit.line import LONGEST_TEXT, NOTHING, AuditEvent, Head, boot_id, chained, link_of, parse_heads
from server.audit.log import RESERVE, AuditFailed, AuditLog
from server.audit.recorder import Recorder
from server.audit.verify import glance, verify
from server.routes.table import ROUTES
from tests.daemon import Daemon, put_model, wait_until
from tests.test_architecture import ROOT

LINES = 10_000


def event(number: int = 0, **more: Any) -> AuditEvent:
    return AuditEvent("key abcd1234", "answer", f"model{number}", more={"tokens": number, **more})


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 10,000 lines in several files."""
    folder = tmp_path_factory.mktemp("long") / "audit"
    log = AuditLog(folder, full_bytes=1 << 20)
    for start in range(0, LINES, 100):
        log.append([event(number) for number in range(start, start + 100)], durable=False)
    log.close()
    return folder


def lines_in(folder: Path) -> list[bytes]:
    return [line for path in all_files(folder) for line in path.read_bytes().splitlines()]


def test_a_chain_is_sound_through_its_files(long_log: Path) -> None:
    report = verify(long_log)
    assert report.sound and not report.notes and report.files > 1
    assert report.lines == LINES + report.files - 1  # each further file begins with a line about the one before
    assert glance(long_log, boot_id()) == []


def test_every_edit_of_a_line_is_found(long_log: Path) -> None:
    chance, missed = random.Random(5), 0
    for line in lines_in(long_log):
        place = chance.randrange(len(line))
        edited = line[:place] + bytes([(line[place] + chance.randrange(1, 256)) % 256]) + line[place + 1 :]
        missed += link_of(edited) is not None
    assert missed == 0


def test_every_deletion_and_swap_breaks_the_chain(long_log: Path) -> None:
    links = [link_of(line) for line in lines_in(long_log)]
    assert None not in links
    pairs = zip(links, links[2:], strict=False)  # with a line deleted or swapped, these two become neighbours
    assert all(one and other and (other.seq, other.prev) != (one.seq + 1, one.hash) for one, other in pairs)


@pytest.mark.parametrize("change", ["edit", "delete", "swap", "insert"])
def test_a_changed_file_is_not_sound(tmp_path: Path, long_log: Path, change: str) -> None:
    folder = tmp_path / "audit"
    shutil.copytree(long_log, folder)
    path = all_files(folder)[1]
    lines = path.read_bytes().splitlines(keepends=True)
    middle = len(lines) // 2
    if change == "edit":
        lines[middle] = lines[middle].replace(b"key abcd1234", b"key abcd1235")
    elif change == "delete":
        del lines[middle]
    elif change == "swap":
        lines[middle], lines[middle + 1] = lines[middle + 1], lines[middle]
    else:
        lines.insert(middle, chained(event(), NOTHING, "")[0])
    path.write_bytes(b"".join(lines))
    assert not verify(folder).sound


def test_a_cut_end_is_found_by_an_anchor_alone(tmp_path: Path, long_log: Path) -> None:
    folder = tmp_path / "audit"
    shutil.copytree(long_log, folder)
    head = verify(folder).head
    (anchor,) = parse_heads(f"2026-11-29 02:37:55 INFO lm.audit: audit head {head}\n")
    path = folder / CURRENT
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert verify(folder).sound
    report = verify(folder, [anchor])
    assert f"the anchor names line {head.seq}" in report.problems[0]
    assert not verify(long_log, [Head(head.seq - 1, "0" * 64)]).sound
    assert verify(long_log, [head]).sound


def test_a_missing_file_is_named_at_a_glance_and_by_the_check(tmp_path: Path, long_log: Path) -> None:
    for number in (0, 1, -1):
        folder = tmp_path / f"audit{number}"
        shutil.copytree(long_log, folder)
        all_files(folder)[number].unlink()
        assert any("missing" in sentence for sentence in glance(folder, boot_id()))
        assert number == -1 or "missing" in verify(folder).problems[0]


def test_old_files_go_and_a_line_says_so(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit", keep_seconds=0.0, full_bytes=2000)
    for number in range(60):
        log.append([event(number)])
        for path in full_files(log.folder):
            os.utime(path, (1, 1))
    report = verify(log.folder)
    assert report.first > 1 and report.sound and "removed when their time was over" in report.notes[0]
    assert glance(log.folder, boot_id()) == []


def test_a_torn_line_is_cut_off_and_told(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    AuditLog(folder).append([event(1), event(2)])
    with (folder / CURRENT).open("ab") as file:
        file.write(b'{"seq":3,"time":"20')
    report = verify(folder)
    assert report.torn == 19 and "torn line" in report.problems[0] and report.head.seq == 2
    AuditLog(folder).append([event(3)])
    assert verify(folder).sound
    assert [json.loads(line)["action"] for line in lines_in(folder)] == ["answer", "answer", "audit.mended", "answer"]


def test_a_damaged_end_is_not_written_on(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    folder.mkdir()
    (folder / CURRENT).write_bytes(b"anything\n")
    with pytest.raises(AuditFailed, match="damaged"):
        AuditLog(folder).append([event()])


def test_two_writers_take_turns(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from server.audit.line import AuditEvent\n"
        "from server.audit.log import AuditLog\n"
        "log = AuditLog(pathlib.Path(sys.argv[1]), full_bytes=20_000)\n"
        "for number in range(60): log.append([AuditEvent(sys.argv[2], 'load', str(number))], durable=False)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "audit", name]) for name in ("one", "other")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    report = verify(tmp_path / "audit")
    assert report.sound and report.lines == 120 + report.files - 1


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.long(name="audit"))])
def test_a_writer_that_is_killed_leaves_a_chain(tmp_path: Path, kills: int) -> None:
    folder, chance = tmp_path / "audit", random.Random(7)
    code = (
        "import sys, pathlib\n"
        "from server.audit.line import AuditEvent\n"
        "from server.audit.log import AuditLog\n"
        "log = AuditLog(pathlib.Path(sys.argv[1]), full_bytes=200_000)\n"
        "while True: log.append([AuditEvent('lm', 'answer', 'x' * 300)] * 20, durable=False)\n"
    )
    before = 0
    for _ in range(kills):
        with subprocess.Popen([sys.executable, "-c", code, folder]) as writer:
            wait_until(partial(_has_grown, folder, before), 60)
            time.sleep(chance.random() * 0.05)  # any moment of its work
            writer.send_signal(signal.SIGKILL)
        before = _size(folder)
        report = verify(folder)
        others = [problem for problem in report.problems if "torn line" not in problem]
        assert not others and report.more_problems == 0 and len(report.problems) <= 1
    AuditLog(folder).append([event()])
    assert verify(folder).sound


def _has_grown(folder: Path, before: int) -> bool:
    return (folder / CURRENT).exists() and _size(folder) > before


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in all_files(folder))


def test_a_clock_that_jumps_is_noted(tmp_path: Path) -> None:
    log, boot = AuditLog(tmp_path / "audit"), boot_id()
    now, up = time.time(), time.clock_gettime(time.CLOCK_MONOTONIC)
    log.append([AuditEvent("lm", "load", moment=now - 7200, up=up), AuditEvent("lm", "load", moment=now, up=up + 1)])
    if not boot:
        pytest.skip("this system has no id of its boot")
    (note,) = verify(log.folder).notes
    assert "forward before line 2" in note
    log.append([AuditEvent("lm", "load", moment=now + 86_400, up=up + 2)])
    assert any("back since the last line" in sentence for sentence in glance(log.folder, boot))


def test_a_full_disk_refuses_acts_that_need_room_and_takes_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(tmp_path / "audit")
    log.append([event()])
    recorder = Recorder(log)

    def full(descriptor: int, start: int, size: int) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(audit_module, "keep_room", full)
    while True:  # the first lines fit into what was allocated for the time before
        try:
            log.require_room()
        except AuditFailed as failure:
            assert "the disk is full" in str(failure) and "lm rm" in failure.hint
            break
        log.append([event(1)] * 50)
    with pytest.raises(AuditFailed):
        log.append([event(2)], from_reserve=False)
    recorder.act_now(AuditEvent("lm", "remove", "old"))
    assert recorder.counts.written == 1 and recorder.counts.lost == 0
    assert json.loads(lines_in(log.folder)[-1])["action"] == "remove"
    assert verify(log.folder).sound


@pytest.mark.anyio
async def test_entries_about_answers_are_lost_and_counted_while_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(tmp_path / "audit")
    recorder = Recorder(log)

    def full(descriptor: int, start: int, size: int) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(audit_module, "keep_room", full)
        recorder.answered(event(1))
        await recorder.flush()
        with pytest.raises(AuditFailed):
            await recorder.require_room("pull")
        await recorder.require_room("remove")
    assert (recorder.counts.lost, recorder.counts.refused) == (1, 1)
    recorder.answered(event(2))
    await recorder.flush()
    first, second = (json.loads(line) for line in lines_in(log.folder))
    assert (first["action"], first["lost"], second["action"]) == ("audit.gap", 1, "answer")


@pytest.mark.anyio
async def test_equal_refusals_become_one_line(tmp_path: Path) -> None:
    recorder = Recorder(AuditLog(tmp_path / "audit"))
    for _ in range(1000):
        recorder.refused(AuditEvent("stranger 127.0.0.1", "ask", "/api/chat", "refused", {"code": "unauthorized"}))
    await recorder.flush()
    (line,) = lines_in(tmp_path / "audit")
    assert json.loads(line)["count"] == 1000


def test_a_write_that_fails_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path / "audit")
    log.append([event(1)])
    real = audit_module.os.write
    calls = []

    def half(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(audit_module.os, "write", half)
        with pytest.raises(AuditFailed):
            log.append([event(2)])
    log.append([event(3)])
    assert verify(log.folder).sound and len(lines_in(log.folder)) == 2


def test_lines_are_plain_and_short(tmp_path: Path) -> None:
    secret = "lm_" + "a" * 43
    bad = AuditEvent("key \n\u202e", "remove", f"x\r\n{secret} " + "y" * 10_000, more={"code": "\x1b[31m"})
    AuditLog(tmp_path).append([bad])
    (line,) = lines_in(tmp_path)
    assert line.isascii() and b"\x1b" not in line and secret.encode() not in line
    assert len(json.loads(line)["target"]) == LONGEST_TEXT


def test_the_end_of_a_long_log_is_read_alone(long_log: Path) -> None:
    """`lm audit tail`: the last lines, over the border of two files too, and what came behind a number."""
    assert len(full_files(long_log)) > 1
    for count in (0, 1, 3, LINES - 10, 2 * LINES):
        wanted = lines_in(long_log)[-count:] if count else []
        assert [line for _, line in last_records(long_log, count)] == wanted
    seqs = [record["seq"] for record, _ in records(long_log)]
    for behind in (0, 1, seqs[-1] - 5000, seqs[-1] - 1, seqs[-1], seqs[-1] + 1):
        found = [record["seq"] for record, _ in records_behind(long_log, behind)]
        assert found == [each for each in seqs if each > behind]
    assert last_records(long_log / "none", 5) == list(records_behind(long_log / "none", 0)) == []


def test_every_act_is_told_of() -> None:
    text = (ROOT / "docs" / "edge.md").read_text().partition("Actions:")[2].partition("\n\n")[0]
    assert [route.path for route in ROUTES if route.act and f"`{route.act}`" not in text] == []
    # What operators ask for by POST although nothing changes in the store.
    asked = {"/lm/advise", "/lm/search", "/lm/outdated", "/lm/trials"}
    changes = [route for route in ROUTES if route.changes and route.role in ("operator", "admin") and not route.act]
    assert {route.path for route in changes if route.method != "HEAD"} == asked


def test_a_peer_of_a_unix_socket_is_no_address_of_cef() -> None:
    for peer, wanted in (("user 1000", False), ("192.0.2.1", True), ("2001:db8::1", True), ("", False)):
        assert ("src=" in FORMATS["cef"]({"time": "2026-11-29T00:00:00Z", "from": peer}, b"")) == wanted


def test_exports_are_read_by_others(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.append([AuditEvent("user eve", "remove", "=cmd|a=b\\c", "failed", {"code": "x", "from": "::1", "other": [1]})])
    ((record, line),) = records(tmp_path)
    assert FORMATS["jsonl"](record, line).encode() == line and link_of(line)
    rows = list(csv.reader([csv_row([*COLUMNS, "more"]), FORMATS["csv"](record, line)]))
    row = dict(zip(*rows, strict=True))
    assert row["target"] == "'=cmd|a=b\\c" and json.loads(row["more"]) == {"other": [1]}
    cef = FORMATS["cef"](record, line)
    assert cef.startswith("CEF:0|lm|lm|") and "|remove|remove|5|" in cef and "cs1=\\=cmd|a\\=b\\\\c" in cef
    assert list(records(tmp_path, since=time.time() + 60)) == []


def test_a_day_in_the_log_of_a_daemon(tmp_path: Path) -> None:
    put_model(tmp_path, "tiny")
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "the secret of the day"}]}
    with Daemon(tmp_path, script={"echo": True, "delay": 0.01}, env={"LM_API_KEY": "k" * 30}) as daemon:
        key = {"Authorization": f"Bearer {'k' * 30}"}
        with daemon.opened("POST", "/api/generate", {"model": "tiny", "prompt": "on " * 2000}, key) as stream:
            assert stream.readline()
        assert daemon.ask("POST", "/api/chat", chat).status == 401
        assert daemon.ask("POST", "/api/chat", chat, key).status == 200
        copied = {"source": "tiny", "destination": "two"}
        assert daemon.ask("POST", "/api/copy", copied, key).status == 200
        assert daemon.ask("DELETE", "/api/delete", {"model": "two"}, key).status == 200
        assert daemon.ask("DELETE", "/api/delete", {"model": "two"}, key).status == 404
        metrics = daemon.ask("GET", "/metrics", None, key).body.decode()
        anchors = parse_heads(daemon.log)
    assert "lm_audit_lines_total" in metrics and "lm_audit_lost_total 0.0" in metrics
    assert anchors and verify(tmp_path / "audit", anchors).sound
    text = (tmp_path / "audit" / CURRENT).read_text()
    assert "the secret of the day" not in text and "k" * 30 not in text
    entries = [json.loads(line) for line in text.splitlines()]
    told = {(each["action"], each["target"], each["result"]) for each in entries}
    assert told >= {
        ("ask", "/api/chat", "refused"),
        ("answer", "tiny:F32", "done"),
        ("load", "tiny:F32", "done"),
        ("model.add", "two:latest", "done"),
        ("copy", "tiny:F32 two", "done"),
        ("model.remove", "two:latest", "done"),
        ("remove", "two", "done"),
        ("remove", "two", "failed"),
    }
    answers = [each for each in entries if each["action"] == "answer"]
    assert {each["result"] for each in answers} == {"left", "done"}
    for answer in answers:
        assert answer["tokens"] > 0 and answer["digest"].startswith("sha256:")
        assert (answer["actor"], answer["from"]) == ("the key LM_API_KEY", "127.0.0.1")
    assert entries[0]["action"] == "daemon.start" and entries[-1]["action"] == "daemon.stop"


def test_texts_are_recorded_only_where_they_are_wanted(tmp_path: Path) -> None:
    put_model(tmp_path, "tiny")
    with Daemon(tmp_path, script={"tokens": ["blue", "berry"]}, env={"LM_AUDIT_TEXT": "1"}) as daemon:
        assert daemon.post("/api/generate", {"model": "tiny", "prompt": "which fruit"}).status == 200
    entries = [json.loads(line) for line in lines_in(tmp_path / "audit")]
    answer = next(each for each in entries if each["action"] == "answer")
    assert "which fruit" in answer["request"] and answer["answer"] == "blueberry"


def test_nothing_is_recorded_where_that_is_off(tmp_path: Path) -> None:
    with Daemon(tmp_path, env={"LM_AUDIT": "off"}) as daemon:
        assert daemon.get("/api/tags").status == 200
    assert not (tmp_path / "audit").exists()


def test_a_reserve_lies_behind_the_end(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.append([event()])
    status = (tmp_path / CURRENT).stat()
    if not log.reserve_offered:
        pytest.skip("this file system allocates nothing behind the end of a file")
    assert status.st_blocks * 512 - status.st_size >= RESERVE
