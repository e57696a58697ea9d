"""`lm quantize`: what is refused, what a pull keeps of statistics, and a level made by importance from end to end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from quant.errors import BadImportance
from quant.gguf.header import read_file
from quant.importance import Importance, InputSquares
from quant.levels.harms import MeasuredHarms
from quant.types import QuantType
from registry.digest import of
from registry.net.hub import Hub
from registry.sources.opening import DEMO
from registry.store.store import Store
from runtime.messages import CacheConfig
from runtime.meter.passages import Passage, own
from server.errors import CheckFailed
from server.pulls.frames import ModelRequest, PullTask, Statistics
from server.pulls.learned import FILE, NOTE, PullStatistics
from server.quality.frames import MeterTask
from server.quality.meter import measure
from tests.cli.support import Cli
from tests.daemon import Daemon, put_model
from tests.publishing import make
from tests.server.test_carried import pulled
from tests.storing import put

STACK = "blk.0.ffn_up_exps.weight"


def statistics(folder: Path, name: str = "given.gguf", **more: Any) -> Statistics:
    """Importance of a stack of twelve experts, of which only two were ever asked."""
    counts = np.zeros(12)
    counts[:2] = 5
    path = folder / name
    Importance({STACK: InputSquares(np.ones((12, 32)), counts)}, ("a text",), 3).write(path)
    return Statistics(str(path), name, **more)


def task(folder: Path, **more: Any) -> PullTask:
    place = folder / "ingest" / "id"
    place.mkdir(parents=True, exist_ok=True)
    model = ModelRequest("demo", Hub("http://127.0.0.1:1"), str(folder), 10**12, CacheConfig(2048, 1))
    return PullTask(model, str(place), **more)


def test_requests_that_make_no_level_are_refused_by_name(tmp_path: Path) -> None:
    put_model(tmp_path)
    put_model(tmp_path, "vectors", capabilities=("embedding",))
    published = {"source": "org/published", "published": "model.gguf", "level": "Q8_0"}
    config = {"model_format": "gguf", "file_type": "Q8_0", "capabilities": ["completion"], "lm": published}
    with Store.open(tmp_path / "store") as store:
        put(store, "org/published:Q8_0", config=config)
    good = {"model": "tiny", "level": "Q4_K_M"}
    with Daemon(tmp_path) as daemon:
        for more, code, said in (
            ({"model": ""}, "bad_body", "model"),
            ({"model": "none"}, "model_not_found", "none"),
            ({"model": "vectors"}, "unsupported", "completion"),
            ({"level": ""}, "bad_body", "level"),
            ({"level": "Q9_K"}, "unknown_level", "Q9_K"),
            ({"level": "auto"}, "unknown_level", "auto"),
            ({"level": "a b"}, "bad_name", "a b"),
            ({"effort": "best", "importance": of(b"")}, "bad_body", "no products of inputs"),
            ({"effort": "mighty"}, "bad_body", "mighty"),
            ({"effort": "quick", "text": "x"}, "bad_body", "statistics"),
            ({"goal": "beauty"}, "bad_body", "beauty"),
            ({"goal": "speed", "effort": "quick"}, "bad_body", "speed"),
            ({"goal": "speed", "level": "Q4_0"}, "bad_body", "speed"),
            ({"text": "x", "importance": of(b"")}, "bad_body", "exclude"),
            ({"text": " \n"}, "bad_body", "empty"),
            ({"importance": "x"}, "bad_body", "digest"),
            ({"importance": of(b"never sent")}, "bad_body", "not found"),
            ({"model": "org/published"}, "unsupported", "nobody knows the weights"),
        ):
            found = daemon.post("/lm/quantize", good | more).lines[-1]
            assert found["code"] == code and said in found["error"], found


def test_statistics_stay_with_a_pull_that_another_one_goes_on_with(tmp_path: Path) -> None:
    given = statistics(tmp_path, marks=["digest", "mark"])
    harms = MeasuredHarms({"blk.0.ffn_up.weight": {QuantType.Q4_K: 0.5}})
    (tmp_path / "harms.json").write_bytes(harms.data)
    given = msgspec.structs.replace(given, harms=str(tmp_path / "harms.json"))
    first = PullStatistics.of(task(tmp_path, effort="importance", statistics=given))
    first.keep()
    Path(given.path).unlink()
    Path(given.harms).unlink()
    again = PullStatistics.of(task(tmp_path))
    assert again.importance is not None and first.importance is not None
    assert again.importance.entries == first.importance.entries and again.harms == first.harms == harms
    assert (
        again.note
        == first.note
        == {
            "effort": "importance",
            "statistics": "given.gguf",
            "learned": ["digest", "mark"],
        }
    )
    again.keep()
    assert PullStatistics.of(task(tmp_path, effort="importance")).importance is not None
    quick = PullStatistics.of(task(tmp_path, effort="quick"))
    quick.keep()
    assert quick.note == {} == PullStatistics.of(task(tmp_path)).note
    with pytest.raises(BadImportance, match="are gone"):
        PullStatistics.of(task(tmp_path, effort="importance"))


def test_statistics_that_were_not_kept_whole_count_for_none(tmp_path: Path) -> None:
    PullStatistics.of(task(tmp_path, effort="importance", statistics=statistics(tmp_path))).keep()
    folder = tmp_path / "ingest" / "id"
    note = (folder / NOTE).read_bytes()
    (folder / NOTE).write_bytes(note[:-5])
    assert PullStatistics.of(task(tmp_path)).importance is None
    (folder / NOTE).write_bytes(note)
    (folder / FILE).unlink()
    assert PullStatistics.of(task(tmp_path)).importance is None
    with pytest.raises(BadImportance, match=r"`given\.gguf` cannot be read"):
        PullStatistics.of(task(tmp_path, statistics=Statistics(str(tmp_path / "none"), "given.gguf")))


def test_experts_that_no_token_was_routed_to_are_named(tmp_path: Path) -> None:
    learned = PullStatistics.of(task(tmp_path, effort="importance", statistics=statistics(tmp_path)))
    weighed, unrouted = learned.remarks()
    assert "given.gguf" in weighed
    assert f"10 experts of `{STACK}` (2, 3, 4, 5, 6, 7, 8, 9 …)" in unrouted


def test_a_text_is_known_again_whole_or_in_parts() -> None:
    lines = [f"In the year {year} nothing happened that anybody remembers." for year in range(1900, 2000)]
    seen = Passage("seen", "\n".join(lines))
    assert seen.shares(seen.marks) and Passage("again", seen.text).shares(seen.marks)
    assert Passage("a part", "\n".join(["Another book.", *lines[20:60]])).shares(seen.marks)
    assert not Passage("one line", "\n".join([lines[0], "Another book, which has a longer line of its own."])).shares(
        seen.marks
    )
    assert not seen.shares([])
    assert own("calibration").shares(own("calibration").marks) and not own("held").shares(own("calibration").marks)


@pytest.mark.slow
def test_a_level_is_made_by_importance_and_stays_so(tmp_path: Path) -> None:
    folder, text = tmp_path / "original", tmp_path / "text.txt"
    shutil.copytree(DEMO, folder)
    text.write_text("\n".join(f"Once upon a time in {year} there lived a fox and {year} hens." for year in range(400)))
    with Daemon(tmp_path / "home", runtime="llama") as daemon:
        lm = Cli.at(daemon.home, daemon.url.removeprefix("http://"))
        plain = pulled(daemon, f"{folder}:Q4_0")
        made = lm("quantize", "original", "--level", "q4_0", "--text", str(text))
        assert made.code == 0 and "errors are weighed by the importance of a text" in made.err, made.err
        shown = daemon.post("/api/show", {"model": "original:Q4_0"}).json
        own = shown["lm"]
        assert own["effort"] == "importance" and own["made_of"] != own["plain"] == plain["lm"]["made_of"]
        assert shown["model_info"]["lm.importance"] and "text" in shown["model_info"]["quantize.imatrix.dataset"]
        (kept,) = (daemon.home / "cache" / "statistics").glob("*/importance.gguf")
        # A plain pull does not take the better weights away.
        again = daemon.post("/api/pull", {"model": f"{folder}:Q4_0"}).lines
        assert any("made with the importance" in line["status"] for line in again)
        assert daemon.post("/api/show", {"model": "original:Q4_0"}).json["lm"]["made_of"] == own["made_of"]
        # No card on a text that the quantizer saw.
        seen = lm("quality", "original:Q4_0", "--text", str(text))
        assert seen.code == 2 and "statistics of this very text" in seen.err, seen.err
        # The file that was kept gives the same weights, and another model's is refused.
        same = lm("quantize", "original", "--level", "Q4_0", "--importance", str(kept))
        assert same.code == 0, same.err
        third = daemon.post("/api/show", {"model": "original:Q4_0"}).json
        assert third["model_info"]["lm.importance"] == shown["model_info"]["lm.importance"]
        foreign = statistics(tmp_path)
        refused = lm("quantize", "original", "--level", "Q4_0", "--importance", foreign.path)
        assert refused.code != 0 and "is of another model" in refused.err, refused.err
        short = lm("quantize", "original", "--level", "Q4_0", "--text", "-", stdin=b"once")
        assert short.code == 2 and "one window takes 512" in short.err and "reference" not in short.err, short.err
        dull = lm("quantize", "original", "--level", "Q4_0", "--text", "-", stdin=b"a " * 3000)
        assert dull.code == 2 and "over and over" in dull.err, dull.err
        quick = lm("quantize", "original", "--level", "Q4_0", "--effort", "quick")
        assert quick.code == 0, quick.err
        assert daemon.post("/api/show", {"model": "original:Q4_0"}).json["lm"]["made_of"] == plain["lm"]["made_of"]
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes())
        stale = lm("quantize", "original", "--level", "Q5_0", "--effort", "quick")
        assert stale.code != 0 and "has changed since" in stale.err, stale.err


@pytest.mark.slow
def test_a_whole_copy_that_is_kept_is_quantized_where_no_source_is_known(tmp_path: Path) -> None:
    file, home = make(tmp_path / "tuned.gguf", "F16"), tmp_path / "home"
    with Daemon(home, runtime="llama") as daemon:
        created = daemon.post("/api/create", {"model": "mine:F16", "files": sent(daemon, file)}).lines[-1]
        assert created["status"] == "success", created
        lines = daemon.post("/lm/quantize", {"model": "mine:F16", "level": "Q4_0"}).lines
        assert lines[-1]["status"] == "success" and lines[-1]["name"] == "mine:Q4_0", lines
        shown = daemon.post("/api/show", {"model": "mine:Q4_0"}).json
        assert shown["details"]["quantization_level"] == "Q4_0" and shown["model_info"]["lm.importance"]
        assert shown["lm"]["learned"][0] == own("calibration").digest


@pytest.mark.slow
def test_the_best_effort_feeds_errors_back_and_comes_nearer_to_the_source(tmp_path: Path) -> None:
    with Daemon(tmp_path / "home", runtime="llama") as daemon:
        pulled(daemon, "demo:Q3_K_M")
        before = measured(daemon, "demo:Q3_K_M")
        lines = daemon.post("/lm/quantize", {"model": "demo", "level": "Q3_K_M", "effort": "best"}).lines
        assert lines[-1]["status"] == "success", lines[-1]
        said = [line["status"] for line in lines]
        assert any("made up for" in each for each in said) and "collecting Gram matrices" in said
        shown = daemon.post("/api/show", {"model": "demo:Q3_K_M"}).json
        assert shown["lm"]["effort"] == "best" and shown["model_info"]["lm.feedback"]
        assert "types by measured sensitivity: KL 0." in shown["lm"]["reason"]
        assert "trying what each type does to the output" in said
        assert measured(daemon, "demo:Q3_K_M") < 0.7 * before
        # What was collected serves the next level; another model's takes its place.
        (kept,) = (daemon.home / "cache" / "statistics").glob("*/grams.gguf")
        again = daemon.post("/lm/quantize", {"model": "demo", "level": "Q4_K_M", "effort": "best"}).lines
        assert again[-1]["status"] == "success" and "here already" in again[0]["status"]
        assert list(kept.parent.parent.glob("*/grams.gguf")) == [kept]
        # A budget is a mix by the same measurements; a level of one type is not.
        budget = daemon.post("/lm/quantize", {"model": "demo", "level": "4.5bpw", "effort": "best"}).lines
        assert budget[-1]["status"] == "success" and "here already" in budget[0]["status"]
        assert "measured sensitivity" in daemon.post("/api/show", {"model": "demo:4.5bpw"}).json["lm"]["reason"]
        fast = {"model": "demo", "level": "4.6bpw", "effort": "best", "goal": "speed"}
        assert daemon.post("/lm/quantize", fast).lines[-1]["status"] == "success"
        assert "read here" in daemon.post("/api/show", {"model": "demo:4.6bpw"}).json["lm"]["reason"]
        plain = daemon.post("/lm/quantize", {"model": "demo", "level": "Q4_0", "effort": "best"}).lines
        assert plain[-1]["status"] == "success"
        assert "sensitivity" not in daemon.post("/api/show", {"model": "demo:Q4_0"}).json["lm"]["reason"]


def measured(daemon: Daemon, name: str) -> float:
    """The mean divergence of a model from its source on some windows."""
    last = daemon.post("/lm/quality", {"model": name, "windows": 12}).lines[-1]
    return float(last["card"]["mean"]["value"])


def test_gram_matrices_that_are_gone_are_told(tmp_path: Path) -> None:
    gone = msgspec.structs.replace(statistics(tmp_path), grams=str(tmp_path / "gone.gguf"))
    with pytest.raises(BadImportance, match="cannot be read"):
        PullStatistics.of(task(tmp_path, effort="best", statistics=gone))
    with pytest.raises(BadImportance, match="holds no Gram matrices"):
        PullStatistics.of(task(tmp_path, effort="best", statistics=msgspec.structs.replace(gone, grams=gone.path)))


@pytest.mark.slow
def test_a_model_that_computes_no_numbers_gives_no_statistics(tmp_path: Path) -> None:
    path = make(tmp_path / "model.gguf", "F32")
    header = read_file(path)
    (norm,) = (each for each in header.tensors if each.name == "blk.0.ffn_norm.weight")
    with path.open("r+b") as file:
        file.seek(header.data_offset + norm.offset)
        file.write(np.full(norm.shape[0], np.nan, "<f4").tobytes())
    for step in ("statistics", "grams"):
        wanted = MeterTask(step, str(path), str(tmp_path), "d", "tiny", "", "", 2, 64)
        with pytest.raises(
            CheckFailed, match=r"`tiny` computes values that are not finite: the inputs of `blk\.0\.ffn_"
        ):
            measure(wanted, lambda frame: None)


def sent(daemon: Daemon, file: Path) -> dict[str, str]:
    """A file as an uploaded blob."""
    digest = of(file.read_bytes())
    assert daemon.ask("POST", f"/api/blobs/{digest}", file.read_bytes()).status in (200, 201)
    return {file.name: digest}
