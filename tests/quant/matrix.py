"""What the tests found out about every architecture: a table, printed at the end of a run and kept in `docs/models.md`.

`python -m tests.quant.matrix [-k WORD]` runs the tests that fill it, or some, and writes what they found.
"""

from __future__ import annotations

import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs" / "models.md"
COLUMNS = ("logits", "attention", "tokenizer", "tied", "shards", "experts", "transforms", "entries", "levels")
EMPTY = "·"
HEAD = """# Every architecture, as the tests found it

Written by `python -m tests.quant.matrix`; a dot is a cell that no test filled. Models are small and random, made by
`transformers`; a row is an architecture by llama.cpp's name, and what is particular about the model.

- **logits**: the largest difference to `transformers`, in standard deviations of the logits (vectors, scores), with F32
  weights and cache and a prompt of several batches; at most 1e-3. In brackets the same with GELU from ggml's table in
  half precision, as the engine has it, which the first figure leaves out.
- **attention**: the largest share that one of up to 200 tokens gets, on average. Even attention would have 0.01.
- **tokenizer**: the pre-tokenizer's name; ids are equal on a nasty text. **tied**: one matrix for input and output.
- **transforms**: what is done to tensors; each one left out makes a difference of more than 1e-2, and so does each of
  the **entries** of the metadata if it is wrong.
- **levels**: how many load and answer (how many of them differ, and in how long rows); K and I types need rows of 256.

"""
_found: dict[str, dict[str, str]] = {}


def note(row: str, column: str, cell: str) -> None:
    """Fill a cell."""
    assert column in COLUMNS
    _found.setdefault(row, {})[column] = cell


def lines() -> list[str]:
    """The table, empty where nothing was tried; a dot is a cell that no test filled."""
    table = _table(_found)
    widths = [max(len(line[index]) for line in table) for index in range(len(COLUMNS) + 1)]
    filled = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    return [line.rstrip() for line in filled] if _found else []


def _table(rows: dict[str, dict[str, str]]) -> list[tuple[str, ...]]:
    return [("", *COLUMNS), *((row, *(cells.get(column, EMPTY) for column in COLUMNS)) for row, cells in rows.items())]


def read() -> dict[str, dict[str, str]]:
    """The rows of the page."""
    kept = PAGE.read_text().splitlines() if PAGE.is_file() else []
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in kept if line.startswith("|")]
    found = {row: dict(zip(COLUMNS, filled, strict=True)) for row, *filled in cells[2:]}
    return {row: {column: cell for column, cell in filled.items() if cell != EMPTY} for row, filled in found.items()}


def write(names: list[str]) -> None:
    """The page with what was found now; of the rest what it said before, of rows that there are."""
    before = read()
    rows = {
        name: {**before.get(name, {}), **_found.get(name, {})} for name in [*names, *sorted(_found.keys() - set(names))]
    }
    head, *body = _table(rows)
    rule = ("---",) * (len(COLUMNS) + 1)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(HEAD + "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *body)))


def main() -> int:
    """Run the tests and write the page."""
    import pytest

    from tests.quant import matrix
    from tests.quant.zoo import ZOO

    code = pytest.main(["-q", "-m", "oracle", *sys.argv[1:], str(Path(__file__).with_name("test_zoo.py"))])
    # Not this module, which is `__main__`, but the one that the tests have imported.
    matrix.write(list(ZOO))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
