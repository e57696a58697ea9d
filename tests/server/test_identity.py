"""Signatures by an identity: `lm verify --identity` against a Sigstore of the tests' own, without a network."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from registry.bundles.writing import FileExport
from registry.errors import BadSignature
from registry.signatures.attaching import judged, signatures_of
from registry.signatures.files import signed_files
from registry.signatures.statement import statement
from registry.store.catalog import Catalog
from tests.cli.support import Cli
from tests.cli.test_offline import namespace
from tests.daemon import Daemon, environment, put_model

pytest.importorskip("sigstore", reason="the extra `signing` is not installed")
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from server.signing.identity import Identity
from tests.identities import LASTS, OwnSigstore, long_ago

WHO, PROVIDER = "ai@acme.example", "https://login.acme.example"
FILES = {"model.gguf": "a" * 64, "params.json": "b" * 64}
# The certificates of its signatures ended more than a year ago.
SIGSTORE = OwnSigstore(long_ago() - timedelta(days=30))


def root(folder: Path, document: dict[str, Any] | None = None) -> Path:
    path = folder / "trusted_root.json"
    path.write_text(json.dumps(document or SIGSTORE.trust_root()))
    return path


def signature(**more: Any) -> bytes:
    return SIGSTORE.sign(statement("m", FILES), WHO, PROVIDER, long_ago(), **more)


@pytest.mark.parametrize("document", ["trust_root", "client_config"])
def test_an_identity_holds_by_a_trust_root_in_a_file(tmp_path: Path, document: str) -> None:
    """Long after its certificate ended: the log says that it was valid when the model was signed."""
    found = judged(signature(), FILES)
    assert found.fault is None and found.signed and found.signed.by == "identity"
    Identity(WHO, PROVIDER, root(tmp_path, getattr(SIGSTORE, document)())).verify(found)


def entry(bundle: dict[str, Any]) -> Any:
    return bundle["verificationMaterial"]["tlogEntries"][0]


def other_signature(bundle: dict[str, Any]) -> None:
    """The signature of another signing by the same identity, in an envelope that the log did not take."""
    bundle["dsseEnvelope"]["signatures"] = json.loads(signature())["dsseEnvelope"]["signatures"]


def other_statement(bundle: dict[str, Any]) -> None:
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(statement("n", FILES)).decode()


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "signature": other_signature,
    "statement": other_statement,
    "certificate": lambda b: b["verificationMaterial"].update(
        certificate=json.loads(signature())["verificationMaterial"]["certificate"]
    ),
    "no entry": lambda b: b["verificationMaterial"].update(tlogEntries=[]),
    "other entry": lambda b: b["verificationMaterial"].update(
        tlogEntries=json.loads(signature())["verificationMaterial"]["tlogEntries"]
    ),
    "time": lambda b: entry(b).update(integratedTime=str(int(entry(b)["integratedTime"]) + 1)),
    "promise": lambda b: entry(b).pop("inclusionPromise"),
    "proof": lambda b: entry(b)["inclusionProof"].update(hashes=[base64.b64encode(b"x" * 32).decode()]),
    "checkpoint": lambda b: entry(b)["inclusionProof"]["checkpoint"].update(
        envelope=entry(b)["inclusionProof"]["checkpoint"]["envelope"].replace("\n2\n", "\n3\n")
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_part_of_the_proof_can_be_exchanged(tmp_path: Path, change: str) -> None:
    found = judged(signature(change=CHANGES[change]), FILES)
    with pytest.raises(BadSignature, match="the signature is not one of"):
        Identity(WHO, PROVIDER, root(tmp_path)).verify(found)


def test_a_kind_of_key_that_cannot_be_checked_is_told(tmp_path: Path) -> None:
    for key in (ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)):
        found = judged(signature(certified=key.public_key()), FILES)
        with pytest.raises(BadSignature, match="another kind of key"):
            Identity(WHO, PROVIDER, root(tmp_path)).verify(found)


def test_nobody_else_passes_for_the_identity(tmp_path: Path) -> None:
    """Another identity, another provider, another Sigstore, a certificate that had ended when the log took it."""
    found, path = judged(signature(), FILES), root(tmp_path)
    for who, provider in (("eve@acme.example", PROVIDER), (WHO, "https://login.other.example"), ("", PROVIDER)):
        with pytest.raises(BadSignature, match="is not one of"):
            Identity(who, provider, path).verify(found)
    for late in (LASTS + timedelta(minutes=1), -timedelta(minutes=1)):
        with pytest.raises(BadSignature, match="is not one of"):
            Identity(WHO, PROVIDER, path).verify(judged(signature(logged=late), FILES))
    other = root(tmp_path, OwnSigstore(long_ago() - timedelta(days=30)).trust_root())
    with pytest.raises(BadSignature, match="is not one of"):
        Identity(WHO, PROVIDER, other).verify(found)
    with pytest.raises(BadSignature, match="is no trust root"):
        Identity(WHO, PROVIDER, root(tmp_path, SIGSTORE.trust_root() | {"tlogs": []}))


@pytest.mark.slow
def test_the_check_asks_nobody(tmp_path: Path) -> None:
    """It passes where there is no network interface, for the files that were signed and for no others."""
    models = [
        {"name": name, "files": files, "signatures": [json.loads(signature())]}
        for name, files in (("whole", FILES), ("changed", FILES | {"params.json": "c" * 64}))
    ]
    task = {"models": models, "identity": WHO, "provider": PROVIDER, "trust_root": str(root(tmp_path))}
    done = subprocess.run(
        [*namespace(), sys.executable, "-P", "-m", "server.signing"],
        input=json.dumps({"check": task}),
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    whole, changed = (row["checks"][0]["fault"] for row in json.loads(done.stdout)["models"])
    assert whole == "" and "other files: `params.json` differs" in changed


@pytest.mark.slow
def test_a_user_checks_an_identity(tmp_path: Path) -> None:
    """What another program signed is put on the model, and counts for that identity alone."""
    put_model(tmp_path, "tiny")
    catalog = Catalog(tmp_path / "store")
    files = signed_files(catalog.contents(catalog.models()[0]).layers)
    (tmp_path / "model.sig").write_bytes(SIGSTORE.sign(statement("tiny", files), WHO, PROVIDER, long_ago()))
    by = ["--identity-provider", PROVIDER, "--trust-root", str(root(tmp_path))]
    with Daemon(tmp_path, script={}) as daemon:
        lm = Cli.at(tmp_path, f"127.0.0.1:{daemon.port}")
        assert lm("verify", "tiny", "--identity", WHO, *by).code == 1
        done = lm("sign", "tiny", "--signature", str(tmp_path / "model.sig"))
        assert done.code == 0 and "is signed by an identity of Sigstore" in done.err
        done = lm("verify", "tiny", "--identity", WHO, *by)
        assert done.code == 0 and f"is signed by the identity `{WHO}`" in done.err
        done = lm("verify", "tiny", "--identity", "eve@acme.example", *by)
        assert done.code == 1 and "is not signed by the identity `eve@acme.example`" in done.err
        assert "Traceback" not in done.err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_tool_agrees_about_an_identity(tmp_path: Path) -> None:
    """The oracle: `model_signing` on the files that `lm export --format files` writes, by the same configuration."""
    pytest.importorskip("model_signing", reason="the extra `signing` is not installed")
    from model_signing import verifying
    from sigstore.errors import VerificationError

    from registry.signatures.attaching import attach
    from registry.store.store import Store
    from tests.storing import put

    with Store.open(tmp_path / "store") as store:
        model = put(store, "org/a:Q8_0")
        made = SIGSTORE.sign(statement("a", signed_files(store.contents(model).layers)), WHO, PROVIDER, long_ago())
        model = attach(store, model, made)
        (found,) = signatures_of(store, model)
        export = FileExport(store, model)
        parts = [p.content if isinstance(p.content, bytes) else p.content.read_bytes() for p in export.pieces()]
    folder = tmp_path / "files"
    with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as archive:
        archive.extractall(folder, filter="data")
    config = root(tmp_path, SIGSTORE.client_config())
    Identity(WHO, PROVIDER, config).verify(found)
    for who, agrees in ((WHO, True), ("eve@acme.example", False)):
        tool = verifying.Config().use_sigstore_verifier(identity=who, oidc_issuer=PROVIDER, trust_config=config)
        try:
            tool.verify(folder, folder / "model.sig")
        except VerificationError:
            assert not agrees
        else:
            assert agrees
    (folder / "params.json").write_bytes(b"{}")
    with pytest.raises(ValueError, match="mismatch"):
        tool = verifying.Config().use_sigstore_verifier(identity=WHO, oidc_issuer=PROVIDER, trust_config=config)
        tool.verify(folder, folder / "model.sig")
