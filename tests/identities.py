"""A Sigstore of one's own: an authority that certifies identities for ten minutes, and logs that sign what they took.

The keys of a trust root are random, so the package `sigstore` checks every step that it checks of the public one:
the chain of certificates (Fulcio's profile), the log of certificates (RFC 6962), the log of signatures (Rekor 1, an
entry of kind `dsse`), its tree, its checkpoint and its promise.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from registry.signatures.statement import PAYLOAD_TYPE, encoded
from registry.store import manifest

Key = ec.EllipticCurvePrivateKey
LASTS = timedelta(minutes=10)
# Who vouched for the identity: Fulcio's own extension.
_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
# Where a certificate has the word of the log of certificates (RFC 6962, section 3.3).
_STAMPS = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_SHA256_ECDSA = b"\x04\x03"


def text_of(data: bytes) -> str:
    """Bytes as JSON has them."""
    return base64.b64encode(data).decode()


def signed_by(key: Key, data: bytes) -> bytes:
    """ECDSA over SHA-256."""
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def der(key: Key) -> bytes:
    """The public key."""
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class OwnSigstore:
    """An authority and its two logs, since `begin`."""

    def __init__(self, begin: datetime) -> None:
        self._begin = begin
        self._ca, self._stamps, self._log = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        usage = x509.KeyUsage(
            digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = x509.CertificateBuilder(name("authority"), name("authority"), self._ca.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begin)
        builder = builder.not_valid_after(begin + timedelta(days=3650))
        builder = builder.add_extension(x509.BasicConstraints(True, 0), critical=True).add_extension(usage, True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._ca.public_key())
        self._root = builder.add_extension(identifier, critical=False).sign(self._ca, hashes.SHA256())

    def trust_root(self) -> dict[str, Any]:
        """`trusted_root.json`."""
        since = {"start": self._begin.isoformat()}
        chain = {"certificates": [{"rawBytes": text_of(self._root.public_bytes(serialization.Encoding.DER))}]}
        subject = {"organization": "tests", "commonName": "authority"}
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [self._instance(self._log)],
            "ctlogs": [self._instance(self._stamps)],
            "certificateAuthorities": [{"subject": subject, "certChain": chain, "validFor": since}],
            "timestampAuthorities": [],
        }

    def client_config(self) -> dict[str, Any]:
        """The whole configuration of a client, as the tool `model_signing` takes it; the trust root is within."""
        service = {"url": "https://sigstore.invalid", "majorApiVersion": 1, "operator": "tests"}
        signing = {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": [service],
            "oidcUrls": [service],
            "rekorTlogUrls": [service],
            "rekorTlogConfig": {"selector": "ANY"},
        }
        kind = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
        return {"mediaType": kind, "trustedRoot": self.trust_root(), "signingConfig": signing}

    def sign(
        self,
        payload: bytes,
        identity: str,
        provider: str,
        moment: datetime,
        logged: timedelta = timedelta(minutes=1),
        change: Callable[[dict[str, Any]], None] = lambda bundle: None,
        certified: Any = None,
    ) -> bytes:
        """A bundle of a signature made at `moment`, which the log took `logged` later.

        The certificate is for the key that signs, or for `certified`, a public key.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self._certified(certified or key.public_key(), identity, provider, moment)
        signature = signed_by(key, encoded(payload))
        bundle: dict[str, Any] = {
            "mediaType": manifest.SIGNATURE,
            "verificationMaterial": {
                "certificate": {"rawBytes": text_of(leaf.public_bytes(serialization.Encoding.DER))},
                "tlogEntries": [self._entry(payload, signature, leaf, moment + logged)],
            },
            "dsseEnvelope": {
                "payload": text_of(payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": text_of(signature)}],
            },
        }
        change(bundle)
        return json.dumps(bundle).encode()

    def _instance(self, key: Key) -> dict[str, Any]:
        public = {"rawBytes": text_of(der(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256"}
        return {
            "baseUrl": "https://sigstore.invalid",
            "hashAlgorithm": "SHA2_256",
            "publicKey": public | {"validFor": {"start": self._begin.isoformat()}},
            "logId": {"keyId": text_of(hashlib.sha256(der(key)).digest())},
        }

    def _certified(self, key: Any, identity: str, provider: str, moment: datetime) -> x509.Certificate:
        usage = x509.KeyUsage(
            digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = x509.CertificateBuilder(name("authority"), x509.Name([]), key)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(moment).not_valid_after(moment + LASTS).add_extension(usage, True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._ca.public_key())
        builder = builder.add_extension(identifier, critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.RFC822Name(identity)]), critical=True)
        builder = builder.add_extension(x509.UnrecognizedExtension(_ISSUER, provider.encode()), critical=False)
        # The log signs the certificate without its own word in it, which is added as the last extension.
        precertificate = builder.sign(self._ca, hashes.SHA256()).tbs_certificate_bytes
        stamp = self._stamp(precertificate, moment)
        return builder.add_extension(x509.UnrecognizedExtension(_STAMPS, stamp), False).sign(self._ca, hashes.SHA256())

    def _stamp(self, certificate: bytes, moment: datetime) -> bytes:
        """The log's word that it took a certificate (RFC 6962, section 3.2), alone in a list, in an octet string."""
        head = struct.pack("!BBQH", 0, 0, int(moment.timestamp() * 1000), 1)
        issuer = hashlib.sha256(der(self._ca)).digest()
        body = head + issuer + len(certificate).to_bytes(3) + certificate + b"\0\0"
        signature = signed_by(self._stamps, body)
        log = hashlib.sha256(der(self._stamps)).digest()
        word = b"\0" + log + head[2:10] + b"\0\0" + _SHA256_ECDSA + len(signature).to_bytes(2) + signature
        content = (len(word) + 2).to_bytes(2) + len(word).to_bytes(2) + word
        return bytes([0x04, *([len(content)] if len(content) < 0x80 else [0x81, len(content)])]) + content

    def _entry(self, payload: bytes, signature: bytes, leaf: x509.Certificate, moment: datetime) -> dict[str, Any]:
        """What the log of signatures wrote: the first entry of two, so that its proof has a neighbour."""
        verifier = text_of(leaf.public_bytes(serialization.Encoding.PEM))
        digest = {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()}
        signatures = [{"signature": text_of(signature), "verifier": verifier}]
        spec = {"envelopeHash": digest, "payloadHash": digest, "signatures": signatures}
        body = json.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec}).encode()
        neighbour = hashlib.sha256(b"\0another entry").digest()
        root = hashlib.sha256(b"\1" + hashlib.sha256(b"\0" + body).digest() + neighbour).digest()
        log, time = hashlib.sha256(der(self._log)).digest(), int(moment.timestamp())
        note = f"sigstore.invalid - 1\n2\n{text_of(root)}\n"
        checkpoint = f"{note}\n\u2014 sigstore.invalid {text_of(log[:4] + signed_by(self._log, note.encode()))}\n"
        # RFC 8785: members in order, no spaces.
        promise = {"body": text_of(body), "integratedTime": time, "logID": log.hex(), "logIndex": 0}
        promised = signed_by(self._log, json.dumps(promise, separators=(",", ":")).encode())
        return {
            "logIndex": "0",
            "logId": {"keyId": text_of(log)},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(time),
            "inclusionPromise": {"signedEntryTimestamp": text_of(promised)},
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": text_of(root),
                "treeSize": "2",
                "hashes": [text_of(neighbour)],
                "checkpoint": {"envelope": checkpoint},
            },
            "canonicalizedBody": text_of(body),
        }


def long_ago() -> datetime:
    """A moment at which a certificate was valid that is not any more."""
    return (datetime.now(UTC) - timedelta(days=400)).replace(microsecond=0)
