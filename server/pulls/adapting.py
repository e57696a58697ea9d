"""Adapters that a pull brings in: recognised, planned by their base, and described in the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from quant.convert.adapters.planning import BaseShape, plan_adapter
from quant.convert.adapters.settings import is_peft, read_settings
from quant.convert.gguf.naming import GgufName
from quant.convert.gguf.source import read_part
from quant.convert.transforms import widen
from quant.errors import BadValues, MalformedFile, QuantError, UnsupportedModel
from quant.gguf.adapter import AdapterHeader, begins_as_adapter, check_adapter
from quant.gguf.header import read_file
from quant.notes import SOURCE
from quant.plan import ModelPlan, TensorPlan
from quant.stream.copying import FileCopy
from quant.stream.pipeline import Conversion
from quant.types import QuantType
from registry.errors import BadName, RegistryError
from registry.names import Reference, parse
from registry.net.network import Network
from registry.sources.opening import Source, open_source
from registry.words import AUTO
from server.config import VERSION

# The tag of every adapter, which has no levels.
TAG = "LORA"
_NAMED_IN_HINT = 8
# How the numbers of these types are read; other types are blocks.
_NUMPY = {QuantType.F32: "<f4", QuantType.F16: "<f2", QuantType.BF16: "<u2"}
# Bytes of a GGUF file in which an adapter says what it is; a model's vocabulary, which may be long, comes later.
_BEGINNING = 1 << 16


@dataclass(frozen=True)
class AdapterPull:
    """An adapter to be brought in: the conversion of its file, and the name of the model that it is for, "" unknown."""

    conversion: Conversion | FileCopy
    base: str
    reason: str


def adapter_of(source: Source, reference: Reference, base: str, endpoint: str, network: Network) -> AdapterPull | None:
    """The adapter in a source; None where it is a model. `base` is the user's name of its base, "" for the source's.

    Raises UnsupportedModel and MalformedFile for an adapter that cannot be run, and what opening its base raises.
    """
    wanted = reference.level or AUTO
    if is_peft(source):
        if wanted not in (AUTO, TAG):
            raise UnsupportedModel(f"`{source.title}` is an adapter, which has no levels", "leave the level out")
        return _of_peft(source, reference, base, endpoint, network)
    files = _gguf_adapters(source, wanted)
    if not files:
        return None
    if len(files) > 1:
        names = ", ".join(f"`{source.title}:{name}`" for name in files[:_NAMED_IN_HINT])
        raise UnsupportedModel(f"`{source.title}` holds several adapters", f"name one: {names}")
    header = read_part(source, files[0])
    check_adapter(header)
    tensors = tuple(
        TensorPlan(each.name, each.shape[::-1], each.type.name, each.name, header.name, each.offset, each.nbytes)
        for each in header.tensors
    )
    architecture = str(header.metadata["general.architecture"])
    plan = ModelPlan(architecture, header.metadata, tensors, (files[0],), level=TAG, kinds=header.kinds)
    named = base or str(header.metadata.get("general.base_model.0.repo_url", ""))
    return AdapterPull(FileCopy(plan, source.size(files[0])), _model_name(named, reference), "it is an adapter (GGUF)")


def _of_peft(source: Source, reference: Reference, base: str, endpoint: str, network: Network) -> AdapterPull:
    settings = read_settings(source)
    named = base or settings.base
    name = _model_name(named, reference, told=bool(base))
    if not name:
        said = f"calls it `{ascii(settings.base)[1:-1][:80]}`" if settings.base else "does not say which it is"
        raise UnsupportedModel(
            f"`{source.title}` is an adapter, and it cannot be converted without its base: it {said}",
            "name its base with `--base`: `org/repo`, or a folder",
        )
    revision = "" if base else settings.revision
    try:
        opened = open_source(parse(name), endpoint, network, revision)
    except RegistryError as error:
        error.hint = f"name another base with `--base`; {error.hint}" if error.hint else "name one with `--base`"
        raise
    try:
        shape = BaseShape.of(opened)
    except QuantError as error:
        raise MalformedFile(
            f"the base of the adapter, `{name}`, does not tell its shape: {error}", "name another one with `--base`"
        ) from None
    finally:
        opened.close()
    plan = plan_adapter(source, shape, settings)
    entries = {"general.base_model.count": 1, "general.base_model.0.repo_url": name, SOURCE: source.url}
    return AdapterPull(Conversion(plan, "F32", entries), name, f"it is an adapter for `{name}` (PEFT)")


def _model_name(text: str, reference: Reference, *, told: bool = True) -> str:
    """The name of a base as the store knows it; "" where it is none, or a path that a stranger's file names."""
    try:
        found = parse(text.removesuffix("/"))
    except BadName:
        return ""
    if found.kind == "hub" or (found.kind in ("folder", "demo") and (told or reference.kind == "folder")):
        return found.text.partition("@")[0]
    return ""


def _gguf_adapters(source: Source, wanted: str) -> list[str]:
    """The GGUF files of a source that are adapters; none where any is a model, unless the name asks for an adapter."""
    names = [name for name in source.names() if GgufName.of(name)]
    if wanted.lower().endswith(".gguf"):
        names = [name for name in names if name.rpartition("/")[2].lower() == wanted.lower()]
    elif any(name.endswith(".safetensors") for name in source.names()):
        return []
    found = []
    for name in names:
        if not begins_as_adapter(source.read(name, 0, min(source.size(name), _BEGINNING))):
            return []
        found.append(name)
    return found


def adapter_config(reference: Reference, source: Source, pulled: AdapterPull, file: Path, made_of: str) -> Any:
    """The manifest's config of an adapter whose finished file is `file`: Ollama's fields, and ours under `lm`."""
    header = check_adapter(read_file(file))
    values = sum(pair.down.rows * pair.down.columns + pair.up.rows * pair.up.columns for pair in header.pairs.values())
    location = reference.location
    return {
        "model_format": "gguf",
        "model_family": header.architecture,
        "model_families": [header.architecture],
        "model_type": f"{values / 1e6:.1f}M",
        "architecture": "amd64",
        "os": "linux",
        "file_type": "LoRA",
        "capabilities": ["adapter"],
        "lm": {
            "source": f"hf.co/{location}" if reference.kind == "hub" else location,
            "revision": source.revision or "",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": VERSION,
            "parameters": values,
            "level": TAG,
            "reason": pulled.reason,
            "made_of": made_of,
            "adapter": facts(header, pulled.base),
        },
    }


def check_values(file: Path) -> None:
    """Raise BadValues where an adapter's file holds a number that is none, as a training that diverged leaves."""
    header = read_file(file)
    for tensor in (each for each in header.tensors if each.type in _NUMPY):
        values = np.memmap(
            file, _NUMPY[tensor.type], "r", header.data_offset + tensor.offset, (tensor.rows * tensor.columns,)
        )
        if not np.isfinite(widen(values)).all():
            raise BadValues(
                f"the adapter holds NaN or infinity in `{tensor.name}`", "nothing of it was kept; its training failed"
            )


def facts(header: AdapterHeader, base: str) -> dict[str, Any]:
    """The facts that `lm show` tells of an adapter."""
    return {"base": base, "alpha": header.alpha, "ranks": header.ranks, "changes": header.roles}
