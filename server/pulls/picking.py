"""Which of the GGUF files that a source publishes a pull takes: by the rule of `choosing.py`, or by the name asked for.

Published files stand in the place of the levels that we would make: where a source has weights of its own to quantize,
files are taken only when they are asked for by name. Whole weights (F16, BF16, F32) beside them serve what is not
published, and machines that none of the better published files fits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quant.convert.gguf.level import Recogniser
from quant.convert.gguf.source import join, read_part
from quant.convert.gguf.variants import Only, Variant, check_complete, gather, is_gguf, recognise_all
from quant.errors import QuantError, UnknownLevel, UnsupportedModel
from quant.gguf.check import check_model
from quant.gguf.header import Header
from quant.levels import published
from quant.levels.budget import is_budget
from quant.levels.recipes import LEVELS, sizes
from quant.plan import Files, ModelPlan
from registry.names import AUTO
from runtime.errors import DoesNotFit
from runtime.machine.choosing import Advice, Chooser, Machine, candidate_of, worthwhile
from runtime.machine.fit import ModelSize
from runtime.machine.rule import UNQUANTIZED, USUAL_LEVEL, Candidate, Wish
from runtime.units import size_text

# A published file of a level may be so much smaller than the one that we would make.
_ABOUT = 0.95
# So many are named in a hint.
_MOST = 16


@dataclass(frozen=True)
class Survey:
    """Advice on what is published: `variants` by their tags, the one to take, whether the choice is `made` of it."""

    advice: Advice
    plan: ModelPlan
    variants: dict[str, Variant]
    taken: Variant
    made: bool


@dataclass(frozen=True)
class Picked:
    """What to plan from; the `level` to make of it, or that it is asked for by, None for the best; why, if settled."""

    files: Files
    level: str | None
    reason: str = ""


def pick(files: Files, machine: Machine, wish: Wish, disk_free: int | None) -> Picked:
    """What a pull takes, where `wish.forced` is what the name asks for: a level, a tag, a file.

    Raises as `asked` and `Published`.
    """
    variant = asked(files, wish.forced)
    if variant is not None:
        # A name that is none of our levels was meant for the file, whatever its tensors say.
        return Picked(Only(files, variant.files), wish.forced if wish.forced in LEVELS else None)
    if not has_choice(files):
        return Picked(files, wish.forced)
    survey = Published(files, machine).survey(wish, disk_free)
    choice = survey.advice.choice
    return Picked(Only(files, survey.taken.files), choice.level if survey.made else None, choice.reason)


def has_choice(files: Files) -> bool:
    """Whether the model is there as several GGUF files to choose from."""
    return is_gguf(files) and len(gather(files)) > 1


def asked(files: Files, level: str | None) -> Variant | None:
    """The published file that a name asks for; None where it names none, or leaves the choice open.

    Raises UnknownLevel where there is no such file or there are several, MalformedFile where parts are missing.
    """
    if level is None or level == AUTO:
        return None
    named, variants = level.lower().endswith(".gguf"), gather(files)
    ours = not is_gguf(files) and (level in LEVELS or is_budget(level))
    found = [] if ours else [each for each in variants if _answers(each, level.lower())]
    if len(found) > 1:
        raise UnknownLevel(f"`{files.title}` has several files of {level}", f"name one: {_listed(found, named=True)}")
    if named and not found:
        there = _listed(variants, named=True) or "no GGUF file"
        raise UnknownLevel(f"`{files.title}` has no file `{level}`", f"there is {there}")
    for variant in found:
        check_complete(variant)
    return found[0] if found else None


class Published:
    """The GGUF files of one source, and the machine that they are for."""

    def __init__(self, files: Files, machine: Machine) -> None:
        """Reads the header of one file whole and the lists of tensors of all.

        Raises MalformedFile where no variant is complete or usable, UnsupportedModel for several models.
        """
        self._files, self._machine = files, machine
        every = gather(files)
        complete = [each for each in every if not each.missing]
        if not complete:
            check_complete(every[0])
        one, header = _read_one(files, complete)
        self.plan = ModelPlan.of(header)
        self._recogniser = Recogniser(self.plan)
        told = recognise_all(files, complete, one, header, self.plan)
        doubled = {tag for tag, count in Counter(each.tag for each in told).items() if count > 1}
        others = [each for each in told if each.stem != one.stem and (not each.types or each.tag in doubled)]
        if others:
            raise UnsupportedModel(
                f"`{files.title}` holds several models", f"name one: {_listed([one, *others], named=True)}"
            )
        renamed = (replace(each, tag=_word(each.files[0])) if each.tag in doubled else each for each in told)
        self.variants = {each.tag: each for each in renamed}

    def tag_of(self, variant: Variant) -> str | None:
        """The tag of a variant that was found by name; None where it turned out to be no model."""
        return next((tag for tag, each in self.variants.items() if each.files == variant.files), None)

    def survey(self, wish: Wish, disk_free: int | None) -> Survey:
        """Every file weighed, and the choice, or what is made of whole weights; raises DoesNotFit, UnknownLevel."""
        chooser = Chooser(self.plan, self._machine)
        source = next((each for each in reversed(self.variants.values()) if each.whole), None)
        if source and all(each.whole for each in self.variants.values()):
            return Survey(chooser.advise(wish, disk_free), self.plan, self.variants, source, made=True)
        if wish.forced and wish.forced not in self.variants:
            if source is None or not (wish.forced in LEVELS or is_budget(wish.forced)):
                there = _listed(list(self.variants.values()))
                raise UnknownLevel(f"`{self._files.title}` publishes no {wish.forced}", f"there is {there}")
            return Survey(chooser.advise(wish, disk_free), self.plan, self.variants, source, made=True)
        usual = int(_ABOUT * sizes(self.plan, USUAL_LEVEL))
        candidates = [self._candidate(each) for each in self.variants.values()]
        if not any(each.worthwhile and each.level not in UNQUANTIZED for each in candidates):  # nothing else is there
            candidates = [replace(each, worthwhile=True) for each in candidates]
        try:
            advice = chooser.among(candidates, replace(wish, usual=_usual(candidates, usual)), disk_free)
        except DoesNotFit:
            made = self._made(chooser, wish, disk_free, source, None)
            if made is None:
                raise
            return made
        taken = self.variants[advice.choice.level]
        made = None if wish.forced or taken.size >= usual else self._made(chooser, wish, disk_free, source, taken)
        return made or Survey(advice, self.plan, self.variants, taken, made=False)

    def _made(
        self, chooser: Chooser, wish: Wish, disk_free: int | None, source: Variant | None, taken: Variant | None
    ) -> Survey | None:
        """What can be made of whole weights that is better than the published file `taken`."""
        if source is None:
            return None
        try:
            advice = chooser.advise(wish, disk_free)
        except DoesNotFit:
            return None
        level = advice.choice.level
        weights = next(each.candidate.weights_bytes for each in advice.options if each.level == level)
        if taken and weights * _ABOUT <= taken.size:
            return None
        best = f"the best published one that fits is {taken.tag}" if taken else "no published one fits"
        reason = f"{advice.choice.reason}; made of `{source.files[0]}`, because {best}"
        advice = replace(advice, choice=replace(advice.choice, reason=reason))
        return Survey(advice, self.plan, self.variants, source, made=True)

    def _candidate(self, variant: Variant) -> Candidate:
        shape, types = ModelSize.of(self.plan.metadata), variant.types or self._recogniser.types(variant.level)
        worth = variant.important or worthwhile(variant.level)
        listed = not any(_beats(other, variant) for other in self.variants.values())
        made = candidate_of(self.plan, variant.tag, self.plan.at(types), shape, worth, listed)
        return made if variant.types else replace(made, weights_bytes=variant.size)


def _read_one(files: Files, variants: list[Variant]) -> tuple[Variant, Header]:
    """The first variant that is a model, those in one piece before others, the smallest first, and its header."""
    ordered = sorted(variants, key=lambda each: (len(each.files), each.size))
    problem: QuantError | None = None
    for variant in ordered:
        try:
            header = join([read_part(files, name) for name in variant.files])
            check_model(header)
            return variant, header
        except QuantError as error:
            problem = problem or error
            variants.remove(variant)
    assert problem is not None
    raise problem


def _usual(candidates: list[Candidate], least: int) -> str:
    """What takes the place of the usual level where that is not published: the smallest that is about as large."""
    names = [each.level for each in candidates]
    large = [each.level for each in candidates if each.weights_bytes >= least]
    return USUAL_LEVEL if USUAL_LEVEL in names or not large else large[-1]


def _beats(one: Variant, other: Variant) -> bool:
    """Whether a published file is known to be no larger and no worse than another."""
    better, worse = published.PUBLISHED.get(one.tag), published.PUBLISHED.get(other.tag)
    if better is None or worse is None or one is other:
        return False
    return one.size <= other.size and better.perplexity_increase < worse.perplexity_increase


def _answers(variant: Variant, level: str) -> bool:
    """Whether a name with this level (or file), in lower case, means the variant."""
    names = [_word(name).lower() for name in variant.files]
    return level in names or level.removeprefix("i1-") == variant.label.lower() != ""


def _word(name: str) -> str:
    """The name of a file as a tag can be."""
    return re.sub(r"[^A-Za-z0-9_.-]+|\.{2,}", "-", _last(name))[-96:].lstrip("-.")


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _listed(variants: Sequence[Variant], named: bool = False) -> str:
    """Tags with sizes; names of files where there are none, or as is wished."""
    names = [(_last(each.files[0]) if named else each.tag or each.label or _last(each.files[0])) for each in variants]
    shown = [f"`{name}` ({size_text(each.size)})" for name, each in zip(names, variants, strict=True)]
    more = f" and {len(shown) - _MOST} more" if len(shown) > _MOST else ""
    return ", ".join(shown[:_MOST]) + more
