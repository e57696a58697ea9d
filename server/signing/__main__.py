"""`python -P -m server.signing`: reads a task as JSON from stdin, and prints what came of it.

A process of the command line's, because that imports neither msgspec nor cryptography: a private key is never sent to
the daemon, and a public one is read with the rights of whoever asks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from registry.errors import BadSignature, RegistryError
from registry.signatures.attaching import FoundSignature, judged
from registry.signatures.keys import TrustedKey, read_public, sign
from registry.signatures.statement import LONGEST_SIGNATURE


class SigningTask(msgspec.Struct):
    """Sign these files (names with SHA-256 in hexadecimal) of the model `title` with the private key in `key`."""

    title: str
    files: dict[str, str]
    key: str
    password: str = ""


class SignedModel(msgspec.Struct):
    """A model with its files and its signatures."""

    name: str
    files: dict[str, str]
    signatures: list[dict[str, Any]]


class CheckingTask(msgspec.Struct):
    """Check models by files of public keys, and by an identity with its provider and the file of a trust root."""

    models: list[SignedModel]
    keys: list[str] = []
    identity: str = ""
    provider: str = ""
    trust_root: str = ""


class Task(msgspec.Struct):
    """One of the tasks. `read` is the path of a signature that another program made."""

    sign: SigningTask | None = None
    check: CheckingTask | None = None
    read: str = ""


def main() -> int:
    """Do the task on stdin; the exit status is 1, with an error as JSON, where that cannot be done."""
    try:
        print(json.dumps(_done(msgspec.json.decode(sys.stdin.buffer.read(), type=Task))))
    except RegistryError as error:
        print(json.dumps({"error": str(error), "hint": error.hint, "code": error.code}))
        return 1
    return 0


def _done(task: Task) -> dict[str, Any]:
    if task.sign:
        data = sign(Path(task.sign.key), task.sign.title, task.sign.files, task.sign.password)
        return {"signature": json.loads(data)}
    if task.read:
        return {"signature": _read(Path(task.read))}
    assert task.check
    keys = [read_public(Path(each)) for each in task.check.keys]
    for key in keys:
        key.check()
    rows = [{"name": each.name, "checks": _checks(task.check, each, keys)} for each in task.check.models]
    return {"models": rows}


def _checks(task: CheckingTask, model: SignedModel, keys: list[TrustedKey]) -> list[dict[str, str]]:
    """For each input what it is, and `fault`, the reason for which no signature counts by it; "" where one does."""
    found = [judged(json.dumps(each).encode(), model.files) for each in model.signatures]
    checks = [{"by": f"the key `{key.name}`", "fault": _fault_by_key(found, key)} for key in keys]
    if task.identity:
        from server.signing.identity import Identity

        identity = Identity(task.identity, task.provider, Path(task.trust_root))
        checks.append({"by": f"the identity `{task.identity}`", "fault": _first(found, identity.verify)})
    return checks


def _fault_by_key(found: list[FoundSignature], key: TrustedKey) -> str:
    def verify(signature: FoundSignature) -> None:
        if signature.signed:
            key.verify(signature.signed)

    return _first(found, verify)


def _first(found: list[FoundSignature], verify: Any) -> str:
    """ "" where a signature holds for the files and by `verify`, else the reasons."""
    faults = []
    for each in found:
        try:
            verify(each)
            if each.fault is None:
                return ""
            faults.append(str(each.fault))
        except BadSignature as fault:
            faults.append(str(fault))
    return "; ".join(dict.fromkeys(faults)) or "it is not signed"


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST_SIGNATURE + 1)
    except OSError as error:
        raise BadSignature(f"`{path}` cannot be read: {error.strerror}", "check its name") from None
    try:
        if len(data) > LONGEST_SIGNATURE:
            raise ValueError
        return json.loads(data)
    except (ValueError, RecursionError):
        raise BadSignature(f"`{path}` is no signature", "`lm sign --key`, or `model_signing sign`, makes one") from None


if __name__ == "__main__":
    sys.exit(main())
