"""Makes a mixture of experts of a Llama in a folder: copies of its feed-forward, some without work, to cut them again.

    python -m benchmarks.mixture SOURCE OUT [--working 4] [--idle 4] [--noise 0.1]

The router chooses two experts for a token. The rows of working experts come in pairs of opposite sign, and the rows of
idle ones are zero: so two working experts always have larger logits. Copies differ by noise, a share of the deviation
of each matrix. The figures of such a mixture say whether a cut is right, and nothing about trained experts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.synthetic import to_bf16

_USED = 2
_NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def main() -> None:
    """Make the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--working", type=int, default=4)
    parser.add_argument("--idle", type=int, default=4)
    parser.add_argument("--noise", type=float, default=0.1)
    asked = parser.parse_args()
    planted = make(asked.source, asked.out, asked.working, asked.idle, asked.noise)
    print(f"without work: {planted}")


def make(source: Path, out: Path, working: int = 4, idle: int = 4, noise: float = 0.1) -> list[int]:
    """Write the mixture of a Llama in BF16, in one file, into a new folder; returns the numbers of idle experts.

    `working` is even.
    """
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((source / "config.json").read_text())
    count = working + idle
    config |= {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "sliding_window": None}
    config |= {"num_local_experts": count, "num_experts_per_tok": _USED}
    (out / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(7)
    numbers = random.permutation(count)
    planted, busy = sorted(map(int, numbers[:idle])), numbers[idle:]
    found: dict[str, NDArray[np.uint16]] = {}
    for name, bits in _read(source / "model.safetensors").items():
        place, _, part = name.removesuffix(".weight").partition(".mlp.")
        if not part:
            found[name] = bits
            continue
        at = f"{place}.block_sparse_moe."
        values = (bits.astype("<u4") << 16).view("<f4")
        for expert in range(count):
            changed = values + np.float32(noise * values.std()) * random.standard_normal(values.shape, np.float32)
            found[f"{at}experts.{expert}.{_NAMES[part]}.weight"] = to_bf16(changed)
        if part == "gate_proj":
            width = values.shape[1]
            half = random.standard_normal((working // 2, width), np.float32) / np.float32(width**0.5)
            rows = np.zeros((count, width), np.float32)
            rows[busy] = np.concatenate([half, -half])
            found[f"{at}gate.weight"] = to_bf16(rows)
    _write(out / "model.safetensors", found)
    return planted


def _read(path: Path) -> dict[str, NDArray[np.uint16]]:
    """The bits of tensors in BF16."""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            found[name] = np.frombuffer(data[begin:end], "<u2").reshape(entry["shape"])
    return found


def _write(path: Path, tensors: dict[str, NDArray[np.uint16]]) -> None:
    header, offset = {}, 0
    for name, bits in tensors.items():
        header[name] = {"dtype": "BF16", "shape": bits.shape, "data_offsets": [offset, offset + bits.nbytes]}
        offset += bits.nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for bits in tensors.values():
            file.write(np.ascontiguousarray(bits).tobytes())


if __name__ == "__main__":
    main()
