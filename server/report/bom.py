"""Bills of materials in CycloneDX 1.6 (ECMA-424): one for a model, with a model card, and one for the software.

The JSON is written here, because the libraries for CycloneDX in Python know no model cards.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from server.config import VERSION
from server.policy.licenses import License, recognise
from server.report.gathering import ModelEntry, SoftwareEntry

MEDIA_TYPE = "application/vnd.cyclonedx+json; version=1.6"
_URL = re.compile(r"https?://[^\s<>\"]+")
# Figures of a quality card, and their names as metrics.
_METRICS = {
    "mean": "KL divergence of the tokens' probabilities, mean, nats",
    "p99": "KL divergence of the tokens' probabilities, 99th percentile, nats",
    "top1": "same likeliest token, share",
    "perplexity": "perplexity",
}
# Several identifiers of SPDX put together.
_EXPRESSION = re.compile(r"\(?[A-Za-z0-9.+-]+\)?(?: (?:AND|OR|WITH) \(?[A-Za-z0-9.+-]+\)?)+")
_HUB = re.compile(r"(?:https?://)?(?:hf\.co|huggingface\.co)/([A-Za-z0-9._-]+/[A-Za-z0-9._-]+)")


def model_bom(entry: ModelEntry, made: str) -> dict[str, Any]:
    """The bill of a model: its file's digest, licence, source, ancestors, recipe, and a model card."""
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": entry.weights or entry.name,
        "name": entry.name,
        "version": entry.revision or entry.digest,
        "hashes": _hashes(entry.weights),
        "licenses": _licenses(entry.license, entry.license_named),
        "modelCard": _card(entry),
        "properties": [
            {"name": f"lm:{name}", "value": str(value)}
            for name, value in _facts(entry).items()
            if value not in ("", None)
        ]
        + [{"name": "lm:signature", "value": each} for each in entry.signatures],
    }
    if found := _HUB.search(entry.source):
        component["purl"] = f"pkg:huggingface/{found[1]}" + (f"@{entry.revision.lower()}" if entry.revision else "")
    places = [each for each in [entry.source] if _URL.fullmatch(each)]
    if places:
        component["externalReferences"] = [{"type": "distribution", "url": each} for each in places]
    ancestors = [each for each in [*entry.base, entry.source] if each]
    if ancestors:
        named = [{"type": "machine-learning-model", "name": each} for each in dict.fromkeys(ancestors)]
        component["pedigree"] = {"ancestors": named, "notes": f"quantized to {entry.level}" if entry.level else ""}
    return _bom(component, [], made)


def software_bom(entries: Sequence[SoftwareEntry], made: str) -> dict[str, Any]:
    """The bill of the software: lm, and the packages that it needs."""
    own = next((each for each in entries if each.name == "lm"), SoftwareEntry("lm", VERSION, "MIT"))
    return _bom(_package(own, "application"), [_package(each, "library") for each in entries if each is not own], made)


def _bom(subject: dict[str, Any], components: list[dict[str, Any]], made: str) -> dict[str, Any]:
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": made,
            "tools": {"components": [{"type": "application", "name": "lm", "version": VERSION}]},
            "component": subject,
        },
        "components": components,
    }


def _package(entry: SoftwareEntry, kind: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{quote(re.sub(r'[-_.]+', '-', entry.name).lower())}@{quote(entry.version)}"
    found = recognise(entry.license)
    return {
        "type": kind,
        "bom-ref": purl,
        "name": entry.name,
        "version": entry.version,
        "purl": purl,
        "licenses": _licenses(found.id, entry.license),
    }


def _licenses(identifier: str, named: str) -> list[dict[str, Any]]:
    if License(identifier).is_spdx:
        return [{"license": {"id": identifier}}]
    if _EXPRESSION.fullmatch(named):
        return [{"expression": named}]
    name = identifier or " ".join(named.split())[:120]
    return [{"license": {"name": name}}] if name else []


def _hashes(digest: str) -> list[dict[str, str]]:
    value = digest.removeprefix("sha256:")
    return [{"alg": "SHA-256", "content": value}] if re.fullmatch(r"[0-9a-f]{64}", value) else []


def _card(entry: ModelEntry) -> dict[str, Any]:
    parameters: dict[str, Any] = {"modelArchitecture": entry.architecture or "unknown"}
    if "completion" in entry.capabilities:
        parameters |= {"task": "text-generation", "inputs": [{"format": "text"}], "outputs": [{"format": "text"}]}
    elif "embedding" in entry.capabilities:
        parameters |= {"task": "feature-extraction", "inputs": [{"format": "text"}], "outputs": [{"format": "vector"}]}
    limits = [f"weights are quantized to {entry.level}"] if entry.level not in ("", "F32", "F16", "BF16") else []
    limits += entry.remarks
    card = {"modelParameters": parameters, "considerations": {"technicalLimitations": limits}}
    return card | ({"quantitativeAnalysis": _analysis(entry.quality)} if entry.quality else {})


def _analysis(card: dict[str, Any]) -> dict[str, Any]:
    """The figures of a quality card; the interval is one standard error to either side."""
    reference, text = card["reference"], card["text"]
    against = f"against {reference['name']} at {reference['level']}, on {text['name']}"
    metrics = []
    for name, title in _METRICS.items():
        value, error = card[name]["value"], card[name]["error"]
        metric: dict[str, Any] = {"type": title, "value": f"{value:.6g}", "slice": against}
        if error is not None:
            metric["confidenceInterval"] = {"lowerBound": f"{value - error:.6g}", "upperBound": f"{value + error:.6g}"}
        metrics.append(metric)
    return {"performanceMetrics": metrics}


def _facts(entry: ModelEntry) -> dict[str, Any]:
    size, count = entry.size, entry.parameters or None
    return {"size": size, "parameters": count, "source": entry.source, "manifest": entry.digest} | entry.recipe
