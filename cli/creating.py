"""From a Modelfile to the body of `/api/create`: its paths are read here, and their files are sent to the daemon.

A file goes by its digest, and only where the daemon lacks it. A folder of weights on the daemon's own machine is named
to it instead, as `lm pull ./folder` does: it is read where it is.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli import console
from cli.client import Client
from cli.errors import Failure
from registry.errors import BadModelfile
from registry.modelfile import LONGEST, Command, Modelfile, decode, parse
from registry.names import is_path
from runtime.units import size_text
from server.values import is_loopback

# The files of a model in a folder, and of an adapter, by their endings.
_ENDINGS = (
    *(".gguf", ".safetensors", ".onnx", ".onnx.data", ".onnx_data"),
    *(".json", ".model", ".jinja", "merges.txt", "vocab.txt"),
)
# Files beside weights, one of which every folder of a model has.
_SETTINGS = ("config.json", "genai_config.json", "adapter_config.json")
_PIECE = 1 << 20


def read_modelfile(file: str) -> tuple[Modelfile, Path]:
    """The Modelfile at a path, `-` for standard input, and the folder that its paths begin at. Raises Failure."""
    try:
        if file == "-":
            return parse(decode(sys.stdin.buffer.read(LONGEST + 1) if sys.stdin else b"")), Path()
        path = Path(file).expanduser()
        return parse(decode(path.read_bytes())), path.parent
    except BadModelfile as error:
        raise Failure(str(error), error.hint, error.code) from None
    except OSError as error:
        hint = "name one with `-f`; its first line is `FROM NAME`"
        raise Failure(f"`{file}` cannot be read: {error.strerror}", hint, "bad_modelfile") from None


def body_of(client: Client, found: Modelfile, folder: Path) -> dict[str, Any]:
    """The body of `/api/create` without the model's name; files are sent. Raises Failure."""
    files, adapters = dict[str, str](), dict[str, str]()
    body: dict[str, Any] = {"files": files, "adapters": adapters, "parameters": found.parameters}
    for each in found.commands:
        if each.instruction == "from":
            _take_source(client, each, folder, body)
        elif each.instruction == "adapter":
            path = _path(each.value, folder)
            if path is None:
                raise _wrong(each, f"there is no file or folder `{each.value[:80]}`")
            adapters |= sent(client, path)
        elif each.instruction == "draft":
            _take_draft(client, each, folder, body)
    for key in ("template", "system", "renderer", "parser", "requires"):
        value = found.last(key)
        body |= {key: value} if value is not None else {}
    body["license"] = found.values("license")
    body["messages"] = [{"role": each.role, "content": each.content} for each in found.messages]
    return {key: value for key, value in body.items() if value or key in ("template", "system")}


def _take_source(client: Client, command: Command, folder: Path, body: dict[str, Any]) -> None:
    """Put what FROM names into the body: a model, or a path. Raises Failure."""
    path = _path(command.value, folder)
    if path is None:
        if is_path(command.value) or command.value.lower().endswith(".gguf"):
            raise _wrong(command, f"there is no file or folder `{command.value[:80]}`")
        body["from"] = command.value
    elif path.is_dir() and is_loopback(client.config.host):
        body["from"] = str(path.resolve())
    else:
        body["files"] |= sent(client, path)


def _take_draft(client: Client, command: Command, folder: Path, body: dict[str, Any]) -> None:
    """Put what DRAFT names into the body: a model, or the files of one. Raises Failure."""
    body.pop("draft", None)
    body.pop("draft_files", None)
    if path := _path(command.value, folder):
        body["draft_files"] = sent(client, path)
    elif is_path(command.value) or command.value.lower().endswith(".gguf"):
        raise _wrong(command, f"there is no file or folder `{command.value[:80]}`")
    else:
        body["draft"] = command.value


def _path(text: str, folder: Path) -> Path | None:
    """The file or folder that a Modelfile names, None where there is none: then it is the name of a model.

    A word alone is a path only where weights are there, for a model may be called like any folder.
    """
    try:
        path = folder / Path(text).expanduser()
        if not path.exists():
            return None
        weights = path.is_file() or any(path.glob("*.gguf")) or any((path / name).exists() for name in _SETTINGS)
        return path if is_path(text) or weights else None
    except (OSError, ValueError, RuntimeError):  # a name that no path has
        return None


def sent(client: Client, path: Path) -> dict[str, str]:
    """The digests of the files of a path, by their names; the daemon then has them. Raises Failure."""
    found: dict[str, str] = {}
    for name, file in _files(path):
        try:
            with file.open("rb") as opened:
                size = os.fstat(opened.fileno()).st_size
                digest = f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"
                if not client.has(f"/api/blobs/{digest}"):
                    if size > _PIECE:
                        console.note(f"sending `{name}` ({size_text(size)})")
                    opened.seek(0)
                    client.send_file(f"/api/blobs/{digest}", opened, size)
        except OSError as error:
            raise Failure(f"`{file}` cannot be read: {error.strerror}", "check the file and its rights") from None
        found[name] = digest
    if not found:
        raise Failure(f"`{path}` holds no files of a model", "name a GGUF file, or a folder with `config.json`")
    return found


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """The files of a model at a path, with the names by which the daemon gets them."""
    if path.is_file():
        yield path.name, path
        return
    for place in (path, *sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))):
        for file in sorted(place.iterdir()):
            if file.is_file() and file.name.endswith(_ENDINGS):
                yield str(file.relative_to(path)), file


def _wrong(command: Command, what: str) -> Failure:
    return Failure(f"line {command.line} of the Modelfile: {what}", "paths begin at the Modelfile's folder", "usage")
