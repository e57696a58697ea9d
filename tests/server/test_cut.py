"""`lm prune NAME` and `/lm/cut`: smaller models beside the ones that they are made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.support import Cli
from tests.daemon import Daemon
from tests.quant.support import ROOT

PROSE = ROOT / "tests" / "prose.txt"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("cut")) as daemon:
        assert daemon.post("/api/pull", {"model": "demo:Q8_0", "stream": False}).json["status"] == "success"
        yield daemon


def lines(daemon: Daemon, **body: Any) -> list[dict[str, Any]]:
    answer = daemon.post("/lm/cut", {"model": "demo", **body})
    return answer.lines if answer.status == 200 else [answer.json]


def greedy(daemon: Daemon, model: str) -> str:
    options = {"temperature": 0, "num_predict": 24}
    answer = daemon.post(
        "/api/generate", {"model": model, "prompt": "The", "raw": True, "stream": False, "options": options}
    )
    assert answer.status == 200, answer.body
    return str(answer.json["response"])


def test_a_model_is_cut_to_a_text_and_writes_as_before(daemon: Daemon) -> None:
    made = lines(daemon, text=PROSE.read_text(), text_name="prose")
    assert made[-1]["status"] == "success" and made[-1]["name"] == "demo:Q8_0-prose", made
    said = " ".join(line["status"] for line in made)
    assert "of 4,096 tokens stay, those of `prose`" in said and "tokens of text are the same as before" in said
    assert "words that it lacks" in said, "the text is short"
    rows = {row["name"]: row for row in daemon.ask("GET", "/api/tags").json["models"]}
    assert rows["demo:Q8_0-prose"]["size"] < rows["demo:Q8_0"]["size"]
    shown = daemon.post("/api/show", {"model": "demo:Q8_0-prose"}).json
    assert shown["details"]["parent_model"] == "demo:Q8_0" and "tokens stay" in shown["lm"]["reason"]
    assert daemon.post("/lm/default", {"model": "demo"}).json["default"] == "demo:Q8_0"
    assert greedy(daemon, "demo:Q8_0-prose")[:12] == greedy(daemon, "demo:Q8_0")[:12]


def test_layers_are_dropped_and_said_to_cost_quality(daemon: Daemon) -> None:
    made = lines(daemon, layers=[4, 4], name="short")
    assert made[-1]["status"] == "success" and made[-1]["name"] == "short:latest", made
    assert "nearly always better" in made[0]["status"]
    assert any("without layer 4" in line["status"] for line in made)
    assert greedy(daemon, "short")


def test_the_layer_that_is_missed_least_is_chosen(daemon: Daemon) -> None:
    cli = Cli.at(daemon.home, f"127.0.0.1:{daemon.port}")
    done = cli("prune", "demo", "--layers", "auto:1", "--dry-run")
    assert done.code == 0 and "the divergence is" in done.err and "(others: " in done.err, done
    made = lines(daemon, fewer_layers=1, sample=PROSE.read_text(), sample_name="prose")
    assert made[-1]["name"] == "demo:Q8_0-less-1", made
    said = [line["status"] for line in made if "the divergence is" in line.get("status", "")]
    chosen = said[0].split()[2]
    assert "on `prose`" in said[0] and any(f"without layer {chosen};" in line["status"] for line in made)
    assert greedy(daemon, "demo:Q8_0-less-1")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "nothing to cut"),
        ({"text": "x y", "vocabulary": ["en"]}, "both say"),
        ({"text": "  \n"}, "the text is empty"),
        ({"text": "one word"}, "at least 1,000 are needed"),
        ({"vocabulary": ["klingon"]}, "no language or script that is known"),
        ({"layers": [6]}, "there is no layer 6"),
        ({"layers": [0, 1, 2, 3, 4, 5]}, "no layer would stay"),
        ({"width": 1}, "no share of the width"),
        ({"width": -0.5}, "no share of the width"),
        ({"width": 0.9, "layers": [2]}, "goes alone"),
        ({"width": 0.05}, "no channel would stay"),
        ({"width": 0.67, "level": "Q9"}, "Q9"),
        ({"layers": [2], "level": "Q4_K_M"}, "only another `width`"),
        ({"fewer_layers": 2}, "at most 1 of them"),
        ({"fewer_layers": -1}, "no number of layers"),
        ({"fewer_layers": 1, "layers": [2]}, "goes alone"),
        ({"fewer_layers": 1, "sample": "one word"}, "one window takes"),
        ({"layers": [1], "name": "demo:Q8_0"}, "cannot be the name"),
        ({"layers": [1], "name": "../x"}, ""),
        ({"model": "nobody", "layers": [1]}, "not found"),
        ({"layers": "1"}, ""),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
def test_wishes_that_cannot_be_are_refused_and_leave_nothing(daemon: Daemon, body: dict[str, Any], said: str) -> None:
    before = sorted(path.name for path in (daemon.home / "store" / "blobs").iterdir())
    last = lines(daemon, **body)[-1]
    assert said in last["error"] and last["hint"], last
    assert sorted(path.name for path in (daemon.home / "store" / "blobs").iterdir()) == before


def test_the_command_shows_what_would_go_and_keeps_nothing_of_it(daemon: Daemon) -> None:
    cli = Cli.at(daemon.home, f"127.0.0.1:{daemon.port}")
    before = sorted(path.name for path in (daemon.home / "store" / "blobs").iterdir())
    done = cli("prune", "demo", "--layers", "3", "--dry-run")
    assert done.code == 0 and "without layer 3" in done.err, done
    assert sorted(path.name for path in (daemon.home / "store" / "blobs").iterdir()) == before
    for words in (
        ("--layers", "3"),
        ("demo", "--yes"),
        ("demo", "--layers", "x"),
        ("demo", "--layers", "auto:x"),
        ("demo", "--layers", "auto:0"),
        ("demo", "--vocabulary", "./no.txt"),
    ):
        done = cli("prune", *words)
        assert done.code != 0 and "hint:" in done.err and "Traceback" not in done.err, done
    made = cli("prune", "demo", "--layers", "3", "--as", "three", "--json")
    assert json.loads(made.out.splitlines()[-1])["name"] == "three:latest", made


def test_a_narrower_model_is_made_of_the_source(daemon: Daemon) -> None:
    made = lines(daemon, width=0.67, level="Q4_K_M", name="narrow")
    assert made[-1]["status"] == "success" and made[-1]["name"] == "narrow:latest", made[-1]
    said = " ".join(line["status"] for line in made)
    for words in ("a lower level", "dead channels", "512 of 768 channels stay", "lm's calibration text"):
        assert words in said, said
    shown = daemon.post("/api/show", {"model": "narrow"}).json
    assert shown["model_info"]["llama.feed_forward_length"] == 512 and "512 of 768" in shown["lm"]["reason"]
    assert shown["details"]["quantization_level"] == "Q4_K_M" and "narrowing" not in json.dumps(shown)
    assert shown["details"]["parent_model"].startswith("demo") and greedy(daemon, "narrow")
    assert not list((daemon.home / "cache").glob("narrowing")), "nothing is left behind"
