"""RWKV's World tokenizer: the published list through llama.cpp against RWKV's own program; lists that are broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from quant.convert.config import ModelConfig
from quant.convert.tokenizer import pretokenizer, specials
from quant.convert.tokenizer.reading import read_vocabulary
from quant.errors import MalformedFile
from tests.quant.engine import Engine
from tests.quant.support import Folder
from tests.quant.vocabularies import NASTY, PLAIN, vocabulary_file

NAME = "rwkv_vocab_v20230424.txt"


def folder(text: str | bytes) -> Folder:
    return Folder(contents={NAME: text if isinstance(text, bytes) else text.encode()})


@pytest.mark.oracle
def test_tokens_are_those_of_rwkvs_own_program(tmp_path: Path) -> None:
    program = pytest.importorskip("rwkv.rwkv_tokenizer")
    path = Path(program.__file__).with_name(NAME)
    original = program.TRIE_TOKENIZER(str(path))
    vocabulary = read_vocabulary(folder(path.read_bytes()), 65536)
    with Engine(vocabulary_file(tmp_path / "v.gguf", vocabulary.entries), vocabulary_only=True) as engine:
        for text in (PLAIN, NASTY, *pretokenizer.HARD):
            assert engine.tokenize(text) == original.encode(text), text


SMALL = "1 '\\x00' 1\n2 b'\\xe4' 1\n3 \"it's\" 4\n4 'é' 2\n5 '\\n\\n' 2\n"


def test_a_text_ends_with_the_first_token_whatever_other_files_say() -> None:
    found = read_vocabulary(folder(SMALL), 8)
    assert found.entries["tokenizer.ggml.tokens"][:6] == ["<s>", "\\x00", "\\xe4", "it's", "\\xc3\\xa9", "\\n\\n"]
    assert found.entries["tokenizer.ggml.token_type"] == [3, 1, 1, 1, 1, 1, 5, 5]
    config = ModelConfig("config.json", {"bos_token_id": 1, "eos_token_id": 2})
    entries, stops = specials.describe(config, config, ModelConfig("tokenizer_config.json", {}), found)
    assert stops == (0, 5)
    assert (entries["tokenizer.ggml.bos_token_id"], entries["tokenizer.ggml.eos_token_id"]) == (0, 0)
    assert found.entries["tokenizer.ggml.eot_token_id"] == entries["tokenizer.ggml.eot_token_id"] == 5


@pytest.mark.parametrize(
    "text",
    [
        b"\xff",
        "1 'a'\n",
        "2 'a' 1\n",
        "1 'a' 2\n",
        "1 '' 0\n",
        "1 a 1\n",
        "1 'a' 1\n2 b'a' 1\n",
        "1 '\\x' 1\n",
        "1 'a'+'b' 2\n",
        "1 '\\ud800' 3\n",
        "<!DOCTYPE html>",
        "1 'a' 1\n" + "".join(f"{number} '{number}' {len(str(number))}\n" for number in range(2, 10)),
    ],
)
def test_broken_lists_are_refused_with_a_hint(text: str | bytes) -> None:
    with pytest.raises(MalformedFile, match=NAME) as caught:
        read_vocabulary(folder(text), 8)
    assert caught.value.hint
