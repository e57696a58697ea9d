"""What a user types as a model: when it is a folder of this machine, and when a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.errors import Failure
from cli.naming import explaining, mistakable, reference


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("tale", "org/repo", "usb/deep/model", "my model", "a:b", "demo"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("usb/x.gguf", "lone.GGUF", "usb/two.Q4_K_M.gguf"):
        (tmp_path / file).touch()


@pytest.mark.parametrize(
    ("typed", "path"),
    [
        ("tale/", "tale"),
        ("tale/:Q4_K_M", "tale:Q4_K_M"),
        ("demo/", "demo"),
        ("org/repo/", "org/repo"),
        ("usb/x.gguf", "usb/x.gguf"),
        ("usb/x.gguf:Q4_K_M", "usb/x.gguf:Q4_K_M"),
        ("lone.GGUF", "lone.GGUF"),
        ("usb/two.Q4_K_M.gguf", "usb/two.Q4_K_M.gguf"),
        ("usb/deep/model", "usb/deep/model"),
        ("my model", "my model"),
        ("a:b/", "a:b/"),
        ("./a:b/", "a:b/"),
        ("./tale/", "tale"),
    ],
)
def test_what_is_there_and_can_be_no_name_is_a_path(tmp_path: Path, typed: str, path: str) -> None:
    assert reference(typed) == f"{tmp_path}/{path}"


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("org/repo", "hf.co/org/repo"),
        ("org/repo:Q4_K_M", "hf.co/org/repo:Q4_K_M"),
        ("org/repo:x.gguf", "hf.co/org/repo:x.gguf"),
        ("usb/absent.gguf", "hf.co/usb/absent.gguf"),
        ("tale", "tale"),
        ("demo", "demo"),
    ],
)
def test_a_name_stays_a_name_whatever_folders_there_are(typed: str, name: str) -> None:
    assert reference(typed) == name


@pytest.mark.parametrize("typed", ["a b", "a" * 5000, "a" * 300 + ":Q4_K_M/x", "tale:", "../x:"])
def test_neither_name_nor_path_is_refused_in_words(typed: str) -> None:
    with pytest.raises(Failure, match="is not a name of a model"):
        reference(typed)


def test_a_folder_that_is_not_there_is_called_one() -> None:
    with pytest.raises(Failure, match="there is no folder `absent/` here"):
        reference("absent/")


@pytest.mark.parametrize("typed", ["tale", "tale:Q4_K_M", "org/repo", "org/repo:Q4_K_M"])
@pytest.mark.parametrize("code", ["model_not_found", "access_denied", "source_unavailable"])
def test_who_meant_the_folder_is_told_how_to_name_it(typed: str, code: str) -> None:
    with pytest.raises(Failure) as caught, explaining(typed):
        raise Failure("not there", "look elsewhere", code)
    hint = f"for the folder of that name write `./{typed}`"
    assert caught.value.hint == (f"look elsewhere; {hint}" if code == "source_unavailable" else hint)


def test_a_hint_stays_where_no_folder_is_meant() -> None:
    assert mistakable("usb/x.gguf") == mistakable("./tale") == mistakable("other") == ""
    with pytest.raises(Failure) as caught, explaining("tale"):
        raise Failure("no room", "make some", "disk_full")
    assert caught.value.hint == "make some"
