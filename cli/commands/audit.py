"""`lm audit`: the record of who did what with this box; works on the home's log, whether the daemon runs or not."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from cli import console
from cli.client import settings
from cli.errors import Failure
from cli.sending import sending, token_option
from server.audit.export import COLUMNS, FORMATS, csv_row, last_records, records, records_behind
from server.audit.files import CURRENT
from server.audit.line import parse_heads
from server.audit.verify import verify

LOOK_SECONDS = 0.5
_SHOWN_NOTES = 20


@click.group()
def command() -> None:
    """Show, check and send the audit log: who did what with this box, each line chained to the line before it."""


@command.command("verify")
@click.option(
    "--anchor",
    multiple=True,
    metavar="HEAD|FILE",
    help="Heads that were kept elsewhere: NUMBER:HASH, or a file of them, such as the daemon's log.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify_log(anchor: tuple[str, ...], as_json: bool) -> int:
    """Check every line, and that the lines of anchors are there. The exit code is 1 where something is wrong.

    The chain shows lines that were changed, removed, added or swapped; that its end was cut off only an anchor shows.
    The daemon prints one to its log at its start, at its end, and every thousand lines.
    """
    folder = _folder()
    anchors = [head for text in anchor for head in _heads(text)]
    try:
        with console.status("reading every line"):
            report = verify(folder, anchors)
    except OSError as error:
        raise Failure(f"the audit log in `{folder}` cannot be read: {error.strerror}", "it takes its owner") from None
    if as_json:
        console.as_json(asdict(report) | {"head": str(report.head), "sound": report.sound})
        return int(not report.sound)
    for problem in report.problems:
        console.out(f"FAIL  {problem}")
    if report.more_problems:
        console.out(f"FAIL  and {report.more_problems} more")
    for note in report.notes[:_SHOWN_NOTES]:
        console.out(f"note  {note}")
    if len(report.notes) > _SHOWN_NOTES:
        console.out(f"note  and {len(report.notes) - _SHOWN_NOTES} more")
    kept = f", anchors found: {report.anchors}" if anchors else "; without an anchor a cut end is not seen"
    state = "sound" if report.sound else "not sound"
    console.out(f"{report.lines} lines, {report.files} file{'s' * (report.files != 1)}: {state}{kept}")
    console.out(f"head  {report.head}")
    return int(not report.sound)


@command.command()
def head() -> None:
    """Print the head of the chain, NUMBER:HASH: keep it elsewhere, as an anchor for `lm audit verify`."""
    console.out(str(verify(_folder()).head))


@command.command()
@click.option("-n", "count", type=click.IntRange(min=0), default=20, show_default=True, help="How many lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print the lines as they are.")
def tail(count: int, follow: bool, as_json: bool) -> None:
    """Show the last lines."""
    folder = _folder()
    rows = last_records(folder, max(count, 1))
    for record, line in rows[-count:] if count else []:
        _show(record, line, as_json)
    if not follow:
        return
    last, seen = rows[-1][0]["seq"] if rows else 0, None
    while True:
        time.sleep(LOOK_SECONDS)
        with suppress(FileNotFoundError):  # for a moment, when a full file gets its name
            status = (folder / CURRENT).stat()
            if seen == (seen := (status.st_ino, status.st_size)):
                continue
            for record, line in records_behind(folder, last):
                _show(record, line, as_json)
                last = record["seq"]


@command.command()
@click.option(
    "--format", "form", type=click.Choice(list(FORMATS)), default="jsonl", show_default=True, help="What to write."
)
@click.option("--since", metavar="TIME", help="From this moment on, such as 2026-11-29 or 2026-11-29T08:00Z.")
@click.option("--until", metavar="TIME", help="Up to this moment.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A new file, not stdout.")
def export(form: str, since: str | None, until: str | None, output: Path | None) -> None:
    """Write lines as JSON lines, as CSV, or as CEF for a SIEM."""
    shown = FORMATS[form]
    rows = (shown(record, line) for record, line in records(_folder(), _moment(since), _moment(until)))
    header = [csv_row([*COLUMNS, "more"])] if form == "csv" else []
    if output is None:
        for row in (*header, *rows):
            console.out(row)
        return
    count = 0
    try:
        with output.open("x", encoding="utf-8") as file:
            file.writelines(f"{row}\n" for row in header)
            for row in rows:
                file.write(f"{row}\n")
                count += 1
    except OSError as error:
        raise Failure(f"`{output}` cannot be written: {error.strerror}", "name a new file") from None
    console.note(f"{count} lines in `{output}`")


@command.command()
@click.argument("url")
@token_option
def push(url: str, token_file: Path | None) -> None:
    """Send lines to a collector by POST, as JSON lines: all that it has not acknowledged by an answer of 2xx.

    Without a network nothing is lost: the next push goes on where the last one ended. Lines whose acknowledgement was
    lost on the way go once more; their numbers, `seq`, tell.
    """
    from server.audit.sending import send

    with sending(token_file, _folder()) as token:
        shipment = send(settings(), url, token)
    if shipment.missing:
        text = f"warning: {shipment.missing} lines could not be sent, as they are removed or damaged; `lm audit verify`"
        console.note(text, "yellow")
    console.note(f"{shipment.lines} lines sent; the collector has the log up to line {shipment.head.seq}")


def _folder() -> Path:
    """The folder of the log. Raises Failure where there is none."""
    config = settings()
    if not config.audit_folder.is_dir():
        off = "`audit` is off" if config.audit == "off" else "nothing has happened here yet"
        raise Failure(f"there is no audit log in `{config.audit_folder}`", off)
    return config.audit_folder


def _heads(text: str) -> list[Any]:
    """The heads in a text, or in a file of that name. Raises Failure where there is none."""
    if found := parse_heads(text):
        return found
    try:
        found = parse_heads(Path(text).read_text("utf-8", "replace"))
    except OSError as error:
        raise Failure(f"`{text[:80]}` is no head, and no file: {error.strerror}", "a head is NUMBER:HASH") from None
    if not found:
        raise Failure(f"`{text[:80]}` has no heads", "the daemon's log has lines `audit head NUMBER:HASH`")
    return found


def _moment(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise Failure(f"`{text[:40]}` is no moment", "write one such as 2026-11-29T08:00Z", "usage") from None


def _show(record: Any, line: bytes, as_json: bool) -> None:
    if as_json:
        console.out(line.decode("ascii", "replace"))
        return
    more = [f"{key} {record[key]}" for key in ("tokens", "code", "count", "lost") if record.get(key)]
    words = [record["time"], record["actor"], record["action"], record["target"], record["result"], *more]
    console.out("  ".join(str(word) for word in words if word))
