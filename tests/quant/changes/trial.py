"""A row of the zoo under trial: a change is made, and `transformers` and the converter with llama.cpp are asked."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quant.convert import keys, wrappers
from quant.convert.config import ModelConfig
from quant.convert.planning import plan_model
from quant.errors import QuantError
from quant.plan import ModelPlan
from tests.converting import write
from tests.quant.changes.values import Change, applied, as_transformers_4, planned
from tests.quant.support import Folder
from tests.quant.zoo import ZOO

TOLERANCE = 1e-3
# A difference that counts as one, in standard deviations of the logits.
_NOTICED = 1e-5
# In a mixture, rounding decides between two experts for a token now and then, and tokens behind it attend to that. A
# setting that is wrong shows in nearly all tokens.
_ON_THE_EDGE = 0.25
# Whose YaRN does not round, as docs/models.md tells; llama.cpp's does.
_TOLD = ("gpt-oss",)
# By what share weights are changed to see how much a model makes of rounding.
_ROUNDING = 1e-6
IDS: list[int] = np.random.default_rng(1).integers(3, 4096, 144).tolist()


class Result(NamedTuple):
    """What came of a change: its kind, one of those that `__main__.py` describes, and a detail."""

    row: str
    change: str
    keys: tuple[str, ...]
    kind: str
    detail: str


class Trial:
    """One row of the zoo; its files are made below `place`."""

    def __init__(self, name: str, place: Path) -> None:
        import transformers

        from tests.quant.zoo.making import make

        warnings.simplefilter("ignore")
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.name, self.row, self.place = name, ZOO[name], place
        self.files = Folder(make(self.row, place / "base"))
        self.config: dict[str, Any] = self.files.json("config.json")
        self.made_by: Any = getattr(transformers, self.row.kind + self.row.task)
        self.weights: dict[tuple[str, tuple[int, ...]], Any] = {}
        model = self.model(self.config)
        self.shapes = _shapes(model)
        self.usual = self.computed(model)

    @property
    def language(self) -> dict[str, Any]:
        """The config of the language model."""
        found: dict[str, Any] = self.config.get("text_config", self.config)
        return found

    def entry(self) -> dict[str, Any]:
        """What is known of the keys of the language model's class."""
        name = wrappers.unwrap(ModelConfig("config.json", self.config))[1]
        return {"defaults": {}, "others": [], "aliases": {}, "rope": {}, **(keys.entry_of(name) or {})}

    def changes(self) -> list[Change]:
        """All that is to be tried."""
        return planned(self.language, self.entry(), self.name)

    def changed(self, change: Change) -> dict[str, Any]:
        """The config with a change made."""
        language = as_transformers_4(self.language, self.entry()) if change.old else self.language
        language = applied(language, change)
        if "text_config" not in self.config:
            return language
        tie = {key: value for key, value in change.values.items() if key == "tie_word_embeddings"}
        return {**self.config, "text_config": language, **tie}

    def model(self, config: dict[str, Any]) -> Any:
        """The model that transformers makes of a `config.json`, with the weights that tensors of these names have."""
        import torch
        from transformers.initialization import no_init_weights

        from tests.quant.zoo.making import _TRAINED_BUFFERS, weight

        kind = self.made_by.config_class
        made = kind.from_dict(kind._decode_special_floats(copy.deepcopy(config)))
        with no_init_weights():
            model = self.made_by._from_config(made, attn_implementation="eager", dtype=torch.float32)
        model.tie_weights()
        learned = ((name, tensor) for name, tensor in model.named_buffers() if name.endswith(_TRAINED_BUFFERS))
        with torch.no_grad():
            for name, tensor in (*model.named_parameters(), *learned):
                key = name, tuple(tensor.shape)
                if key not in self.weights:
                    self.weights[key] = torch.from_numpy(weight(*key, self.row.spread, self.row.heads))
                tensor.copy_(self.weights[key])
        return model

    def computed(self, model: Any) -> np.ndarray:
        """What transformers computes."""
        from tests.quant.zoo.reference import computed

        return computed(model, self.row, IDS)

    def run(self, change: Change) -> Result:
        """Make a change and ask both sides."""
        name = f"{change.name} (4)" if change.old else change.name
        return Result(self.name, name, change.keys, *self.verdict(self.changed(change)))

    def verdict(self, config: dict[str, Any]) -> tuple[str, str]:
        """What comes of a config, and a detail."""
        try:
            model = self.model(config)
            files, anew = self.saved(model, config)
            wanted = self.computed(model)
        except Exception as error:  # whatever transformers raises
            return "impossible", f"{type(error).__name__}: {error}"[:160].replace("\n", " ")
        if not np.isfinite(wanted).all() or not wanted.std():
            return "impossible", "its logits are no numbers, or all the same"
        changed = anew or self.usual.shape != wanted.shape
        changed = changed or bool(np.abs(self.usual - wanted).max() > _NOTICED * self.usual.std())
        try:
            plan = plan_model(files)
        except QuantError as error:
            return ("refused" if changed else "too strict"), f"{error}"[:400]
        return self.compared(plan, files, wanted, model, changed)

    def saved(self, model: Any, config: dict[str, Any]) -> tuple[Folder, bool]:
        """The files of a model, and whether its tensors are others than before."""
        text = json.dumps(config).encode()
        if _shapes(model) == self.shapes:
            return self.files.with_file("config.json", text), False
        path = self.place / "anew"
        path.mkdir(exist_ok=True)
        for old in path.glob("*"):
            old.unlink()
        model.save_pretrained(path)
        others = {name: data for name, data in self.files.contents.items() if "safetensors" not in name}
        return Folder(path, {**others, "config.json": text}), True

    def compared(
        self, plan: ModelPlan, files: Folder, wanted: np.ndarray, model: Any, changed: bool
    ) -> tuple[str, str]:
        """Whether llama.cpp computes the same of the converted file."""
        from tests.quant.engine import Engine, EngineRefuses
        from tests.quant.test_zoo import answer

        out = self.place / "m.gguf"
        # Beyond a window that llama.cpp does not have in this architecture there is no context.
        ids = IDS[: plan.metadata.get(f"{plan.architecture}.context_length", len(IDS))]
        wanted = wanted if self.row.ranks else wanted[: len(ids)]
        note = "" if changed else ", unchanged"
        try:
            write(plan, "F32", files.stream, out, threads=1)
        except QuantError as error:
            return "unloadable", f"not written: {error}"[:200]
        try:
            with Engine(out, exact=True) as engine:
                found = answer(engine, plan, ids)
        except (EngineRefuses, ValueError) as error:
            return "unloadable", f"{type(error).__name__}: {error}"[:160]
        if found.shape != wanted.shape:
            return "wrong", f"{found.shape} values, not {wanted.shape}"
        apart = np.abs(found - wanted).max(-1) / wanted.std()
        worst = float(apart.max())
        if worst <= TOLERANCE or worst <= self.noise(model, wanted):
            return "right", f"{worst:.0e}{note}"
        others = float((apart > TOLERANCE).mean())
        if f"{plan.architecture}.expert_count" in plan.metadata and others <= _ON_THE_EDGE:
            return "right", f"{others:.0%} of the tokens have other experts{note}"
        return ("said" if plan.architecture in _TOLD else "wrong"), f"{worst:.1e}{note}"

    def noise(self, model: Any, wanted: np.ndarray) -> float:
        """The difference that rounding makes: weights are changed by some millionths."""
        import torch

        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.mul_(1 + _ROUNDING * torch.randn(tensor.shape, generator=random))
        return 2 * float(np.abs(self.computed(model)[: len(wanted)] - wanted).max() / wanted.std())


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
