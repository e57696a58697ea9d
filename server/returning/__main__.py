"""`python -P -m server.returning NAME FOLDER TYPE FROM FORCE`: writes the folder, and lines of JSON about it to stdout.

A process of its own, because the command line imports neither NumPy nor readers of model files. It reads the store as
the user who called it, whether the daemon runs or not.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from quant.convert.returning.plan import plan_return
from quant.convert.returning.shards import index_of, shards_of
from quant.errors import QuantError, UnsupportedModel
from quant.gguf.header import Header, read_header
from registry.errors import RegistryError
from registry.store.finding import Finder
from registry.store.model import Model
from server.config import Config
from server.returning.beside import CONFIG, open_beside, read_beside, without_code
from server.returning.folder import check_place, check_room, new_folder
from server.settings import BadSetting

# Types of tensors that hold the values of a source as they are.
_AS_STORED = ("F32", "F16", "BF16")


def main(argv: list[str]) -> int:
    """Write the folder; the exit status is 1, with an error as the last line, where that cannot be done."""
    name, target, dtype, place, force = argv
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        said = give_back(Config.load(), name, Path(target), dtype, place, bool(force))
    except (BadSetting, QuantError, RegistryError) as error:
        print(json.dumps({"error": str(error), "hint": error.hint, "code": error.code}))
        return 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps(said))
    return 0


def give_back(config: Config, name: str, target: Path, dtype: str, place: str, force: bool) -> dict[str, Any]:
    """Write the model into a new folder `target`; what was written. `dtype` "" is the type of the source.

    Raises QuantError, RegistryError.
    """
    check_place(target, force)
    model = Finder(config.store).resolve(name)
    if model.is_adapter or model.adapters:
        what = "is an adapter" if model.is_adapter else "has an adapter beside its weights"
        raise UnsupportedModel(f"`{model.name}` {what}, and only whole weights are exported", "export its base")
    with ExitStack() as stack:
        file = stack.enter_context(model.blob.open("rb", buffering=0))
        source = open_beside(config, model, place)
        stack.callback(source.close)

        def read(offset: int, count: int) -> bytes:
            return os.pread(file.fileno(), count, offset)

        header = read_header(read, os.fstat(file.fileno()).st_size, model.name)
        returned = plan_return(source, header)
        dtype = dtype or returned.dtype
        shards = shards_of(returned, dtype, header, read)
        files = without_code(read_beside(source), returned.config) | index_of(shards)
        files[CONFIG] = json.dumps(returned.settings(dtype), indent=2, ensure_ascii=False).encode() + b"\n"
        size = sum(shard.size for shard in shards) + sum(map(len, files.values()))
        check_room(target, size)
        told = _Told(size)
        with new_folder(target) as folder:
            for shard in shards:
                folder.write(shard.name, told.passing(shard.pieces(header, read)))
            for name, data in files.items():
                folder.write(name, told.passing([data]))
    return {"files": len(shards) + len(files), "size": size, "text": _text(model, header, dtype, returned.remarks)}


class _Told:
    """Tells how much of the folder is written, a few times for each percent."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._said = total, 0, -1

    def passing(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The same pieces, each counted."""
        for piece in pieces:
            yield piece
            self._done += len(piece)
            if (step := 400 * self._done // self._total) != self._said:
                self._said = step
                print(json.dumps({"completed": self._done, "total": self._total}), flush=True)


def _text(model: Model, header: Header, dtype: str, remarks: tuple[str, ...]) -> str:
    """A sentence on the weights: the values of the source, or the values that quantization left."""
    types: Counter[str] = Counter()
    for tensor in header.tensors:
        if len(tensor.shape) > 1:
            types[tensor.type.name] += tensor.nbytes
    packed = [type for type, _ in types.most_common() if type not in _AS_STORED]
    stored = " and ".join(type for type, _ in types.most_common())
    said = f"weights as {dtype}, " + (
        f"dequantized from {', '.join(packed)}: no better than `{model.name}`" if packed else f"as stored ({stored})"
    )
    return "; ".join((said, *remarks))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
