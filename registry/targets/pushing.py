"""A push: the blobs of a model that a registry lacks are sent, and then the manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from registry import digest
from registry.errors import DigestMismatch
from registry.names import Name
from registry.net.network import Network
from registry.store.store import Store
from registry.store.uploads import Uploads
from registry.targets.forms import Outgoing
from registry.targets.repository import TargetRepository
from registry.targets.upload import Blob, Upload

Send = Callable[[dict[str, Any]], None]
# The most repositories that are asked for a blob before it is sent.
_MOST_ELSEWHERE = 4


class Push:
    """A push of one model to `target`, by its name there; `run` is for one thread, `abort` for any."""

    def __init__(self, store: Store, outgoing: Outgoing, target: Name, network: Network) -> None:
        """Raises AccessDenied for a registry that is not asked (`registry/net/reaching.py`), SourceUnavailable."""
        self._store, self._outgoing, self._target = store, outgoing, target
        self._repository = TargetRepository(target, network)
        self._notes = Uploads(store.root)

    def abort(self) -> None:
        """End the push, behind the piece on its way; what the registry has then is not sent again by the next one."""
        self._repository.abort()

    def run(self, send: Send) -> str:
        """Push; `send` gets lines in Ollama's form. The digest of the manifest. Raises as `Upload.run`."""
        try:
            with self._store.hold(layer.digest for layer in self._outgoing.blobs):
                for layer in self._outgoing.blobs:
                    content = self._outgoing.made.get(layer.digest) or self._store.blob_path(layer.digest)
                    self._upload(Blob(layer.digest, layer.size, content), send)
                send({"status": "pushing manifest", "phase": "manifest"})
                return self._repository.persist(self._put_manifest, "the manifest")
        finally:
            self._repository.close()

    def _upload(self, blob: Blob, send: Send) -> None:
        line = {"status": f"pushing {blob.digest[7:19]}", "phase": "pushing", "digest": blob.digest, "total": blob.size}

        def progress(done: int) -> None:
            send(line | {"completed": min(done, blob.size)})

        outcome = Upload(self._repository, blob, self._notes, progress).run(self._elsewhere(blob.digest))
        self._notes.note(self._target.host, blob.digest, self._repository.path)
        send(line | {"completed": blob.size, "outcome": outcome})

    def _elsewhere(self, blob: str) -> Sequence[str]:
        """Repositories of the same registry that may have a blob.

        First the repository that it was pushed to last, then repositories that models of this store came from, or are
        named by.
        """
        host, own = self._target.host, self._repository.path
        found = [pushed] if (pushed := self._notes.find(host, blob)) else []
        for model in self._store.models([]):
            source = str(model.own.get("source") or "")
            path = source.removeprefix(f"{host}/").rpartition(":")[0] if source.startswith(f"{host}/") else ""
            found += [path] if path else []
            found += [f"{model.key.namespace}/{model.key.model}"] if model.key.host == host else []
        return [path for path in dict.fromkeys(found) if path != own][:_MOST_ELSEWHERE]

    def _put_manifest(self) -> str:
        data, media_type = self._outgoing.data, self._outgoing.media_type
        wanted = digest.of(data)
        tag = str(self._target.tag)
        reference = tag.replace("-", ":", 1) if tag.startswith("sha256-") else tag
        headers = {"Content-Type": media_type, "Content-Length": str(len(data))}
        reply = self._repository.ask("PUT", self._repository.address(f"manifests/{reference}"), headers, data)
        if reply.status not in (200, 201):
            raise self._repository.refused(reply, f"push to `{self._repository.path}`")
        found = reply.headers.get("Docker-Content-Digest", wanted)
        reply.discard()
        if found != wanted:
            raise DigestMismatch(f"`{self._repository.host}` keeps another manifest than it was sent", "push again")
        return str(wanted)
