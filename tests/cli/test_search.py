"""`lm search`, and `lm pull --outdated`, against a hub that stands on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from registry.sources.opening import DEMO
from tests.cli.support import Cli, Terminal
from tests.daemon import Daemon, put_model
from tests.hub import Hub

LISTED = {
    "org/Tale-7B": {
        "downloads": 1_234_567,
        "gated": "manual",
        "pipeline_tag": "text-generation",
        "safetensors": {"parameters": {"BF16": 7_240_000_000}, "total": 7_240_000_000},
    },
    "org/Tale-1B-GGUF": {"downloads": 20, "tags": ["gguf"], "gguf": {"total": 1_000_000}, "gated": False},
    "org/Tale-900T": {"downloads": 5, "safetensors": {"total": 900 * 10**12}},
    "org/Other": {"downloads": 9},
}


def test_a_search_shows_sizes_downloads_and_what_fits(tmp_path: Path) -> None:
    with Hub({}) as hub, Daemon(tmp_path, script={}, env={"HF_ENDPOINT": hub.url}) as daemon:
        hub.listed = LISTED
        lm = Cli.at(tmp_path, f"127.0.0.1:{daemon.port}", HF_ENDPOINT=hub.url)
        rows = json.loads(lm("search", "tale", "--json").out)
        assert [row["name"] for row in rows] == ["org/Tale-7B", "org/Tale-1B-GGUF", "org/Tale-900T"]
        assert [(row["parameters"], row["gguf"], row["gated"]) for row in rows] == [
            (7_240_000_000, False, True),
            (1_000_000, True, False),
            (900 * 10**12, False, False),
        ]
        assert [row["fits"] for row in rows][1:] == ["Q8_0", ""]
        shown = lm("search", "tale", "--limit", "2").out.splitlines()
        assert len(shown) == 3 and shown[1].split()[:3] == ["org/Tale-7B", "7.24B", "1.23M"]
        assert shown[1].endswith("gated") and shown[2].endswith("gguf")
        done = lm("search", "no", "such", "thing")
        assert done.code == 0 and "nothing has these words" in done.err
        hub.faults.statuses = [401]
        assert "does not let this be searched" in lm("search", "tale").err
        for wrong in (("--limit", "1000", "x"), (" ",), ()):
            assert lm("search", *wrong).code == 2


def test_a_search_without_a_network_is_a_sentence(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:1"
    with Daemon(tmp_path, script={}, env={"HF_ENDPOINT": nowhere}) as daemon:
        done = Cli.at(tmp_path, f"127.0.0.1:{daemon.port}", HF_ENDPOINT=nowhere)("search", "tale")
        assert (done.code, done.out) == (1, "")
        error, hint = done.err.splitlines()
        assert "cannot be reached" in error and hint.startswith("hint: ")


@pytest.mark.slow
def test_what_has_a_newer_revision_is_brought_in_once_agreed(tmp_path: Path) -> None:
    folder, home = tmp_path / "demo", tmp_path / "home"
    shutil.copytree(DEMO, folder)
    with Hub({"org/demo": folder}) as hub:
        first = hub.heads["org/demo"]
        put_model(home, "unsourced")
        with Daemon(home, script={}, env={"HF_ENDPOINT": hub.url}) as daemon:
            lm = Cli.at(home, f"127.0.0.1:{daemon.port}", HF_ENDPOINT=hub.url)
            daemon.pull("org/demo:Q8_0")
            done = lm("pull", "--outdated")
            assert done.code == 0 and "nothing is outdated: 1 of 2 are known" in done.err
            assert "unsourced:F32: not known" in done.err and not done.out
            (folder / "README.md").write_text("newer")
            second = hub.push("org/demo", folder)
            done = lm("pull", "--outdated", "org/demo")
            _, row = done.out.splitlines()
            assert row.split()[-2:] == [first[:12], second[:12]] and "`--yes` brings them in" in done.err
            assert lm("pull", "--outdated", "nothing").code == 3
            with Terminal(lm, "pull", "--outdated") as terminal:
                terminal.wait_for("bring it in? [y/N]: ")
                terminal.type("\r")
                assert terminal.end() == 0
            rows = [json.loads(line) for line in lm("pull", "--outdated", "--json").out.splitlines()]
            states = {row["name"]: row["state"] for row in rows}
            assert states == {"hf.co/org/demo:Q8_0": "outdated", "unsourced:F32": "unknown"}
            assert lm("pull", "--outdated", "--yes").code == 0
            assert "nothing is outdated: 1 of 2" in lm("pull", "--outdated").err
            hub.faults.statuses = [404, 404]
            assert "hf.co/org/demo:Q8_0: not known" in lm("pull", "--outdated").err
