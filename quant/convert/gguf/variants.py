"""The variants of a model in a repository of GGUF files: which files make up each variant, and at which level it is.

A repository holds up to thirty such files, each with the whole tokenizer (up to 10 MB) before the list of its tensors.
Only one header is read whole. The variants of a model have the same tensors, so in the other files their list is
searched for near the place where the first file has it. A list is accepted when name, shape and offset of every tensor
are right, and when the sizes of all tensors add up to the length of the file.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from quant.convert.gguf.level import Recogniser, label_in
from quant.convert.gguf.naming import GgufName
from quant.errors import MalformedFile
from quant.gguf.header import Header, align
from quant.gguf.values import encode_string
from quant.notes import LEVEL
from quant.plan import Files, ModelPlan
from quant.types import QuantType, Tensor

# The list of tensors may begin at most this many bytes before or behind its place in the header that is read whole.
SLACK = 8 << 10
_AT_ONCE = 8
_IMPORTANCE = b"quantize.imatrix"
_TYPE_AND_OFFSET = struct.Struct("<IQ")
_NUMBERS = {type.id: type for type in QuantType}


@dataclass(frozen=True)
class Variant:
    """One published form of a model: a file, or all parts of a split one.

    - `files`: paths, in the order of the parts. `size`: of all files, in bytes. `missing`: paths of missing parts.
    - `label`: the level in the files' names, ours or the publisher's own.
    - `level`: the nearest of our named levels. `tag`: the name by which a user asks for the variant. Both are empty
      until the types of its tensors are known.
    - `types`: the type of each tensor, empty where no header was read. `important`: made with importance data.
    """

    files: tuple[str, ...]
    size: int
    label: str
    missing: tuple[str, ...] = ()
    level: str = ""
    tag: str = ""
    types: dict[str, QuantType] = field(default_factory=dict, compare=False, repr=False)
    important: bool = False

    @property
    def whole(self) -> bool:
        """Whether the weights are unquantized, so that any level can be made of them."""
        return self.level in ("F32", "F16", "BF16")

    @property
    def stem(self) -> str:
        """The file's name without label and part number, in lower case; variants of one model share it."""
        found = GgufName.of(self.files[0])
        name = (found.stem if found else self.files[0]).rpartition("/")[2].lower()
        name = name.replace("fp16", "f16").replace("fp32", "f32")
        return re.sub(r"[-._]+", "-", name.replace(self.label.lower(), "")).strip("-") if self.label else name

    def with_header(self, recogniser: Recogniser, header: Header) -> Variant:
        """The same variant with level and types as its header has them."""
        types = {tensor.name: tensor.type for tensor in header.tensors}
        level, tag = recogniser.recognise(types, self.label, header.metadata.get("general.file_type"))
        own = header.metadata.get(LEVEL)
        if isinstance(own, str) and recogniser.made_here(types, own):
            level = tag = own
        important = any(key.startswith(_IMPORTANCE.decode()) for key in header.metadata)
        return replace(self, level=level, tag=tag, types=types, important=important)


class Subset:
    """A source that has only some files of another source."""

    def __init__(self, files: Files, names: Sequence[str]) -> None:
        self._names = list(names)
        self.title, self.size, self.read = files.title, files.size, files.read

    def names(self) -> list[str]:
        """Paths of the files."""
        return list(self._names)


def is_gguf(files: Files) -> bool:
    """Whether the source has GGUF files and no safetensors, which are preferred."""
    names = files.names()
    # An index names files that end just so, in lower case (`quant/safetensors.py`).
    others = (name for name in names if name.endswith(".safetensors") and "/" not in name)
    return any(map(GgufName.of, names)) and not any(others)


def gather(files: Files) -> list[Variant]:
    """All variants in a source, the largest first, by the names and sizes of files alone."""
    groups: dict[tuple[str, int], dict[int, str]] = {}
    names = {path: name for path in files.names() if (name := GgufName.of(path))}
    for path, name in names.items():
        group = (name.stem, name.parts) if name.parts else (path, 0)
        groups.setdefault(group, {})[name.number] = path
    found = []
    for (_, count), parts in groups.items():
        wanted = range(1, max(1, count) + 1)
        there = tuple(parts[number] for number in wanted if number in parts)
        if there:
            missing = tuple(names[there[0]].part(number) for number in wanted if number not in parts)
            found.append(Variant(there, sum(map(files.size, there)), label_in(there[0]), missing))
    return sorted(found, key=lambda variant: (-variant.size, variant.files))


def check_complete(variant: Variant) -> None:
    """Raises MalformedFile, which names the first missing part."""
    if variant.missing:
        there = f"of {len(variant.files) + len(variant.missing)} parts only {len(variant.files)} are here"
        raise MalformedFile(f"`{variant.missing[0]}` is missing: {there}", "fetch the parts again, all of one model")


def recognise_all(
    files: Files, variants: Sequence[Variant], one: Variant, header: Header, plan: ModelPlan
) -> list[Variant]:
    """The variants with their levels. `header` and `plan` belong to `one`; the other files are read in parallel.

    The level of a split variant is guessed by name and size, and so is any level where no list of tensors is found.
    """
    recogniser = Recogniser(plan)
    finder = _Finder(header)

    def look(variant: Variant) -> Variant:
        if variant == one:
            return variant.with_header(recogniser, header)
        found = finder.find(files, variant) if len(variant.files) == 1 else None
        if found is None:
            level = recogniser.guess(variant.size, variant.label)
            return replace(variant, level=level, tag=variant.label or level)
        types, important = found
        level, tag = recogniser.recognise(types, variant.label)
        return replace(variant, level=level, tag=tag, types=types, important=important)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(look, variants))


class _Finder:
    """Finds in other files the list of tensors that `header` has; the tensors may be in another order there."""

    def __init__(self, header: Header) -> None:
        self._alignment = header.alignment
        self._shapes = {each.name: each.shape for each in header.tensors}
        self._heads = {
            name: encode_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            for name, shape in self._shapes.items()
        }
        self._length = sum(len(head) + _TYPE_AND_OFFSET.size for head in self._heads.values())
        self._start = header.data_offset - self._length

    def find(self, files: Files, variant: Variant) -> tuple[dict[str, QuantType], bool] | None:
        """The type of each tensor, and whether the file mentions importance data; None where the list is not found."""
        (name,) = variant.files
        start = max(0, self._start - SLACK)
        end = min(variant.size, self._start + self._length + SLACK)
        if end - start < self._length:
            return None
        window = files.read(name, start, end - start)
        places = {window.find(head): name for name, head in self._heads.items()}
        place = min(places)
        if place < 0 or place + self._length > len(window):
            return None
        types = self._read(window, dict(sorted(places.items())))
        if not types or not self._adds_up(types, start + place + self._length, variant.size):
            return None
        return types, _IMPORTANCE in window[:place]

    def _read(self, window: bytes, places: Mapping[int, str]) -> dict[str, QuantType]:
        """The types of the tensors whose descriptions begin at `places`; empty where the descriptions are wrong."""
        types: dict[str, QuantType] = {}
        offset, follows = 0, min(places)
        for place, name in places.items():
            number, stated = _TYPE_AND_OFFSET.unpack_from(window, place + len(self._heads[name]))
            type = _NUMBERS.get(number)
            if place != follows or stated != offset or type is None or self._shapes[name][0] % type.block:
                return {}
            types[name] = type
            offset += align(Tensor(name, self._shapes[name], type).nbytes, self._alignment)
            follows = place + len(self._heads[name]) + _TYPE_AND_OFFSET.size
        return types if len(types) == len(self._heads) else {}

    def _adds_up(self, types: Mapping[str, QuantType], end: int, size: int) -> bool:
        """Whether a file of `size` bytes, whose list ends at `end`, holds just these tensors."""
        sizes = [Tensor(name, self._shapes[name], type).nbytes for name, type in types.items()]
        whole = align(end, self._alignment) + sum(align(each, self._alignment) for each in sizes)
        return whole - align(sizes[-1], self._alignment) + sizes[-1] <= size <= whole
