"""A file that stands for another is called what it is, and the hint fetches the file itself."""

from __future__ import annotations

import re

import pytest

from quant.convert.planning import plan_model
from quant.errors import MalformedFile
from tests.quant.support import DEMO, Folder

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 988097824\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>model.safetensors</title></head></html>\n"
NAMES = ("model.safetensors", "tokenizer.json", "config.json", "model.safetensors.index.json")


@pytest.mark.parametrize("name", NAMES)
def test_a_pointer_of_git_lfs_in_a_folder_says_what_fetches_the_file(name: str) -> None:
    with pytest.raises(MalformedFile, match=f"`{re.escape(name)}` is only the pointer of Git LFS") as caught:
        plan_model(Folder(DEMO).with_file(name, POINTER))
    assert "`git lfs pull`" in caught.value.hint


def test_so_do_pointers_in_the_place_of_gguf_and_sentencepiece() -> None:
    with pytest.raises(MalformedFile, match=r"`a\.gguf` is only the pointer") as caught:
        plan_model(Folder(contents={"a.gguf": POINTER}))
    assert "`git lfs pull`" in caught.value.hint
    folder = Folder(DEMO).with_file("tokenizer.json", None).with_file("tokenizer.model", POINTER)
    with pytest.raises(MalformedFile, match=r"`tokenizer\.model` is only the pointer"):
        plan_model(folder)
    with pytest.raises(MalformedFile, match="Git XET") as caught:
        plan_model(Folder(DEMO).with_file("model.safetensors", b"# xet version 0\nfilesize = 5\n"))
    assert "`git xet pull`" in caught.value.hint


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_web_page_in_the_place_of_a_file_is_called_so(name: str) -> None:
    with pytest.raises(MalformedFile, match="web page") as caught:
        plan_model(Folder(DEMO).with_file(name, PAGE))
    assert "damaged" not in caught.value.hint
