"""`python -P -m server.report FORM [NAME]`: prints the report (`md`, `json`, `html`) or a bill of materials (`bom`).

A process of its own, because the command line imports neither msgspec nor readers of model files.
"""

from __future__ import annotations

import json
import sys
import time

import msgspec

from registry.errors import RegistryError
from registry.store.finding import Finder
from server.audit.line import shown_moment
from server.config import Config
from server.report.bom import model_bom, software_bom
from server.report.gathering import ModelEntry, gather, model_entries, software
from server.report.writing import as_html, as_markdown
from server.settings import BadSetting


def main(argv: list[str]) -> int:
    """Print what is asked for; the exit status is 1, with an error as JSON, where that cannot be made."""
    form, *names = argv
    try:
        print(_made(Config.load(), form, names), end="")
    except (BadSetting, RegistryError) as error:
        print(json.dumps({"error": str(error), "hint": error.hint, "code": error.code}))
        return 1
    return 0


def _made(config: Config, form: str, names: list[str]) -> str:
    if form == "bom":
        made = shown_moment(time.time())
        bill = model_bom(_entry(config, names[0]), made) if names else software_bom(software(), made)
        return json.dumps(bill, indent=2) + "\n"
    report = gather(config)
    if form == "json":
        return json.dumps(msgspec.to_builtins(report), indent=2) + "\n"
    return as_html(report) if form == "html" else as_markdown(report)


def _entry(config: Config, name: str) -> ModelEntry:
    finder = Finder(config.store)
    (entry,) = model_entries(config, finder, [finder.find(name)])
    return entry


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
