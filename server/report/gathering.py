"""Everything that the report tells, gathered once: it is read from files, whether the daemon runs or not."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import msgspec

from quant.errors import QuantError
from quant.gguf.header import read_file
from registry.errors import BadSignature, RegistryError
from registry.signatures.attaching import FoundSignature, signatures_of
from registry.store.catalog import Catalog
from registry.store.model import Model
from server.audit.export import records
from server.audit.line import shown_moment
from server.audit.verify import verify
from server.config import VERSION, Config
from server.doctor.exposure import exposure
from server.doctor.frames import OK, Finding
from server.doctor.governance import governance
from server.keys.file import BadKeyFile, key_file, read_keys
from server.policy.licenses import UNKNOWN, license_texts, recognise_any
from server.policy.rules import PolicyRefused, PolicyRules, read_policy
from server.settings import BadSetting

# The beginning of a requirement is the name of a package.
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LONGEST = 300
# The notes of a manifest that tell how a file was made.
_RECIPE: tuple[str, ...] = ("level", "reason", "version", "created", "published", "made_of", "statistics")


class ModelEntry(msgspec.Struct, kw_only=True):
    """A model as the report tells of it. Texts are "" where nothing is known; sizes are bytes."""

    name: str
    digest: str
    weights: str
    """Digest of the file of weights."""
    size: int
    license: str
    """An SPDX identifier, or `LicenseRef-…`."""
    license_named: str
    """The licence as the model names it."""
    non_commercial: bool
    base: list[str]
    source: str
    revision: str
    level: str
    recipe: dict[str, Any]
    quality: dict[str, Any] = {}
    """Its quality card, {} where nobody measured these weights."""
    architecture: str
    parameters: int
    capabilities: list[str]
    signatures: list[str] = []
    """Sentences: who signed, and what that is worth by the keys of this box's policy."""
    unsigned: str = ""
    """The sentence for which the policy wants another signature."""
    problem: str

    @property
    def remarks(self) -> list[str]:
        """Sentences about what somebody should look at."""
        found = [each for each in (self.problem, self.unsigned) if each]
        if not self.license:
            named = f" (it says `{self.license_named[:60]}`)" if self.license_named else ""
            found.append(f"its licence is not recognised{named}")
        if self.non_commercial:
            found.append("its licence forbids commercial use")
        if not self.source:
            found.append("its source is not known")
        return found


class SoftwareEntry(msgspec.Struct):
    """An installed package."""

    name: str
    version: str
    license: str


class KeyEntry(msgspec.Struct):
    """A key without its secret; moments in UTC, "" for none."""

    id: str
    name: str
    role: str
    state: str
    created: str
    expires: str
    last_use: str


class ComplianceReport(msgspec.Struct, kw_only=True):
    """The state of a box."""

    version: str
    made: str
    models: list[ModelEntry]
    software: list[SoftwareEntry]
    keys: list[KeyEntry]
    findings: list[Finding]
    """Settings that weaken something, and what is wrong with rules and records."""
    audit: dict[str, Any]


def gather(config: Config) -> ComplianceReport:
    """Read it all. Raises StoreFailed where the store cannot be read."""
    findings = [each for each in [*exposure(config), *governance(config)] if each.state != OK]
    audit, last = _audit(config)
    catalog = Catalog(config.store)
    return ComplianceReport(
        version=VERSION,
        made=shown_moment(time.time()),
        models=model_entries(config, catalog, catalog.models()),
        software=software(),
        keys=list(_keys(config, last)),
        findings=list(dict.fromkeys(findings)),
        audit=audit,
    )


def model_entries(config: Config, catalog: Catalog, models: Sequence[Model]) -> list[ModelEntry]:
    """Models by their manifests and the headers of their files, with what this box's policy says of signatures."""
    try:
        rules = read_policy(config)
    except BadSetting:  # a finding says so
        rules = PolicyRules(require_signature=())
    return [_signed(model_entry(model), catalog, model, rules) for model in models]


def _signed(entry: ModelEntry, catalog: Catalog, model: Model, rules: PolicyRules) -> ModelEntry:
    """The entry of a model with its signatures."""
    try:
        found = signatures_of(catalog, model)
        entry.signatures = [_worth(each, rules) for each in found]
        rules.check_signature(model.name, found)
    except PolicyRefused as refused:
        entry.unsigned = str(refused)
    except RegistryError as error:
        entry.problem = entry.problem or str(error)
    return entry


def _worth(found: FoundSignature, rules: PolicyRules) -> str:
    """Who signed, and whether that was checked by a key of this box."""
    if found.fault or not found.signed:
        return f"does not hold: {found.sentence}"
    for key in rules.require_signature or ():
        with contextlib.suppress(BadSignature):
            key.verify(found.signed)
            return f"by `{key.name}` (checked)"
    return f"{found.sentence} (not checked: no key of the policy made it)"


def model_entry(model: Model) -> ModelEntry:
    """A model by its manifest and the header of its file."""
    own, header, problem = model.own, dict[str, Any](), model.problem
    if not problem:
        try:
            header = read_file(model.blob).metadata
        except (QuantError, OSError) as error:
            problem = f"its file cannot be read: {getattr(error, 'strerror', None) or error}"
    texts = license_texts(header, model.licenses)
    found = recognise_any(texts)
    recipe: dict[str, Any] = {name: own[name] for name in _RECIPE if name in own}
    return ModelEntry(
        name=model.name,
        digest=model.digest,
        weights=model.blob_digest,
        size=model.size,
        license=found.id if found != UNKNOWN else "",
        license_named=texts[0].strip()[:_LONGEST] if texts else "",
        non_commercial=found.non_commercial,
        base=list(_bases(header)) or ([str(own["parent"])] if own.get("parent") else []),
        source=str(own.get("source", "")),
        revision=str(own.get("revision", "")),
        level=str(model.config.get("file_type", "")),
        recipe=recipe,
        quality=model.card,
        architecture=str(header.get("general.architecture", "")),
        parameters=int(own.get("parameters") or 0),
        capabilities=list(model.config.get("capabilities") or []),
        problem=problem,
    )


def _bases(header: dict[str, Any]) -> Iterator[str]:
    """The models of which this one was made, as GGUF's metadata names them."""
    count = header.get("general.base_model.count")
    for number in range(min(count, 16) if isinstance(count, int) else 0):
        place = f"general.base_model.{number}"
        yield str(header.get(f"{place}.repo_url") or header.get(f"{place}.name") or "")[:_LONGEST]


def software() -> list[SoftwareEntry]:
    """The package `lm` and all that it needs, as installed, by name."""
    wanted, found = ["lm"], dict[str, SoftwareEntry]()
    while wanted:
        name = wanted.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another system, or of an extra that is not installed
        about: Any = package.metadata
        found[key] = SoftwareEntry(about.get("Name") or name, package.version, _license_of(about))
        needs = [text for text in package.requires or [] if "extra ==" not in text]
        wanted += [match[0] for text in needs if (match := _PACKAGE.match(text))]
    return [found[key] for key in sorted(found)]


def _license_of(about: Any) -> str:
    """The licence by a package's metadata: an expression of SPDX, or by an older package words or classifiers."""
    if expression := about.get("License-Expression"):
        return str(expression)
    lines = str(about.get("License") or "").splitlines()
    classes = [
        each.rpartition(" :: ")[2] for each in about.get_all("Classifier") or [] if each.startswith("License ::")
    ]
    words = [*lines[:1], *classes]
    return recognise_any(words).id or next(iter(words), "")


def _keys(config: Config, last: dict[str, str]) -> Iterator[KeyEntry]:
    with contextlib.suppress(BadKeyFile):  # a finding says so
        now = time.time()
        for key in read_keys(key_file(config)) or []:
            expires = shown_moment(key.expires) if key.expires else ""
            used = last.get(f"key {key.id}", "")
            yield KeyEntry(key.id, key.name, key.role, key.state(now), shown_moment(key.created), expires, used)


def _audit(config: Config) -> tuple[dict[str, Any], dict[str, str]]:
    """The state of the audit log, and when each actor was seen last by it."""
    if config.audit == "off":
        return {"state": "off"}, {}
    try:
        report = verify(config.audit_folder)
        last = {
            str(record["actor"]): str(record["time"]) for record, _ in records(config.audit_folder) if "actor" in record
        }
    except OSError as error:
        return {"state": f"cannot be read: {error.strerror}"}, {}
    state = "empty" if not report.lines else "sound" if report.sound else "not sound"
    return {
        "state": state,
        "lines": report.lines,
        "head": str(report.head),
        "problems": report.problems,
        "notes": report.notes[:20],
        "text": config.audit_text,
    }, last
