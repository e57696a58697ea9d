"""Keys of signatures: PEM files with an elliptic key on P-256, P-384 or P-521, as OpenSSF model signing takes them.

A public key may also be in a certificate, and counts as long as that holds; nobody asks who issued it, because whoever
names the file trusts it. The package `cryptography` is needed, which the extra `signing` brings; it is imported when a
key is used.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from registry.errors import BadSignature, NeedsPassword
from registry.signatures.statement import Signed, bundled, encoded, statement

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

_LONGEST = 1 << 16
# Mode bits of others, none of which the file of a private key may have.
_PRIVATE = 0o077
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MISSING = "the package `cryptography` is not installed, so no signature can be made or checked"
_INSTALL = "install the extra `signing`: `pip install 'lm[signing]'`"


class TrustedKey(msgspec.Struct, frozen=True):
    """A public key whose signatures count: its file's name, and the file's text, a public key or a certificate."""

    name: str
    pem: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public key's PEM in hexadecimal, by which signatures name it. Raises BadSignature."""
        return _fingerprint(self._loaded())

    def check(self) -> None:
        """Raise BadSignature for a key that cannot be used: no elliptic key, or a certificate that does not hold."""
        self._loaded()

    def verify(self, signed: Signed) -> None:
        """Raise BadSignature unless this key made a signature; its files are another question."""
        key = self._loaded()
        if signed.by != "key":
            raise BadSignature(f"it was signed by {signed.signer}, not by the key `{self.name}`")
        if signed.key and signed.key != _fingerprint(key):
            raise BadSignature(
                f"it was signed by {signed.signer}, not by `{self.name}` ({_fingerprint(key)[:16]})",
                "name the public key of whoever signed it",
            )
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            key.verify(signed.signature, signed.message, ec.ECDSA(_hash(key)))
        except InvalidSignature:
            raise BadSignature(
                f"the signature is not one of `{self.name}`: it was changed, or another key made it",
                "bring the model in anew from whoever signed it",
            ) from None

    def _loaded(self) -> ec.EllipticCurvePublicKey:
        try:
            from cryptography import x509
            from cryptography.hazmat.primitives import serialization
        except ImportError:
            raise BadSignature(_MISSING, _INSTALL) from None
        data = self.pem.encode()
        try:
            if b"-----BEGIN CERTIFICATE-----" in data:
                certificate = x509.load_pem_x509_certificate(data)
                _check_time(self.name, certificate)
                return _elliptic(self.name, certificate.public_key())
            return _elliptic(self.name, serialization.load_pem_public_key(data))
        except (ValueError, TypeError) as error:
            if b"PRIVATE KEY" in data:
                raise BadSignature(f"`{self.name}` is a private key", "give the public key of it") from None
            raise _unusable(self.name, error) from None
        except _unsupported() as error:
            raise _unusable(self.name, error) from None


def read_public(path: Path, name: str = "") -> TrustedKey:
    """The public key, or the certificate, in a file; messages call it `name`. Raises BadSignature.

    A file that others can change is refused: whoever changes it decides whose signatures count.
    """
    shown = name or str(path)
    data = _contents(path, shown, stat.S_IWGRP | stat.S_IWOTH, "can be changed by other users", "go-w")
    return TrustedKey(shown, data.decode("ascii", "replace"))


def sign(path: Path, title: str, files: dict[str, str], password: str = "") -> bytes:
    """The signature of files, by names with SHA-256, with the private key in a file. Raises BadSignature.

    A file that others can read is refused: then others can sign, too.
    """
    shown = str(path)
    data = _contents(path, shown, _PRIVATE, "can be read or changed by other users", "go=")
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise BadSignature(_MISSING, _INSTALL) from None
    try:
        loaded: Any = serialization.load_pem_private_key(data, password.encode() or None)
    except TypeError:
        raise NeedsPassword(f"`{shown}` is encrypted", "give its password at the prompt") from None
    except ValueError as error:
        if password:
            raise NeedsPassword(f"the password of `{shown}` is another one", "try again") from None
        raise _unusable(shown, error) from None
    except _unsupported() as error:
        raise _unusable(shown, error) from None
    key = _elliptic(shown, loaded.public_key())
    payload = statement(title, files)
    return bundled(payload, loaded.sign(encoded(payload), ec.ECDSA(_hash(key))), _fingerprint(key))


def _contents(path: Path, shown: str, forbidden: int, fault: str, mode: str) -> bytes:
    """The bytes of a file of a key, none of whose mode bits is `forbidden`. Raises BadSignature."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadSignature(f"`{shown}` is no file", "name a file with a key in PEM")
            data = file.read(_LONGEST)
            if forbidden == _PRIVATE and b"PUBLIC KEY" in data:
                raise BadSignature(f"`{shown}` is a public key", "sign with the private key that belongs to it")
            if status.st_mode & forbidden:
                raise BadSignature(f"the key `{shown}` {fault}, so it is not used", f"`chmod {mode} {path}`")
            return data
    except OSError as error:
        raise BadSignature(f"the key `{shown}` cannot be read: {error.strerror}", "check its name") from None


def _elliptic(name: str, key: Any) -> ec.EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise BadSignature(
            f"`{name}` holds another kind of key than model signing takes",
            "make one: `openssl ecparam -name prime256v1 -genkey -noout -out key.pem`",
        )
    return key


def _check_time(name: str, certificate: Any) -> None:
    now = time.time()
    begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if not begins <= now <= ends:
        day = time.strftime("%Y-%m-%d", time.gmtime(ends if now > ends else begins))
        when = f"expired on {day}" if now > ends else f"holds only from {day} on"
        raise BadSignature(f"the certificate `{name}` {when}", "put a new one there, and check this machine's clock")


def _hash(key: ec.EllipticCurvePublicKey) -> Any:
    from cryptography.hazmat.primitives import hashes

    found: dict[int, Any] = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
    return found[key.curve.key_size]


def _fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    from cryptography.hazmat.primitives import serialization

    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.PEM, form)).hexdigest()


def _unsupported() -> type[Exception]:
    from cryptography.exceptions import UnsupportedAlgorithm

    found: type[Exception] = UnsupportedAlgorithm
    return found


def _unusable(name: str, error: Exception) -> BadSignature:
    text = str(error).split(". ")[0].splitlines()[0][:120] if str(error) else "it is no PEM"
    hint = "give a key in PEM, on P-256, P-384 or P-521"
    return BadSignature(f"`{name}` holds no key that can be used: {text}", hint)
