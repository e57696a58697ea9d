"""Loads a model under a limit of memory, weights read instead of mapped, and runs it, for `benchmarks/fit.py`.

    python -m benchmarks.limited PATH CONTEXT SEQUENCES LIMIT

Prints what the process then holds, and what of its address space counts against `RLIMIT_DATA`, in bytes.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from runtime.context import Context, Shape
from runtime.context import sequences as all_sequences
from runtime.hardware import usable_cpus
from runtime.llama import Model


def main(path: Path, context: int, sequences: int, limit: int) -> None:
    """Fill a batch of the context, and then one token."""
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    model = Model(path, mapped=False)
    made = Context(model, Shape(context, all_sequences(model, sequences), sequences, usable_cpus()))
    tokens = min(made.batch_size, context - 1)
    made.put_prompt(0, memoryview(bytes(4 * tokens)).cast("i"), 0, 0, 1)
    made.decode(tokens)
    made.put_token(0, 0, tokens, 0)
    made.decode(1)
    status = Path("/proc/self/status").read_text().splitlines()
    print(*(int(line.split()[1]) << 10 for name in ("RssAnon", "VmData") for line in status if line.startswith(name)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
