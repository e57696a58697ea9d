"""The report as Markdown, and as one page of HTML without scripts."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from runtime.units import size_text
from server.report.gathering import ComplianceReport, ModelEntry


class ReportSection(NamedTuple):
    """A section: its title, sentences, and a table with its header first (none where there are no rows)."""

    title: str
    sentences: Sequence[str]
    table: Sequence[Sequence[str]] = ()


def sections(report: ComplianceReport) -> Iterator[ReportSection]:
    """The sections in their order."""
    header = ("model", "licence", "base model", "source", "revision", "level", "size", "quality", "signed", "weights")
    rows = [_model(each) for each in report.models]
    remarks = [f"{each.name}: {remark}" for each in report.models for remark in each.remarks]
    yield ReportSection("Models", [f"Models here: {len(rows)}.", *remarks], [header, *rows] if rows else ())
    weak = [f"{each.check}: {each.found} ({each.hint})" for each in report.findings]
    yield ReportSection("Settings and rules", weak or ["Nothing weakens this box."])
    keys = [
        (each.id, each.name, each.role, each.state, each.created, each.expires, each.last_use) for each in report.keys
    ]
    titles = ("key", "name", "role", "state", "created", "expires", "last use")
    yield ReportSection("Keys", [f"Keys: {len(keys)}."], [titles, *keys] if keys else ())
    told = [f"The audit log is {report.audit['state']}."]
    if "head" in report.audit:
        told += [f"{report.audit['lines']} lines; head `{report.audit['head']}`."]
        told += [*report.audit["problems"], *report.audit["notes"]]
    yield ReportSection("Audit", told)
    packages = [(each.name, each.version, each.license) for each in report.software]
    yield ReportSection("Software", [f"Packages: {len(packages)}."], [("package", "version", "licence"), *packages])


def _model(entry: ModelEntry) -> tuple[str, ...]:
    license = entry.license or (
        f"unknown: {' '.join(entry.license_named.split())[:40]}" if entry.license_named else "unknown"
    )
    base = ", ".join(entry.base)
    return (
        entry.name,
        license,
        base,
        entry.source,
        entry.revision[:12],
        entry.level,
        size_text(entry.size),
        _quality(entry.quality),
        "; ".join(entry.signatures) or "no",
        entry.weights.removeprefix("sha256:")[:16],
    )


def _quality(card: dict[str, Any]) -> str:
    """A quality card in a few words, "" for none."""
    if not card:
        return ""
    mean, reference = card["mean"], card["reference"]
    error = "" if mean["error"] is None else f" ± {mean['error']:.2g}"
    return f"KL divergence {mean['value']:.4g}{error} from {reference['name']} at {reference['level']}"


def as_markdown(report: ComplianceReport) -> str:
    """The report as Markdown."""
    lines = [f"# Report of lm {report.version}", "", f"Made {report.made}."]
    for section in sections(report):
        lines += ["", f"## {section.title}", ""]
        lines += [f"- {_plain(sentence)}" for sentence in section.sentences]
        if section.table:
            head, *rows = section.table
            lines += ["", _row(head), _row(["---"] * len(head)), *map(_row, rows)]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell) or " " for cell in cells) + " |"


def _plain(text: str) -> str:
    """The text in one line, in which a name cannot draw a table's border or a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def as_html(report: ComplianceReport) -> str:
    """The report as one page."""
    title = html.escape(f"Report of lm {report.version}")
    body = [f"<h1>{title}</h1>", f"<p>Made {html.escape(report.made)}.</p>"]
    for section in sections(report):
        body += [f"<h2>{html.escape(section.title)}</h2>", "<ul>"]
        body += [f"<li>{html.escape(sentence)}</li>" for sentence in section.sentences]
        body.append("</ul>")
        if section.table:
            head, *rows = section.table
            body += ["<table>", _cells(head, "th"), *(_cells(row, "td") for row in rows), "</table>"]
    style = "body{font:15px/1.5 system-ui;margin:2em;max-width:80em}td,th{text-align:left;padding:.2em .8em .2em 0}"
    begin = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{style}</style>'
    return f"{begin}\n" + "\n".join(body) + "\n</html>\n"


def _cells(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
