"""A repository of the Hugging Face Hub, or of a server with its routes, pinned to one commit.

    GET {endpoint}/api/models/{repo}/revision/main?blobs=true     commit, files, sizes, digests
    GET {endpoint}/{repo}/resolve/{commit}/{file}                 the file, large ones by redirect to another origin

Routes and error codes as huggingface_hub 2.x uses them. Small files are fetched whole and checked before a byte is
given out; what is read of large ones before they are streamed (headers) is compared with the stream later, so that all
that a model is made of descends from bytes whose declared digest was checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

import msgspec

from registry import fetch
from registry.digest import Check
from registry.errors import AccessDenied, DigestMismatch, ModelNotFound, RegistryError, SourceUnavailable
from registry.web import Answer, Web, persist

_LONGEST_INFO = 16 << 20
_SMALL = 64 << 20
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".h5", ".onnx", ".msgpack")
_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class _Large(msgspec.Struct):
    sha256: str
    size: int


class _File(msgspec.Struct, rename={"name": "rfilename", "blob_id": "blobId"}):
    name: str
    size: int | None = None
    blob_id: str | None = None
    lfs: _Large | None = None

    @property
    def digest(self) -> str | None:
        return f"sha256:{self.lfs.sha256}" if self.lfs else f"git-sha1:{self.blob_id}"

    @property
    def usable(self) -> bool:
        """Whether its name is one for a file and all that we check it with is there."""
        parts = self.name.split("/")
        whole = self.lfs.sha256 if self.lfs else self.blob_id or ""
        wanted = r"[0-9a-f]{64}" if self.lfs else r"[0-9a-f]{40}"
        named = self.name.isprintable() and "\\" not in self.name and not {"", ".", ".."} & set(parts)
        return named and re.fullmatch(wanted, whole) is not None and self.length >= 0

    @property
    def length(self) -> int:
        size = self.lfs.size if self.lfs else self.size
        return -1 if size is None else size


class _Info(msgspec.Struct):
    id: str
    sha: str
    siblings: list[_File]


class Repository:
    """The files of one commit. `revision` is the commit, `title` the repository's present name."""

    def __init__(self, name: str, endpoint: str, token: str, proxy: str) -> None:
        """Ask for the newest commit of `name`. Raises ModelNotFound, AccessDenied, SourceUnavailable."""
        self._web = Web(endpoint, token, proxy)
        self._token = bool(token)
        self.title = name
        try:
            info = persist(self._ask, f"`{name}` from `{self._web.host}`")
        except BaseException:
            self.close()
            raise
        self.title, self.revision = info.id, info.sha
        self.url = f"{self._web.endpoint}/{self.title}"
        self._files = {file.name: file for file in info.siblings if file.usable}
        self._whole: dict[str, bytes] = {}
        self._peeked: dict[str, list[tuple[int, bytes]]] = {}

    def names(self) -> list[str]:
        """Paths of the files."""
        return list(self._files)

    def size(self, name: str) -> int:
        """Length in bytes as declared. Raises SourceUnavailable."""
        return self._file(name).length

    def digest(self, name: str) -> str | None:
        """`sha256:…` of a large file, `git-sha1:…` of a small one. Raises SourceUnavailable."""
        return self._file(name).digest

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises SourceUnavailable, AccessDenied, DigestMismatch (small files)."""
        file = self._file(name)
        if size < 0 or offset < 0 or offset + size > file.length:
            raise SourceUnavailable(f"`{name}` of `{self.title}` ends before byte {offset + size:,}")
        if file.length <= _SMALL and not name.endswith(_WEIGHTS):
            if name not in self._whole:
                self._whole[name] = b"".join(self.stream(name))
            return self._whole[name][offset : offset + size]
        if size == 0:
            return b""
        what = f"`{name}` from `{self._web.host}`"
        data = persist(lambda: self._fetch(file, offset, offset + size), what)
        self._peeked.setdefault(name, []).append((offset, data))
        return data

    def stream(self, name: str) -> Iterator[bytes]:
        """The whole file in order. Raises DigestMismatch, SourceUnavailable, AccessDenied."""
        file, position = self._file(name), 0
        check = Check(name, file.length, file.digest)
        for data in fetch.stream(self._web, self._address(name), check, self._refuse):
            for offset, seen in self._peeked.get(name, ()):
                _compare(name, position, data, offset, seen)
            position += len(data)
            yield data

    def close(self) -> None:
        """Close the connections."""
        self._web.close()

    def _ask(self) -> _Info:
        url = f"{self._web.endpoint}/api/models/{quote(self.title)}/revision/main?blobs=true"
        with self._web.get(url) as answer:
            self._refuse(answer)
            data = answer.read_all(_LONGEST_INFO)
        try:
            info = msgspec.json.decode(data, type=_Info)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise SourceUnavailable(
                f"`{self._web.host}` does not answer as a hub does", "check `HF_ENDPOINT`"
            ) from None
        if not _COMMIT.fullmatch(info.sha) or not _REPOSITORY.fullmatch(info.id):
            raise SourceUnavailable(f"`{self._web.host}` does not answer as a hub does", "check `HF_ENDPOINT`")
        return info

    def _fetch(self, file: _File, start: int, end: int) -> bytes:
        check = Check(file.name, file.length, None)
        return fetch.part(self._web, self._address(file.name), start, end, check, self._refuse)

    def _address(self, name: str) -> str:
        return f"{self._web.endpoint}/{quote(self.title)}/resolve/{self.revision}/{quote(name)}"

    def _file(self, name: str) -> _File:
        if name not in self._files:
            raise SourceUnavailable(f"`{self.title}` has no file `{name}`")
        return self._files[name]

    def _refuse(self, answer: Answer) -> None:
        """Raises what a refusal means; the hub tells missing from forbidden by a code in a header."""
        if answer.status < 400:
            return
        code = answer.headers.get("X-Error-Code", "")
        page = f"{self._web.endpoint}/{self.title}"
        raise self._refusal(answer.status, code, page)

    def _refusal(self, status: int, code: str, page: str) -> RegistryError:
        if code == "GatedRepo":
            how = "" if self._token else " and set `HF_TOKEN` to a token of that account"
            return AccessDenied(f"`{self.title}` is gated", f"accept its licence at {page}{how}")
        if status == 401 and self._token and code != "RepoNotFound":
            return AccessDenied(f"`{self._web.host}` does not accept the token", "set `HF_TOKEN` to one that is valid")
        if code == "RepoNotFound" or status == 401:
            private = "it may be private to other accounts" if self._token else "for a private one set `HF_TOKEN`"
            return ModelNotFound(f"`{self._web.host}` has no model `{self.title}`", f"check the spelling; {private}")
        if status == 403:
            return AccessDenied(f"`{self._web.host}` forbids to read `{self.title}`", f"see {page}")
        if status == 404:
            return ModelNotFound(f"`{self._web.host}` does not find what it lists of `{self.title}`", f"see {page}")
        return SourceUnavailable(f"`{self._web.host}` answers {status} for `{self.title}`", "try again later")


def _compare(name: str, position: int, data: bytes, offset: int, seen: bytes) -> None:
    """What was read early must be what the checked stream holds at the same place."""
    start, end = max(position, offset), min(position + len(data), offset + len(seen))
    if start < end and data[start - position : end - position] != seen[start - offset : end - offset]:
        raise DigestMismatch(f"the header of `{name}` was not what the file turned out to hold", "pull again")
