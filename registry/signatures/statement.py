"""A signature by OpenSSF model signing 1.x: a Sigstore bundle, in it a DSSE envelope, in it an in-toto statement.

The statement lists the files of a model with their SHA-256. Sources:
https://github.com/sigstore/model-transparency (predicate `https://model_signing/signature/v1.0`),
https://github.com/secure-systems-lab/dsse/blob/master/protocol.md (the bytes that are signed),
https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md. Written here because the daemon checks each model
that it loads: the package `model-signing` takes more than a second and 60 MB to import. Nothing read here is trusted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from registry.errors import BadSignature
from registry.signatures.files import SIGNATURE_FILES
from registry.store import manifest

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
# Bytes of a signature: some kilobytes, and 200 for each file; one by identity has certificates and a log's proof.
LONGEST_SIGNATURE = 1 << 20
_HEX = re.compile(r"[0-9a-f]{64}")
By = Literal["key", "identity", "certificate"]


class _PublicKey(msgspec.Struct):
    hint: str | None = None


class _Material(msgspec.Struct, rename="camel"):
    public_key: _PublicKey | None = None
    certificate: dict[str, Any] | None = None
    x509_certificate_chain: dict[str, Any] | None = msgspec.field(default=None, name="x509CertificateChain")


class _Sig(msgspec.Struct):
    sig: str


class _Envelope(msgspec.Struct, rename="camel"):
    payload: str
    payload_type: str
    signatures: list[_Sig]


class _Bundle(msgspec.Struct, rename="camel"):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


class _Subject(msgspec.Struct):
    digest: dict[str, str]


class _Resource(msgspec.Struct):
    name: str
    algorithm: str
    digest: str


class _Serialization(msgspec.Struct):
    method: str


class _Predicate(msgspec.Struct):
    serialization: _Serialization
    resources: list[_Resource]


class _Statement(msgspec.Struct, rename="camel"):
    type: str = msgspec.field(name="_type")
    predicate_type: str
    subject: list[_Subject]
    predicate: _Predicate


@dataclass(frozen=True)
class Signed:
    """A signature that can be read, which says nothing about whether it holds.

    `by`: a key, an identity (a certificate that Sigstore gave for a moment), or a company's certificate. `key` is the
    SHA-256 of the public key's PEM in hexadecimal, "" where it is not told. `files` are names with SHA-256.
    """

    by: By
    key: str
    payload: bytes
    signature: bytes
    files: Mapping[str, str]

    @property
    def message(self) -> bytes:
        """The bytes that are signed: DSSE's pre-authentication encoding of the payload."""
        return encoded(self.payload)

    @property
    def signer(self) -> str:
        """Who says to have signed, in a few words."""
        words = {"key": f"the key {self.key[:16] or 'of unknown name'}", "identity": "an identity of Sigstore"}
        return words.get(self.by, "a certificate")

    def check_files(self, files: Mapping[str, str]) -> None:
        """Raise BadSignature unless these are the files that were signed, all of them and no others."""
        if self.files == files:
            return
        changed = sorted(name for name in files if self.files.get(name, files[name]) != files[name])
        unsigned, gone = sorted(set(files) - set(self.files)), sorted(set(self.files) - set(files))
        told = [("differs", changed), ("is not signed", unsigned), ("is not here", gone)]
        what = "; ".join(f"`{ascii(name[:60])[1:-1]}` {text}" for text, names in told for name in names[:3])
        raise BadSignature(
            f"the signature by {self.signer} is for other files: {what}", "sign it again, or bring it in anew"
        )


def read_signature(data: bytes) -> Signed:
    """A signature from its bytes. Raises BadSignature for what is none, or of a kind that lm does not check."""
    if len(data) > LONGEST_SIGNATURE:
        raise _unreadable(f"it has {len(data):,} bytes, more than {LONGEST_SIGNATURE:,}")
    try:
        bundle = msgspec.json.decode(data, type=_Bundle)
        envelope = bundle.dsse_envelope
        payload = base64.b64decode(envelope.payload, validate=True)
        signature = base64.b64decode(envelope.signatures[0].sig, validate=True)
        statement = msgspec.json.decode(payload, type=_Statement)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, binascii.Error, ValueError) as error:
        raise _unreadable(str(error)) from None
    except IndexError:
        raise _unreadable("its envelope has no signature") from None
    if bundle.media_type != manifest.SIGNATURE or envelope.payload_type != PAYLOAD_TYPE:
        raise _unreadable("it is no Sigstore bundle 0.3 with an in-toto statement")
    if len(envelope.signatures) != 1:
        raise _unreadable(f"it has {len(envelope.signatures)} signatures in one envelope")
    by, key = _material(bundle.verification_material)
    return Signed(by, key, payload, signature, _files(statement))


def statement(title: str, files: Mapping[str, str]) -> bytes:
    """The payload to sign: these names with their SHA-256, for a model called `title`."""
    names = sorted(files)
    resources = [{"name": name, "algorithm": "sha256", "digest": files[name]} for name in names]
    document = {
        "_type": _STATEMENT,
        "subject": [{"name": title, "digest": {"sha256": _root(files[name] for name in names)}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": SIGNATURE_FILES,  # they lie beside the files, and cannot be among what they sign
            },
            "resources": resources,
        },
    }
    return msgspec.json.encode(document)


def bundled(payload: bytes, signature: bytes, key: str) -> bytes:
    """The signature as a file: `signature` over `encoded(payload)` by the public key whose PEM hashes to `key`."""
    document = {
        "mediaType": manifest.SIGNATURE,
        "verificationMaterial": {"publicKey": {"hint": key}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return msgspec.json.encode(document)


def encoded(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding of a payload."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _material(material: _Material) -> tuple[By, str]:
    if material.public_key is not None:
        key = material.public_key.hint or ""
        if key and not _HEX.fullmatch(key):
            raise _unreadable("its key is named by no SHA-256")
        return "key", key
    if material.certificate is not None:
        return "identity", ""
    if material.x509_certificate_chain is not None:
        return "certificate", ""
    raise _unreadable("it names neither a key nor a certificate")


def _files(found: _Statement) -> dict[str, str]:
    predicate = found.predicate
    if found.type != _STATEMENT or found.predicate_type != _PREDICATE:
        raise _unreadable(f"its statement is of the kind `{ascii(found.predicate_type[:80])[1:-1]}`")
    if predicate.serialization.method != "files":
        raise _unreadable("it lists parts of files; sign whole files")
    files = {}
    for each in predicate.resources:
        if each.algorithm != "sha256" or not _HEX.fullmatch(each.digest):
            raise _unreadable("it lists other digests than SHA-256")
        files[each.name] = each.digest
    root = _root(each.digest for each in predicate.resources)
    if len(files) != len(predicate.resources) or [each.digest.get("sha256") for each in found.subject] != [root]:
        raise _unreadable("its list of files contradicts its digest")
    return files


def _root(digests: Any) -> str:
    """The digest of a model: SHA-256 of the digests of its files, one behind the other."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _unreadable(why: str) -> BadSignature:
    return BadSignature(f"the signature cannot be read: {why}", "`lm sign` makes one, and so does `model_signing`")
