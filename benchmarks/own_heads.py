"""Drafts through a model's own heads against none, in one run: `python -m benchmarks.own_heads [MODEL.gguf]`.

Without a model, small ones of Qwen 3.5, dense and with experts, are made of random weights. Their block for further
tokens is planted so that it guesses the model's own next token: the layers leave the embedding of the last token nearly
as it is, and the block passes the embedding of the next one on. So nearly all guesses come true, and the gain is what
steps allow. No figure here says how often the guesses of a real model come true; that comes with the argument. The
gain is tokens/s with drafts by tokens/s without. What steps allow is reckoned as in `benchmarks/draft_model.py`.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from array import array
from pathlib import Path

import numpy as np

from benchmarks.draft_model import allowed
from benchmarks.speculation import QUESTIONS, SIZES, Engine, middle, speed
from quant.convert.base import HEAD
from quant.convert.planning import plan_model
from quant.gguf.header import read_file
from quant.gguf.writer import Writer, encode_header, layout
from quant.types import Tensor
from runtime.defaults import DRAFT_ROWS, ROLLBACK
from runtime.drafts.lookup import Lookup
from runtime.engine.own_heads import OwnHeads
from runtime.llama.context import OK

# The matrices that add a layer's result to what came before, and the one that begins a block for further tokens.
_RESULTS = re.compile(r"blk\.\d+\.(attn_output|ssm_out|ffn_down(_exps|_shexp)?)\.weight")
_JOINING = re.compile(r"blk\.\d+\.nextn\.eh_proj\.weight")
# The factor by which logits grow.
_SURE = 8.0
_SHAPE = {
    "hidden_size": 768,
    "intermediate_size": 2304,
    "num_hidden_layers": 12,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 16,
    "max_position_embeddings": 4096,
}
_EXPERTS = {
    "moe_intermediate_size": 384,
    "shared_expert_intermediate_size": 384,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}


def planted(path: Path, made: Path, share: float = 0.0) -> Path:
    """The model at `path`, in F32, with its block for further tokens planted; its layers add `share` of what they did.

    Its output is sharper, because a guess counts by the probability that the block gives it.
    """
    header = read_file(path)
    placed = layout(Tensor(each.name, each.shape, each.type) for each in header.tensors)
    last = f"blk.{header.metadata[header.metadata['general.architecture'] + '.block_count'] - 1}."
    with path.open("rb") as file, made.open("wb") as out:
        out.write(encode_header(dict(header.metadata), placed, header.kinds))
        writer = Writer(out, placed)
        norm = next(tensor for tensor in header.tensors if tensor.name == "output_norm.weight")
        file.seek(header.data_offset + norm.offset)
        final = file.read(norm.nbytes)
        for tensor in header.tensors:
            file.seek(header.data_offset + tensor.offset)
            data = file.read(tensor.nbytes)
            if tensor.name.startswith(last) and tensor.name.endswith(".shared_head_norm.weight"):
                data = final
            elif tensor.name.endswith(".nextn.enorm.weight"):
                data = np.ones(tensor.shape, np.float32).tobytes()
            elif _JOINING.match(tensor.name):
                columns, rows = tensor.shape
                data = np.eye(rows, columns, dtype=np.float32).tobytes()
            elif _RESULTS.match(tensor.name):
                data = _times(data, 0.0 if tensor.name.startswith(last) else share)
            elif tensor.name == HEAD:
                data = _times(data, _SURE)
            writer.append(memoryview(data))
        writer.finish()
    return made


def _times(data: bytes, factor: float) -> bytes:
    return (np.frombuffer(data, np.float32) * np.float32(factor)).tobytes()


def _model(name: str, folder: Path) -> Path:
    """A planted model, `name` among the tests'."""
    from tests.converting import write
    from tests.quant.support import Folder
    from tests.quant.zoo import sketched

    row = sketched.PREDICTING[name]
    config = {**row.config, **_SHAPE, **(_EXPERTS if "moe" in name else {})}
    source = Folder(sketched.make(row._replace(config=config), folder / "source"))
    write(plan_model(source), "F32", source.stream, folder / "plain.gguf")
    return planted(folder / "plain.gguf", folder / "planted.gguf")


def guess_seconds(heads: OwnHeads) -> float:
    """Seconds of a step of the heads: the middle of nine."""
    number, token, found = len(heads._read) - 1, memoryview(bytes(4)).cast("i"), []
    for _ in range(9):
        started = time.perf_counter()
        heads.context.put_prompt(0, token, 0, number, 1)
        if heads.context.decode(1, heads._rows) != OK:
            raise RuntimeError("a step failed")
        found.append(time.perf_counter() - started)
        heads.context.cut(number, 0)
    return middle(found)


def measure(title: str, path: Path) -> None:
    """Print the gain, by itself and of what steps allow."""
    engine = Engine(path, heads=True, rollback=ROLLBACK)
    guessing = engine.engine._speculation._guessing
    assert guessing and isinstance(guessing._model, OwnHeads)
    most = engine.engine._context.rollback or DRAFT_ROWS - 1
    gains, shares, same, accepted, drafted = [], [], 0, 0, 0
    engine.ask("Once upon a time", DRAFT_ROWS)
    for question in QUESTIONS:
        without = engine.ask(question, 0)
        costs, guess = engine.costs(min(engine.engine._context.outputs, max(SIZES))), guess_seconds(guessing._model)
        end = engine.ask(question, DRAFT_ROWS)
        gain = speed(end) / speed(without)
        gains.append(gain)
        shares.append(gain / allowed(costs, guess, end.accepted / max(1, end.drafted), most))
        same += end.ids == without.ids
        accepted, drafted = accepted + end.accepted, drafted + end.drafted
    rate = accepted / max(1, drafted)
    print(f"{title}: {middle(gains):.2f} times without; {middle(shares):.2f} of what steps allow (goal 0.8)")
    print(f"  {accepted} of {drafted} drafted tokens accepted, {rate:.3f}; {same} of {len(QUESTIONS)} texts the same")
    print(f"  {engine.engine.drafts.reason}")


def main() -> None:
    """Measure the model that is named, or the two that are made."""
    if len(sys.argv) > 1:
        measure(sys.argv[1], Path(sys.argv[1]))
        return
    Lookup.propose = lambda *_: array("i")  # type: ignore[method-assign,assignment]  # texts of random weights repeat
    for name in ("qwen35, heads", "qwen35moe, heads"):
        with tempfile.TemporaryDirectory() as folder:
            measure(name, _model(name, Path(folder)))


if __name__ == "__main__":
    main()
