"""GGUF files as people publish them: several levels side by side, split files, files made by the `gguf` package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from quant.convert.planning import plan_model
from quant.plan import ModelPlan
from tests.converting import write
from tests.quant.support import DEMO, Folder


def publish(folder: Path, *levels: str, name: str = "Demo-6M-{}.gguf") -> Path:
    """A repository of the demo at some levels."""
    folder.mkdir(parents=True, exist_ok=True)
    for level in levels:
        make(folder / name.format(level), level)
    return folder


def make(path: Path, level: str, plan: ModelPlan | None = None) -> Path:
    """The demo at a level in one file, of whatever name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(plan or plan_model(Folder(DEMO)), level, Folder(DEMO).stream, path)
    return path


def half_rotated() -> ModelPlan:
    """The demo as a Qwen 2 that rotates half of each head: its header is sound, and llama.cpp aborts on it."""
    plan = plan_model(Folder(DEMO).change("config.json", architectures=["Qwen2ForCausalLM"]))
    return replace(plan, metadata={**plan.metadata, "qwen2.rope.dimension_count": 32})


def split(path: Path, target: Path, tensors: int, *, small_first: bool = False) -> list[Path]:
    """The parts of a file, with at most `tensors` tensors each, written by the `gguf` package, named after `target`."""
    rewrite(path, target, split_max_tensors=tensors, small_first_shard=small_first)
    return sorted(target.parent.glob(f"{target.stem}-*-of-*.gguf"))


def rewrite(
    path: Path,
    target: Path,
    *,
    backwards: bool = False,
    split_max_tensors: int = 0,
    small_first_shard: bool = False,
    **more: str,
) -> None:
    """Write a file again with the `gguf` package, with `more` entries of text (`__` in a key stands for a dot).

    `backwards`: the tensors from the last to the first.
    """
    reader = gguf.GGUFReader(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(
        target, architecture, split_max_tensors=split_max_tensors, small_first_shard=small_first_shard
    )
    for key, entry in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        inner = entry.types[1] if len(entry.types) > 1 else None
        writer.add_key_value(key, entry.contents(), entry.types[0], inner)
    for key, text in more.items():
        writer.add_string(key.replace("__", "."), text)
    for tensor in reversed(reader.tensors) if backwards else reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
