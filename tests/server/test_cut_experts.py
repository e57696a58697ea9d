"""`lm prune NAME --experts`: experts without work are named and go first; what cannot be is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks import mixture
from tests.cli.support import Cli
from tests.daemon import Daemon
from tests.quant.support import DEMO, ROOT

PROSE = ROOT / "tests" / "prose.txt"
pytestmark = pytest.mark.slow


class Mixed(NamedTuple):
    daemon: Daemon
    name: str
    idle: list[int]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    folder = tmp_path_factory.mktemp("mixture") / "mixed"
    idle = mixture.make(DEMO, folder)
    with Daemon(tmp_path_factory.mktemp("experts")) as daemon:
        done = daemon.post("/api/pull", {"model": f"{folder}:Q8_0", "stream": False})
        assert done.json["status"] == "success", done.json
        names = [row["name"] for row in daemon.ask("GET", "/api/tags").json["models"]]
        yield Mixed(daemon, next(name for name in names if name.endswith(":Q8_0")), idle)


def lines(mixed: Mixed, **body: Any) -> list[dict[str, Any]]:
    answer = mixed.daemon.post("/lm/cut", {"model": mixed.name, **body})
    return answer.lines if answer.status == 200 else [answer.json]


def greedy(daemon: Daemon, model: str) -> str:
    options = {"temperature": 0, "num_predict": 24}
    answer = daemon.post(
        "/api/generate", {"model": model, "prompt": "The", "raw": True, "stream": False, "options": options}
    )
    assert answer.status == 200, answer.body
    return str(answer.json["response"])


def test_experts_without_work_go_and_the_model_writes_as_before(mixed: Mixed) -> None:
    made = lines(mixed, experts="idle", name="less")
    assert made[-1]["status"] == "success", made[-1]
    said = " ".join(line["status"] for line in made)
    shown = ", ".join(map(str, mixed.idle))
    assert f"no token was routed to 24 of 48 experts: in layer 0 {shown}" in said and "in 2 more layers" in said
    assert "4 of 8 experts stay in each layer" in said and "had work" not in said and "`--text FILE`" in said
    rows = {row["name"]: row for row in mixed.daemon.ask("GET", "/api/tags").json["models"]}
    assert rows["less:latest"]["size"] < 0.7 * rows[mixed.name]["size"]
    shown_model = mixed.daemon.post("/api/show", {"model": "less"}).json
    assert "4 of 8 experts stay" in shown_model["lm"]["reason"] and shown_model["model_info"]["llama.expert_count"] == 4
    assert greedy(mixed.daemon, "less") == greedy(mixed.daemon, mixed.name)
    again = lines(mixed, experts="idle", name="less")
    assert again[-1]["status"] == "success" and not any(line.get("phase") == "experts" for line in again), "kept"


def test_a_share_is_judged_on_the_users_own_text(mixed: Mixed) -> None:
    cli = Cli.at(mixed.daemon.home, f"127.0.0.1:{mixed.daemon.port}")
    done = cli("prune", mixed.name, "--experts", "0.375", "--text", str(PROSE), "--as", "three")
    assert done.code == 0 and "3 of 8 experts stay in each layer: those that add most to `prose`" in done.err, done
    assert "6 of the experts that go had work" in done.err, done
    assert greedy(mixed.daemon, "three")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"experts": 0}, "no share"),
        ({"experts": 1}, "no share"),
        ({"experts": -0.5}, "no share"),
        ({"experts": "half"}, "no share"),
        ({"experts": 0.1}, "are too few: a token uses 2"),
        ({"experts": 0.97}, "all 8 experts would stay"),
        ({"experts": 0.5, "layers": [2]}, "goes alone"),
        ({"experts": 0.5, "sample": " \n"}, "the sample is empty"),
        ({"experts": 0.5, "sample": "one word"}, "one window takes"),
        ({"layers": [2], "sample": "words"}, "none are to be chosen"),
        ({"experts": [1]}, ""),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
def test_shares_that_cannot_be_are_refused_and_leave_nothing(mixed: Mixed, body: dict[str, Any], said: str) -> None:
    before = sorted(path.name for path in (mixed.daemon.home / "store" / "blobs").iterdir())
    last = lines(mixed, **body)[-1]
    assert said in last["error"] and last["hint"], last
    assert sorted(path.name for path in (mixed.daemon.home / "store" / "blobs").iterdir()) == before


def test_a_model_without_experts_is_refused(mixed: Mixed, tmp_path: Path) -> None:
    assert mixed.daemon.post("/api/pull", {"model": "demo:Q8_0", "stream": False}).json["status"] == "success"
    answer = mixed.daemon.post("/lm/cut", {"model": "demo", "experts": 0.5})
    assert "has no experts" in answer.lines[-1]["error"]
