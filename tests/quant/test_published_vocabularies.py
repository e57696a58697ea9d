"""The vocabularies inside llama-cpp-python's source package: rebuilt as their authors publish them, and converted back.

The package is looked for in `LLAMA_SDIST` (a `.tar.gz`), else pip fetches it; nothing of it is kept.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from quant.convert.chat import capabilities
from quant.convert.config import ModelConfig
from quant.convert.tokenizer import specials
from quant.convert.tokenizer.cutting import KNOWN
from quant.convert.tokenizer.pretokenizer import NAMES, step_of
from quant.convert.tokenizer.reading import read_vocabulary
from quant.convert.tokenizer.vocabulary import STEERING
from quant.cuts.scripts import Scripts
from quant.cuts.vocabulary import WholeVocabulary
from quant.gguf.header import Header, read_header
from quant.gguf.writer import encode_header
from quant.plan import ModelPlan, TensorPlan
from tests.quant.engine import Engine
from tests.quant.support import ROOT, Folder
from tests.quant.test_sentencepiece import BPE, model
from tests.quant.vocabularies import NASTY, PLAIN, vocabulary_file

pytestmark = pytest.mark.long(name="vocabularies", sample=4)
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
VOCABULARIES = (
    "aquila",
    "baichuan",
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "gpt-neox",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "nomic-bert-moe",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
)
# Llama.cpp chose `default` for these two, before it had names; what they are published with is GPT-2's.
UNNAMED = ("aquila", "gpt-neox")
ROUTINES = {name: pre for pre in KNOWN for name in pre.names}


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of llama.cpp in the source package."""
    folder = tmp_path_factory.mktemp("sdist")
    archive = Path(os.environ.get("LLAMA_SDIST", ""))
    if not archive.is_file():
        wanted = f"llama-cpp-python=={version('llama-cpp-python')}"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "llama-cpp-python"]
        done = subprocess.run([*command, "-d", str(folder), wanted], capture_output=True, text=True, check=False)
        found = list(folder.glob("*.tar.gz"))
        if not found:
            pytest.skip(f"pip cannot fetch the source of llama-cpp-python: {done.stderr[-200:]}")
        archive = found[0]
    with tarfile.open(archive) as packed:
        wanted_files = re.compile(
            r".*/vendor/llama\.cpp/(models/ggml-vocab-.*|models/templates/.*\.jinja|src/llama-vocab\.cpp)"
        )
        packed.extractall(folder, [m for m in packed if wanted_files.fullmatch(m.name)], filter="data")
    return next(folder.glob("*/vendor/llama.cpp"))


@cache
def _header(path: Path) -> Header:
    data = path.read_bytes()
    return read_header(lambda offset, size: data[offset : offset + size], len(data), path.name)


class Published:
    """One of the vocabularies: its GGUF entries, and the texts with the ids that they ought to have, if there are."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.path = name, folder / "models" / f"ggml-vocab-{name}.gguf"
        self.header = _header(self.path)
        self.all = dict(self.header.metadata)
        self.kind, self.pre = (self.all.get(f"tokenizer.ggml.{key}", "") for key in ("model", "pre"))
        self.tokens: Sequence[str] = self.all["tokenizer.ggml.tokens"]
        self.types: Sequence[int] = self.all["tokenizer.ggml.token_type"]
        self.ids = {token: id for id, token in enumerate(self.tokens)}

    def cases(self) -> Iterator[tuple[str, list[int]]]:
        texts, ids = (Path(f"{self.path}.{kind}") for kind in ("inp", "out"))
        if texts.exists():
            split = texts.read_text().split("\n__ggml_vocab_test__\n")
            lines = [[int(id) for id in line.split()] for line in ids.read_text().splitlines()]
            yield from zip(split, lines, strict=False)

    def comparable(self, entries: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Entries in which older files are not told from newer ones: what looks like a control token has become one,
        the unknown token has a type of its own, and what stands where there is no token is called anything."""
        types = list(self.types)
        for id, (token, type) in enumerate(zip(self.tokens, self.types, strict=True)):
            if type == USER and STEERING.fullmatch(token):
                types[id] = CONTROL
            elif type == CONTROL and token in ("[UNK]", "<unk>") and self.kind in ("bert", "gemma4"):
                types[id] = UNKNOWN
        found = {key.rpartition(".")[2]: list(value) for key, value in entries.items() if isinstance(value, Sequence)}
        if entries is self.all:
            found["token_type"] = types
        for key in found.keys() & {"tokens", "scores"}:
            found[key] = [None if type == UNUSED else value for value, type in zip(found[key], types, strict=True)]
        return found

    def special(self, key: str) -> int | None:
        return self.all.get(f"tokenizer.ggml.{key}_token_id")

    def rebuilt(self) -> dict[str, Any]:
        """`tokenizer.json` as the authors of such a model write it."""
        added = [
            {"id": id, "content": token, "special": type == CONTROL, "normalized": False, "single_word": False}
            | {"lstrip": False, "rstrip": False}
            for id, (token, type) in enumerate(zip(self.tokens, self.types, strict=True))
            if type in (CONTROL, USER) or (type == UNKNOWN and self.kind != "gpt2")
        ]
        for entry in added:
            entry["special"] = self.types[entry["id"]] != USER
        make = {"gpt2": self._bytes, "gemma4": self._gemma, "bert": self._words, "t5": self._unigram}[self.kind]
        return {"version": "1.0", "added_tokens": added, "normalizer": None, "post_processor": None, **make()}

    def _ordinary(self, *types: int) -> dict[str, int]:
        return {token: id for id, token in enumerate(self.tokens) if self.types[id] in types}

    def _merges(self) -> list[list[str]]:
        return [merge.split(" ") for merge in self.all["tokenizer.ggml.merges"]]

    def _bytes(self) -> dict[str, Any]:
        pre = ROUTINES["gpt-2" if self.name in UNNAMED else self.pre]
        bpe = {"type": "BPE", "vocab": self._ordinary(NORMAL), "merges": self._merges()}
        return {"pre_tokenizer": step_of(pre), "model": {**bpe, "ignore_merges": pre.ignore_merges}}

    def _gemma(self) -> dict[str, Any]:
        vocab = dict(self.ids)
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
        bpe = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
        begin = self.tokens[self.special("bos") or 0]
        framed = {"type": "TemplateProcessing", "single": [_marker(begin), _TEXT], "pair": [_TEXT, _TEXT]}
        framed["special_tokens"] = {begin: {"id": begin, "ids": [self.special("bos")], "tokens": [begin]}}
        model = {**bpe, "vocab": vocab, "merges": self._merges()}
        return {"normalizer": replace, "pre_tokenizer": split, "post_processor": framed, "model": model}

    def _words(self) -> dict[str, Any]:
        vocab = {}
        for id, token in enumerate(self.tokens):
            marked = token if self.types[id] in (CONTROL, UNKNOWN) else token[1:] if token[0] == "▁" else f"##{token}"
            vocab[marked] = id
        first, last = "[CLS]", "[SEP]"
        framed = {
            "type": "TemplateProcessing",
            "single": [_marker(first), _TEXT, _marker(last)],
            "pair": [_TEXT, _TEXT],
        }
        framed["special_tokens"] = {t: {"id": t, "ids": [vocab[t]], "tokens": [t]} for t in (first, last)}
        words = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": vocab}
        normal = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True}
        return {
            "normalizer": {**normal, "strip_accents": None},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": framed,
            "model": {**words, "max_input_chars_per_word": 100},
        }

    def _unigram(self) -> dict[str, Any]:
        count = sum(type != UNUSED for type in self.types)
        pieces = [list(piece) for piece in zip(self.tokens, self.all["tokenizer.ggml.scores"], strict=True)][:count]
        table = bytes(item & 0xFF for item in self.all["tokenizer.ggml.precompiled_charsmap"])
        normal = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}
        cut = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
        return {
            "normalizer": normal,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, cut]},
            "model": {"type": "Unigram", "unk_id": self.special("unknown"), "vocab": pieces},
        }


_TEXT = {"Sequence": {"id": "A", "type_id": 0}}


def _marker(token: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": 0}}


@pytest.fixture(scope="module", params=VOCABULARIES)
def published(request: pytest.FixtureRequest, package: Path) -> Published:
    return Published(package, request.param)


def test_there_are_no_others(package: Path) -> None:
    found = {path.name for path in (package / "models").glob("ggml-vocab-*.gguf")}
    assert found == {f"ggml-vocab-{name}.gguf" for name in VOCABULARIES}


def test_every_name_that_llama_cpp_has_is_known(package: Path) -> None:
    source = (package / "src" / "llama-vocab.cpp").read_text()
    theirs = set(re.findall(r'tokenizer_pre == "([^"]+)"', source))
    # Those that take text without bytes go by the kind of model (`bpe.py`), not by how it cuts.
    raw = {"gemma4", "sarvam-moe", "granite-embed-multi-311m", "whitespace"}
    assert theirs == set(NAMES) | raw
    print(*(f"{name}: as {pre.name}, {len(pre.rules)} rules" for pre in KNOWN for name in pre.names), sep="\n")


def test_the_file_itself_gives_the_expected_ids(published: Published) -> None:
    with Engine(published.path, vocabulary_only=True) as engine:
        for text, ids in published.cases():
            assert engine.tokenize(text) == ids


def test_the_conversion_comes_back_to_the_same(published: Published, tmp_path: Path) -> None:
    size = len(published.tokens)
    if published.kind == "llama":
        scores = published.all["tokenizer.ggml.scores"]
        data = model(list(zip(published.tokens, scores, published.types, strict=True)), BPE)
        source = Folder(contents={"tokenizer.model": data})
    else:
        source = Folder(contents={"tokenizer.json": json.dumps(published.rebuilt()).encode()})
    named = {f"{key}_token": published.tokens[published.special(key) or 0] for key in ("bos", "eos")}
    source = source.change("tokenizer_config.json", **named)
    vocabulary = read_vocabulary(source, size)
    nothing = ModelConfig("generation_config.json", {})
    special_entries, _ = specials.describe(
        nothing, nothing, ModelConfig.read(source, "tokenizer_config.json"), vocabulary
    )
    entries = vocabulary.entries | special_entries
    ours, theirs = published.comparable(entries), published.comparable(published.all)
    for key in (
        {"tokens", "token_type", "merges", "scores", "precompiled_charsmap", "model"} & theirs.keys() & ours.keys()
    ):
        assert ours[key] == theirs[key], key
    if published.kind == "gpt2":
        name = entries["tokenizer.ggml.pre"]
        assert ROUTINES[name] is ROUTINES["gpt-2" if published.name in UNNAMED else published.pre]
    for key in ("bos", "eos"):
        assert published.special(key) in (special_entries[f"tokenizer.ggml.{key}_token_id"], None)
    with Engine(vocabulary_file(tmp_path / "v.gguf", entries), vocabulary_only=True) as engine:
        for text, ids in published.cases():
            assert engine.tokenize(text) == ids


def test_the_rebuilt_tokenizer_gives_the_expected_ids(published: Published) -> None:
    """So what is rebuilt is what was published."""
    if published.kind == "llama":
        pytest.skip("SentencePiece's own file has no `tokenizer.json`")
    original = Tokenizer.from_str(json.dumps(published.rebuilt()))
    for text, ids in published.cases():
        assert original.encode(text, add_special_tokens=False).ids == ids, text


def test_texts_in_latin_letters_keep_their_tokens_without_those_of_other_scripts(
    published: Published, tmp_path: Path
) -> None:
    if published.kind not in ("gpt2", "gemma4", "llama"):
        pytest.skip("such vocabularies are not cut")
    size = len(published.tokens)
    embedding = TensorPlan("token_embd.weight", (size, 32), "Q8_0", shard="x", size=34 * size)
    header = published.header
    plan = ModelPlan("llama", header.metadata, (embedding,), ("x",), level="Q8_0", kinds=header.kinds)
    whole = WholeVocabulary(plan)
    kept = whole.wanted(Scripts(["latin"]))
    assert whole.with_parts(kept) <= set(kept), "what a token is joined of is in the same script"
    entries = whole.cut(plan, kept).metadata
    tokens = entries["tokenizer.ggml.tokens"]
    assert len(tokens) < size
    path = tmp_path / "latin.gguf"
    path.write_bytes(encode_header(entries, (), header.kinds))
    with Engine(published.path, True) as before, Engine(path, True) as after:
        for text in (PLAIN, (ROOT / "README.md").read_text(), "naïve façade Straße đặc biệt 🏳️‍🌈 “x” — ½ ²\n\n\t\tx"):
            assert [tokens[id] for id in after.tokenize(text)] == [published.tokens[id] for id in before.tokenize(text)]
        assert after.tokenize(NASTY)


# What models of these families can do, besides completing, as their makers say.
CAPABILITIES = {
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "tools thinking",
    "GLM-4.6": "tools thinking",
    "HuggingFaceTB-SmolLM3-3B": "thinking",  # its tools go by names of their own
    "Kimi-K2-Instruct": "tools",
    "Mistral-Small-3.2-24B-Instruct-2506": "tools",
    "Qwen-QwQ-32B": "tools thinking",
    "Qwen-Qwen2.5-7B-Instruct": "tools",
    "Qwen-Qwen3-0.6B": "tools thinking",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "thinking",
    "google-gemma-2-2b-it": "",
    "ibm-granite-granite-4.0": "tools",
    "meta-llama-Llama-3.1-8B-Instruct": "tools",
    "meta-llama-Llama-3.2-3B-Instruct": "tools",
    "microsoft-Phi-3.5-mini-instruct": "",
    "mistralai-Ministral-3-14B-Reasoning-2512": "tools thinking",
    "mistralai-Mistral-Nemo-Instruct-2407": "tools",
    "openai-gpt-oss-120b": "tools thinking",
}


@pytest.mark.parametrize("name", CAPABILITIES)
def test_what_a_model_can_do_is_told_from_its_template(name: str, package: Path) -> None:
    template = (package / "models" / "templates" / f"{name}.jinja").read_text()
    assert capabilities({"default": template}, ()) == ("completion", *CAPABILITIES[name].split())


@pytest.mark.parametrize("name", ["qwen2", "starcoder", "refact", "deepseek-coder", "llama-bpe"])
def test_holes_are_filled_by_those_that_have_tokens_for_them(name: str, package: Path) -> None:
    ids = Published(package, name).ids
    assert ("insert" in capabilities({}, ids)) is (name not in ("llama-bpe", "qwen2"))
