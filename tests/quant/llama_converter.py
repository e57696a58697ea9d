"""llama.cpp's own converter as a second oracle: both files of one model, entry by entry and tensor by tensor.

`LLAMA_CPP` names the folder of llama.cpp's source, from which a child process runs the converter; nothing of it is
copied. The tokenizer is read as GPT-2's in every model, since the models here have the demo's: vocabularies have tests
of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FOLDER = Path(os.environ.get("LLAMA_CPP", "none"))
UNKNOWN = "unknown"


class Converter:
    """The child process with llama.cpp's converter, for any number of models."""

    def __enter__(self) -> Converter:
        self._child = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "LLAMA_CPP": str(FOLDER), "HF_HUB_OFFLINE": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._child.communicate("")

    def convert(self, source: Path, target: Path) -> str:
        """Convert a folder at F32. "" where that went well, `UNKNOWN` for an unknown class, else what went wrong."""
        assert self._child.stdin and self._child.stdout
        self._child.stdin.write(json.dumps([str(source), str(target)]) + "\n")
        self._child.stdin.flush()
        return str(json.loads(self._child.stdout.readline()))


class File(NamedTuple):
    """A GGUF file: its entries, and its tensors as arrays."""

    entries: dict[str, Any]
    tensors: dict[str, np.ndarray]

    @classmethod
    def read(cls, path: Path) -> File:
        from gguf import GGUFReader

        reader = GGUFReader(path)
        entries = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        return cls(entries, {tensor.name: np.array(tensor.data) for tensor in reader.tensors})


class Difference(NamedTuple):
    """Something that two files of one model do not have alike: an entry, or a tensor; `...` where a file lacks it."""

    name: str
    ours: Any
    theirs: Any

    def __str__(self) -> str:
        return f"{self.name}: {_short(self.ours)} here, {_short(self.theirs)} there"


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{list(value.shape)} {value.ravel()[:3]}"
    return "nothing" if value is ... else ascii(value)[:200]


def differences(ours: File, theirs: File) -> Iterator[Difference]:
    """What differs, but for names and sizes of the model, and for roundings of computed values."""
    for name in sorted(ours.entries.keys() | theirs.entries.keys()):
        pair = ours.entries.get(name, ...), theirs.entries.get(name, ...)
        if name != "general.architecture" and name.startswith("general."):
            continue
        if not _same(*pair):
            yield Difference(name, *pair)
    for name in sorted(ours.tensors.keys() | theirs.tensors.keys()):
        one, other = ours.tensors.get(name), theirs.tensors.get(name)
        if one is None or other is None:
            yield Difference(name, ... if one is None else one, ... if other is None else other)
        elif one.dtype != other.dtype or one.shape != other.shape or not np.allclose(one, other, 2e-7, 0):
            yield Difference(name, one, other)


def _same(ours: Any, theirs: Any) -> bool:
    """Equal, where a list with the same value for every layer is that value, and floats have 32 bits."""
    one, other = (value[0] if isinstance(value, list) and len(set(value)) == 1 else value for value in (ours, theirs))
    if isinstance(one, float) and isinstance(other, int | float):
        return bool(np.float32(one) == np.float32(other))
    return bool(type(one) is type(other) and one == other)


def _main() -> int:
    sys.path[:0] = [str(FOLDER / "gguf-py"), str(FOLDER)]
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        source, target = map(Path, json.loads(line))
        try:
            problem = _convert(source, target)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        print(json.dumps(problem), file=answers, flush=True)
    return 0


def _predicts(source: Path) -> bool:
    """Whether the weights have a block that predicts further tokens; the models here that have one are one file."""
    path = source / "model.safetensors"
    if not path.exists():
        return False
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    return b'"mtp.' in header or b"eh_proj" in header


def _convert(source: Path, target: Path) -> str:
    import gguf
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    name = get_model_architecture(ModelBase.load_hparams(source, False), ModelType.TEXT)
    try:
        kind = get_model_class(name)
    except NotImplementedError:
        return UNKNOWN
    # Blocks that predict further tokens stay behind where the weights have none, as `--no-nextn` has it.
    kind.no_mtp = kind.supports_mtp_export and not _predicts(source)
    # Arctic's names of tensors go into a table that is the same for all later models.
    names = gguf.TensorNameMap.block_mappings_cfg
    usual = dict(names)
    with torch.inference_mode():
        model = kind(source, gguf.LlamaFileType.ALL_F32, target)
        model.get_vocab_base_pre = lambda tokenizer: "gpt-2"
        model.set_vocab = model._set_vocab_gpt2
        names.clear()
        names.update(usual)
        model.write()
    return ""


if __name__ == "__main__":
    sys.exit(_main())
