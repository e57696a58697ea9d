"""Files behind URLs, as the sources that reach them over HTTP share them: read by range, streamed, compared.

Small files are fetched whole and checked before a byte is given out. Headers of large files are read before the files
are streamed, and compared with the stream later. So a model is only ever made of bytes whose declared digest was
checked. Where nothing is declared, only the header is compared.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from registry.errors import DigestMismatch, SourceUnavailable
from registry.net.download import Download
from registry.net.fetch import Fetcher
from registry.net.locate import Remote
from registry.net.network import Network
from registry.net.verify import Verified
from registry.sources.base import FileReader

# The longest file that is fetched whole, in bytes.
_SMALL = 64 << 20
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".h5", ".onnx", ".msgpack")


class RemoteFiles(ABC):
    """The files of a source on the network; a subclass says which there are, and where each lies."""

    title: str

    def __init__(self, network: Network) -> None:
        self._network = network
        self._fetchers: dict[int, Fetcher] = {}
        self._whole: dict[str, bytes] = {}
        self._peeked: dict[str, list[tuple[int, bytes]]] = {}

    @abstractmethod
    def size(self, name: str) -> int:
        """Length in bytes as declared. Raises SourceUnavailable."""

    @abstractmethod
    def digest(self, name: str) -> str | None:
        """The digest as the source declares it, None where it declares nothing. Raises SourceUnavailable."""

    @abstractmethod
    def _remote(self, name: str) -> Remote:
        """Where the file lies."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises SourceUnavailable, AccessDenied, DigestMismatch (small files)."""
        length = self.size(name)
        if size < 0 or offset < 0 or offset + size > length:
            raise SourceUnavailable(f"`{name}` of `{self.title}` ends before byte {offset + size:,}")
        if length <= _SMALL and not name.endswith(_WEIGHTS):
            if name not in self._whole:
                self._whole[name] = self._read_whole(name)
            return self._whole[name][offset : offset + size]
        data = self._fetcher.part(self._remote(name), offset, offset + size)
        self._peeked.setdefault(name, []).append((offset, data))
        return data

    def open(self, name: str, offset: int = 0, state: bytes = b"") -> FileReader:
        """The file from `offset` on, in parallel ranges. Raises as `Source.open` says, and AccessDenied."""
        return Verified(self._chunks(name, offset), name, self.size(name), self.digest(name), offset, state)

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

    def _read_whole(self, name: str) -> bytes:
        """The bytes of a small file, after its digest was checked."""
        data = self._fetcher.part(self._remote(name), 0, self.size(name))
        Verified([data], name, self.size(name), self.digest(name)).finish()
        return data

    def _chunks(self, name: str, position: int) -> Iterator[memoryview]:
        """The file's bytes from `position` on, compared with the bytes that `read` gave out; fetched on iteration."""
        with Download(self._remote(name), self._network, position) as download:
            for data in download:
                _compare(name, position, data, self._peeked.get(name, ()))
                position += len(data)
                yield data


def _compare(name: str, position: int, data: memoryview, peeked: Iterable[tuple[int, bytes]]) -> None:
    """Compare `data`, at `position` of the file, with the bytes that `read` gave out. Raises DigestMismatch."""
    for offset, seen in peeked:
        start, end = max(position, offset), min(position + len(data), offset + len(seen))
        if start < end and data[start - position : end - position] != seen[start - offset : end - offset]:
            raise DigestMismatch(f"the header of `{name}` was not what the file turned out to hold", "pull again")
