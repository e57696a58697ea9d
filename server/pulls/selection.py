"""Which files of a source a pull takes, and what `lm fit` says of them: one way for both, so that they agree.

A source that publishes GGUF files is asked for one of them: by the rule of `runtime/machine/choosing.py`, or by the
name that the user gives. The published files then stand in the place of the levels that lm would make. From a source
that has weights to quantize as well, a GGUF file is taken only when it is asked for by name. Whole weights (F16, BF16,
F32) beside GGUF files serve the levels that are not published, and machines that none of the better files fits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quant.convert.gguf.level import Recogniser
from quant.convert.gguf.source import join, read_part
from quant.convert.gguf.variants import Subset, Variant, check_complete, gather, is_gguf, recognise_all
from quant.errors import QuantError, UnknownLevel, UnsupportedModel
from quant.gguf.check import check_model
from quant.gguf.header import Header
from quant.levels import published
from quant.levels.budget import is_budget
from quant.levels.recipes import LEVELS, weights_bytes
from quant.plan import Files, ModelPlan
from registry.words import AUTO, word_of
from runtime.errors import DoesNotFit
from runtime.machine.choosing import Advice, Chooser, Machine, candidate_of, worthwhile
from runtime.machine.fit import ModelSize
from runtime.machine.rule import UNQUANTIZED, USUAL_LEVEL, Candidate, Wish
from runtime.units import size_text

# A published file of a level has at least this part of the bytes of the file that lm would make of that level.
_LEAST_SHARE = 0.95
# Files named in a hint at most.
_NAMED_IN_HINT = 16


@dataclass(frozen=True)
class Survey:
    """Advice on the published files (`variants`, by tag), and the one to take.

    With `quantize` the chosen level is to be made of `variant`, which holds whole weights. Without it the level names
    `variant` itself, which is copied.
    """

    advice: Advice
    plan: ModelPlan
    variants: dict[str, Variant]
    variant: Variant
    quantize: bool


@dataclass(frozen=True)
class Selection:
    """The files to plan from, and the level to make of them as far as it is settled.

    `level` is None where the best is wanted. `reason` says why the level was chosen, "" where it is still to be chosen.
    `survey` is there where the source has several GGUF files, and they were judged.
    """

    files: Files
    level: str | None
    reason: str = ""
    survey: Survey | None = None


def select(files: Files, machine: Machine, wish: Wish, disk_free: int | None, *, judge_all: bool = False) -> Selection:
    """Select what to pull; `wish.forced` is the level, tag or file that the name asks for.

    `disk_free` is in bytes. With `judge_all` every published file is judged, even where the name asks for one. Raises
    as `file_asked_for` and `Published`.
    """
    variant = file_asked_for(files, wish.forced)
    if is_gguf(files) and len(gather(files)) > 1 and (judge_all or variant is None):
        published_files = Published(files, machine)
        tag = variant and published_files.tag_of(variant)
        survey = published_files.survey(replace(wish, forced=tag or wish.forced), disk_free)
        choice = survey.advice.choice
        level = choice.level if survey.quantize else None
        return Selection(Subset(files, survey.variant.files), level, choice.reason, survey)
    if variant is None:
        return Selection(files, wish.forced)
    # A name that is none of our levels was meant for the file, whatever its tensors say.
    return Selection(Subset(files, variant.files), wish.forced if wish.forced in LEVELS else None)


def file_asked_for(files: Files, level: str | None) -> Variant | None:
    """The published file that a name asks for; None where it names none, or leaves the choice open.

    Raises UnknownLevel where there is no such file or there are several, MalformedFile where parts are missing.
    """
    if level is None or level == AUTO:
        return None
    by_file, variants = level.lower().endswith(".gguf"), gather(files)
    # A level at a source with weights to quantize is made of them, whatever GGUF files lie beside.
    made_here = not is_gguf(files) and (level in LEVELS or is_budget(level))
    matches = [] if made_here else [each for each in variants if _answers(each, level.lower())]
    if len(matches) > 1:
        raise UnknownLevel(f"`{files.title}` has several files of {level}", f"name one: {_list(matches, files.title)}")
    if by_file and not matches:
        there = _list(variants, files.title) or "no GGUF file"
        raise UnknownLevel(f"`{files.title}` has no file `{level}`", f"there is {there}")
    for variant in matches:
        check_complete(variant)
    return matches[0] if matches else None


class Published:
    """The GGUF files of one source, and the machine that they are for."""

    def __init__(self, files: Files, machine: Machine) -> None:
        """Read the whole header of one file, and the list of tensors of every file.

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
        variants = recognise_all(files, complete, one, header, self.plan)
        doubled = {tag for tag, count in Counter(each.tag for each in variants).items() if count > 1}
        others = [each for each in variants if each.stem != one.stem and (not each.types or each.tag in doubled)]
        if others:
            raise UnsupportedModel(
                f"`{files.title}` holds several models", f"name one: {_list([one, *others], files.title)}"
            )
        renamed = (replace(each, tag=_tag_text(each.files[0])) if each.tag in doubled else each for each in variants)
        self.variants = {each.tag: each for each in renamed}

    def tag_of(self, variant: Variant) -> str | None:
        """The tag of a variant that was found by name; None where it turned out to be no model."""
        return next((tag for tag, each in self.variants.items() if each.files == variant.files), None)

    def survey(self, wish: Wish, disk_free: int | None) -> Survey:
        """Judge every file, and choose one, or a level to make of whole weights.

        Where only whole weights are published, they are quantized like any others. Otherwise the best published file
        that fits is chosen. Whole weights beside it are quantized instead where the name asks for a level that is not
        published, or no published file fits. They are, too, where the best file that fits is smaller than the usual
        level and lm can make a larger one. Raises DoesNotFit, UnknownLevel.
        """
        chooser = Chooser(self.plan, self._machine)
        source = next((each for each in reversed(self.variants.values()) if each.whole), None)
        if source and all(each.whole for each in self.variants.values()):
            return Survey(chooser.advise(wish, disk_free), self.plan, self.variants, source, quantize=True)
        if wish.forced and wish.forced not in self.variants:
            if source is None or not (wish.forced in LEVELS or is_budget(wish.forced)):
                there = _list(list(self.variants.values()))
                raise UnknownLevel(f"`{self._files.title}` publishes no {wish.forced}", f"there is {there}")
            return Survey(chooser.advise(wish, disk_free), self.plan, self.variants, source, quantize=True)
        usual = int(_LEAST_SHARE * weights_bytes(self.plan, USUAL_LEVEL))
        candidates = [self._candidate(each) for each in self.variants.values()]
        if not any(each.worthwhile and each.level not in UNQUANTIZED for each in candidates):  # nothing else is there
            candidates = [replace(each, worthwhile=True) for each in candidates]
        try:
            advice = chooser.among(candidates, replace(wish, usual=_usual(candidates, usual)), disk_free)
        except DoesNotFit:
            quantized = self._quantized(chooser, wish, disk_free, source, None)
            if quantized is None:
                raise
            return quantized
        if not advice.choice.level:
            smallest = list(self.variants.values())[-1]
            quantized = self._quantized(chooser, wish, disk_free, source, None)
            return quantized or Survey(advice, self.plan, self.variants, smallest, quantize=False)
        variant = self.variants[advice.choice.level]
        quantized = None
        if not wish.forced and variant.size < usual:
            quantized = self._quantized(chooser, wish, disk_free, source, variant)
        return quantized or Survey(advice, self.plan, self.variants, variant, quantize=False)

    def _quantized(
        self, chooser: Chooser, wish: Wish, disk_free: int | None, source: Variant | None, rival: Variant | None
    ) -> Survey | None:
        """The best level to make of the whole weights `source`; None unless it is better than the file `rival`."""
        if source is None:
            return None
        try:
            advice = chooser.advise(wish, disk_free)
        except DoesNotFit:
            return None
        level = advice.choice.level
        if not level:
            return None
        weights = next(each.candidate.weights_bytes for each in advice.options if each.level == level)
        if rival and weights * _LEAST_SHARE <= rival.size:
            return None
        best = f"the best published one that fits is {rival.tag}" if rival else "no published one fits"
        reason = f"{advice.choice.reason}; made of `{source.files[0]}`, because {best}"
        advice = replace(advice, choice=replace(advice.choice, reason=reason))
        return Survey(advice, self.plan, self.variants, source, quantize=True)

    def _candidate(self, variant: Variant) -> Candidate:
        model_size, types = ModelSize.of_plan(self.plan), variant.types or self._recogniser.types(variant.level)
        worth = variant.important or worthwhile(variant.level)
        listed = not any(_beats(other, variant) for other in self.variants.values())
        candidate = candidate_of(self.plan, variant.tag, self.plan.at(types), model_size, worth, listed)
        return candidate if variant.types else replace(candidate, weights_bytes=variant.size)


def _read_one(files: Files, variants: list[Variant]) -> tuple[Variant, Header]:
    """A variant that is a model, and its whole header; variants that are none are removed from `variants`.

    Files in one piece are tried before split ones, and small ones before large ones. Raises QuantError with the first
    problem where no variant is a model.
    """
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
    """The usual level; where it is not published, the smallest published one that has at least `least` bytes."""
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
    names = [_tag_text(name).lower() for name in variant.files]
    return level in names or level.removeprefix("i1-") == variant.label.lower() != ""


def _tag_text(name: str) -> str:
    """The name of a file with only those characters that a tag may have, at most 96 of them."""
    return word_of(_base_name(name))[-96:].lstrip("-.")


def _base_name(name: str) -> str:
    return name.rpartition("/")[2]


def _list(variants: Sequence[Variant], title: str = "") -> str:
    """Tags with sizes, for a sentence; with the `title` of the source, the names by which each file can be pulled."""
    names = [
        f"{title}:{_tag_text(each.files[0])}" if title else each.tag or each.label or _base_name(each.files[0])
        for each in variants
    ]
    shown = [f"`{name}` ({size_text(each.size)})" for name, each in zip(names, variants, strict=True)]
    more = f" and {len(shown) - _NAMED_IN_HINT} more" if len(shown) > _NAMED_IN_HINT else ""
    return ", ".join(shown[:_NAMED_IN_HINT]) + more
