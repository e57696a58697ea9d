"""Signatures of models: what is signed, by whom, and that nothing else passes for it."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from registry.bundles.reading import Import
from registry.bundles.writing import FileExport
from registry.errors import BadSignature, NeedsPassword, StoreFailed
from registry.names import LIBRARY, LOCAL, Name
from registry.signatures.attaching import attach, fitting, judged, signatures_of
from registry.signatures.files import signed_files
from registry.signatures.keys import read_public, sign
from registry.signatures.statement import bundled, read_signature, statement
from registry.store import manifest
from registry.store.catalog import Catalog
from registry.store.layers import Staged
from registry.store.model import Model
from registry.store.store import Store
from server.config import Config
from server.doctor.frames import FAIL
from server.doctor.governance import governance
from server.policy.rules import PolicyRefused, PolicyRules, policy_file, read_policy
from server.report.bom import model_bom
from server.report.gathering import model_entries
from server.settings import BadSetting
from tests.cli.support import Cli
from tests.daemon import Daemon, put_model
from tests.oci import Registry
from tests.publishing import make
from tests.registry.test_bundles import Stream, written
from tests.storing import put
from tests.taking import Taking

pytest.importorskip("cryptography", reason="the extra `signing` is not installed")
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

CURVES = [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()]


def keys(folder: Path, name: str = "acme", key: Any = None, password: bytes = b"") -> tuple[Path, Path]:
    """The files of a private and of a public key."""
    key = key or ec.generate_private_key(CURVES[0])
    private, public = folder / f"{name}.key", folder / f"{name}.pem"
    locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, locked))
    private.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    public.chmod(0o644)
    return private, public


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def files_of(store: Store, model: Model) -> dict[str, str]:
    return signed_files(store.contents(model).layers)


def signed(store: Store, model: Model, private: Path) -> Model:
    return attach(store, model, sign(private, "m", files_of(store, model)))


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_a_key_finds_its_own_signatures_alone(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    private, public = keys(tmp_path, key=ec.generate_private_key(curve))
    _, other = keys(tmp_path, "other")
    found = read_signature(sign(private, "m", {"model.gguf": "a" * 64}))
    read_public(public).verify(found)
    found.check_files({"model.gguf": "a" * 64})
    with pytest.raises(BadSignature, match=f"signed by the key {found.key[:16]}, not by"):
        read_public(other).verify(found)


def test_a_signature_stays_with_its_model(store: Store, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    model = signed(store, put(store, "org/a:Q8_0"), private)
    copied = store.copy(model, model.key.tagged("copied"))
    with Store.open(tmp_path / "far") as far:
        Import(far, Stream(written(store, copied)), lambda *_: None).run(lambda line: None)
        for where, each in ((store, model), (store, copied), (far, far.models()[0])):
            (found,) = signatures_of(where, each)
            assert found.fault is None and found.signed
            read_public(public).verify(found.signed)


def test_a_second_signature_stands_beside_the_first_and_a_newer_one_replaces_it(store: Store, tmp_path: Path) -> None:
    acme, other = keys(tmp_path)[0], keys(tmp_path, "other")[0]
    model = signed(store, put(store, "org/a:Q8_0"), acme)
    model = signed(store, signed(store, model, other), acme)
    signers = [found.signed.key for found in signatures_of(store, model) if found.signed]
    assert len(signers) == len(set(signers)) == 2


def test_a_model_that_was_replaced_meanwhile_is_not_signed(store: Store, tmp_path: Path) -> None:
    private, _ = keys(tmp_path)
    before = put(store, "org/a:Q8_0", b"before")
    data = sign(private, "m", files_of(store, before))
    put(store, "org/a:Q8_0", b"after")
    with pytest.raises(BadSignature, match=r"`model.gguf` differs"):
        attach(store, before, data)
    with pytest.raises(StoreFailed, match="replaced"):
        store.adopt(store.begin("x"), store.manifest(before)[0], [], before.key, over="sha256:" + "0" * 64)


def text_layers(system: str, template: str) -> list[Any]:
    return [Staged.text(system, manifest.SYSTEM).layer, Staged.text(template, manifest.TEMPLATE).layer]


def test_every_change_is_found(tmp_path: Path) -> None:
    """A byte of the signature or the statement, other files, a layer in another's place, one too few, one too many."""
    private, public = keys(tmp_path)
    layers = text_layers("be brief", "{{ .Prompt }}")
    files = signed_files(layers)
    data = sign(private, "m", files)
    assert [each.layer.media_type for each in fitting([data], layers)] == [manifest.SIGNATURE]
    swapped = text_layers("{{ .Prompt }}", "be brief")
    for other in (swapped, layers[:1], [*layers, Staged.text("MIT", manifest.LICENSE).layer], []):
        assert fitting([data], other) == []
    found = read_signature(data)
    key, passed = read_public(public), 0
    for part in (found.payload, found.signature):
        for place in range(0, len(part), 7):
            hurt = part[:place] + bytes([part[place] ^ 1]) + part[place + 1 :]
            pair = (hurt, found.signature) if part is found.payload else (found.payload, hurt)
            try:
                key.verify(read_signature(bundled(*pair, found.key)))
                passed += 1
            except BadSignature:
                pass
    assert passed == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bundle: b"", "cannot be read"),
        (lambda bundle: b"\xff\x00garbage", "cannot be read"),
        (lambda bundle: b"[" * 100_000, "cannot be read"),
        (lambda bundle: json.dumps(bundle | {"mediaType": "text/plain"}).encode(), "no Sigstore bundle"),
        (lambda bundle: json.dumps(bundle | {"verificationMaterial": {}}).encode(), "neither a key nor"),
        (lambda bundle: b" " * (1 << 20) + json.dumps(bundle).encode(), "more than"),
    ],
    ids=["empty", "garbage", "deep", "kind", "nobody", "long"],
)
def test_what_is_no_signature_is_told(tmp_path: Path, change: Callable[[Any], bytes], message: str) -> None:
    bundle = json.loads(bundled(statement("m", {"a": "0" * 64}), b"x", "0" * 64))
    with pytest.raises(BadSignature, match=message):
        read_signature(change(bundle))


def test_statements_that_contradict_themselves_are_refused() -> None:
    document = json.loads(statement("m", {"a": "0" * 64}))
    broken = [
        document | {"predicateType": "https://model_signing/Digests/v0.1"},
        document | {"subject": [{"name": "m", "digest": {"sha256": "1" * 64}}]},
        document | {"predicate": document["predicate"] | {"resources": document["predicate"]["resources"] * 2}},
        document | {"predicate": document["predicate"] | {"serialization": {"method": "shards"}}},
    ]
    for each in broken:
        with pytest.raises(BadSignature):
            read_signature(bundled(json.dumps(each).encode(), b"x", ""))


def test_keys_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    files = {"model.gguf": "0" * 64}
    private.chmod(0o640)
    with pytest.raises(BadSignature, match="can be read or changed by other users") as refused:
        sign(private, "m", files)
    assert "chmod go= " in refused.value.hint
    public.chmod(0o666)
    with pytest.raises(BadSignature, match="can be changed by other users"):
        read_public(public)
    for number, key in enumerate((rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate())):
        private, public = keys(tmp_path, f"kind{number}", key)
        with pytest.raises(BadSignature, match="another kind of key"):
            sign(private, "m", files)
        with pytest.raises(BadSignature, match="another kind of key"):
            read_public(public).check()
    private, public = keys(tmp_path, "k1", ec.generate_private_key(ec.SECP256K1()))
    with pytest.raises(BadSignature, match="another kind of key"):
        sign(private, "m", files)
    with pytest.raises(BadSignature, match="is a public key"):
        sign(public, "m", files)
    with pytest.raises(BadSignature, match="is a private key"):
        read_public(private).check()
    (tmp_path / "garbage").write_bytes(os.urandom(1000))
    (tmp_path / "garbage").chmod(0o600)
    with pytest.raises(BadSignature, match="no key that can be used"):
        sign(tmp_path / "garbage", "m", files)
    with pytest.raises(BadSignature, match="no key that can be used"):
        read_public(tmp_path / "garbage").check()
    with pytest.raises(BadSignature, match="cannot be read: No such file"):
        read_public(tmp_path / "none")
    locked, _ = keys(tmp_path, "locked", password=b"open sesame")
    with pytest.raises(NeedsPassword, match="encrypted"):
        sign(locked, "m", files)
    with pytest.raises(NeedsPassword, match="another one"):
        sign(locked, "m", files, "sesame")
    read_signature(sign(locked, "m", files, "open sesame"))


def certificate(folder: Path, name: str, days: int) -> tuple[Path, Path]:
    """A private key, and a certificate of its public key that ends in so many days."""
    key = ec.generate_private_key(CURVES[0])
    private, path = keys(folder, name, key)
    now, subject = datetime.now(UTC), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    made = builder.not_valid_before(now - timedelta(days=90)).not_valid_after(now + timedelta(days=days))
    path.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return private, path


def test_a_certificate_counts_until_it_expires(tmp_path: Path) -> None:
    private, good = certificate(tmp_path, "good", 9)
    read_public(good).verify(read_signature(sign(private, "m", {})))
    private, old = certificate(tmp_path, "old", -9)
    with pytest.raises(BadSignature, match="expired on"):
        read_public(old).verify(read_signature(sign(private, "m", {})))


def policy(home: Path, text: str) -> Config:
    config = Config(home=home)
    home.mkdir(exist_ok=True)
    policy_file(config).write_text(text)
    policy_file(config).chmod(0o600)
    return config


def test_a_policy_says_which_key_is_missing(tmp_path: Path, store: Store) -> None:
    private, _ = keys(tmp_path)
    other, _ = keys(tmp_path, "other")
    config = policy(tmp_path, 'require_signature = ["acme.pem"]')
    rules = read_policy(config)
    (key,) = rules.require_signature or ()
    model = put(store, "org/a:Q8_0")
    with pytest.raises(PolicyRefused, match=f"signed by `acme.pem` .{key.fingerprint[:16]}., and it is not signed"):
        rules.check_signature("m", signatures_of(store, model))
    model = signed(store, model, other)
    with pytest.raises(PolicyRefused, match="no signature on it counts"):
        rules.check_signature("m", signatures_of(store, model))
    files = files_of(store, model)
    with pytest.raises(PolicyRefused, match=r"other files: `model.gguf` differs"):
        rules.check_signature("m", [judged(sign(private, "m", files), files | {"model.gguf": "0" * 64})])
    rules.check_signature("m", signatures_of(store, signed(store, model, private)))
    PolicyRules().check_signature("m", [])


def test_keys_of_a_policy_are_named_by_doctor(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    _, good = keys(folder)
    certificate(folder, "old", -9)
    (folder / "notes.txt").write_text("no key")
    config = policy(tmp_path, 'require_signature = ["keys"]')
    assert {key.name for key in read_policy(config).require_signature or ()} == {"acme.pem", "old.pem"}
    (finding,) = [each for each in governance(config) if each.check == "policy"]
    assert finding.state == FAIL and "the certificate `old.pem` expired" in finding.found
    good.chmod(0o666)
    with pytest.raises(BadSetting, match="can be changed by other users"):
        read_policy(config)
    good.chmod(0o644)
    folder.chmod(0o777)
    with pytest.raises(BadSetting, match="which other users can change"):
        read_policy(config)
    for text in ("require_signature = true", 'require_signature = ["none.pem"]'):
        with pytest.raises(BadSetting, match=r"no list of files|No such file"):
            read_policy(policy(tmp_path, text))


def test_reports_and_bills_tell_of_signatures(tmp_path: Path) -> None:
    private, _ = keys(tmp_path)
    put_model(tmp_path, "one")
    put_model(tmp_path, "two")
    with Store.open(tmp_path / "store") as store:
        signed(store, store.resolve("one"), private)
    catalog = Catalog(tmp_path / "store")
    config = policy(tmp_path, 'require_signature = ["acme.pem"]')
    one, two = model_entries(config, catalog, catalog.models())
    assert one.signatures == ["by `acme.pem` (checked)"] and not one.unsigned
    assert two.signatures == [] and any("it is not signed" in each for each in two.remarks)
    properties = model_bom(one, "2026-11-29T03:00:00.000Z")["metadata"]["component"]["properties"]
    assert {"name": "lm:signature", "value": "by `acme.pem` (checked)"} in properties


@pytest.mark.slow
def test_an_identity_wants_a_trust_root_and_a_key_file_its_rights(tmp_path: Path) -> None:
    """The command line refuses before anything is asked of a daemon."""
    lm = Cli.at(tmp_path)
    ended = lm("verify", "tiny", "--identity", "a@b.example", "--identity-provider", "https://issuer.example")
    assert ended.code == 2 and "none is given" in ended.err and "asks nobody" in ended.err
    ended = lm("verify", "tiny", "--identity", "a@b.example", "--trust-root", "root.json")
    assert ended.code == 2 and "go together" in ended.err
    assert lm("sign", "tiny").code == 2


@pytest.mark.slow
def test_a_box_takes_what_its_keys_signed_and_nothing_else(tmp_path: Path) -> None:
    """Signed by the command, pushed, pulled, exported and imported; an unsigned model never comes in nor is loaded."""
    private, public = keys(tmp_path)
    weights = make(tmp_path / "demo.gguf", "Q8_0").read_bytes()
    with Store.open(tmp_path / "one" / "store") as store:
        for name in ("tiny", "plain"):
            put(store, Name(LOCAL, LIBRARY, name, "Q8_0"), weights, params={"temperature": 0.5, "stop": [name]})
    policy(tmp_path / "two", f'require_signature = ["{public}"]')
    put_model(tmp_path / "two", "older")
    with (
        Taking() as taking,
        Registry() as registry,
        Daemon(tmp_path / "one") as one,
        Daemon(tmp_path / "two", script={"echo": True}) as two,
    ):
        lm = Cli.at(tmp_path / "one", f"127.0.0.1:{one.port}")
        assert lm("verify", "tiny", "--key", str(public)).code == 1
        done = lm("sign", "tiny", "--key", str(private))
        assert done.code == 0 and "is signed by the key" in done.err
        done = lm("verify", "tiny", "--key", str(public))
        assert done.code == 0 and f"is signed by the key `{public}`" in done.err
        line = json.loads((tmp_path / "one" / "audit" / "audit.jsonl").read_text().splitlines()[-1])
        assert (line["action"], line["target"], line["result"]) == ("sign", "tiny:Q8_0", "done")
        for name in ("tiny", "plain"):
            assert one.post("/api/push", {"model": name, "to": f"{taking.host}/ns/{name}:v1"}).lines[-1]["name"]
            registry.blobs |= taking.kept[f"ns/{name}"]
            registry.put(f"ns/{name}", "v1", json.loads(taking.manifests[f"ns/{name}", "v1"]))
        assert "and it is not signed" in two.post("/api/generate", {"model": "older", "prompt": "hi"}).json["error"]
        pulled = two.post("/api/pull", {"model": f"{registry.host}/ns/plain:v1"}).lines
        assert pulled[-1]["code"] == "policy_refused" and not any(line.get("phase") == "writing" for line in pulled)
        assert two.post("/api/pull", {"model": f"{registry.host}/ns/tiny:v1"}).lines[-1]["status"] == "success"
        plain = one.post("/lm/export", {"models": ["plain"]}).body
        assert two.ask("POST", "/lm/import", plain).lines[-1]["code"] == "policy_refused"
        tiny = one.post("/lm/export", {"models": ["tiny"]}).body
        assert two.ask("POST", "/lm/import", tiny).lines[-1]["status"] == "success"
        assert two.post("/api/generate", {"model": "tiny", "prompt": "hi"}).status == 200
        (found,) = two.post("/api/show", {"model": f"{registry.host}/ns/tiny:v1"}).json["signatures"]
        assert (found["by"], found["fault"]) == ("key", "")
        wrong = one.post("/lm/sign", {"model": "plain", "signature": _bundle(tmp_path / "one")})
        assert (wrong.status, wrong.json["code"]) == (400, "bad_signature") and "`params.json` differs" in wrong.json[
            "error"
        ]
        assert one.post("/lm/sign", {"model": "plain", "signature": {}}).json["code"] == "bad_signature"
        assert len(two.listed()) == 3


def _bundle(home: Path) -> Any:
    """The signature of `tiny`."""
    catalog = Catalog(home / "store")
    (model,) = [each for each in catalog.models() if each.name == "tiny:Q8_0"]
    return json.loads(signatures_of(catalog, model)[0].data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_the_tool_checks_ours_and_we_check_the_tools(store: Store, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    """The oracle: `model_signing` on the files that `lm export --format files` writes, both ways."""
    pytest.importorskip("model_signing", reason="the extra `signing` is not installed")
    from model_signing import signing, verifying

    private, public = keys(tmp_path, key=ec.generate_private_key(curve))
    model = signed(store, put(store, "org/a:Q8_0", os.urandom(3000)), private)
    folder = tmp_path / "files"
    export = FileExport(store, model)
    parts = [p.content if isinstance(p.content, bytes) else p.content.read_bytes() for p in export.pieces()]
    with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as archive:
        archive.extractall(folder, filter="data")
    checker = verifying.Config().use_elliptic_key_verifier(public_key=public)
    checker.verify(folder, folder / "model.sig")
    their_private, their_public = keys(tmp_path, "theirs", ec.generate_private_key(curve))
    (folder / "model.sig").unlink()
    signing.Config().use_elliptic_key_signer(private_key=their_private).sign(folder, folder / "model.sig")
    model = attach(store, model, (folder / "model.sig").read_bytes())
    ours, theirs = signatures_of(store, model)
    assert ours.signed and theirs.signed and ours.fault is theirs.fault is None
    read_public(their_public).verify(theirs.signed)
    with pytest.raises(BadSignature, match="not by"):
        read_public(public).verify(theirs.signed)
    (folder / "params.json").write_bytes(b"{}")
    with pytest.raises(ValueError, match="mismatch"):
        verifying.Config().use_elliptic_key_verifier(public_key=their_public).verify(folder, folder / "model.sig")
