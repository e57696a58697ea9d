"""A GGUF file of whole weights (F32, F16, BF16) as a source, in one piece or split: any level is made of it.

A file that is quantized already is taken as it is: what was lost does not come back, and a second rounding loses more.
Not covered: quantized files in parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from quant.convert.base import PLAIN
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf import Header, check_model, read_header
from quant.plan import Files, ModelPlan, TensorPlan
from quant.recipes import LEVELS

_PROJECTOR = re.compile(r"mmproj[.-].*|.*[.-]mmproj[.-].*", re.IGNORECASE)
# What is written anew, or said of a part only.
_DROPPED = re.compile(r"split\..*|general\.(file_type|quantization_version|alignment)")
_TEMPLATE, _STOPS = "tokenizer.chat_template", ("eos_token_id", "eot_token_id", "eom_token_id")


def is_gguf(files: Files) -> bool:
    """Whether the model's weights are there as GGUF, and in no other form."""
    names = files.names()
    return "config.json" not in names and any(_is_model(name) for name in names)


def _is_model(name: str) -> bool:
    return name.lower().endswith(".gguf") and "/" not in name and not _PROJECTOR.fullmatch(name)


def plan_gguf(files: Files, finished: bool = False) -> ModelPlan:
    """Plan a model from its GGUF files; only their headers are read. `finished`: one that is quantized will do.

    Raises MalformedFile for a header that breaks the format, for parts that are missing or contradict each other;
    UnsupportedModel for weights that are quantized, and where there are several models to choose from.
    """
    headers = _read_headers(files)
    first = headers[0]
    whole = [header for header in headers if all(tensor.type.name in PLAIN for tensor in header.tensors)]
    if len(whole) < len(headers) and not (finished and len(headers) == 1):
        raise UnsupportedModel(
            f"`{first.name}` is already quantized, and nothing else can be made of it",
            hint="use a file of F16, BF16 or F32 in its place, or the folder with the original weights",
        )
    tensors = tuple(_place(header, number) for header in headers for number in range(len(header.tensors)))
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise MalformedFile(f"the parts of `{first.name}` hold a tensor twice")
    metadata = {key: _value(first, key) for key in first.metadata if not _DROPPED.fullmatch(key)}
    ids = (metadata.get(f"tokenizer.ggml.{key}") for key in _STOPS)
    stops = metadata.get("lm.stop_token_ids") or [id for id in ids if isinstance(id, int)]
    return ModelPlan(
        architecture=first.metadata["general.architecture"],
        metadata=metadata,
        tensors=tensors,
        shards=tuple(header.name for header in headers),
        stops=tuple(dict.fromkeys(stops)),
        capabilities=_capabilities(metadata),
        level="" if whole else _level(first),
    )


def _read_headers(files: Files) -> list[Header]:
    names = sorted(name for name in files.names() if _is_model(name))
    headers = [read_header(lambda o, n, s=name: files.read(s, o, n), files.size(name), name) for name in names]  # type: ignore[misc]
    count = headers[0].metadata.get("split.count", 1)
    if count != len(headers) and len(headers) > 1 and count in (0, 1):
        shown = ", ".join(f"`{name}`" for name in names[:5])
        raise UnsupportedModel("it holds several models", hint=f"name one of {shown} at the end of the path")
    numbers = [header.metadata.get("split.no", 0) for header in headers]
    if max(count, 1) != len(headers) or numbers != list(range(len(headers))):
        raise MalformedFile(f"`{names[0]}` is one of {count} parts, and {len(headers)} of them are here")
    if len(headers) == 1:
        check_model(headers[0])
    return headers


def _place(header: Header, number: int) -> TensorPlan:
    tensor = header.tensors[number]
    offset = header.data_offset + tensor.offset
    shape = tensor.shape[::-1]
    return TensorPlan(tensor.name, shape, tensor.type.name, tensor.name, header.name, offset, tensor.nbytes)


def _level(header: Header) -> str:
    """The level that the file says it has, else the type of most of its weights."""
    number = header.metadata.get("general.file_type")
    named = [level.name for level in LEVELS.values() if level.file_type == number]
    return named[0] if named else max(header.tensors, key=lambda tensor: tensor.nbytes).type.name


def _value(header: Header, key: str) -> Any:
    """An entry as it is written again: lists of bytes as bytes."""
    value = header.metadata[key]
    return bytes(item & 0xFF for item in value) if header.kinds[key] in ("arr[u8]", "arr[i8]") else value


def _capabilities(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    if f"{metadata['general.architecture']}.pooling_type" in metadata:
        return ("embedding",)
    template = str(metadata.get(_TEMPLATE, ""))
    found = ["completion"]
    if re.search(r"\{[%{][^}]*\btools\b", template) or "tool_use" in metadata.get("tokenizer.chat_templates", ()):
        found.append("tools")
    if "enable_thinking" in template or "</think>" in template:
        found.append("thinking")
    return tuple(found)
