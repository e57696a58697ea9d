"""`lm export --format safetensors`: a model of the store as a folder in Hugging Face's layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quant.convert.planning import plan_model
from quant.safetensors import read_model
from registry.errors import DiskFull, StoreFailed
from registry.store.store import Store
from server.returning.__main__ import main
from server.returning.folder import check_place, check_room, new_folder
from tests.cli.support import Cli
from tests.converting import write
from tests.quant.support import DEMO, Folder
from tests.storing import put


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the demo, quantized and whole, whose source lies in a folder beside it."""
    place = tmp_path_factory.mktemp("returning")
    source = place / "demo"
    shutil.copytree(DEMO, source)
    folder = Folder(source)
    with Store.open(place / "home" / "store") as store:
        for level in ("Q8_0", "F32"):
            write(plan_model(folder), level, folder.stream, place / "m.gguf")
            own = {"model_format": "gguf", "lm": {"source": str(source), "level": level}}
            put(store, f"demo:{level}", (place / "m.gguf").read_bytes(), own)
    return place


Said = dict[str, Any]
Export = Callable[..., Said]


@pytest.fixture
def export(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Export:
    """What the process says at its end that exports a model to `out`."""
    monkeypatch.setenv("LM_HOME", str(home / "home"))

    def run(name: str, dtype: str = "", place: str = "", target: str = "out") -> Said:
        code = main([name, str(tmp_path / target), dtype, place, ""])
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert ("error" in said) is (code == 1)
        return said

    return run


def left(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if ".part" in path.name)


def test_a_folder_holds_the_source_again(home: Path, tmp_path: Path) -> None:
    done = Cli.at(home / "home")(
        "export", "demo:F32", "-o", str(tmp_path / "out"), "--format", "safetensors", "--type", "F32"
    )
    assert done.code == 0, done.err
    assert "weights as F32, as stored (F32)" in done.err
    out, source = Folder(tmp_path / "out"), Folder(DEMO)
    wanted = {entry.name: entry for entry in read_model(source)}
    found = {entry.name: entry for entry in read_model(out)}
    assert {name: entry.shape for name, entry in found.items()} == {name: entry.shape for name, entry in wanted.items()}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert out.contents[name] == source.contents[name]
    assert plan_model(out).metadata == plan_model(source).metadata


def test_options_of_folders_are_none_of_bundles(home: Path, tmp_path: Path) -> None:
    done = Cli.at(home / "home")("export", "demo:F32", "-o", str(tmp_path / "out.tar"), "--type", "F16")
    assert done.code and "--format safetensors" in done.err


def test_quantized_weights_are_said_to_be_so(export: Export, tmp_path: Path) -> None:
    assert "dequantized from Q8_0: no better than `demo:Q8_0`" in export("demo:Q8_0", "F16")["text"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"
    assert {entry.dtype for entry in read_model(Folder(tmp_path / "out")) if len(entry.shape) > 1} == {"F16"}


def test_a_model_whose_source_is_gone_needs_its_configuration_from_elsewhere(
    home: Path, export: Export, tmp_path: Path
) -> None:
    (home / "demo").rename(home / "moved")
    try:
        said = export("demo:F32")
        assert "config.json" in said["error"] and "--from" in said["hint"]
        assert not list(tmp_path.iterdir())
        assert "error" not in export("demo:F32", place=str(home / "moved"))
    finally:
        (home / "moved").rename(home / "demo")


def test_what_cannot_be_is_one_sentence(export: Export, tmp_path: Path) -> None:
    assert export("nothing")["code"] == "model_not_found"
    assert "there is no folder" in export("demo:F32", target="no/such")["error"]
    assert "has no `config.json`" in export("demo:F32", place=str(tmp_path))["error"]
    (tmp_path / "config.json").write_text("[]")
    assert "does not hold a JSON object" in export("demo:F32", place=str(tmp_path))["error"]
    assert [each.name for each in tmp_path.iterdir()] == ["config.json"]


def test_a_folder_that_is_there_stays_unless_it_is_a_model_and_forced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    check_place(target, force=False)
    target.mkdir()
    check_place(target, force=False)  # an empty one
    (target / "letter.txt").write_text("dear")
    for force in (False, True):
        with pytest.raises(StoreFailed):
            check_place(target, force)
    (target / "config.json").write_text("{}")
    check_place(target, force=True)
    with new_folder(target) as folder:
        folder.write("1_Pooling/config.json", [b"new"])
    assert [path.name for path in target.iterdir()] == ["1_Pooling"]
    assert not left(tmp_path)
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(StoreFailed, match="no folder"):
        check_place(tmp_path / "link", force=True)


def test_a_failure_leaves_nothing_and_the_old_folder_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("old")

    def full() -> Iterator[bytes]:
        yield b"some"
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFull, match="is full"), new_folder(target) as folder:
        folder.write("model.safetensors", full())
    with pytest.raises(KeyboardInterrupt), new_folder(target) as folder:
        folder.write("model.safetensors", [b"some"])
        raise KeyboardInterrupt
    assert (target / "config.json").read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"will have 1000000000\.00 GB"):
        check_room(tmp_path / "out", 10**18)


def test_what_a_killed_export_left_is_removed_and_a_running_one_is_not(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (tmp_path / ".out.part-1").mkdir()
    (tmp_path / ".out.part-1" / "model.safetensors").write_bytes(b"half")
    with new_folder(target) as first:
        first.write("a", [b"1"])
        other = tmp_path / "other"
        with new_folder(other) as second:
            second.write("a", [b"2"])
        assert not (tmp_path / ".out.part-1").exists()
        assert left(tmp_path) == [first.path.name]
    assert (target / "a").read_bytes() == b"1"
