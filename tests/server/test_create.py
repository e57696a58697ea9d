"""Models that are made here: create in both forms, blobs, copy, and what each dialect then does with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from registry.names import LIBRARY, LOCAL, Name
from registry.sources.opening import DEMO
from registry.store.catalog import Model
from registry.store.store import Store
from runtime.conversation import Turn
from server.api.request import with_instructions
from tests.daemon import Answer, Daemon, put_model
from tests.publishing import make


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("create")
    put_model(home)
    with Daemon(home, script={"echo": True}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The demo's whole weights in a GGUF file."""
    return make(tmp_path_factory.mktemp("weights") / "x.gguf", "F16").read_bytes()


def made(daemon: Daemon, name: str, **body: Any) -> list[dict[str, Any]]:
    """The lines of a create, which must be a success."""
    answer = daemon.post("/api/create", {"model": name, **body})
    assert answer.status == 200, answer.body
    assert answer.lines[-1].get("status") == "success", answer.lines
    return answer.lines


def shown(daemon: Daemon, name: str) -> Any:
    answer = daemon.post("/api/show", {"model": name})
    assert answer.status == 200, answer.body
    return answer.json


def send(daemon: Daemon, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert daemon.ask("POST", f"/api/blobs/{digest}", data).status in (200, 201)
    return digest


def test_a_model_of_another_shares_its_weights(daemon: Daemon) -> None:
    before = {path.name: path.stat().st_ino for path in (daemon.home / "store" / "blobs").iterdir()}
    lines = made(
        daemon,
        "mario",
        **{"from": "tiny"},
        system="You are Mario.",
        parameters={"temperature": 1, "num_ctx": 1024, "stop": ["a", "b"]},
        messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "it is me"}],
        license=["MIT", "or else"],
    )
    assert [line["status"].partition(" sha256")[0] for line in lines][:2] == [
        "reading model metadata", "using existing layer",
    ]  # fmt: skip
    after = {path.name: path.stat().st_ino for path in (daemon.home / "store" / "blobs").iterdir()}
    assert before.items() <= after.items()
    found = shown(daemon, "mario")
    assert found["system"] == "You are Mario."
    assert found["details"]["parent_model"] == "tiny:F32"
    assert found["messages"][1] == {"role": "assistant", "content": "it is me"}
    assert found["license"] == "MIT\n\nor else"
    lines = {tuple(line.split(maxsplit=1)) for line in found["parameters"].splitlines()}
    assert {("temperature", "1"), ("num_ctx", "1024"), ("stop", '"a"'), ("stop", '"b"')} == lines
    assert "mario:latest" in [row["name"] for row in daemon.listed()]


def test_its_settings_count_on_every_dialect(daemon: Daemon) -> None:
    """The scripted engine repeats the last message, up to a stop string of the model's own."""
    made(daemon, "short", **{"from": "tiny"}, parameters={"stop": ["three"], "num_predict": 100})
    text = "one two three four"
    ollama = daemon.post(
        "/api/chat", {"model": "short", "stream": False, "messages": [{"role": "user", "content": text}]}
    )
    assert ollama.json["message"]["content"].split() == ["one", "two"]
    openai = daemon.post("/v1/chat/completions", {"model": "short", "messages": [{"role": "user", "content": text}]})
    assert openai.json["choices"][0]["message"]["content"].split() == ["one", "two"]
    made(daemon, "cut", **{"from": "tiny"}, parameters={"num_predict": 2})
    turns = [{"role": "user", "content": text}]
    cut = daemon.post("/v1/chat/completions", {"model": "cut", "messages": turns}).json["choices"][0]
    assert (cut["message"]["content"].split(), cut["finish_reason"]) == (["one", "two"], "length")
    said = daemon.post("/v1/responses", {"model": "cut", "input": text}).json
    assert said["output"][-1]["content"][0]["text"].split() == ["one", "two"]
    asked = daemon.post(
        "/api/generate", {"model": "short", "prompt": text, "stream": False, "options": {"stop": ["two"]}}
    )
    assert asked.json["response"].split() == ["one"]  # a request's own option comes first


def test_messages_and_instructions_come_before_the_question() -> None:
    first = ({"role": "user", "content": "d"}, {"role": "assistant", "content": "e"})
    model = Model("x", Name(LOCAL, LIBRARY, "x", "v"), "", 0, datetime.now(UTC), {}, {}, Path(), "", messages=first)
    model = replace(model, system="s")

    def words(*turns: tuple[str, str]) -> str:
        found = with_instructions(model, [Turn.of(role, text) for role, text in turns])
        return " ".join(f"{turn.role[0]}:{turn.text}" for turn in found)

    assert words(("user", "q")) == "s:s u:d a:e u:q"
    assert words(("system", "own"), ("user", "q")) == "s:own u:d a:e u:q"
    assert words(("user", "q"), ("system", "late"), ("user", "r")) == "u:d a:e u:q s:late u:r"


def test_a_modelfile_as_text_makes_the_same(daemon: Daemon) -> None:
    text = 'FROM tiny\nSYSTEM """two\nlines"""\nPARAMETER top_k 7\nPARAMETER stop "<x>"\nMESSAGE user hello\n'
    made(daemon, "texted:v1", modelfile=text)
    found = shown(daemon, "texted:v1")
    assert found["system"] == "two\nlines"
    assert found["messages"] == [{"role": "user", "content": "hello"}]
    made(daemon, "texted:v2", modelfile=found["modelfile"])
    again = shown(daemon, "texted:v2")
    for key in ("system", "messages", "parameters", "template", "license"):
        assert again.get(key) == found.get(key), key


def test_what_a_model_of_a_model_says_itself_comes_first(daemon: Daemon) -> None:
    made(daemon, "parent", **{"from": "tiny"}, system="one", parameters={"top_k": 3, "seed": 1})
    made(daemon, "child", **{"from": "parent"}, system="", parameters={"top_k": 5})
    found = shown(daemon, "child")
    assert found["system"] == ""
    assert "top_k                          5" in found["parameters"] and "seed" in found["parameters"]
    assert shown(daemon, "parent")["system"] == "one"


def test_an_uploaded_file_becomes_a_model_without_a_copy(daemon: Daemon, weights: bytes) -> None:
    digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
    assert daemon.ask("HEAD", f"/api/blobs/{digest}").status == 404
    assert daemon.ask("POST", f"/api/blobs/{digest}", weights).status == 201
    assert daemon.ask("POST", f"/api/blobs/{digest}", weights).status == 200
    assert daemon.ask("HEAD", f"/api/blobs/{digest}").status == 200
    blob = daemon.home / "store" / "blobs" / digest.replace(":", "-")
    before = blob.stat().st_ino
    made(daemon, "sent", files={digest.replace(":", "-"): digest}, system="s")  # as a store of Ollama's calls it
    found = shown(daemon, "sent")
    assert found["details"]["quantization_level"] == "F16"  # as it is: no level was asked for
    assert found["model_info"]["general.architecture"] == "llama"
    assert (blob.read_bytes(), blob.stat().st_ino) == (weights, before)
    assert not list((daemon.home / "store" / "ingest").iterdir())


@pytest.mark.slow
def test_an_uploaded_folder_is_converted_and_quantized(daemon: Daemon) -> None:
    files = {path.name: send(daemon, path.read_bytes()) for path in DEMO.iterdir() if path.is_file()}
    made(daemon, "folder", files=files, quantize="Q4_0", parameters={"top_k": 3})
    assert shown(daemon, "folder")["details"]["quantization_level"] == "Q4_0"
    assert daemon.ask("HEAD", f"/api/blobs/{files['model.safetensors']}").status == 404  # it was needed for that alone


def test_older_clients_name_uploads_in_the_modelfile(daemon: Daemon, weights: bytes) -> None:
    digest = send(daemon, weights)
    made(daemon, "old", modelfile=f"FROM @{digest}\nPARAMETER seed 3")
    assert "seed" in shown(daemon, "old")["parameters"]


@pytest.mark.slow
def test_whole_weights_are_quantized_where_that_is_asked_for(daemon: Daemon, weights: bytes) -> None:
    lines = made(daemon, "smaller", files={"a.gguf": send(daemon, weights)}, quantize="q8_0")
    assert any("quantiz" in line["status"] for line in lines)
    assert shown(daemon, "smaller")["details"]["quantization_level"] == "Q8_0"
    own = {"parameters": {"stop": "<end>"}, "template": "{{ .Tools }}{{ .Prompt }}"}
    made(daemon, "whole", files={"a.gguf": send(daemon, weights)}, **own)
    made(daemon, "smaller:again", **{"from": "whole"}, quantization="Q8_0", system="kept")
    found = shown(daemon, "smaller:again")
    assert found["details"]["quantization_level"] == "Q8_0" and found["system"] == "kept"
    assert "<end>" in found["parameters"]
    assert (found["template"], found["lm"]["template"]) == (own["template"], "own")
    assert found["capabilities"] == shown(daemon, "whole")["capabilities"] == ["completion", "tools"]
    answer = daemon.post("/api/create", {"model": "twice", "from": "smaller", "quantize": "Q4_0"})
    assert "quantized already" in answer.lines[-1]["error"]


def test_a_copy_is_the_same_model_by_another_name(daemon: Daemon) -> None:
    made(daemon, "first", **{"from": "tiny"}, system="same")
    answer = daemon.post("/api/copy", {"source": "first", "destination": "second"})
    assert answer.status == 200
    rows = {row["name"]: row for row in daemon.listed()}
    assert rows["first:latest"]["digest"] == rows["second:latest"]["digest"]
    assert daemon.ask("DELETE", "/api/delete", {"model": "first"}).status == 200
    assert shown(daemon, "second")["system"] == "same"
    assert daemon.post("/api/chat", {"model": "second", "messages": [{"role": "user", "content": "x"}]}).status == 200
    missing = daemon.post("/api/copy", {"source": "nowhere", "destination": "x"})
    assert missing.status == 404
    for body in ({"source": "second", "destination": "../x"}, {"source": "second"}, {"destination": "x"}):
        assert daemon.post("/api/copy", body).status == 400


def test_a_model_that_was_made_here_needs_no_pull(daemon: Daemon) -> None:
    made(daemon, "mine", **{"from": "tiny"})
    assert daemon.pull("mine")["name"] == "mine:latest"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "neither 'from' or 'files'"),
        ({"from": "tiny", "files": {"a.gguf": "sha256:" + "0" * 64}}, "both"),
        ({"files": {"a.gguf": "sha256:" + "0" * 64}}, "not found"),
        ({"files": {"a.gguf": "md5:1"}}, "invalid digest format"),
        ({"files": {"a.gguf": "sha256:../../x"}}, "invalid digest format"),
        ({"from": "../up"}, "relative path"),
        ({"from": "tiny", "parameters": {"temperatur": 1}}, "did you mean `temperature`"),
        ({"from": "tiny", "parameters": {"temperature": "hot"}}, "temperature"),
        ({"from": "tiny", "parameters": {"top_k": 1.5}}, "top_k"),
        ({"from": "tiny", "messages": [{"role": "tool", "content": ""}]}, "no role"),
        ({"from": "tiny", "requires": "soon"}, "no version"),
        ({"modelfile": "FROM ./x.gguf"}, "names a path"),
        ({"modelfile": "FROM tiny\nADAPTER ./x"}, "names a path"),
        ({"modelfile": "FROM tiny\nBAD x"}, "line 2"),
        ({"modelfile": "FROM tiny\nPARAMETER seed x"}, "seed"),
        ({"from": "tiny", "path": "/etc/passwd"}, "`path`"),
    ],
)
def test_a_wrong_body_is_refused_before_anything_is_made(daemon: Daemon, body: dict[str, Any], words: str) -> None:
    answer = daemon.post("/api/create", {"model": "wrong", **body})
    assert answer.status == 400, answer.body
    assert words in answer.json["error"] + answer.json["hint"]
    assert daemon.post("/api/show", {"model": "wrong"}).status == 404


@pytest.mark.parametrize("name", ["", "../x", "a/b/c/d", "https://x.example/a.gguf", "./x", "demo", "x" * 200])
def test_a_wrong_name_is_refused(daemon: Daemon, name: str) -> None:
    assert daemon.post("/api/create", {"model": name, "from": "tiny"}).status == 400


@pytest.mark.parametrize("name", ["../../x.gguf", "a/b/c.gguf", "", "..", "x\n.gguf", "/etc/x.gguf", "~.gguf"])
def test_names_of_files_lead_nowhere_else(daemon: Daemon, weights: bytes, name: str) -> None:
    digest = send(daemon, weights)
    answer = daemon.post("/api/create", {"model": "nowhere", "files": {name: digest}})
    last: Any = answer.lines[-1]
    if last.get("status") == "success":  # as a plain word below the folder
        assert name in ("/etc/x.gguf", "../../x.gguf")
    else:
        assert "no name of" in last["error"]


def test_a_file_that_is_another_is_thrown_away(daemon: Daemon) -> None:
    digest = "sha256:" + "1" * 64
    answer = daemon.ask("POST", f"/api/blobs/{digest}", b"something else")
    assert answer.status == 400
    assert answer.json["error"].startswith(f'digest mismatch, expected "{digest}", got "sha256:')
    assert daemon.ask("HEAD", f"/api/blobs/{digest}").status == 404
    assert daemon.ask("POST", "/api/blobs/sha256:xyz", b"x").status == 400
    assert not list((daemon.home / "store" / "ingest").iterdir())


def test_a_file_that_is_no_model_makes_none(daemon: Daemon) -> None:
    answer: Answer = daemon.post("/api/create", {"model": "none", "files": {"a.gguf": send(daemon, b"GGUFnone")}})
    assert "error" in answer.lines[-1]
    for kind in ("files", "adapters", "draft_files"):
        body = {"model": "none", kind: {"passwd": send(daemon, b"root:x:0:0")}}
        answer = daemon.post("/api/create", body if kind == "files" else body | {"from": "tiny"})
        assert answer.lines[-1]["error"] == "`passwd` holds no weights that can be read"
    assert daemon.post("/api/show", {"model": "none"}).status == 404
    assert not list((daemon.home / "store" / "ingest").iterdir())


def test_a_restart_forgets_uploads_and_keeps_models(tmp_path: Path) -> None:
    put_model(tmp_path)
    with Daemon(tmp_path) as daemon:
        digest = send(daemon, b"never used")
        made(daemon, "kept", **{"from": "tiny"})
    with Store.open(tmp_path / "store") as store:
        assert store.blob(digest) is None
        assert [model.name for model in store.models() if not model.problem] == ["kept:latest", "tiny:F32"]


def test_a_disk_without_room_is_said_before_anything_is_sent(daemon: Daemon) -> None:
    path = "/api/blobs/sha256:" + "2" * 64
    refused = daemon.ask("POST", path, None, {"Content-Length": str(1 << 50)})
    assert (refused.status, refused.json["code"]) == (507, "disk_full")
    assert not list((daemon.home / "store" / "ingest").iterdir())
    assert send(daemon, b"small").startswith("sha256:")  # the next try works


def test_ollamas_own_package_makes_and_copies_models(daemon: Daemon, weights: bytes, tmp_path: Path) -> None:
    with pytest.importorskip("ollama").Client(host=daemon.url) as client:
        _make_and_copy(client, weights, tmp_path)


def _make_and_copy(client: Any, weights: bytes, tmp_path: Path) -> None:
    (tmp_path / "client.gguf").write_bytes(weights)
    digest = client.create_blob(tmp_path / "client.gguf")
    made = client.create(model="by-client", files={"client.gguf": digest}, system="Be.", parameters={"top_k": 3})
    assert made.status == "success"
    template = "{{ .System }} {{ .Prompt }}"
    turns = [{"role": "user", "content": "hi"}]
    lines = list(client.create(model="of-it", from_="by-client", template=template, messages=turns, stream=True))
    assert lines[-1].status == "success" and lines[0].status == "reading model metadata"
    assert client.copy("of-it", "copied").status == "success"
    found = client.show("copied")
    assert (found.template, found.details.parent_model) == (template, "by-client:latest")
    assert "top_k" in found.parameters and "SYSTEM Be." in found.modelfile and found.modified_at
    assert client.chat("copied", [{"role": "user", "content": "one two"}]).message.content.strip() == "one two"
    assert client.delete("copied").status == "success"
    with pytest.raises(Exception, match="neither"):
        client.create(model="none")
