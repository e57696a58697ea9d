"""A repository of the Hugging Face Hub, or of a server with its routes, pinned to one commit.

    GET {endpoint}/api/models/{repo}/revision/{main or commit}?blobs=true     commit, files, sizes, digests
    GET {endpoint}/{repo}/resolve/{commit}/{file}                 the file, large ones by redirect to another origin

Routes and error codes as huggingface_hub 2.x uses them. Small files are fetched whole and checked before a byte is
given out. Headers of large files are read before the files are streamed, and compared with the stream later. So a model
is only ever made of bytes whose declared digest was checked.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from http.client import HTTPMessage
from urllib.parse import quote

import msgspec

from registry.errors import AccessDenied, DigestMismatch, ModelNotFound, RegistryError, SourceUnavailable
from registry.net.address import HttpAddress
from registry.net.download import Download
from registry.net.fetch import Fetcher
from registry.net.locate import Remote
from registry.net.network import Network
from registry.net.verify import Verified

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
    def digest(self) -> str:
        return f"sha256:{self.lfs.sha256}" if self.lfs else f"git-sha1:{self.blob_id}"

    @property
    def usable(self) -> bool:
        """Whether its name is safe, and the hub declares its size and its digest."""
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

    def __init__(self, name: str, endpoint: str, network: Network, revision: str = "") -> None:
        """Ask for a commit of `name`, by default the newest. Raises ModelNotFound, AccessDenied, SourceUnavailable."""
        self._endpoint = endpoint.rstrip("/")
        self._host = HttpAddress.parse(endpoint).host
        self._network = network
        self._fetchers: dict[int, Fetcher] = {}
        self.title = name
        try:
            info = self._ask(revision or "main")
        except BaseException:
            self.close()
            raise
        self.title, self.revision = info.id, info.sha
        self.url, self.owner = f"{self._endpoint}/{self.title}", self.title.partition("/")[0]
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

    def stamp(self, name: str) -> str:
        """The digest. Raises SourceUnavailable."""
        return self._file(name).digest

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises SourceUnavailable, AccessDenied, DigestMismatch (small files)."""
        file = self._file(name)
        if size < 0 or offset < 0 or offset + size > file.length:
            raise SourceUnavailable(f"`{name}` of `{self.title}` ends before byte {offset + size:,}")
        if file.length <= _SMALL and not name.endswith(_WEIGHTS):
            if name not in self._whole:
                self._whole[name] = self._read_whole(file)
            return self._whole[name][offset : offset + size]
        data = self._fetcher.part(self._remote(file), offset, offset + size)
        self._peeked.setdefault(name, []).append((offset, data))
        return data

    def open(self, name: str, offset: int = 0, state: bytes = b"") -> Verified:
        """The file from `offset` on, in parallel ranges. Raises as `Source.open` says, and AccessDenied."""
        file = self._file(name)
        return Verified(self._chunks(file, offset), name, file.length, file.digest, offset, state)

    def close(self) -> None:
        """Close the connections."""
        for fetcher in list(self._fetchers.values()):
            fetcher.close()

    @property
    def _fetcher(self) -> Fetcher:
        """The fetcher of this thread, with its own connections."""
        thread = threading.get_ident()
        if thread not in self._fetchers:
            self._fetchers[thread] = Fetcher(self._network)
        return self._fetchers[thread]

    def _ask(self, revision: str) -> _Info:
        url = f"{self._endpoint}/api/models/{quote(self.title)}/revision/{revision}?blobs=true"
        data = self._fetcher.document(url, self.title, _LONGEST_INFO, self._refused)
        try:
            info = msgspec.json.decode(data, type=_Info)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            info = _Info("", "", [])
        if not _COMMIT.fullmatch(info.sha) or not _REPOSITORY.fullmatch(info.id):
            raise SourceUnavailable(f"`{self._host}` does not answer as a hub does", "check `HF_ENDPOINT`")
        return info

    def _read_whole(self, file: _File) -> bytes:
        """The bytes of a small file, after its digest was checked."""
        data = self._fetcher.part(self._remote(file), 0, file.length)
        Verified([data], file.name, file.length, file.digest).finish()
        return data

    def _chunks(self, file: _File, position: int) -> Iterator[memoryview]:
        """The file's bytes from `position` on, compared with the bytes that `read` gave out; fetched on iteration."""
        with Download(self._remote(file), self._network, position) as download:
            for data in download:
                _compare(file.name, position, data, self._peeked.get(file.name, ()))
                position += len(data)
                yield data

    def _remote(self, file: _File) -> Remote:
        url = f"{self._endpoint}/{quote(self.title)}/resolve/{self.revision}/{quote(file.name)}"
        return Remote(url, file.length, file.name, self._refused)

    def _file(self, name: str) -> _File:
        if name not in self._files:
            raise SourceUnavailable(f"`{self.title}` has no file `{name}`")
        return self._files[name]

    def _refused(self, status: int, headers: HTTPMessage) -> RegistryError:
        """The error for a refusal; by a code in a header the hub tells a missing repository from a forbidden one."""
        return self._refusal(status, headers.get("X-Error-Code", ""), f"{self._endpoint}/{self.title}")

    def _refusal(self, status: int, code: str, page: str) -> RegistryError:
        if code == "GatedRepo":
            how = "" if self._network.token else " and set `HF_TOKEN` to a token of that account"
            return AccessDenied(f"`{self.title}` is gated", f"accept its licence at {page}{how}")
        if status == 401 and self._network.token and code != "RepoNotFound":
            return AccessDenied(f"`{self._host}` does not accept the token", "set `HF_TOKEN` to one that is valid")
        if code == "RevisionNotFound":
            return ModelNotFound(f"`{self._host}` no longer has that revision of `{self.title}`", f"see {page}")
        if code == "RepoNotFound" or status == 401:
            private = (
                "it may be private to other accounts" if self._network.token else "for a private one set `HF_TOKEN`"
            )
            return ModelNotFound(f"`{self._host}` has no model `{self.title}`", f"check the spelling; {private}")
        if status == 403:
            return AccessDenied(f"`{self._host}` forbids to read `{self.title}`", f"see {page}")
        if status == 404:
            return ModelNotFound(f"`{self._host}` does not find what it lists of `{self.title}`", f"see {page}")
        return SourceUnavailable(f"`{self._host}` answers {status} for `{self.title}`", "try again later")


def _compare(name: str, position: int, data: memoryview, peeked: Iterable[tuple[int, bytes]]) -> None:
    """Compare `data`, at `position` of the file, with the bytes that `read` gave out. Raises DigestMismatch."""
    for offset, seen in peeked:
        start, end = max(position, offset), min(position + len(data), offset + len(seen))
        if start < end and data[start - position : end - position] != seen[start - offset : end - offset]:
            raise DigestMismatch(f"the header of `{name}` was not what the file turned out to hold", "pull again")
