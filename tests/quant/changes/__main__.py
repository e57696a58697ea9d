"""Every key of every row's config changed: transformers and the converter must agree, or the converter must refuse.

`python -m tests.quant.changes [--row WORD] [--only WORD] [--sample] [--out FILE]` (extra `oracle`). A trial takes
the config of a small random model (`zoo`), gives a key another value (`values.py`), and asks both sides (`trial.py`).
What comes out:

- `right`: converted, and the logits are those of transformers;
- `refused`: the converter refuses, and the logits of transformers did change;
- `too strict`: the converter refuses a value that changes no logit;
- `wrong`: converted, and the logits differ: the fault that this script looks for;
- `said`: converted, and the logits differ in the way that `docs/models.md` tells of the architecture;
- `unloadable`: converted, and llama.cpp refuses the file or ends the process;
- `impossible`: transformers itself does not take the value.

Each row runs in a process of its own, since llama.cpp may end it. `--sample` makes few trials: each row as it is, as
transformers 4 saved it, with one scaling, and each key in one of the rows that have it. `--page FILE…` writes what is
in files of results into `docs/models.md`, and tries nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.quant.changes import report
from tests.quant.changes.trial import Result
from tests.quant.changes.values import sampled

FAULTS = ("wrong", "unloadable", "failed")
FINE = ("right", "refused", "said", "impossible")
Wanted = Callable[[str], bool]
"""Whether a change is to be tried, by its name."""


def main(argv: list[str]) -> int:
    """Run rows in processes of their own and print what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--row", default="", help="rows with this word alone")
    parser.add_argument("--only", default="", help="changes with this word alone")
    parser.add_argument("--again", type=Path, nargs="+", help="files of results: what was neither right nor refused")
    parser.add_argument("--sample", action="store_true", help="one value of each key, in one row")
    parser.add_argument("--page", type=Path, nargs="+", help="files of results, to be written into docs/models.md")
    parser.add_argument("--part", default="1/1", help="such as 2/4: the second quarter of the rows")
    parser.add_argument("--out", type=Path, help="a file for all results, a line of JSON each; its rows stay")
    options = parser.parse_args(argv)
    if options.page:
        report.write([each for path in options.page for each in read(path)])
        return 0
    _warm_up()
    from tests.quant.zoo import ZOO

    number, parts = map(int, options.part.split("/"))
    names = [name for name in ZOO if options.row in name][number - 1 :: parts]
    counts: Counter[str] = Counter()
    seen: set[str] | None = set() if options.sample else None
    again = {(each.row, each.change) for path in options.again or () for each in read(path) if each.kind not in FINE}
    names = [name for name in names if not again or name in {row for row, _ in again}]

    def wanted(row: str, change: str) -> bool:
        return options.only in change and (not again or (row, change) in again or (row, "") in again)

    done = _finished(options.out)
    with Path(options.out or os.devnull).open("w") as out:
        for each in done:
            print(json.dumps(each._asdict()), file=out)
        for name in [name for name in names if name not in {each.row for each in done}]:
            for result in watched(name, lambda change, row=name: wanted(row, change), seen):
                counts[result.kind] += 1
                (set() if seen is None else seen).update(result.keys)
                print(json.dumps(result._asdict()), file=out, flush=True)
                if result.kind not in FINE:
                    print(f"{result.kind:10} {result.row}: {result.change}  {result.detail}", flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in counts.most_common()))
    return 1 if any(counts[kind] for kind in FAULTS) else 0


def _finished(path: Path | None) -> list[Result]:
    """The results that a file has, without those of the last row, which may not be all."""
    found = read(path) if path and path.exists() else []
    return [each for each in found if each.row != found[-1].row]


def read(path: Path) -> list[Result]:
    """The results in a file; a line that was not finished does not count."""
    return [Result(**json.loads(line)) for line in path.read_text().splitlines() if line.endswith("}")]


def _warm_up() -> None:
    """Import what takes seconds, once for all rows; nothing is computed yet, so that no thread runs at a fork."""
    import torch
    import transformers
    import transformers.modeling_utils

    from quant.stream import pipeline
    from tests.quant import engine, test_zoo
    from tests.quant.changes import trial

    # llama.cpp's own report of where it ended the process takes seconds, and says nothing about the file.
    os.environ["GGML_NO_BACKTRACE"] = "1"
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    assert pipeline and engine and test_zoo and trial


def watched(name: str, wanted: Wanted, seen: set[str] | None = None) -> Iterator[Result]:
    """The results of a row, whose process is started again behind each trial that ends it.

    `seen`: for a sample, the keys that other rows have tried.
    """
    before = None if seen is None else frozenset(seen)
    skip, more = 0, True
    while more:
        read, written = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            _run(name, wanted, before, skip, written)
        os.close(written)
        begun: dict[str, str] | None = None
        more = False
        with os.fdopen(read) as lines:
            for line in lines:
                skip += 1
                begun = json.loads(line)
                answered = json.loads(next(lines, "null"))
                if answered is None:
                    more = True
                else:
                    yield Result(**answered)
                    begun = None
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if begun:
            kind = "unloadable" if status < 0 else "failed"
            yield Result(name, begun["name"], tuple(begun["keys"]), kind, f"the process ended with status {status}")
        elif status:
            yield Result(name, "", (), "failed", f"the process ended with status {status}")


def _run(name: str, wanted: Wanted, seen: frozenset[str] | None, skip: int, out: int) -> None:
    """In the child: try all changes of a row after the first `skip`, a line of JSON before and after each."""
    from tests.quant.changes.trial import Trial

    code = 1
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        with tempfile.TemporaryDirectory() as place, os.fdopen(out, "w") as said:
            trial = Trial(name, Path(place))
            changes = [each for each in trial.changes() if wanted(f"{each.name} (4)" if each.old else each.name)]
            for change in (changes if seen is None else sampled(changes, seen))[skip:]:
                print(json.dumps({"name": change.name, "keys": change.keys}), file=said, flush=True)
                print(json.dumps(trial.run(change)._asdict()), file=said, flush=True)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
