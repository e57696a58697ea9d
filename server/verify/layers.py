"""Each layer's output by llama.cpp and by transformers, compared: which layer is the first that is wrong?

llama.cpp reads the text twice. The first reading shows how far from the original the values have come behind each layer
(`drift`). In the second reading each layer gets the original's input. The layer then adds its own work alone, without
the errors of earlier layers (`own`).

A layer may be as far off as its types round (`bound`). The coarsest type leaves a relative error in a product:
`ROUNDING` for the matrix and `_FACTOR` for what it is multiplied by. The bound is that error times `_TIMES`. The factor
covers several matrices one behind another, attention that makes an error larger, and weights with outliers. Small
random models with sharp attention reach 4.6 times, a real one of 135 M weights 4.

The original's values wait in files, and one layer's are in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from math import hypot
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.types import Tensor

Values = NDArray[np.float32]
EMBEDDINGS, NORM, HEAD = "embeddings", "norm", "head"
# The error of weights from a normal distribution by ggml's quantizer, relative to their size, in the quadratic mean. A
# type that is not here may leave nothing of a matrix.
ROUNDING = {
    "F32": 0.0,
    "F16": 2.1e-4,
    "BF16": 1.7e-3,
    "Q8_0": 0.0054,
    "Q6_K": 0.0173,
    "Q5_K": 0.0354,
    "Q5_1": 0.0339,
    "Q5_0": 0.0405,
    "Q4_K": 0.0709,
    "Q4_1": 0.0700,
    "Q4_0": 0.0818,
    "IQ4_NL": 0.0750,
    "IQ4_XS": 0.0757,
    "MXFP4": 0.115,
    "IQ3_S": 0.137,
    "Q3_K": 0.145,
    "IQ3_XXS": 0.182,
    "IQ2_S": 0.249,
    "Q2_K": 0.268,
    "IQ2_XS": 0.300,
    "IQ2_XXS": 0.344,
    "IQ1_M": 0.452,
    "IQ1_S": 0.486,
}
# llama.cpp rounds what a matrix is multiplied by: to the type of the matrix, or to blocks of 8 bits.
_FACTOR = {"F32": 0.0, "F16": 2.1e-4, "BF16": 1.7e-3}
_EIGHT_BITS = ROUNDING["Q8_0"]
# How many times the error of a product; what is always allowed; and what never is, since nothing of it would be right.
_TIMES, _LEAST, _MOST = 6.0, 1e-3, 1.0
# A layer that adds next to nothing is measured by what it adds to, whose rounding is in it.
_PART = 0.01
# llama.cpp's names of the values: before the first layer (the last of these), behind each layer, behind the last norm.
_BEFORE = ("embd", "inp_scaled", "inpL", "model.embed_tokens")
_LAYER = re.compile(r"(?:l_out|nemotron_h_block_out)-(\d+)")
_NORM = "result_norm"
_OF_LAYER = re.compile(r"blk\.(\d+)\.")


class Stage(NamedTuple):
    """One step of the model: `drift` and `own` are relative errors, the median of all tokens; None: not comparable."""

    name: str
    bound: float
    drift: float | None
    own: float | None

    @property
    def right(self) -> bool:
        """Whether its own error is what rounding explains, or nobody can say."""
        return self.own is None or self.own <= self.bound


def layer(number: int) -> str:
    """The name of a layer's stage."""
    return f"layer {number}"


def stage_of(tensor: str) -> str | None:
    """The stage whose values a tensor of llama.cpp's graph has, by its name; None where it has none's."""
    if found := _LAYER.fullmatch(tensor):
        return layer(int(found[1]))
    return EMBEDDINGS if tensor in _BEFORE else NORM if tensor == _NORM else None


class Original:
    """The values of the original, float32 `(tokens, width)` for each stage, in files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, stage: str, values: Values) -> None:
        """Write a stage's values."""
        np.save(self._path(stage), values)

    def of(self, stage: str) -> Values | None:
        """A stage's values; None where transformers has no counterpart."""
        path = self._path(stage)
        return np.load(path) if path.exists() else None

    def _path(self, stage: str) -> Path:
        return self._folder / f"{stage.replace(' ', '-')}.npy"


class Comparison:
    """The errors of each stage; `free` and `led` are called with the values that llama.cpp computes."""

    def __init__(self, original: Original) -> None:
        self._original = original
        self._before: Values | None = None
        self._last: dict[str, str] = {}
        self.drift: dict[str, float] = {}
        self.own: dict[str, float] = {}

    def free(self, tensor: str, ours: Values) -> None:
        """Values of a text that is read as usual; it comes first, since it shows which are a stage's last ones."""
        stage = stage_of(tensor) or ""
        self._last[stage] = tensor
        theirs = self._original.of(stage)
        if theirs is not None and theirs.shape == ours.shape:
            self.drift[stage] = error(theirs, ours, theirs)

    def led(self, tensor: str, ours: Values) -> Values | None:
        """Values behind the original's input; returns the original's, which the next stage then gets."""
        stage = stage_of(tensor) or ""
        if tensor != self._last.get(stage):
            return None
        theirs = self._original.of(stage)
        if theirs is None or theirs.shape != ours.shape:
            self._before = None
            return None
        adds = theirs
        if stage.startswith("layer") and self._before is not None:
            change, whole = (np.linalg.norm(each, axis=1) for each in (theirs - self._before, theirs))
            adds = np.maximum(change, _PART * whole)[:, None]
        self.own[stage] = error(theirs, ours, adds)
        self._before = theirs
        return theirs

    def head(self, theirs: Values, ours: Values) -> None:
        """The logits behind the original's last values; a constant that is added to all changes nothing."""
        width = min(theirs.shape[1], ours.shape[1])
        theirs, ours = (each[:, :width] - each[:, :width].mean(axis=1, keepdims=True) for each in (theirs, ours))
        self.own[HEAD] = error(theirs, ours, theirs)

    def stages(self, layers: int, tensors: Iterable[Tensor]) -> list[Stage]:
        """All stages in the order in which they are computed, with the bounds of the file's tensors."""
        bounds = _bounds(tensors)
        names = [EMBEDDINGS, *map(layer, range(layers)), NORM, HEAD]
        return [Stage(name, bounds.get(name, _LEAST), self.drift.get(name), self.own.get(name)) for name in names]


def error(theirs: Values, ours: Values, scale: Values) -> float:
    """The difference of each token's values relative to its `scale`, the median of all tokens; inf where not finite."""
    apart = np.linalg.norm(theirs.astype(np.float64) - ours, axis=1)
    found = np.median(apart / np.maximum(np.linalg.norm(scale, axis=1), 1e-30))
    return float(found) if np.isfinite(found) else float("inf")


def _bounds(tensors: Iterable[Tensor]) -> dict[str, float]:
    """How far each stage may be off, by the coarsest type of its matrices."""
    coarsest: dict[str, float] = {}
    matrices = {each.name: _product(each.type.name) for each in tensors if len(each.shape) > 1}
    embeddings = matrices.get("token_embd.weight", 0.0)
    coarsest[EMBEDDINGS], coarsest[HEAD] = embeddings, matrices.get("output.weight", embeddings)
    for name, rounding in matrices.items():
        if found := _OF_LAYER.match(name):
            stage = layer(int(found[1]))
            coarsest[stage] = max(coarsest.get(stage, 0.0), rounding)
    return {stage: min(_MOST, max(_LEAST, _TIMES * rounding)) for stage, rounding in coarsest.items()}


def _product(name: str) -> float:
    return hypot(ROUNDING.get(name, _MOST), _FACTOR.get(name, _EIGHT_BITS))


def watch_original(model: Any, layers: int, keep: Callable[[str, Values], None]) -> None:
    """Call `keep` with each stage's values when `model`, of transformers, reads its next text."""
    from torch.nn import ModuleList

    def values(found: Any) -> Values:
        first = found if hasattr(found, "detach") else found[0]
        kept: Values = first.detach().float().reshape(-1, first.shape[-1]).numpy()
        return kept

    def before(_module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        keep(EMBEDDINGS, values(given[0] if given else named["hidden_states"]))

    def behind(stage: str) -> Callable[..., None]:
        return lambda _module, _given, found: keep(stage, values(found))

    for decoder in model.get_decoder().modules():
        for stack in decoder.children():
            if isinstance(stack, ModuleList) and len(stack) == layers:
                decoder.register_forward_hook(behind(NORM))
                stack[0].register_forward_pre_hook(before, with_kwargs=True)
                for number, each in enumerate(stack):
                    each.register_forward_hook(behind(layer(number)))
                return
