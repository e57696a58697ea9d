"""Taking over a model that is quantized already, against reading its source once: `python -m benchmarks.taken`.

    python -m benchmarks.taken [--megabytes 400] [--work FOLDER] [LAYOUT…]

For each layout, a Llama of random codes in a folder. A process of its own reads the file once and hashes it, as a pull
from a hub does; then the pass makes the GGUF file of it, with the source hashed, the output hashed and written, and
journalled as in a pull. Printed: both in MB of the source a second, their ratio, the pass beside a mere copy of that
kind (hashed, written, hashed), the CPU time of all three, and the largest memory of the process. Kernels are compiled
before. CPU times are trustworthy on a busy machine, ratios of wall times only with `chrt -r 1` before the command.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.synthetic import DEMO
from quant.convert.planning import plan_model
from quant.levels.budget import types_of
from quant.levels.taken import clauses
from quant.stream.pipeline import Conversion
from registry.sha256 import Sha256
from registry.sources.local import Folder
from registry.store.partial import Partial, PullFacts

WIDTH, INNER, HEADS, KEYS, VOCABULARY, GROUP = 4096, 11_008, 32, 8, 4160, 128
PIECE = 2 << 20
# Codes are drawn from a table, at random places.
_TABLE = np.random.default_rng(0).integers(0, 256, 64 << 20, np.uint8)


class Stored(NamedTuple):
    """A tensor of a packed matrix: its type, its shape, and what its bytes are: random, or repeated."""

    dtype: str
    shape: tuple[int, ...]
    repeated: bytes = b""

    @property
    def size(self) -> int:
        """In bytes."""
        width = {"I32": 4, "U32": 4, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1}
        return width[self.dtype] * math.prod(self.shape)


Pack = Callable[[int, int], dict[str, Stored]]
# 0.01 as a scale, and bias -0.08.
_HALF, _BRAIN, _SINGLE = b"\x1f\x21", b"\x24\x3c", struct.pack("<f", 0.01)


def gptq(bits: int, zero: int) -> Pack:
    """Words along the inputs; `zero` is the byte of the stored zeros."""

    def pack(rows: int, columns: int) -> dict[str, Stored]:
        groups = columns // GROUP
        return {
            "qweight": Stored("I32", (columns * bits // 32, rows)),
            "qzeros": Stored("I32", (groups, rows * bits // 32), bytes([zero])),
            "scales": Stored("F16", (groups, rows), _HALF),
            "g_idx": Stored("I32", (columns,), np.repeat(np.arange(groups, dtype="<i4"), GROUP).tobytes()),
        }

    return pack


def awq(rows: int, columns: int) -> dict[str, Stored]:
    """Words along the outputs."""
    groups = columns // GROUP
    return {
        "qweight": Stored("I32", (columns, rows // 8)),
        "qzeros": Stored("I32", (groups, rows // 8)),
        "scales": Stored("F16", (groups, rows), _HALF),
    }


def compressed(bits: int, zeroed: bool) -> Pack:
    """Words along the inputs, rows first."""

    def pack(rows: int, columns: int) -> dict[str, Stored]:
        groups = columns // GROUP
        found = {
            "weight_packed": Stored("I32", (rows, columns * bits // 32)),
            "weight_scale": Stored("BF16", (rows, groups), _BRAIN),
        }
        return found | ({"weight_zero_point": Stored("I32", (rows * bits // 32, groups))} if zeroed else {})

    return pack


def whole(rows: int, columns: int) -> dict[str, Stored]:
    """Bytes with a scale for each row."""
    return {"weight": Stored("I8", (rows, columns)), "weight_scale": Stored("F32", (rows, 1), _SINGLE)}


def mlx(bits: int) -> Pack:
    """Words along the inputs, rows first, groups of 64."""

    def pack(rows: int, columns: int) -> dict[str, Stored]:
        shape = rows, columns // 64
        scales = {"scales": Stored("F16", shape, _HALF), "biases": Stored("F16", shape, b"\x1f\xad")}
        return {"weight": Stored("U32", (rows, columns * bits // 32)), **scales}

    return pack


def mxfp4(rows: int, columns: int) -> dict[str, Stored]:
    """Pairs of elements, a power of two for 32 of them."""
    return {
        "weight_packed": Stored("U8", (rows, columns // 2)),
        "weight_scale": Stored("U8", (rows, columns // 32), b"\x78"),
    }


def _integers(form: str, bits: int, symmetric: bool, strategy: str = "group") -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": GROUP}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quantization_config": {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}}


def _gptq(bits: int, symmetric: bool) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "sym": symmetric}}


LAYOUTS: dict[str, tuple[dict[str, Any], Pack]] = {
    "gptq": (_gptq(4, True), gptq(4, 0x77)),
    "gptq-asymmetric": (_gptq(4, False), gptq(4, 0x67)),
    "gptq-8": (_gptq(8, True), gptq(8, 0x7F)),
    "awq": ({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}}, awq),
    "compressed": (_integers("pack-quantized", 4, True), compressed(4, False)),
    "compressed-asymmetric": (_integers("pack-quantized", 4, False), compressed(4, True)),
    "compressed-int8": (_integers("int-quantized", 8, True, "channel"), whole),
    "compressed-mxfp4": (_integers("mxfp4-pack-quantized", 4, True), mxfp4),
    "mlx": ({"quantization": {"group_size": 64, "bits": 4}}, mlx(4)),
    "mlx-3": ({"quantization": {"group_size": 64, "bits": 3}}, mlx(3)),
}


def tensors(pack: Pack, layers: int) -> Iterator[tuple[str, Stored]]:
    """The tensors of a Llama, those of its matrices packed."""
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        yield name, Stored("BF16", (VOCABULARY, WIDTH), _BRAIN)
    yield "model.norm.weight", Stored("BF16", (WIDTH,), _BRAIN)
    keys = WIDTH // HEADS * KEYS
    shapes = {
        **{"mlp.down_proj": (WIDTH, INNER), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH)},
        **{"self_attn.k_proj": (keys, WIDTH), "self_attn.v_proj": (keys, WIDTH)},
        **{"self_attn.q_proj": (WIDTH, WIDTH), "self_attn.o_proj": (WIDTH, WIDTH)},
    }
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}{name}.weight", Stored("BF16", (WIDTH,), _BRAIN)
        for name, shape in shapes.items():
            yield from ((f"{at}{name}.{part}", stored) for part, stored in pack(*shape).items())


def make(folder: Path, layout: str, megabytes: int) -> None:
    """Write the folder; types lie together in its file, as safetensors' own writers have them."""
    config, pack = LAYOUTS[layout]
    each = sum(stored.size for _, stored in tensors(pack, 1))
    found = sorted(tensors(pack, max(1, megabytes * 10**6 // each)), key=lambda item: (item[1].dtype, item[0]))
    header: dict[str, Any] = {}
    offset = 0
    for name, stored in found:
        place = [offset, offset := offset + stored.size]
        header[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": place}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    rng = np.random.default_rng(1)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for _, stored in found:
            if stored.repeated:
                file.write(stored.repeated * (stored.size // len(stored.repeated)))
                continue
            left = stored.size
            while left:
                start = int(rng.integers(len(_TABLE) // 2))
                left -= file.write(_TABLE[start : start + left])
    config = json.loads((DEMO / "config.json").read_text()) | config
    config |= {"hidden_size": WIDTH, "intermediate_size": INNER}
    config |= {"num_attention_heads": HEADS, "num_key_value_heads": KEYS, "head_dim": WIDTH // HEADS}
    config |= {"vocab_size": VOCABULARY, "tie_word_embeddings": False}
    config["num_hidden_layers"] = len({name.split(".")[2] for name in header if "layers" in name})
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((DEMO / name).read_bytes())


class Hashed:
    """A reader of a folder's file that hashes what it reads, as a reader of a hub's file does."""

    def __init__(self, folder: Folder, name: str, offset: int, state: bytes) -> None:
        self._reader, self._hash = folder.open(name, offset, state), Sha256()

    def readinto(self, target: memoryview) -> None:
        """The next bytes."""
        self._reader.readinto(target)
        self._hash.update(target)

    def state(self) -> bytes | None:
        """As a `Reader` of the pass."""
        return self._reader.state()

    def finish(self) -> None:
        """As a `Reader` of the pass."""
        self._reader.finish()

    def close(self) -> None:
        """As a `Reader` of the pass."""
        self._reader.close()


def _facts(size: int) -> PullFacts:
    return PullFacts("taken", "taken", "", "Q8_0", "", "taken", size)


def read_once(folder: Folder, name: str, output: Partial | None = None) -> None:
    """Read the file and hash it; with an `output`, write it too."""
    reader, left = Hashed(folder, name, 0, b""), folder.size(name)
    piece = memoryview(bytearray(PIECE))
    while left:
        part = piece[: min(left, PIECE)]
        reader.readinto(part)
        if output:
            output.write(part)
        left -= len(part)
    reader.close()


def measured(source: Path, work: Path) -> None:
    """Be the process: print seconds (wall, CPU) of reading, copying and the pass, the memory, what the plan says."""
    folder, name = Folder(source, "taken"), "model.safetensors"
    plan = plan_model(folder)
    conversion = Conversion(plan, "Q8_0")

    def timed(act: Callable[[], None]) -> tuple[float, float]:
        began = time.perf_counter(), time.process_time()
        act()
        return time.perf_counter() - began[0], time.process_time() - began[1]

    def fresh() -> Partial:
        place = work / "ingest" / "out"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        output = Partial(place)
        output.begin(_facts(conversion.size))
        return output

    def copy() -> None:
        output = fresh()
        read_once(folder, name, output)
        output.finish()
        output.close()

    def take() -> None:
        output = fresh()
        conversion.write(lambda *at: Hashed(folder, *at), output, peek=folder.read)
        output.finish()
        output.close()

    take()  # compiles
    rows = [(*timed(lambda: read_once(folder, name)), *timed(copy), *timed(take)) for _ in range(3)]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told = "; ".join(clauses(plan, types_of(plan, "Q8_0")))
    print(json.dumps([*map(min, zip(*rows, strict=True)), memory, folder.size(name), told]))


def main() -> None:
    """Measure the layouts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("layouts", nargs="*", default=[*LAYOUTS], help=f"some of {', '.join(LAYOUTS)}")
    parser.add_argument("--megabytes", type=int, default=400, help="of each source; default 400")
    parser.add_argument("--work", type=Path, help="an empty folder; by default a temporary one")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measured(options.measure, options.work)
        return
    print(f"{'layout':22} {'read':>8} {'taken':>8}  ratio  of a copy  CPU: read, copy, taken  memory", flush=True)
    with tempfile.TemporaryDirectory(dir=options.work) as place:
        for layout in options.layouts:
            source = Path(place) / "source"
            shutil.rmtree(source, ignore_errors=True)
            source.mkdir()
            make(source, layout, options.megabytes)
            command = [sys.executable, "-m", "benchmarks.taken", "--measure", str(source), "--work", place]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            read, reading, copied, copying, taken, taking, memory, size, told = json.loads(out.splitlines()[-1])
            print(
                f"{layout:22} {size / read / 1e6:6.0f}/s {size / taken / 1e6:6.0f}/s  {read / taken:5.2f}  "
                f"{copied / taken:9.2f}  {reading:5.2f} {copying:5.2f} {taking:5.2f} s  {memory / 1e6:4.0f} MB  {told}",
                flush=True,
            )


if __name__ == "__main__":
    main()
