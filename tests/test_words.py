"""The words of the house: no riddles in docstrings and comments, no long sentences, one meaning for each class name.

`python -m tests.test_words` prints every fault by file, then how many there are of each kind.
"""

from __future__ import annotations

import ast
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from tests.parsed import tree

ROOT = Path(__file__).parent.parent
PACKAGES = ("cli", "server", "runtime", "registry", "quant")
LONGEST = 35  # words in a sentence
RIDDLES = {
    "opens with its genitive": r"^(Of|From which|Of which|To what|By what)\b",
    "opens with What, not with the thing's name": r"^What\b",
    "leaves a noun out": r"\b(that of|those (of|that|which|who|whose|to be)|the ones? (of|that|which|whose))\b",
    "says so many for N": r"\bso (many|much)\b(?! \w+er\b)",
    "asks what of what": r"\bwhat\b[^.;]*\bwhat\b|\bwhat of\b|\bof what\b",
}


def texts(path: Path) -> Iterator[str]:
    """Paragraphs of docstrings and of comments; an item of a list, a row of a table, a tree's branch stand alone."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from re.split(r"\n\s*\n|\n(?=[|*├└-]|    |[\w`, ]{1,24}: )", ast.get_docstring(node) or "")
    with path.open("rb") as file:
        comments = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    for _, run in groupby(enumerate(comments), lambda each: (each[1].start[0] - each[0], each[1].start[1])):
        yield "\n".join(token.string.lstrip("#: ") for _, token in run)


def faults(path: Path) -> Iterator[tuple[str, str]]:
    """Each riddle and each long sentence: its kind, and the sentence."""
    for text in texts(path):
        for sentence in re.split(r"(?<=[.!?])\s+(?=[^a-z])", " ".join(text.split())):
            if len(sentence.split()) > LONGEST:
                yield f"is longer than {LONGEST} words", sentence
            for kind, pattern in RIDDLES.items():
                if re.search(pattern, sentence, 0 if pattern.startswith("^") else re.IGNORECASE):
                    yield kind, sentence


def sources() -> dict[str, Path]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): path for path in paths}


def homonyms() -> dict[str, list[str]]:
    found = defaultdict(list)
    for name, path in sources().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(name)
    return {name: places for name, places in sorted(found.items()) if len(places) > 1}


def test_no_sentence_has_to_be_read_twice() -> None:
    assert not [f"{name} {kind}: {sentence}" for name, path in sources().items() for kind, sentence in faults(path)]


def test_a_class_name_means_one_thing() -> None:
    assert not homonyms()


if __name__ == "__main__":
    kinds: Counter[str] = Counter()
    for name, path in sources().items():
        for kind, sentence in faults(path):
            kinds[kind] += 1
            print(f"{name} {kind}: {sentence}")
    print("", *(f"{count:4} {kind}" for kind, count in kinds.most_common()), sep="\n")
    print(f"{kinds.total():4} in all; {len(homonyms())} class names of several classes: {', '.join(homonyms())}")
