"""RWKV's World tokenizer: a list of tokens of bytes, of which the longest that fits is taken, time after time.

Every line of the file is a number, a token as a literal of Python (text or bytes) and its length in bytes. GGUF has the
tokens with the escapes of such a literal, as `llama_unescape_rwkv_token` of llama-vocab.cpp reads them. The list leaves
out token 0, which ends a text.
"""

from __future__ import annotations

import re
from ast import literal_eval

from quant.convert.config import MAX_JSON, read_whole
from quant.convert.tokenizer.vocabulary import VocabularyPlan, too_many, unused_text
from quant.errors import MalformedFile
from quant.gguf.header import TOKEN_CONTROL, TOKEN_NORMAL, TOKEN_UNUSED
from quant.plan import Files

_NAME = re.compile(r"rwkv_vocab_v[0-9]+\.txt")
# A string or bytes of one line, in quotes of either kind.
_LINE = re.compile(r"([0-9]{1,9}) (b?(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")) ([0-9]{1,9})")
_END = "<s>"
_LINE_BREAKS = "\\n\\n"


def find(files: Files) -> str:
    """The name of the list, "" where there is none."""
    return next((name for name in sorted(files.names()) if _NAME.fullmatch(name)), "")


def read(files: Files, name: str, size: int) -> VocabularyPlan:
    """The vocabulary in the list `name`, padded to `size` embeddings.

    Raises MalformedFile for a file that is no such list or contradicts the embeddings.
    """
    try:
        text = read_whole(files, name, MAX_JSON).decode()
    except UnicodeDecodeError:
        raise _broken(name, "it is not UTF-8") from None
    tokens = [_END]
    for number, line in enumerate(filter(None, text.split("\n")), 1):
        tokens.append(_escaped(line.rstrip("\r"), number, name))
    if len(set(tokens)) != len(tokens):
        raise _broken(name, "it has a token twice")
    if len(tokens) > size:
        raise too_many(name, len(tokens) - 1, size)
    types = [TOKEN_CONTROL] + [TOKEN_NORMAL] * (len(tokens) - 1)
    used = set(tokens)
    for id in range(len(tokens), size):
        tokens.append(unused_text(id, used))
        types.append(TOKEN_UNUSED)
    ids = {token: id for id, token in enumerate(tokens)}
    entries = {"model": "rwkv", "tokens": tokens, "token_type": types}
    # Its chats end a turn by an empty line, for which the list has a token of its own.
    turn = {"eot_token_id": ids[_LINE_BREAKS]} if _LINE_BREAKS in ids else {}
    return VocabularyPlan(ids, {**entries, **turn}, end=0)


def _escaped(line: str, number: int, name: str) -> str:
    """The token of a line, with the escapes of a literal of bytes."""
    found = _LINE.fullmatch(line)
    if not found or int(found[1]) != number:
        raise _broken(name, f"line {number} is not its number, a token and its length")
    try:
        token = literal_eval(found[2])
        raw = token.encode() if isinstance(token, str) else token
    except (SyntaxError, ValueError):
        raise _broken(name, f"the token of line {number} is no literal") from None
    if not raw or len(raw) != int(found[3]):
        raise _broken(name, f"the token of line {number} has another length")
    return repr(raw)[2:-1]


def _broken(name: str, rule: str) -> MalformedFile:
    hint = "fetch the file again, or take it from the makers of the model"
    return MalformedFile(f"`{name}` is not a valid list of tokens: {rule}", hint)
