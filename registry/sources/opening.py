"""Opens the source of a reference: a folder, a package, another program's store, a hub, a registry, a URL."""

from __future__ import annotations

from pathlib import Path

from registry.errors import ModelNotFound
from registry.names import Reference
from registry.net.network import Network
from registry.sources.base import Source
from registry.sources.unpacking import Unpacking

__all__ = ["Source", "open_source"]

DEMO = Path(__file__).parent.parent / "demo"


def open_source(
    reference: Reference, endpoint: str, network: Network, revision: str = "", unpacking: Unpacking | None = None
) -> Source:
    """The source of a reference, pinned to `revision`; "" is the newest.

    `endpoint` is the hub's URL; the token of `network` goes there and nowhere else. Connections are opened for a hub
    only. `unpacking` is the place for packed tars; without it the files in them are not known. Raises ModelNotFound
    (also when the revision is gone), AccessDenied, SourceUnavailable.
    """
    if reference.kind in ("demo", "folder"):
        from registry.sources.local import Folder

        demo = reference.kind == "demo"
        return Folder(DEMO if demo else Path(reference.location), "demo" if demo else reference.location)
    if reference.kind == "package":
        from registry.sources.packages import open_package

        return open_package(reference.location, revision)
    if reference.kind == "hub":
        from registry.sources.huggingface import Repository

        return Repository(reference.location, endpoint, network, revision)
    if reference.kind == "store":
        from registry.sources.stored import StoredModel

        return StoredModel(reference, revision, unpacking)
    if reference.kind == "url":
        from registry.sources.url import FileAtUrl

        return FileAtUrl(reference.location, network, revision)
    if reference.kind in ("oci", "ollama"):
        from registry.sources.oci import OciModel

        return OciModel(reference, network, revision, unpacking)
    raise ModelNotFound(
        f"model `{reference.name.display}` is not here, and a bare name says no place",
        "name a model of the hub as `org/repo`, a folder as `./folder`; `demo` comes with lm",
    )
