"""Digests of blobs: `sha256:` and 64 hexadecimal digits."""

from __future__ import annotations

import hashlib
import re
from typing import NewType

from registry.errors import StoreDamaged

Digest = NewType("Digest", str)

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")


def sha256(text: object) -> Digest:
    """`text` as a digest from which a path may be built. Raises StoreDamaged if it is not exactly one."""
    if not isinstance(text, str) or not _SHA256.fullmatch(text):
        raise StoreDamaged(f"`{str(text)[:80]!r}` is no digest", "expected `sha256:` and 64 hexadecimal digits")
    return Digest(text)


def of(data: bytes) -> Digest:
    """The digest of some bytes."""
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
