"""`lm export` and `lm import` between two boxes: through files, pipes and routes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.sources.layers import PART
from registry.store.store import Store
from server.audit.files import CURRENT
from tests.cli.support import Cli
from tests.daemon import Daemon, put_model, wait_until
from tests.oci import DOCKER, KITOPS, MODELPACK
from tests.publishing import make, split
from tests.quant.support import DEMO
from tests.registry.test_bundles import files, layout, written
from tests.registry.test_oci import tarred
from tests.storing import put


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Daemon]]:
    """A box with two models, and an empty one."""
    one, two = (tmp_path_factory.mktemp("box") for _ in range(2))
    put_model(one)
    put_model(one, "other")
    with Daemon(one) as first, Daemon(two) as second:
        yield first, second


def test_models_are_carried_in_a_file_and_answer_on_the_other_box(boxes: tuple[Daemon, Daemon], tmp_path: Path) -> None:
    one, two = (Cli.at(box.home) for box in boxes)
    bundle = tmp_path / "bundle.tar"
    written = one("export", "tiny", "other:F32", "-o", str(bundle))
    assert written.code == 0 and "2 models" in written.err
    assert one("export", "tiny", "-o", str(bundle)).code == 2  # it is there already
    assert one("export", "none", "-o", str(tmp_path / "none.tar")).code == 3 and not (tmp_path / "none.tar").exists()
    assert two("import", str(bundle)).code == 0
    assert {row["digest"] for row in boxes[1].listed()} == {row["digest"] for row in boxes[0].listed()}
    answer = boxes[1].post(
        "/api/chat", {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": False}
    )
    assert answer.status == 200
    assert list(tmp_path.iterdir()) == [bundle]


def test_a_body_that_is_no_bundle_is_refused_and_the_next_one_is_taken(boxes: tuple[Daemon, Daemon]) -> None:
    one, two = boxes
    good = one.post("/lm/export", {"models": ["tiny"]}).body
    assert [member.name for member, _ in files(good)][:2] == ["oci-layout", "index.json"]
    assert one.post("/lm/export", {"models": []}).status == 400
    for wrong in (b"x" * 100_000, good[:-20_000], good + b"x", b""):
        last = two.ask("POST", "/lm/import", wrong)
        assert (last.json if last.status != 200 else last.lines[-1])["code"] == "bad_bundle"
    assert two.ask("POST", "/lm/import", good).lines[-1]["status"] == "success"
    wait_until(lambda: imports(two)[-1:] == [("done", "tiny:F32")], 10)


def imports(box: Daemon) -> list[tuple[str, str]]:
    """The imports in a box's audit log: how each ended, and of which models."""
    lines = map(json.loads, (box.home / "audit" / CURRENT).read_text().splitlines())
    return [(line["result"], line["target"]) for line in lines if line["action"] == "import"]


def test_a_model_in_dockers_form_is_described_as_a_pull_describes_it(
    boxes: tuple[Daemon, Daemon], tmp_path: Path
) -> None:
    gguf = make(tmp_path / "demo.gguf", "F16").read_bytes()
    params = (f"{MODELPACK}weight.config.v1.raw", b'{"temperature": 0.25, "odd": 1}', {PART: "params"})
    foreign = layout("h.lan/ai/tale:v1", [(f"{DOCKER}gguf.v3", gguf), params])
    last = boxes[1].ask("POST", "/lm/import", foreign).lines[-1]
    assert last["models"][0]["name"] == "h.lan/ai/tale:v1", last
    shown = boxes[1].post("/api/show", {"model": "h.lan/ai/tale:v1"}).json
    assert "completion" in shown["capabilities"] and "0.25" in shown["parameters"] and "odd" not in shown["parameters"]
    body = {"model": "h.lan/ai/tale:v1", "prompt": "x", "stream": False}
    assert boxes[1].post("/api/generate", body).status == 200


def raw(name: str, data: bytes, kind: str = "weight") -> tuple[str, bytes, dict[str, str]]:
    return f"{MODELPACK}{kind}.v1.raw", data, {"org.cncf.model.filepath": name}


def several(form: str, folder: Path) -> list[tuple[str, bytes] | tuple[str, bytes, dict[str, str]]]:
    """The layers of the demo as other programs write them in more than one file."""
    demo = {path.name: path.read_bytes() for path in DEMO.iterdir() if path.is_file()}
    licence = (f"{DOCKER}license", b"Be free.")
    if form == "safetensors":
        return [raw(name, data, "weight" if "safetensors" in name else "weight.config") for name, data in demo.items()]
    if form == "shards":
        files = split(make(folder / "x.gguf", "Q4_K_M"), folder / "parts" / "tale.gguf", 20)
        return [*(raw(path.name, path.read_bytes()) for path in files), licence]
    tar = tarred({f"m/{name}": data for name, data in demo.items()})
    return [(f"{KITOPS}model.v1.tar+gzip", gzip.compress(tar)), licence]


@pytest.mark.parametrize("form", ["safetensors", "shards", "packed"])
def test_a_model_of_several_files_goes_through_the_pass(
    boxes: tuple[Daemon, Daemon], tmp_path: Path, form: str
) -> None:
    name = f"h.lan/ai/{form}:v1"
    lines = boxes[1].ask("POST", "/lm/import", layout(name, several(form, tmp_path))).lines
    assert [model["name"] for model in lines[-1].get("models", ())] == [name], lines[-1]
    shown = boxes[1].post("/api/show", {"model": name}).json
    assert shown["details"]["parameter_size"] == "5.8M" and "tmp" not in str(shown["lm"]), shown["lm"]
    assert (shown["license"] == "Be free.") == (form != "safetensors")
    body = {"model": name, "prompt": "x", "stream": False}
    assert boxes[1].post("/api/generate", body).status == 200
    assert not list((boxes[1].home / "store" / "ingest").iterdir())


def test_one_that_the_pass_refuses_lists_nothing_of_its_bundle(boxes: tuple[Daemon, Daemon]) -> None:
    wrong = layout("h.lan/ai/wrong:v1", [raw("config.json", b"{}", "weight.config"), raw("model.safetensors", b"x")])
    last = boxes[1].ask("POST", "/lm/import", wrong).lines[-1]
    assert "error" in last and "h.lan/ai/wrong" not in str(boxes[1].listed())
    assert not list((boxes[1].home / "store" / "ingest").iterdir())


def test_a_file_of_weights_that_is_none_is_not_listed(boxes: tuple[Daemon, Daemon], tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        wrong = written(store, put(store, "org/bad:Q8_0", b"GGUF, but no model"))
    answer = boxes[1].ask("POST", "/lm/import", wrong)
    assert answer.lines[-1]["code"] == "bad_bundle" and "cannot be used" in answer.lines[-1]["error"]
    assert not [row["name"] for row in boxes[1].listed() if "bad" in row["name"]]
