"""Plans a model that is published as GGUF, in one file or split. F32, F16 or BF16 weights are converted to any level.

A file that is quantized already is copied: its precision does not come back, and a second rounding loses more. The
source must hold one model; `variants.py` tells the files of several apart. Files are split by llama.cpp's
`tools/gguf-split`: every part has its number (from 0), the count of parts, and the number of tensors in all parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from quant.convert.base import ROUNDED, UNQUANTIZED
from quant.convert.chat import capabilities, read_sampling
from quant.convert.gguf import dialect
from quant.convert.gguf.dialect import translate
from quant.convert.gguf.level import Recogniser
from quant.convert.gguf.variants import Variant, check_complete, gather
from quant.convert.pooling import capabilities_of
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf.check import check_model, check_reads, check_types
from quant.gguf.header import Header, read_header
from quant.notes import STOPS
from quant.plan import Files, ModelPlan, TensorPlan

# Entries that a conversion writes anew, or that describe a part only; and the latter alone.
_DROPPED = re.compile(r"split\..*|general\.(file_type|quantization_version|alignment)")
_OF_PARTS = re.compile(r"split\..*|general\.alignment")
_TEMPLATE, _ENDS = "tokenizer.chat_template", ("eos_token_id", "eot_token_id", "eom_token_id")
_SPECIAL = re.compile(r"tokenizer\.ggml\.\w+_token_id")
# Tensors whose length is the model's width: where two parts differ in it, they belong to two models.
_WIDE = re.compile(r"blk\.\d+\.(attn_norm|ffn_norm|attn_output_norm|layer_output_norm)\.weight|output_norm\.weight")


def plan_gguf(files: Files, finished: bool = False) -> ModelPlan:
    """Plan a model from its GGUF files; only their headers are read. `finished`: weights may be quantized already.

    Raises MalformedFile, which names the file, for a header that breaks the format and for parts that are missing or
    contradict each other. Raises UnsupportedModel for quantized weights, and where there are several models.
    """
    variant = _only_variant(files)
    headers = [read_part(files, name) for name in variant.files]
    model, names = translate(join(headers))
    check_model(model)
    check_reads(model)
    whole = all(tensor.type.name in UNQUANTIZED for tensor in model.tensors)
    if not (whole or finished):
        raise UnsupportedModel(
            f"`{model.name}` is already quantized, and nothing else can be made of it",
            hint="use a file of F16, BF16 or F32 in its place, or the folder with the original weights",
        )
    if not whole:
        check_types(model)
    dropped = _DROPPED if whole else _OF_PARTS
    strays = _strays(model)
    kept = [key for key in model.metadata if not (dropped.fullmatch(key) or (whole and key in strays))]
    metadata = {key: _value(model, key) for key in kept}
    ids = (metadata[key] for end in _ENDS if (key := f"tokenizer.ggml.{end}") in metadata.keys() - strays.keys())
    stops = metadata.get(STOPS) or [id for id in ids if isinstance(id, int)]
    rounded = (ROUNDED,) if metadata.get("gpt-oss.rope.scaling.type") == "yarn" else ()
    plan = ModelPlan(
        architecture=model.metadata["general.architecture"],
        metadata=metadata,
        tensors=tuple(_place(header, number, names) for header in headers for number in range(len(header.tensors))),
        shards=variant.files,
        stops=tuple(dict.fromkeys(stops)),
        defaults=read_sampling(metadata),
        capabilities=_capabilities(metadata),
        kinds={} if whole else {key: model.kinds[key] for key in metadata},
        remarks=(*([dialect.REMARK] if names else []), *rounded, *filter(None, strays.values())),
        translated=bool(names),
    )
    return plan if whole else replace(plan, level=variant.with_header(Recogniser(plan), model).tag)


def _strays(model: Header) -> dict[str, str]:
    """Entries with the id of a token that there is not, which llama.cpp passes over; and the remark on each.

    Some converters write -1, or the same in 32 bits, for "none": these have no remark.
    """
    tokens, strays = len(model.metadata["tokenizer.ggml.tokens"]), {}
    for key, value in model.metadata.items():
        if _SPECIAL.fullmatch(key) and isinstance(value, int) and not 0 <= value < tokens:
            short = key.removeprefix("tokenizer.ggml.")
            strays[key] = "" if value in (-1, 0xFFFFFFFF) else f"`{short}` {value} is none of the {tokens} tokens"
    return strays


def _only_variant(files: Files) -> Variant:
    """The one model of the source. Raises UnsupportedModel for several, MalformedFile for missing parts."""
    variants = gather(files)
    if len(variants) != 1:
        shown = ", ".join(f"`{variant.files[0]}`" for variant in variants[:5])
        raise UnsupportedModel(f"`{files.title}` holds several models", hint=f"name one of {shown}")
    check_complete(variants[0])
    return variants[0]


def read_part(files: Files, name: str) -> Header:
    """The header of one file. Raises MalformedFile where it breaks the format of GGUF."""
    return read_header(lambda offset, count: files.read(name, offset, count), files.size(name), name)


def join(headers: Sequence[Header]) -> Header:
    """The header of a model of several parts: the metadata of the first part, the tensors of all.

    Raises MalformedFile, which names the part, where parts contradict each other or belong to different models.
    """
    first, count = headers[0], len(headers)
    tensors = [tensor for header in headers for tensor in header.tensors]
    seen: dict[str, str] = {}
    for number, header in enumerate(headers):
        no, parts = _number(header, "split.no", 0), _number(header, "split.count", 1) or 1
        if (no, parts) != (number, count):
            contradiction = f"part {no + 1} of {parts}, and it is named {number + 1} of {count}"
            hint = "fetch the parts again, all of one model"
            raise MalformedFile(f"`{header.name}` says that it is {contradiction}", hint)
        _check_kinship(header, first, seen)
    total = first.metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise MalformedFile(f"the {count} parts of `{first.name}` hold {len(tensors)} tensors, and say {total}")
    return replace(first, tensors=tuple(tensors))


def _number(header: Header, key: str, default: int) -> int:
    value = header.metadata.get(key, default)
    return value if isinstance(value, int) else -1


def _check_kinship(header: Header, first: Header, seen: dict[str, str]) -> None:
    """Raise MalformedFile where a part belongs to another model than the first part, or repeats a tensor.

    `seen` maps tensors to their parts, and is filled.
    """
    architecture = first.metadata.get("general.architecture")
    width = first.metadata.get(f"{architecture}.embedding_length")
    counts = [each.metadata.get("split.tensors.count") for each in (header, first)]
    other = header.metadata.get("general.architecture", architecture) != architecture or counts[0] != counts[1]
    for tensor in header.tensors:
        if tensor.name in seen:
            raise MalformedFile(f"`{header.name}` holds `{tensor.name}`, as `{seen[tensor.name]}` does")
        seen[tensor.name] = header.name
        other |= bool(width and _WIDE.fullmatch(tensor.name)) and tensor.shape != (width,)
    if other and header is not first:
        raise MalformedFile(f"`{header.name}` is a part of another model than `{first.name}`", "fetch the parts again")


def _place(header: Header, number: int, names: Mapping[str, str]) -> TensorPlan:
    tensor = header.tensors[number]
    offset = header.data_offset + tensor.offset
    shape = tensor.shape[::-1]
    name = names.get(tensor.name, tensor.name)
    return TensorPlan(name, shape, tensor.type.name, tensor.name, header.name, offset, tensor.nbytes)


def _value(header: Header, key: str) -> Any:
    """An entry as `encode_value` takes it: lists of bytes as `bytes`."""
    value = header.metadata[key]
    return bytes(item & 0xFF for item in value) if header.kinds[key] in ("arr[u8]", "arr[i8]") else value


def _capabilities(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    pooling = metadata.get(f"{metadata['general.architecture']}.pooling_type")
    if found := capabilities_of(pooling):
        return found
    prefix = f"{_TEMPLATE}."
    templates = {key.removeprefix(prefix): str(text) for key, text in metadata.items() if key.startswith(prefix)}
    templates |= {"default": str(metadata[_TEMPLATE])} if _TEMPLATE in metadata else {}
    return capabilities(templates, set(metadata.get("tokenizer.ggml.tokens", ())))
