"""`lm verify --oracle`: a model against its original in transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from registry.errors import ModelNotFound
from registry.sources.opening import DEMO
from server.verify import __main__ as verifying
from server.verify.comparing import compare
from tests.cli.support import Cli
from tests.daemon import Daemon
from tests.server.test_carried import pulled
from tests.server.test_strangers import broken

LOGITS = np.random.default_rng(1).normal(0, 3, (40, 300)).astype(np.float32)


def test_the_same_logits_are_right_whatever_constant_is_added() -> None:
    report = compare(LOGITS, LOGITS + 5, "F16")
    assert report["right"] and report["agreement"] == 1.0
    assert report["divergence"] == pytest.approx(0, abs=1e-9)
    assert compare(LOGITS, np.pad(LOGITS, ((0, 0), (0, 4)), constant_values=-9.0), "F32")["right"]


@pytest.mark.parametrize("level", ["F32", "Q4_K_M", "Q2_K", "4.5bpw"])
def test_another_models_logits_are_wrong_at_every_level(level: str) -> None:
    report = compare(LOGITS, LOGITS[::-1], level)
    assert not report["right"] and report["agreement"] < 0.2 and report["largest"] > 1
    assert not compare(LOGITS, np.full_like(LOGITS, np.nan), level)["right"]


def test_noise_as_of_a_level_is_right_there_and_wrong_without_quantization() -> None:
    noisy = LOGITS + np.random.default_rng(2).normal(0, 0.2, LOGITS.shape).astype(np.float32)
    assert compare(LOGITS, noisy, "Q4_K_M")["right"]
    assert not compare(LOGITS, noisy, "BF16")["right"]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verifying, "PACKAGES", ("json", "nosuchpackage"))
    assert verifying.main([str(DEMO)]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["error"] == "the extra `oracle` is missing: no nosuchpackage" and "lm[oracle]" in said["hint"]


def test_a_folder_without_a_model_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(verifying, "PACKAGES", ())
    with pytest.raises(ModelNotFound, match=r"no `config\.json` in"):
        verifying.verify(tmp_path / "nowhere", "demo")


@pytest.mark.oracle
@pytest.mark.slow
def test_a_model_is_compared_with_its_original(daemon: Daemon, tmp_path: Path) -> None:
    lm = Cli.at(daemon.home, daemon.url.removeprefix("http://"))
    folder = tmp_path / "original"
    shutil.copytree(DEMO, folder)
    nothing = lm("verify", "--oracle", str(folder))
    assert nothing.code == 3 and "no model here was made of" in nothing.err
    for level in ("F16", "Q4_K_M"):
        name = pulled(daemon, f"{folder}:{level}")["name"]
        right = lm("verify", "--oracle", str(folder), name)
        assert right.code == 0, right.err + right.out
        assert f"{name} against" in right.out and "as close as this level can be" in right.out
    (blob,) = (path for path in (daemon.home / "store" / "blobs").iterdir() if path.stat().st_size > 9_000_000)
    wrong = broken(blob, tmp_path / "wrong", 1.0)
    name = pulled(daemon, str(wrong))["name"]
    ended = lm("verify", "--oracle", str(folder), name, "--json")
    report = json.loads(ended.out)
    assert ended.code == 1 and report["divergence"] > report["limit"] and not report["right"]
