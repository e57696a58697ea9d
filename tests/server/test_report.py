"""The compliance report and the bills of materials."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from server.audit.line import AuditEvent
from server.audit.log import AuditLog
from server.config import VERSION, Config
from server.keys.file import change_keys, key_file
from server.keys.record import new_key
from server.report.bom import model_bom, software_bom
from server.report.gathering import ModelEntry, gather, software
from server.report.writing import as_html, as_markdown
from tests.daemon import put_model
from tests.storing import card

MADE = "2026-11-29T03:00:00.000Z"


def entry(**more: Any) -> ModelEntry:
    known: dict[str, Any] = {
        "name": "hf.co/org/model:Q4_K_M",
        "digest": "a" * 64,
        "weights": "sha256:" + "b" * 64,
        "size": 4_000_000_000,
        "license": "Apache-2.0",
        "license_named": "apache-2.0",
        "non_commercial": False,
        "base": ["https://huggingface.co/org/base"],
        "source": "hf.co/org/model",
        "revision": "c" * 40,
        "level": "Q4_K_M",
        "recipe": {"reason": "it fits"},
        "architecture": "llama",
        "parameters": 8_000_000_000,
        "capabilities": ["completion"],
        "problem": "",
    }
    return ModelEntry(**(known | more))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    put_model(tmp_path, "tiny")
    _, key = new_key("infer", name="bob")
    change_keys(key_file(Config(home=tmp_path)), lambda keys: [*keys, key])
    AuditLog(tmp_path / "audit").append([AuditEvent(f"key {key.id}", "answer", "tiny")])
    return tmp_path


def test_a_report_tells_what_is_here(home: Path) -> None:
    report = gather(Config(home=home))
    (model,) = report.models
    assert model.weights.startswith("sha256:") and "its licence is not recognised" in model.remarks
    (key,) = report.keys
    assert (key.name, key.role, key.state) == ("bob", "infer", "valid") and key.last_use
    assert report.audit["state"] == "sound" and report.audit["lines"] == 1
    assert {"lm", "aiohttp", "numpy"} <= {each.name for each in report.software}
    for text in (as_markdown(report), as_html(report)):
        assert all(word in text for word in ("tiny", "bob", "aiohttp", "sound", VERSION))


def test_names_break_no_table_and_no_page(home: Path) -> None:
    report = gather(Config(home=home))
    report.models = [entry(source="<script>alert(1)</script> | x", license="", license_named="a|b\nc")]
    assert "<script>" not in as_html(report) and "<script>" not in as_markdown(report)
    (row,) = [line for line in as_markdown(report).splitlines() if line.startswith("| hf.co/org/model")]
    assert row.replace("\\|", "").count("|") == 11


def test_licences_that_need_a_look_are_pointed_out() -> None:
    assert entry().remarks == []
    assert entry(license="CC-BY-NC-4.0", non_commercial=True).remarks == ["its licence forbids commercial use"]
    assert "not recognised (it says `other`)" in entry(license="", license_named="other").remarks[0]


def test_the_bill_of_a_model_tells_its_origin() -> None:
    bill = model_bom(entry(), MADE)
    component = bill["metadata"]["component"]
    assert (
        component["type"] == "machine-learning-model" and component["purl"] == f"pkg:huggingface/org/model@{'c' * 40}"
    )
    assert component["hashes"] == [{"alg": "SHA-256", "content": "b" * 64}]
    assert component["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert [each["name"] for each in component["pedigree"]["ancestors"]] == [
        "https://huggingface.co/org/base",
        "hf.co/org/model",
    ]


def test_a_quality_card_is_told(home: Path) -> None:
    """In the table, whole in JSON, and as metrics of the model card."""
    report = gather(Config(home=home))
    measured = quality(report.models[0])
    report.models = [measured]
    for text in (as_markdown(report), as_html(report)):
        assert "KL divergence 0.25 ± 0.05 from the original at BF16" in text
    metrics = model_bom(measured, MADE)["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]
    first = metrics["performanceMetrics"][0]
    assert (first["value"], first["slice"]) == ("0.25", "against the original at BF16, on a text")
    assert first["confidenceInterval"] == {"lowerBound": "0.2", "upperBound": "0.3"}
    assert "quantitativeAnalysis" not in model_bom(entry(), MADE)["metadata"]["component"]["modelCard"]


def quality(about: ModelEntry) -> ModelEntry:
    """The same model, measured."""
    found = card(SimpleNamespace(blob_digest=about.weights, digest=about.digest))  # type: ignore[arg-type]
    return structs.replace(about, quality=found | {"mean": {"value": 0.25, "error": 0.05}})


def test_licences_of_packages_are_identifiers() -> None:
    named = {each.name.lower(): each.license for each in software()}
    assert (named["aiohttp"], named["tokenizers"]) == ("Apache-2.0 AND MIT", "Apache-2.0")
    bill = software_bom(software(), MADE)
    told = {each["name"].lower(): each["licenses"] for each in bill["components"]}
    assert told["aiohttp"] == [{"expression": "Apache-2.0 AND MIT"}]
    assert told["tokenizers"] == [{"license": {"id": "Apache-2.0"}}]


@pytest.mark.parametrize("case", ["whole", "measured", "bare", "maker", "software"])
def test_bills_of_materials_keep_the_schema(case: str) -> None:
    """The oracle is CycloneDX's own schema, in the strict form that forbids members it does not know."""
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    from cyclonedx.schema import SchemaVersion

    nothing: dict[str, Any] = {
        **dict.fromkeys(("license", "license_named", "source", "revision", "level", "architecture", "digest"), ""),
        **{"base": [], "recipe": {}, "capabilities": [], "weights": "", "parameters": 0},
    }
    bills = {
        "whole": lambda: model_bom(entry(), MADE),
        "measured": lambda: model_bom(quality(entry()), MADE),
        "bare": lambda: model_bom(entry(**nothing), MADE),
        "maker": lambda: model_bom(entry(license="LicenseRef-llama3.1", source="https://a.example/x.gguf"), MADE),
        "software": lambda: software_bom(software(), MADE),
    }
    validator = validation.JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(json.dumps(bills[case]())) is None
