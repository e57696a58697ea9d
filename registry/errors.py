"""Errors on the way from a name to the bytes of its model.

RegistryError
├── BadName             a name that is malformed or tries to be a path
├── BadModelfile        a text that is no Modelfile
├── SeveralLevels       a bare name where only the name of one level will do
├── ModelNotFound       not in the store, or not at the source
├── NothingOlder        no older file of a model to go back to
├── AccessDenied        the hub wants a token, another token, or an accepted licence
├── BadBundle           a bundle that is damaged, or none
├── BadSignature        a signature that does not hold, or a key that cannot be used
│   └── NeedsPassword   a private key that is encrypted
├── SourceUnavailable   network, server or file trouble at the source; may pass
├── Offline             the setting `offline` forbids to ask another machine
├── DigestMismatch      bytes that do not hash to what was declared
├── DiskFull            the store's disk cannot hold what is asked
├── StoreLocked         another daemon owns the store
├── StoreDamaged        a manifest or blob that is missing or unreadable
└── StoreFailed         the store's disk or folder refuses an operation
"""

from __future__ import annotations

from typing import Self


class RegistryError(Exception):
    """Base of the tree. `code` is stable and public. `hint` tells the user what to do, and may be empty.

    `field` is the field of a request that is at fault, "" where none is.
    """

    code = "registry_failed"
    field = ""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class BadName(RegistryError):
    """A name that cannot be one."""

    code = "bad_name"


class BadModelfile(RegistryError):
    """A text that is no Modelfile, or an instruction that cannot be carried out."""

    code = "bad_modelfile"


class SeveralLevels(RegistryError):
    """A bare name of a model that is here at several levels, where only one can be meant."""

    code = "several_levels"


class ModelNotFound(RegistryError):
    """No such model in the store or at the source."""

    code = "model_not_found"


class NothingOlder(RegistryError):
    """A model that was not improved, or whose older file is gone."""

    code = "nothing_older"


class AccessDenied(RegistryError):
    """The source knows the model but does not let us have it."""

    code = "access_denied"


class BadBundle(RegistryError):
    """A file that is no bundle of models, or a damaged one."""

    code = "bad_bundle"


class BadSignature(RegistryError):
    """A signature that does not hold for the files of a model, or a key that cannot be used."""

    code = "bad_signature"


class NeedsPassword(BadSignature):
    """A private key that is encrypted, and no password, or a wrong one."""

    code = "needs_password"


class SourceUnavailable(RegistryError):
    """The source cannot be reached or does not answer as it should."""

    code = "source_unavailable"


class Offline(RegistryError):
    """Another machine would be asked, which the setting `offline` forbids."""

    code = "offline"

    @classmethod
    def of(cls, host: str) -> Self:
        """The error of a connection to `host`."""
        return cls(
            f"`offline` is set, so `{host}` is not asked: lm connects to this machine alone",
            "models that `lm list` shows, `demo`, files and bundles need no network; `lm config set offline false` and "
            "a new start of the daemon allow it, where LM_OFFLINE does not forbid it",
        )


class DigestMismatch(RegistryError):
    """Downloaded or stored bytes do not hash to the declared digest."""

    code = "digest_mismatch"


class DiskFull(RegistryError):
    """Not enough room on the store's disk."""

    code = "disk_full"


class StoreLocked(RegistryError):
    """Another process holds the store."""

    code = "store_locked"


class StoreDamaged(RegistryError):
    """The store contradicts itself; nothing was changed."""

    code = "store_damaged"


class StoreFailed(RegistryError):
    """The system refused an operation on the store: no permission, read-only, an I/O error."""

    code = "store_failed"
