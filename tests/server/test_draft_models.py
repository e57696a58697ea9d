"""A draft model as a user meets it: named in a request or kept with a model, checked, loaded beside, counted, freed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.describing import print_model
from registry.store.store import Store
from tests.daemon import Daemon, put_model, wait_until
from tests.publishing import make
from tests.quant.support import DEMO
from tests.runtime.conftest import convert
from tests.storing import put

OPTIONS = {"temperature": 0, "num_predict": 40, "seed": 1}
BASE, DRAFT = "demo:BF16", "demo:Q4_0"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Beside base and draft: models that keep a draft, as `DRAFT` of a Modelfile writes it."""
    home = tmp_path_factory.mktemp("drafts")
    put_model(home, "strange")
    weights = convert(DEMO, home / "demo.gguf").read_bytes()
    with Store.open(home / "store") as store:
        for name, draft in (("kept", DRAFT), ("lost", "nobody")):
            config = {"model_format": "gguf", "capabilities": ["completion"], "lm": {"draft": draft}}
            put(store, f"{name}:latest", weights, config)
    with Daemon(home, runtime="llama") as daemon:
        for name in (BASE, DRAFT):
            assert daemon.pull(name)["status"] == "success"
        yield daemon


def ask(daemon: Daemon, **body: Any) -> Any:
    prompt = {"model": BASE, "prompt": "It was a dark night", "raw": True, "stream": False, "options": OPTIONS}
    return daemon.post("/api/generate", prompt | body)


def loaded(daemon: Daemon) -> dict[str, Any]:
    (row,) = daemon.get("/api/ps").json["models"]
    return dict(row)


def unload(daemon: Daemon) -> None:
    daemon.post("/api/generate", {"model": BASE, "keep_alive": 0})


def test_the_text_is_that_without_a_draft_and_ps_counts_both(daemon: Daemon) -> None:
    unload(daemon)
    plain = ask(daemon).json
    alone = loaded(daemon)
    drafted = ask(daemon, draft=DRAFT).json
    both = loaded(daemon)
    assert drafted["response"] == plain["response"]
    assert (alone["draft"], both["draft"]) == ("", DRAFT)
    for part in ("size", "weights_bytes", "cache_bytes", "predicted_bytes"):
        assert both[part] > alone[part]
    assert f"`{DRAFT}` guessed" in both["drafts"]
    (worker,) = daemon.workers()
    # A request that names none uses the model as it is loaded.
    assert ask(daemon).json["response"] == plain["response"]
    assert daemon.workers() == [worker] and loaded(daemon)["draft"] == DRAFT
    unload(daemon)
    assert not daemon.workers() and not daemon.get("/api/ps").json["models"]


@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("/v1/completions", {"prompt": "It was", "max_tokens": 12}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "It was"}], "max_tokens": 12}),
        ("/v1/responses", {"input": "It was", "max_output_tokens": 12}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "It was"}], "max_tokens": 12}),
        ("/completion", {"prompt": "It was", "n_predict": 12}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_draft_is_named_in_every_dialect(daemon: Daemon, path: str, prompt: dict[str, Any]) -> None:
    unload(daemon)
    assert daemon.post(path, prompt | {"model": BASE, "draft": DRAFT}).status == 200
    assert loaded(daemon)["draft"] == DRAFT


def test_a_draft_is_loaded_by_a_load_alone(daemon: Daemon) -> None:
    unload(daemon)
    assert daemon.post("/api/generate", {"model": BASE, "draft": DRAFT}).status == 200
    assert loaded(daemon)["draft"] == DRAFT


@pytest.mark.parametrize(
    ("draft", "status", "words"),
    [
        (BASE, 400, "cannot draft for itself"),
        ("strange", 400, "`strange:F32` cannot draft for `demo:BF16`: "),
        ("nobody", 404, "nobody"),
        ("a b c", 400, "a b c"),
        (7, 400, "draft"),
    ],
    ids=["itself", "another vocabulary", "not here", "no name", "a number"],
)
def test_another_draft_is_refused_at_once(daemon: Daemon, draft: Any, status: int, words: str) -> None:
    ask(daemon)
    before = daemon.workers()
    refused = ask(daemon, draft=draft)
    assert refused.status == status and words in refused.json["error"]
    assert daemon.workers() == before


def test_a_model_may_keep_its_draft_and_show_names_it(daemon: Daemon) -> None:
    unload(daemon)
    assert daemon.post("/api/show", {"model": "kept"}).json["lm"]["draft"] == DRAFT
    plain = ask(daemon).json["response"]
    unload(daemon)
    assert ask(daemon, model="kept").json["response"] == plain
    assert loaded(daemon)["draft"] == DRAFT
    daemon.post("/api/generate", {"model": "kept", "keep_alive": 0})


def test_a_model_whose_draft_is_not_here_answers_without_it(daemon: Daemon) -> None:
    unload(daemon)
    assert ask(daemon, model="lost").status == 200
    assert loaded(daemon)["draft"] == ""
    assert "lost:latest is answered without its draft" in daemon.log
    daemon.post("/api/generate", {"model": "lost", "keep_alive": 0})


def made(daemon: Daemon, name: str, **body: Any) -> Any:
    """The last line of a create."""
    return daemon.post("/api/create", {"model": name, **body}).lines[-1]


@pytest.mark.parametrize("body", [{"from": BASE, "draft": DRAFT}, {"modelfile": f"FROM {BASE}\nDRAFT {DRAFT}\n"}])
def test_a_model_is_made_with_a_draft_that_is_here_and_its_modelfile_says_so(
    daemon: Daemon, body: dict[str, Any]
) -> None:
    unload(daemon)
    assert made(daemon, "pair", **body)["status"] == "success"
    shown = daemon.post("/api/show", {"model": "pair"}).json
    assert shown["lm"]["draft"] == DRAFT and f"\nDRAFT {DRAFT}\n" in shown["modelfile"]
    assert ask(daemon, model="pair").status == 200
    assert loaded(daemon)["draft"] == DRAFT
    daemon.post("/api/generate", {"model": "pair", "keep_alive": 0})
    # A model of this one has the same draft, quantized anew too; another DRAFT takes its place.
    assert made(daemon, "heir", **{"from": "pair", "quantize": "Q8_0"})["status"] == "success"
    assert daemon.post("/api/show", {"model": "heir"}).json["lm"]["draft"] == DRAFT


def test_a_draft_of_files_is_a_part_of_its_model_and_goes_with_it(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unload(daemon)
    data = make(tmp_path / "draft.gguf", "Q4_K_M").read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert daemon.ask("POST", f"/api/blobs/{digest}", data).status in (200, 201)
    files = {"draft_files": {"draft.gguf": digest}}
    assert made(daemon, "whole", **{"from": BASE, **files})["status"] == "success"
    shown = daemon.post("/api/show", {"model": "whole"}).json
    assert shown["draft"] == {"digest": digest, "size": len(data)}
    print_model(shown)
    assert "    draft " in capsys.readouterr().out
    answer = ask(daemon, model="whole").json["response"]
    assert loaded(daemon)["draft"] == "whole:latest (its draft)"
    daemon.post("/api/generate", {"model": "whole", "keep_alive": 0})
    assert answer == ask(daemon).json["response"]
    assert made(daemon, "other", **{"from": "whole", "draft": DRAFT})["status"] == "success"
    assert "draft" not in daemon.post("/api/show", {"model": "other"}).json
    blob = daemon.home / "store" / "blobs" / digest.replace(":", "-")
    assert blob.is_file()
    assert daemon.ask("DELETE", "/api/delete", {"model": "whole"}).status == 200
    wait_until(lambda: not blob.exists(), 10)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"draft": "strange"}, "cannot draft for"),
        ({"draft": BASE}, "cannot draft for itself"),
        ({"draft": "nobody"}, "nobody"),
        ({"draft": "a b c"}, "a b c"),
        ({"draft": DRAFT, "draft_files": {"x.gguf": "sha256:" + "0" * 64}}, "both say what drafts"),
        ({"draft_files": {"x.gguf": "sha256:" + "0" * 64}}, "0000"),
        ({"draft_files": {"x.gguf": "../../x"}}, "digest"),
    ],
    ids=["another vocabulary", "itself", "not here", "no name", "twice", "not sent", "no digest"],
)
def test_a_draft_that_does_not_suit_makes_no_model(daemon: Daemon, body: dict[str, Any], words: str) -> None:
    answer = daemon.post("/api/create", {"model": "unmade", "from": BASE, **body})
    assert words in answer.lines[-1]["error"], answer.lines
    assert daemon.post("/api/show", {"model": "unmade"}).status == 404


def test_a_path_behind_draft_is_for_the_command_line(daemon: Daemon) -> None:
    answer = daemon.post("/api/create", {"model": "unmade", "modelfile": f"FROM {BASE}\nDRAFT ./x.gguf\n"})
    assert "DRAFT names a path" in answer.lines[-1]["error"]


def test_drafts_that_are_switched_off_are_said_to_be(tmp_path: Any) -> None:
    put_model(tmp_path, "one")
    put_model(tmp_path, "two")
    with Daemon(tmp_path, env={"LM_SPECULATION": "false"}) as daemon:
        answer = daemon.post("/api/generate", {"model": "one", "prompt": "a", "draft": "two"})
        assert answer.status == 400 and "switched off by the setting `speculation`" in answer.json["error"]
