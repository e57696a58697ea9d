"""The GGUF files that somebody publishes of a model: which belong together, which are no models, what level each has.

A repository holds up to thirty such files, each with the whole tokenizer (up to 10 MB) before the list of its tensors.
One header is read whole. All files of a model have the same tensors, so in the others their list is looked for near the
place where that one has it, and believed when name, shape and offset of every tensor are right and their sizes add up
to the length of the file.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from quant.convert.gguf.level import Recogniser, label_in
from quant.errors import MalformedFile
from quant.gguf.header import Header, align
from quant.gguf.values import encode_string
from quant.plan import Files, ModelPlan
from quant.types import QuantType, Tensor

# How much sooner or later than in the header that was read a list of tensors may begin.
SLACK = 8 << 10
_AT_ONCE = 8
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_NO_MODEL = re.compile(r"(?:.*[._/-])?(?:mmproj|imatrix|ggml-vocab)(?:[._-].*)?\.gguf", re.IGNORECASE)
_IMPORTANCE = b"quantize.imatrix"
_TYPE_AND_OFFSET = struct.Struct("<IQ")
_NUMBERS = {type.id: type for type in QuantType}


@dataclass(frozen=True)
class Variant:
    """One of the files, or the parts of a split one.

    `files` are in order, `size` is that of all, `label` what the names say of the level, `missing` the parts that are
    not there. `level` is the named level (of ours) that it has or comes nearest to, `tag` the name to ask for it by;
    both are empty until they are known. `types` are those of its tensors where its header was read; `important` says
    that it was made with importance data.
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
        """Whether its weights are not quantized."""
        return self.level in ("F32", "F16", "BF16")

    @property
    def stem(self) -> str:
        """Its name without level and part: files of one model share it."""
        split = _PART.fullmatch(self.files[0])
        name = (split[1] if split else self.files[0].removesuffix(".gguf")).rpartition("/")[2].lower()
        name = name.replace("fp16", "f16").replace("fp32", "f32")
        return re.sub(r"[-._]+", "-", name.replace(self.label.lower(), "")).strip("-") if self.label else name

    def told(self, recogniser: Recogniser, header: Header) -> Variant:
        """The same with what its header says."""
        types = {tensor.name: tensor.type for tensor in header.tensors}
        level, tag = recogniser.recognise(types, self.label, header.metadata.get("general.file_type"))
        important = any(key.startswith(_IMPORTANCE.decode()) for key in header.metadata)
        return replace(self, level=level, tag=tag, types=types, important=important)


class Only:
    """A source of which nothing but some files is seen."""

    def __init__(self, files: Files, names: Sequence[str]) -> None:
        self._names = list(names)
        self.title, self.size, self.read = files.title, files.size, files.read

    def names(self) -> list[str]:
        """Those files."""
        return list(self._names)


def is_gguf(files: Files) -> bool:
    """Whether the model's weights are there as GGUF, and in no other form that can be read."""
    names = files.names()
    others = (name for name in names if name.endswith(".safetensors") and "/" not in name)
    return any(_is_model(name) for name in names) and not any(others)


def gather(files: Files) -> list[Variant]:
    """All that is published, the largest first, told by names and sizes alone."""
    groups: dict[tuple[str, int], dict[int, str]] = {}
    for name in filter(_is_model, files.names()):
        split = _PART.fullmatch(name)
        key = (split[1], int(split[3])) if split else (name, 0)
        groups.setdefault(key, {})[int(split[2]) if split else 1] = name
    found = []
    for (prefix, count), parts in groups.items():
        wanted = range(1, max(1, count) + 1)
        names = tuple(parts[number] for number in wanted if number in parts)
        missing = tuple(f"{prefix}-{number:05}-of-{count:05}.gguf" for number in wanted if number not in parts)
        if names:
            found.append(Variant(names, sum(map(files.size, names)), label_in(names[0]), missing))
    return sorted(found, key=lambda variant: (-variant.size, variant.files))


def check_complete(variant: Variant) -> None:
    """Raises MalformedFile naming what is not there."""
    if variant.missing:
        there = f"of {len(variant.files) + len(variant.missing)} parts only {len(variant.files)} are here"
        raise MalformedFile(f"`{variant.missing[0]}` is missing: {there}", "fetch the parts again, all of one model")


def tell(files: Files, variants: Sequence[Variant], one: Variant, header: Header, plan: ModelPlan) -> list[Variant]:
    """What the headers say of `variants`, read in parallel, where `header` and `plan` are those of `one`, read whole.

    Of a variant in parts, and where the list of tensors is not found, the level is guessed by name and size.
    """
    recogniser = Recogniser(plan)
    finder = _Finder(header)

    def look(variant: Variant) -> Variant:
        if variant == one:
            return variant.told(recogniser, header)
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
    """Finds in other files the list of tensors that `header` has, in whatever order they stand there."""

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
        """Each tensor's type, and whether importance data is spoken of; None where the list is not there."""
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
        """The types of the tensors whose descriptions begin at `places`; empty where something is not right."""
        types: dict[str, QuantType] = {}
        offset, follows = 0, min(places)
        for place, name in places.items():
            number, said = _TYPE_AND_OFFSET.unpack_from(window, place + len(self._heads[name]))
            type = _NUMBERS.get(number)
            if place != follows or said != offset or type is None or self._shapes[name][0] % type.block:
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


def _is_model(name: str) -> bool:
    return name.lower().endswith(".gguf") and name.count("/") < 2 and not _NO_MODEL.fullmatch(name)
