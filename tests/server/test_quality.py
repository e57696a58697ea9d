"""`lm quality` and `lm compare`: what is measured, what the card says, and what is refused."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from quant.gguf.header import read_file
from quant.plan import ModelPlan, TensorPlan
from registry.digest import of
from registry.errors import ModelNotFound
from registry.names import LIBRARY, LOCAL, Name, parse
from registry.sources.opening import DEMO
from registry.store import manifest
from registry.store.layers import Staged
from registry.store.store import Store
from runtime.meter.sizes import collecting_bytes, reading_bytes
from server.quality.frames import MeterTask
from server.quality.meter import measure
from tests.cli.support import Cli
from tests.daemon import Daemon, put_model
from tests.oci import OLLAMA, Registry
from tests.publishing import make
from tests.server.test_carried import pulled
from tests.storing import card, put


def carded(store: Store, name: str, **more: Any) -> None:
    model = store.resolve(name)
    store.attach(model, Staged.json(card(model, mean=0.01, **more), manifest.QUALITY))


def test_a_card_stays_with_its_weights_and_changes_nothing_else(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        before = put(store, "org/model:Q8_0")
        carded(store, "org/model:Q8_0")
        after = store.resolve("org/model:Q8_0")
        assert after.card["mean"]["value"] == 0.01 and after.modified == before.modified
        assert (after.blob_digest, after.params, after.config) == (before.blob_digest, before.params, before.config)
        assert before.digest in after.digests and after.digest in after.digests
        copied = store.copy(after, parse("org/other:Q8_0").name)
        assert copied.card == after.card
        carded(store, "org/model:Q8_0", again=True)
        kinds = [layer.media_type for layer in store.contents(store.resolve("org/model:Q8_0")).layers]
        assert kinds.count(manifest.QUALITY) == 1 and store.resolve("org/model:Q8_0").card["again"]
        put(store, "org/model:Q8_0", b"other weights")
        assert store.resolve("org/model:Q8_0").card == {}


def test_a_card_of_other_weights_counts_for_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        model = put(store, "org/model:Q8_0")
        store.attach(model, Staged.json(card(model, weights=of(b"others")), manifest.QUALITY))
        assert store.resolve("org/model:Q8_0").card == {}


@pytest.mark.parametrize(
    "wrong", [{"mean": None}, {"text": {}}, {"windows": "3"}, {"version": "\x1b[2J"}, {"errors": "x" * 9999}], ids=str
)
def test_what_is_no_card_counts_for_none_and_the_model_is_used(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with Store.open(tmp_path) as store:
        model = put(store, "org/model:Q8_0")
        store.attach(model, Staged.json(card(model) | wrong, manifest.QUALITY))
        found = store.resolve("org/model:Q8_0")
        assert (found.card, found.problem) == ({}, "")
        store.attach(model, Staged.text("[not JSON", manifest.QUALITY))
        assert (store.resolve("org/model:Q8_0").card, store.resolve("org/model:Q8_0").problem) == ({}, "")


def test_a_card_leaves_the_rest_of_a_manifest_as_it_is(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        model = put(store, "org/model:Q8_0")
        foreign = json.loads(store.manifest(model)[0]) | {"mediaType": manifest.OCI_MANIFEST, "annotations": {"a": "b"}}
        foreign["layers"][0]["annotations"] = {"title": "x.gguf"}
        ingest = store.begin("a manifest of another program", new=True)
        store.adopt(ingest, json.dumps(foreign).encode(), [], parse("org/model:Q8_0").name)
        store.abandon(ingest)
        carded(store, "org/model:Q8_0")
        after = json.loads(store.manifest(store.resolve("org/model:Q8_0"))[0])
        assert after.pop("layers")[:-1] == foreign.pop("layers") and after == foreign
        assert store.resolve("org/model:Q8_0").card["mean"]["value"] == 0.01


def test_a_model_that_went_or_changed_meanwhile_gets_no_card(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        model = put(store, "org/model:Q8_0")
        layer = Staged.json({"weights": model.blob_digest}, manifest.QUALITY)
        put(store, "org/model:Q8_0", b"other weights")
        with pytest.raises(ModelNotFound, match="other weights by now"):
            store.attach(model, layer)
        store.delete(store.resolve("org/model:Q8_0"))
        with pytest.raises(ModelNotFound, match="was removed"):
            store.attach(model, layer)
        assert not list((tmp_path / "ingest").iterdir())


def test_a_card_goes_wherever_its_model_goes(tmp_path: Path) -> None:
    weights = make(tmp_path / "demo.gguf", "Q4_0").read_bytes()
    with Store.open(tmp_path / "one" / "store") as store:
        put(store, Name(LOCAL, LIBRARY, "demo", "latest"), weights)
        carded(store, "demo")
        shown = store.resolve("demo")
        layers = [
            (layer.media_type, store.blob_path(layer.digest).read_bytes()) for layer in store.contents(shown).layers
        ]
    with ExitStack() as there, Registry() as registry, Daemon(tmp_path / "one") as one:
        two = there.enter_context(Daemon(tmp_path / "two", env={"LM_OLLAMA_REGISTRY": registry.url}))
        registry.add("ns/demo", "v1", [layer for layer in layers if layer[0] != OLLAMA + "params"])
        bundle = one.post("/lm/export", {"models": ["demo"]}).body
        assert two.ask("POST", "/lm/import", bundle).lines[-1]["status"] == "success"
        assert two.pull("ollama.com/ns/demo:v1")["status"] == "success"
        found = {row["name"]: row["quality"] for row in two.get("/api/tags").json["models"]}
        assert len(found) == 2 and list(found.values()) == [shown.card] * 2


def test_requests_that_cannot_be_measured_are_refused_by_name(tmp_path: Path) -> None:
    put_model(tmp_path)
    put_model(tmp_path, "vectors", capabilities=("embedding",))
    with Daemon(tmp_path) as daemon:
        for body, code, said in (
            ({}, "bad_body", "model"),
            ({"model": "none"}, "model_not_found", "none"),
            ({"model": "tiny", "windows": 0}, "bad_body", "windows"),
            ({"model": "tiny", "text": "  \n"}, "bad_body", "empty"),
            ({"model": "vectors"}, "unsupported", "completion"),
            ({"model": "tiny", "against": "./here"}, "bad_name", "relative"),
        ):
            found = daemon.post("/lm/quality", body).lines[-1]
            assert found["code"] == code and said in found["error"], found


def test_a_reading_takes_more_memory_than_the_weights() -> None:
    from runtime.machine.fit import ModelSize

    with_header = ModelSize.of({"general.architecture": "llama", "llama.vocab_size": 150_000, "llama.block_count": 2})
    assert reading_bytes(with_header, 1 << 30, 512) > (1 << 30) + 2 * 255 * 4 * 150_000


def test_statistics_of_many_experts_take_memory_for_each() -> None:
    names = {"blk.0.ffn_up.weight": (64, 32), "blk.1.ffn_up_exps.weight": (128, 64, 32), "output.weight": (99, 32)}
    dense, routed = ([TensorPlan(name, shape, "F32")] for name, shape in list(names.items())[:2])
    head = [TensorPlan("output.weight", names["output.weight"], "F32")]
    need = {
        len(tensors): collecting_bytes(ModelPlan("llama", {}, tuple(tensors), ()), 1000, 512)
        for tensors in (head, head + dense, head + dense + routed)
    }
    assert need[1] == 512 * 1000 * 4
    assert need[3] - need[2] - (need[2] - need[1]) == 127 * 32 * 36


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    put_model(tmp_path)
    with Store.open(tmp_path / "store") as store:
        blob = store.resolve("tiny").blob
    assert read_file(blob).metadata
    (tmp_path / "vocabulary").write_text("of another model")
    task = MeterTask("model", str(blob), str(tmp_path), "d", "tiny", "other", "", 1, 64)
    with pytest.raises(Exception, match="`tiny` and `other` have different vocabularies"):
        measure(task, lambda frame: None)


@pytest.mark.slow
def test_a_model_is_measured_and_its_card_is_shown_everywhere(tmp_path: Path) -> None:
    folder = tmp_path / "original"
    shutil.copytree(DEMO, folder)
    with Daemon(tmp_path / "home", runtime="llama") as daemon:
        lm = Cli.at(daemon.home, daemon.url.removeprefix("http://"))
        for level in ("Q2_K", "Q8_0"):
            pulled(daemon, f"{folder}:{level}")
        done = lm("quality", "original:Q2_K", "--windows", "3")
        assert done.code == 0 and "KL divergence" in done.out and f"{folder} at F32" in done.out, done.err
        compared = lm("compare", "original:Q2_K", "original:Q8_0", "--windows", "3")
        assert compared.code == 0 and "`original:Q8_0` is nearer to the original" in compared.err, compared.err
        cards = {row["name"]: row["quality"] for row in daemon.get("/api/tags").json["models"] if "alias" not in row}
        worse, better = cards["original:Q2_K"], cards["original:Q8_0"]
        assert worse["mean"]["value"] > better["mean"]["value"] > 0 and worse["reference"]["whole"]
        assert worse["reference"]["digest"] == better["reference"]["digest"]
        assert "KL divergence" in lm("show", "original:Q2_K").out
        assert f"{worse['mean']['value']:.4g}" in lm("list", "--quality").out
        advised = daemon.post("/lm/advise", {"model": str(folder)}).json
        row = next(row for row in advised["levels"] if row["level"] == "Q2_K")
        assert (row["quality"], row["divergence"]) == ("measured", worse["mean"]["value"])
        direct = lm("quality", "original:Q2_K", "--against", "original:Q8_0", "--windows", "2", "--no-keep", "--json")
        assert (
            direct.code == 0
            and '"whole": false' in direct.out
            and daemon.post("/api/show", {"model": "original:Q2_K"}).json["quality"] == worse
        )
        text = tmp_path / "text.txt"
        text.write_text("once")
        short = lm("quality", "original:Q2_K", "--text", str(text))
        assert short.code == 2 and "one window takes 512" in short.err and "reference" not in short.err, short.err
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes())
        stale = lm("quality", "original:Q2_K", "--windows", "2")
        assert stale.code == 1 and "has changed since" in stale.err and "--against" in stale.err
        again = lm("quality", "original:Q2_K", "--against", str(folder), "--windows", "2")
        assert again.code == 0, again.err


@pytest.mark.slow
def test_two_files_are_compared_without_the_source_that_they_were_made_of(tmp_path: Path) -> None:
    with Daemon(tmp_path / "home", runtime="llama") as daemon:
        lm = Cli.at(daemon.home, daemon.url.removeprefix("http://"))
        for name, level in (("small", "Q4_0"), ("large", "Q8_0")):
            pulled(daemon, str(make(tmp_path / f"{name}.gguf", level)))
        done = lm("compare", "large", "small", "--windows", "2")
        said = "no original is known for both, so `small` is measured against `large`"
        assert done.code == 0 and said in done.err, done.err
        (row,) = [line.split() for line in done.out.splitlines() if "KL divergence" in line]
        assert "against large:Q8_0 at Q8_0, which is quantized itself" in done.err, done.err
        assert float(row[2]) > 0 and len(row) == 5, row
        assert not any(model.get("quality") for model in daemon.get("/api/tags").json["models"])
        same = lm("compare", "large", "large", "--windows", "2")
        assert same.code == 2 and "are one model" in same.err, same.err
