"""A repository of the Hugging Face Hub, or of a server with its routes, pinned to one commit.

    GET {endpoint}/api/models/{repo}/revision/{main or commit}?blobs=true     commit, files, sizes, digests
    GET {endpoint}/{repo}/resolve/{commit}/{file}                 the file, large ones by redirect to another origin

Routes and error codes as huggingface_hub 2.x uses them.
"""

from __future__ import annotations

import re
from http.client import HTTPMessage
from urllib.parse import quote

import msgspec

from registry.errors import AccessDenied, ModelNotFound, RegistryError, SourceUnavailable
from registry.net.address import HttpAddress
from registry.net.locate import Remote
from registry.net.network import Network
from registry.sources.base import Companions
from registry.sources.remote import RemoteFiles

_LONGEST_INFO = 16 << 20
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


class Repository(RemoteFiles):
    """The files of one commit. `revision` is the commit, `title` the repository's present name."""

    companions = Companions()

    def __init__(self, name: str, endpoint: str, network: Network, revision: str = "") -> None:
        """Ask for a commit of `name`, by default the newest. Raises ModelNotFound, AccessDenied, SourceUnavailable."""
        self._endpoint = endpoint.rstrip("/")
        self._host = HttpAddress.parse(endpoint).host
        super().__init__(network)
        self.title = name
        try:
            info = self._ask(revision or "main")
        except BaseException:
            self.close()
            raise
        self.title, self.revision = info.id, info.sha
        self.url, self.owner = f"{self._endpoint}/{self.title}", self.title.partition("/")[0]
        self._files = {file.name: file for file in info.siblings if file.usable}

    def names(self) -> list[str]:
        """Paths of the files."""
        return list(self._files)

    def size(self, name: str) -> int:
        """Length in bytes as declared. Raises SourceUnavailable."""
        return self._file(name).length

    def digest(self, name: str) -> str:
        """`sha256:…` of a large file, `git-sha1:…` of a small one. Raises SourceUnavailable."""
        return self._file(name).digest

    def stamp(self, name: str) -> str:
        """The digest. Raises SourceUnavailable."""
        return self._file(name).digest

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

    def _remote(self, name: str) -> Remote:
        file = self._file(name)
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
