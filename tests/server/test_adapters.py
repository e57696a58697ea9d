"""Adapters as a user meets them: pulled like models, named in requests, served by their own name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cli.commands.ps import print_loaded
from cli.describing import print_model
from registry.names import parse
from registry.net.hub import Hub as HubSettings
from registry.net.network import Network
from registry.sources.opening import DEMO, open_source
from server.pulls.beside import fetch_beside
from server.pulls.frames import adapter_path
from tests.daemon import Daemon, wait_until
from tests.hub import Hub
from tests.loras import write_adapter
from tests.oci import OLLAMA, Registry
from tests.quant.test_adapters import WIDTH as WIDE
from tests.quant.test_adapters import Q, folder, pair
from tests.runtime.conftest import convert
from tests.server.test_keys import Keys, bearer

GREEDY = {"temperature": 0, "num_predict": 12, "seed": 1}


def write(path: Path, contents: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, data in contents.items():
        (path / name).write_bytes(data)
    return path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    at = tmp_path_factory.mktemp("hub")
    base = {"base_model_name_or_path": "org/demo"}
    strong = {name: 8 * value for name, value in pair(Q, WIDE, WIDE).items()}
    nan = {name: value * float("nan") for name, value in strong.items()}
    pickle = folder(**base).with_file("adapter_model.safetensors", None).with_file("adapter_model.bin", b"\x80\x02.")
    adapters = {
        "good": folder(strong, **base),
        "dora": folder(use_dora=True, **base),
        "pickle": pickle,
        "nan": folder(nan, **base),
        "lost": folder(base_model_name_or_path="/home/me/model"),
        "gone": folder(base_model_name_or_path="org/nothing"),
        "elsewhere": folder(base_model_name_or_path="org/second"),
        "wide": folder(pair(Q, 512, 512), **base),
    }
    folders = {f"org/{name}": write(at / name, each.contents) for name, each in adapters.items()}
    plain = convert(DEMO, at / "demo.gguf")
    (at / "nan-gguf").mkdir()
    write_adapter(plain, at / "nan-gguf" / "adapter.gguf", 1, strength=float("nan"))
    folders["org/nan-gguf"] = at / "nan-gguf"
    for name, more in (
        ("gguf", {}),
        ("silent", {"adapter__lora__alpha": None}),
        ("qwen", {"general__architecture": "qwen2"}),
    ):
        (at / name).mkdir()
        write_adapter(plain, at / name / "adapter.gguf", 1, strength=1.0, **more)
        folders[f"org/{name}"] = at / name
    with Hub({"org/demo": DEMO, "org/second": DEMO, **folders}) as hub:
        yield hub


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, hub: Hub, registry: Registry) -> Iterator[Daemon]:
    """One that answers with llama.cpp, because adapters change what a model says."""
    env = {"HF_ENDPOINT": hub.url, "LM_OLLAMA_REGISTRY": registry.url}
    with Daemon(tmp_path_factory.mktemp("daemon"), runtime="llama", env=env) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def here(daemon: Daemon) -> Daemon:
    """The daemon with the model and two adapters."""
    for name in ("org/demo:BF16", "org/good", "org/gguf"):
        assert daemon.pull(name)["status"] == "success"
    return daemon


def text(daemon: Daemon, **body: Any) -> str:
    answer = daemon.post("/api/generate", {"prompt": "The sea", "stream": False, "options": GREEDY, **body})
    assert answer.status == 200, answer.json
    return str(answer.json["response"])


def test_an_adapter_is_listed_and_tells_its_base(here: Daemon) -> None:
    rows = {row["name"]: row for row in here.get("/api/tags").json["models"]}
    assert rows["hf.co/org/good:LORA"]["base"] == "hf.co/org/demo"
    shown = here.post("/api/show", {"model": "org/good"}).json
    assert shown["lm"]["adapter"] == {"base": "hf.co/org/demo", "alpha": 8.0, "ranks": [4], "changes": ["attn_q"]}
    assert shown["capabilities"] == here.post("/api/show", {"model": "org/demo"}).json["capabilities"]


def test_a_field_and_the_adapters_own_name_give_the_same_answer_in_both_dialects(
    here: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = text(here, model="org/demo")
    changed = text(here, model="org/demo", adapters=["org/good"])
    assert changed != plain
    assert changed == text(here, model="org/good") == text(here, model="org/good:latest")
    assert plain == text(here, model="org/demo", adapters=[{"name": "org/good", "scale": 0}])
    body = {"prompt": "The sea", "temperature": 0, "seed": 1, "max_tokens": 12}
    chosen = [here.post("/v1/completions", body | more).json["choices"][0]["text"] for more in (
        {"model": "org/good"}, {"model": "org/demo", "adapters": ["org/good"]}, {"model": "org/demo"},
    )]  # fmt: skip
    assert chosen[0] == chosen[1] != chosen[2]
    both = text(here, model="org/demo", adapters=["org/good", "org/gguf"])
    assert both not in (plain, changed)
    wait_until(lambda: len(here.get("/api/ps").json["models"][0]["adapters"]) == 2, 5)
    (row,) = here.get("/api/ps").json["models"]
    assert sorted(row["adapters"]) == ["hf.co/org/gguf:LORA", "hf.co/org/good:LORA"]
    print_loaded([row], wide=False)
    assert "adapters: hf.co/org/good:LORA, hf.co/org/gguf:LORA" in capsys.readouterr().err


@pytest.mark.slow
def test_ps_names_only_the_adapters_that_exist_for_a_key(hub: Hub, tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    admin = keys.add("admin")[0]
    limited = keys.add("infer", models=("org/demo", "org/good"))[0]
    with Daemon(tmp_path, script={}, env={"HF_ENDPOINT": hub.url}) as daemon:
        for name in ("org/demo:BF16", "org/good", "org/gguf"):
            assert daemon.post("/api/pull", {"model": name, "stream": False}, **bearer(admin)).status == 200
        body = {"model": "org/demo", "prompt": "a", "stream": False, "adapters": ["org/good", "org/gguf"]}
        assert daemon.post("/api/generate", body, **bearer(admin)).status == 200

        def shown(secret: str) -> list[str]:
            (row,) = daemon.get("/api/ps", **bearer(secret)).json["models"]
            return sorted(row["adapters"])

        wait_until(lambda: len(shown(admin)) == 2, 5)
        assert shown(limited) == ["hf.co/org/good:LORA"]


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"adapters": ["org/none"]}, 404, "org/none"),
    ({"adapters": ["org/demo"]}, 400, "is a model, and no adapter"),
    ({"adapters": [{"name": "org/good", "scale": 1e9}]}, 400, "scale of `org/good`"),
    ({"adapters": ["org/good"] * 17}, 400, "17 adapters would change"),
    ({"adapters": ["org/good", {"name": "org/good", "scale": -1}]}, 400, "twice"),
    ({"model": "org/good", "adapters": [{"name": "org/good", "scale": -1}]}, 400, "twice"),
    ({"adapters": [{"name": "org/good", "skale": 0.5}]}, 400, "skale"),
    ({"adapters": "org/good"}, 400, "adapters"),
    ({"adapters": [{"scale": 1}]}, 400, "name"),
]


@pytest.mark.parametrize("more,status,named", BAD, ids=[named for *_, named in BAD])
def test_a_wrong_field_is_one_sentence(here: Daemon, more: dict[str, Any], status: int, named: str) -> None:
    for path in ("/api/generate", "/v1/completions"):
        answer = here.post(path, {"model": "org/demo", "prompt": "The sea", "stream": False, **more})
        assert answer.status == status
        assert named in json.dumps(answer.json)


def test_an_adapter_of_another_model_is_refused_before_anything_runs(here: Daemon) -> None:
    assert here.pull("org/qwen")["status"] == "success"
    answer = here.post("/api/generate", {"model": "org/demo", "prompt": "x", "adapters": ["org/qwen"]})
    assert answer.status == 400
    assert "is for a model of `qwen2`" in answer.json["error"]
    alone = here.post("/api/generate", {"model": "org/qwen", "prompt": "x"})
    assert alone.status == 404
    assert "does not say for which model" in alone.json["error"]
    assert here.post("/api/embed", {"model": "org/good", "input": "x"}).status == 400


REFUSED = {
    "dora": "use_dora",
    "pickle": "a pickle, which can run any code",
    "nan": "q_proj",
    "nan-gguf": "NaN or infinity in `blk.0.",
    "lost": "cannot be converted without its base",
    "gone": "org/nothing",
    "wide": "is for another base",
    "silent": "`adapter.lora.alpha` is missing",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_when_it_is_pulled(daemon: Daemon, name: str) -> None:
    last = daemon.post("/api/pull", {"model": f"org/{name}", "stream": False}).json
    assert REFUSED[name] in last["error"]
    assert f"hf.co/org/{name}" not in " ".join(row["name"] for row in daemon.get("/api/tags").json["models"])


def test_a_pull_says_for_which_model_an_adapter_is(here: Daemon) -> None:
    lines = " ".join(str(line["status"]) for line in here.post("/api/pull", {"model": "org/elsewhere"}).lines)
    assert "it is an adapter for `hf.co/org/second` (PEFT)" in lines
    assert "`lm pull hf.co/org/second` brings it in" in lines


@pytest.mark.slow
def test_the_users_own_word_for_the_base_counts(here: Daemon) -> None:
    assert here.post("/api/show", {"model": "org/gguf"}).json["lm"]["adapter"]["base"] == ""
    assert (
        here.post("/api/pull", {"model": "org/gguf", "stream": False, "base": "org/demo"}).json["status"] == "success"
    )
    assert here.post("/api/show", {"model": "org/gguf"}).json["lm"]["adapter"]["base"] == "hf.co/org/demo"
    last = here.post("/api/pull", {"model": "org/lost", "stream": False, "base": "org/demo"}).json
    assert last["status"] == "success"
    assert text(here, model="org/lost") != ""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gguf", "good"])
def test_a_model_may_be_made_with_an_adapter_of_its_own(here: Daemon, hub: Hub, kind: str) -> None:
    """As `ADAPTER` of a Modelfile does it: a GGUF file as it is, PEFT's folder converted by its base."""
    adapters = {}
    for path in hub.folders[f"org/{kind}"].iterdir():
        adapters[path.name] = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        assert here.ask("POST", f"/api/blobs/{adapters[path.name]}", path.read_bytes()).status in (200, 201)
    made = here.post("/api/create", {"model": f"own-{kind}", "from": "org/demo", "adapters": adapters})
    assert made.lines[-1].get("status") == "success", made.lines
    changed = text(here, model=f"own-{kind}")
    assert changed == text(here, model=f"org/{kind}") != text(here, model="org/demo")


def test_an_adapter_of_another_model_makes_none(here: Daemon, hub: Hub) -> None:
    (path,) = hub.folders["org/qwen"].iterdir()
    digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    here.ask("POST", f"/api/blobs/{digest}", path.read_bytes())
    made = here.post("/api/create", {"model": "unfit", "from": "org/demo", "adapters": {path.name: digest}})
    assert "does not fit" in made.lines[-1]["error"]
    assert here.post("/api/show", {"model": "unfit"}).status == 404
    model = {"model": "unfit", "files": {path.name: digest}}
    assert "is an adapter" in here.post("/api/create", model).lines[-1]["error"]


def weights(hub: Hub) -> bytes:
    return (hub.folders["org/gguf"].parent / "demo.gguf").read_bytes()


def adapter(hub: Hub, name: str) -> bytes:
    (path,) = hub.folders[f"org/{name}"].iterdir()
    return path.read_bytes()


@pytest.mark.slow
def test_a_model_of_a_registry_answers_with_the_adapter_beside_it(
    here: Daemon, hub: Hub, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    model, beside = (OLLAMA + "model", weights(hub)), (OLLAMA + "adapter", adapter(hub, "gguf"))
    registry.add("me/sea", "latest", [model, beside])
    registry.add("me/sea", "plain", [model])
    lines = here.post("/api/pull", {"model": "ollama.com/me/sea"}).lines
    assert lines[-1]["status"] == "success", lines
    assert here.pull("ollama.com/me/sea:plain")["status"] == "success"
    plain = text(here, model="ollama.com/me/sea:plain")
    changed = text(here, model="ollama.com/me/sea:latest")
    assert changed == text(here, model="ollama.com/me/sea:plain", adapters=["org/gguf"]) != plain
    shown = here.post("/api/show", {"model": "ollama.com/me/sea:latest"}).json
    assert [(each["ranks"], each["size"]) for each in shown["adapters"]] == [([4], len(beside[1]))]
    print_model(shown)
    assert "  Adapter\n    rank       4\n" in capsys.readouterr().out
    again = here.post("/api/pull", {"model": "ollama.com/me/sea"}).lines
    assert "nothing has changed since it was brought in" in [line["status"] for line in again]
    # Without its adapter the tag is another model, though its weights are the same.
    registry.add("me/sea", "latest", [model])
    assert here.pull("ollama.com/me/sea")["status"] == "success"
    assert text(here, model="ollama.com/me/sea:latest") == plain


def test_an_adapter_of_a_registry_by_itself_keeps_its_tag(here: Daemon, hub: Hub, registry: Registry) -> None:
    registry.add("me/wave", "v1", [(OLLAMA + "adapter", adapter(hub, "gguf"))])
    assert here.pull("ollama.com/me/wave:v1")["name"] == "ollama.com/me/wave:v1"
    by_name = text(here, model="org/demo", adapters=["org/gguf"])
    assert text(here, model="org/demo", adapters=["ollama.com/me/wave:v1"]) == by_name


@pytest.mark.parametrize("name", ["qwen", "silent", "nan-gguf", "none", "many"])
def test_an_adapter_that_does_not_fit_its_model_is_refused_by_its_header(
    here: Daemon, hub: Hub, registry: Registry, name: str
) -> None:
    model = weights(hub)
    data = b"ggla" + bytes(99) if name == "none" else adapter(hub, "gguf" if name == "many" else name)
    beside = [(OLLAMA + "adapter", data + bytes([number])) for number in range(17 if name == "many" else 1)]
    registry.add(
        f"me/{name}", "latest", [(OLLAMA + "model", model), *(beside if name == "many" else [(beside[0][0], data)])]
    )
    registry.asked.clear()
    last = here.post("/api/pull", {"model": f"ollama.com/me/{name}"}).lines[-1]
    assert "adapter" in last["error"] and last["hint"], last
    assert here.post("/api/show", {"model": f"ollama.com/me/{name}"}).status == 404
    ranges = [each.range.removeprefix("bytes=").split("-") for each in registry.asked if each.range]
    if name != "nan-gguf":  # its numbers are seen when they are here
        assert sum(int(end) - int(start) for start, end in ranges) < len(model)


def test_an_adapter_that_an_earlier_pull_left_whole_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    data, folder, told = adapter(hub, "gguf"), tmp_path / "ingest" / "x", list[tuple[int, int]]()
    folder.mkdir(parents=True)

    def fetch(registry: Registry) -> None:
        network = Network().with_hub(HubSettings("", "", ollama=registry.url))
        with closing(open_source(parse("ollama.com/me/x"), "", network)) as source:
            registry.asked.clear()
            (found,) = fetch_beside(source, folder, lambda *figures: told.append(figures))
        assert (found.sha256, found.size) == (hashlib.sha256(data).hexdigest(), len(data))
        assert adapter_path(folder, 0).read_bytes() == data and told[-1] == (len(data), len(data))

    with Registry() as registry:
        registry.add("me/x", "latest", [(OLLAMA + "model", b"GGUF"), (OLLAMA + "adapter", data)])
        fetch(registry)
        assert registry.asked
        fetch(registry)
        assert not registry.asked
        adapter_path(folder, 0).write_bytes(data[:-1] + b"x")
        fetch(registry)
        assert registry.asked


def test_removing_a_base_says_which_adapters_need_it(here: Daemon) -> None:
    gone = here.ask("DELETE", "/api/delete", {"model": "org/demo"}).json
    assert any("`hf.co/org/good:LORA` is for a model that was removed" in note for note in gone["notes"])
    answer = here.post("/api/generate", {"model": "org/good", "prompt": "x", "stream": False})
    assert answer.status == 404
    assert "is an adapter for `hf.co/org/demo`, which is not here" in answer.json["error"]
