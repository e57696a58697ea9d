"""`config.toml` in the home: one setting changed, and everything else in it left as it is, comments too."""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from server.settings import SETTINGS, BadSetting, read_toml

_HEADER = re.compile(r"\s*\[")


def change(path: Path, name: str, text: str | None) -> Any:
    """Write the setting `name`, whose value is `text` as an environment variable would have it, or take it out (None).

    Returns the value as the file has it now. The file is replaced whole, and only its owner may read it. Raises
    BadSetting for a value that the setting does not take, and for a file that cannot be read or written.
    """
    before = read_toml(path)
    value = None if text is None else stored(name, text)
    old = path.read_text("utf-8") if path.exists() else ""
    new = edited(old, name, value)
    wanted = {key: each for key, each in before.items() if key != name} | ({} if value is None else {name: value})
    if tomllib.loads(new) != wanted:
        raise BadSetting(f"`{path}` is written in a way that cannot be changed here", f"change `{name}` in an editor")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, beside = tempfile.mkstemp(prefix=path.name, dir=path.parent)  # only its owner may read it
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(new)
            file.flush()
            os.fsync(descriptor)
        Path(beside).replace(path.resolve())
    except OSError as error:
        raise BadSetting(f"`{path}` cannot be written: {error.strerror}", "make room, or mend the folder") from None
    return value


def stored(name: str, text: str) -> Any:
    """The value that a text means, as TOML has it: number, truth, list, else the text. Raises BadSetting."""
    setting = SETTINGS[name]
    try:
        value = setting.check(text)
    except (ValueError, OverflowError):
        raise BadSetting(f"`{name}` cannot be {text[:80]!r}", f"it wants {setting.wants}") from None
    plain = list(value) if isinstance(value, tuple) else value
    if isinstance(plain, list) and all(isinstance(each, str) for each in plain):
        return plain
    return plain if isinstance(plain, bool | int) else text


def edited(text: str, name: str, value: Any) -> str:
    """The text of a TOML file with a setting changed where it stands, added before any table, or taken out (None)."""
    lines = text.splitlines(keepends=True)
    line = "" if value is None else f"{name} = {_literal(value)}"
    begins = re.compile(rf'\s*(?:{name}|"{name}"|\'{name}\')\s*=')
    at = next((at for at, each in enumerate(lines) if begins.match(each)), None)
    if at is None:
        if not line:
            return text
        end = next((at for at, each in enumerate(lines) if _HEADER.match(each)), len(lines))
        if end and not lines[end - 1].endswith("\n"):
            lines[end - 1] += "\n"
        return "".join([*lines[:end], f"{line}\n", *lines[end:]])
    end = at + 1
    while end < len(lines) and not _whole("".join(lines[at:end])):
        end += 1
    comment = _comment("".join(lines[at:end])) if line else ""
    return "".join([*lines[:at], *([f"{line}{comment}\n"] if line else []), *lines[end:]])


def _whole(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _comment(line: str) -> str:
    """The comment at the end of a setting's line, with the space before it."""
    for found in re.finditer(r"\s*#", line):
        head = line[: found.start()]
        if "\n" not in head and _whole(head) and tomllib.loads(head) == tomllib.loads(line):
            return line[found.start() :].rstrip("\r\n")
    return ""


def _literal(value: Any) -> str:
    """A value in TOML, whose strings have JSON's escapes; DEL has one too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
