"""Ranks files of tiktoken: a vocabulary as tokens and ranks, for models whose tokenizer is a program of their own.

Every line is a token in Base64 and its rank, which is its number as well. Two neighbours merge where they are a token
together, the lowest rank first (`byte_pair_merge` of openai/tiktoken). The file says neither how a text is cut into
words nor which special tokens there are; programs beside it do (`tokenization_*.py`), and these are not run. So the
programs known here are listed, by the name of their class. Where the program itself is at hand, its text must have the
expression by which the listed one cuts.
"""

from __future__ import annotations

import base64
import io
import re
import tokenize
from ast import literal_eval
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from quant.convert.config import MAX_JSON, ModelConfig, read_text, read_whole
from quant.convert.tokenizer import bpe
from quant.convert.tokenizer.added import read_decoder, within
from quant.convert.tokenizer.cutting import KNOWN, Pre
from quant.convert.tokenizer.pretokenizer import step_of
from quant.convert.tokenizer.vocabulary import VocabularyPlan, too_many
from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import Files

_CONFIG = "tokenizer_config.json"
_ENDINGS = (".tiktoken", "tiktoken.model")
# The published name of GLM 4's file, which is SentencePiece's in other models.
_EITHER = "tokenizer.model"
_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]{1,9}")
_HINT = "save the tokenizer with transformers, or use a repository of the model that has `tokenizer.json`"
_MOST = 1 << 20
"""The most tokens that a file may have; none published has half of it."""


class _Program(NamedTuple):
    """A tokenizer of its own program: llama.cpp's routine that cuts as it does, and its special tokens.

    `special(base, decoder)` are the texts of the tokens behind the `base` ones of the file, by `decoder`, the texts of
    `added_tokens_decoder`. `steps` are the normalizers, as `tokenizer.json` names them.
    """

    pre: str
    special: Callable[[int, dict[int, str]], list[str]]
    steps: tuple[str, ...] = ()


def _qwen(base: int, decoder: dict[int, str]) -> list[str]:
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))]


def _hunyuan(base: int, decoder: dict[int, str]) -> list[str]:
    first = ["<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"]
    return [*first, *(f"<|extra_{number}|>" for number in range(205))]


def _kimi(base: int, decoder: dict[int, str]) -> list[str]:
    return [decoder.get(id, f"<|reserved_token_{id}|>") for id in range(base, base + 258)]


def _glm(base: int, decoder: dict[int, str]) -> list[str]:
    return []


# Sources: `tokenization_qwen.py`, `tokenization_hy.py`, `tokenization_kimi.py` and `tokenization_chatglm.py`, which are
# published with the models.
_PROGRAMS = {
    "QWenTokenizer": _Program("qwen2", _qwen, ("NFC",)),
    "HYTokenizer": _Program("qwen2", _hunyuan, ("NFC",)),
    "TikTokenTokenizer": _Program("kimi-k2", _kimi),
    "ChatGLM4Tokenizer": _Program("llama-bpe", _glm),
}
_ROUTINES = {pre.name: pre for pre in KNOWN}
# Letters that stand for the bytes in GPT-2's vocabularies: printable ones for themselves, the others from U+0100 on.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = iter(range(0x100, 0x200))
_LETTERS = [chr(byte) if byte in _PRINTABLE else chr(next(_OTHERS)) for byte in range(256)]


def find(files: Files) -> str:
    """The name of the ranks file, "" where there is none."""
    names = files.names()
    for name in sorted(names):
        if name.endswith(_ENDINGS):
            return name
    if _EITHER not in names:
        return ""
    head = files.read(_EITHER, 0, min(files.size(_EITHER), 1024))
    return _EITHER if _LINE.fullmatch(head.split(b"\n")[0].rstrip(b"\r")) else ""


def read(files: Files, name: str, size: int, pre: str | None = None) -> VocabularyPlan:
    """The vocabulary in the ranks file `name`, padded to `size` embeddings; `pre` as for `read_vocabulary`.

    Raises MalformedFile for a file that is no such list or contradicts the embeddings. Raises UnsupportedModel for a
    program that is not known, or that cuts words otherwise than the known one of its name.
    """
    program = _program(files, name)
    ranks = _parse(read_whole(files, name, MAX_JSON), name)
    if len(ranks) > size:
        raise too_many(name, len(ranks) - 1, size)
    decoder = read_decoder(files)
    texts = {id: token.text for id, token in decoder.items()}
    special = program.special(len(ranks), texts)[: size - len(ranks)]
    vocab = {"".join(_LETTERS[byte] for byte in token): rank for token, rank in ranks.items()}
    merges, routine = _merges(vocab), _ROUTINES[program.pre]
    tokenizer = {
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [list(pair) for pair in merges],
            "ignore_merges": routine.ignore_merges,
        },
        "added_tokens": [
            {"id": id, "content": text, "special": id not in decoder or decoder[id].special}
            for id, text in enumerate(special, len(ranks))
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": step} for step in program.steps]},
        "pre_tokenizer": step_of(routine),
    }
    known, beyond = within(decoder, size)
    plan = bpe.read(tokenizer, size, known, pre or routine.name)
    remarks = beyond if routine.ignore_merges else (*beyond, *_unreached(vocab, merges))
    return replace(plan, remarks=remarks)


def _program(files: Files, name: str) -> _Program:
    """The program that reads the file, by the name of its class."""
    config = ModelConfig.read(files, _CONFIG)
    mapped = config.part("auto_map").get("AutoTokenizer")
    first = mapped[0] if isinstance(mapped, list) and mapped else mapped
    reference = first if isinstance(first, str) else config.get("tokenizer_class")
    home, _, kind = reference.rpartition(".") if isinstance(reference, str) else ("", "", "")
    if kind not in _PROGRAMS:
        said = f"its class `{ascii(kind)[1:-1][:40]}` is not known here" if kind else f"`{_CONFIG}` names no class"
        raise UnsupportedModel(
            f"there is no `tokenizer.json`, and the rules for `{name}` stand in a program, which is not run: {said}",
            hint=_HINT,
        )
    program = _PROGRAMS[kind]
    text = read_text(files, f"{home.rpartition('--')[2]}.py") if home else ""
    if text and not _has_rule(text, _ROUTINES[program.pre]):
        raise UnsupportedModel(
            f"`{home.rpartition('--')[2]}.py` cuts text into words otherwise than `{kind}` usually does", hint=_HINT
        )
    return program


def _has_rule(text: str, routine: Pre) -> bool:
    """Whether the text of a program has the routine's expression: in one string, or its parts in neighbouring ones."""
    (rule,) = routine.rules
    return any(rule in (found, joined) for found, joined in _strings(text))


def _strings(text: str) -> Iterator[tuple[str, str]]:
    """Strings of a program that stand beside each other or in a list: put together, and with `|` between them."""
    parts: list[str] = []
    try:
        for kind, word, *_ in tokenize.generate_tokens(io.StringIO(text).readline):
            if kind == tokenize.STRING and not word.lower().startswith(("f", "rf", "fr", "b", "rb", "br")):
                parts.append(literal_eval(word))
            elif parts and kind not in (tokenize.NL, tokenize.COMMENT) and word != ",":
                yield "".join(parts), "|".join(parts)
                parts = []
    except (SyntaxError, ValueError, tokenize.TokenError):
        return


def _parse(data: bytes, name: str) -> dict[bytes, int]:
    """The tokens of a ranks file with their ranks, which are the numbers from 0 on."""
    ranks: dict[bytes, int] = {}
    for number, raw in enumerate(data.splitlines(), 1):
        line = raw.strip()
        if not line:
            continue
        if not _LINE.fullmatch(line):
            raise _broken(name, f"line {number} is no token in Base64 and its rank")
        token, rank = line.split()
        try:
            decoded = base64.b64decode(token, validate=True)
        except ValueError:
            raise _broken(name, f"line {number} is no token in Base64 and its rank") from None
        if not decoded or decoded in ranks:
            raise _broken(name, f"the token of line {number} is empty, or there already")
        ranks[decoded] = int(rank)
        if len(ranks) > _MOST:
            raise _broken(name, f"it has more than {_MOST} tokens")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise _broken(name, "its ranks are not the numbers from 0 on")
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise _broken(name, "not every byte is a token")
    return ranks


def _merges(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs that merge, by the rank of their token: tiktoken merges any two tokens that are one together."""
    merges: list[tuple[str, str]] = []
    for token in sorted(vocab, key=vocab.__getitem__):
        splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
        merges += sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return merges


def _unreached(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tuple[str, ...]:
    """A remark on tokens that merges alone do not make: tiktoken takes whole words first, and the routine does not."""
    count = len(bpe.unreached(vocab, merges, vocab))
    what = "token is" if count == 1 else "tokens are"
    return (f"{count} {what} made by no merge, and llama.cpp spells such words by smaller ones",) if count else ()


def _broken(name: str, rule: str) -> MalformedFile:
    hint = "fetch the file again, or take it from the makers of the model"
    return MalformedFile(f"`{name}` is not a valid list of ranks: {rule}", hint)
