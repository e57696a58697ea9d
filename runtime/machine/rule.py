"""Which of these candidates does the rule choose, and why? A pure function of sizes, the machine and a wish.

The rule takes the highest level, up to Q8_0, that fits and is fast enough. It fits when its weights, cache
and compute buffers take no more memory than models may use. It is fast enough when it is predicted to write at least 10
tokens per second. If none is that fast, the rule takes Q4_K_M, or the largest level above it that is no slower. It goes
below Q4_K_M only when memory or disk force it, and without importance data never below Q3_K_M, unless the user asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from runtime.defaults import CONTEXT_STEP
from runtime.errors import BadRequest, DoesNotFit
from runtime.machine import devices, fit, step_time
from runtime.machine.hardware import Hardware
from runtime.machine.inspection import Probed
from runtime.messages import CacheConfig
from runtime.units import size_text

ENOUGH_SPEED = 10.0
USUAL_LEVEL = "Q4_K_M"
# Bytes on disk beside a model's file: its journal, its manifest, the entries that a pull adds to its header.
DISK_MARGIN = 1 << 20
# Never chosen without being asked for: larger than Q8_0, and not noticeably better.
UNQUANTIZED = frozenset({"F32", "F16", "BF16"})


@dataclass(frozen=True)
class Candidate:
    """A level of a model, and the bytes of its weights."""

    level: str
    weights_bytes: int
    worthwhile: bool = True
    """Whether it is good enough without importance data."""
    reads: step_time.Reads | None = None
    """The bytes that one token reads; None where that is not known."""
    listed: bool = True
    """Whether it may be chosen. A level with a smaller and better one beside it is shown, and never chosen."""
    layers: devices.Layers | None = None
    header_bytes: int = 0
    """Bytes of the file beside the weights; the tokenizer is nearly all of it."""

    @property
    def disk_bytes(self) -> int:
        """Bytes of disk that a pull needs."""
        return self.weights_bytes + self.header_bytes + DISK_MARGIN


@dataclass(frozen=True)
class Wish:
    """A user's wish: the KV cache, and maybe a level by name."""

    cache_config: CacheConfig = field(default_factory=CacheConfig)
    forced: str | None = None
    """The name of the level asked for; None leaves it to the rule."""
    enough: float = ENOUGH_SPEED
    """Tokens per second below which a level is too slow."""
    usual: str = USUAL_LEVEL
    """The level that is good enough for most: the rule goes below it only for want of memory or disk."""
    memory: int = 0
    """Bytes that models may use by the user's own word; 0: as many as the machine has to spare."""
    judge_only: bool = False
    """Nothing is to be pulled: where nothing fits, the choice is no level, and says why."""

    def budget(self, hardware: Hardware) -> int:
        """Bytes that models may use."""
        return self.memory or hardware.budget


@dataclass(frozen=True)
class Host:
    """The machine that a level is chosen for, its measured speeds, and the disk that the file goes to."""

    hardware: Hardware
    rates: Probed | None = None
    """How fast the processor reads weights; None where that was not measured: then the memory's bandwidth counts."""
    card_rates: Probed | None = None
    """How fast a graphics card reads weights; None where that was not measured."""
    disk_free: int | None = None
    """Free bytes of the disk; None where nothing is to be written."""


@dataclass(frozen=True)
class Option:
    """A judged candidate: tokens per second at the beginning of an answer (`speed`) and with a full context."""

    candidate: Candidate
    need: fit.Need
    speed: float
    full_speed: float
    fault: str = ""
    """Why memory or disk rule it out, "" when they do not."""
    lacking: Literal["memory", "disk"] | None = None
    """Which of both rules it out."""
    slow: str = ""
    """Why it is too slow, "" when it is not."""

    @property
    def level(self) -> str:
        """The level's name."""
        return self.candidate.level

    @property
    def drawback(self) -> str:
        """Why the rule passes it over; "" where the rule would take it if nothing better were there."""
        if self.fault or self.slow:
            return self.fault or self.slow
        if self.level in UNQUANTIZED:
            return "is larger than Q8_0, and not noticeably better"
        if not self.candidate.listed:
            return "another level is smaller and no worse"
        return "" if self.candidate.worthwhile else "loses too much without importance data"


@dataclass(frozen=True)
class Choice:
    """The level, its memory with a pool of `context` tokens, the reason, and why each better level lost.

    Where nothing fits, `level` is "", `reason` says so, and `hint` what would fit.
    """

    level: str
    need: fit.Need
    context: int
    reason: str
    rejected: tuple[tuple[str, str], ...]
    hint: str = ""


def choose(candidates: Sequence[Candidate], model_size: fit.ModelSize, host: Host, wish: Wish) -> Choice:
    """Choose among `candidates`, ordered from the best to the smallest.

    Raises DoesNotFit when not even the smallest fits, or when the level asked for does not fit on disk, but not with
    `wish.judge_only`; BadRequest when the level asked for is not among the candidates.
    """
    context, budget = model_size.cap_context(wish.cache_config).context, wish.budget(host.hardware)
    options = judge(candidates, model_size, host, wish)
    try:
        if wish.forced:
            return _forced(options, wish.forced, budget, context)
        options = [option for option in options if option.level not in UNQUANTIZED and option.candidate.listed]
        chosen = _by_rule([option for option in options if option.candidate.worthwhile], wish.usual)
        if chosen is None:
            states = model_size.state_bytes(wish.cache_config.sequences)
            raise _nothing_fits(options, budget, context, states)
    except DoesNotFit as error:
        if not (wish.judge_only and options):
            raise
        return Choice("", options[-1].need, context, str(error), (), error.hint)
    better = options[: options.index(chosen)]
    rejected = tuple((option.level, option.drawback) for option in better)
    reason = f"{chosen.level}: {_fits(chosen, budget, context)}{_ending(chosen, options, rejected, wish)}"
    return Choice(chosen.level, chosen.need, context, reason, rejected)


def judge(candidates: Sequence[Candidate], model_size: fit.ModelSize, host: Host, wish: Wish) -> list[Option]:
    """The memory, the speed and the faults of each candidate on this host."""
    return [_judge(candidate, model_size, host, wish) for candidate in candidates]


def _judge(candidate: Candidate, model_size: fit.ModelSize, host: Host, wish: Wish) -> Option:
    hardware, disk_free = host.hardware, host.disk_free
    cache_config = model_size.cap_context(wish.cache_config)
    need = fit.memory(model_size, candidate.weights_bytes, cache_config)
    if hardware.cards and candidate.layers:
        need = devices.place(need, candidate.layers, hardware.cards)
    on_cards = need.card_layers / (model_size.layers + 1)
    speed, full = (
        _speed(candidate, model_size, host, (filled, on_cards), cache_config.kv_type)
        for filled in (0, cache_config.context)
    )
    fault = ""
    lacking: Literal["memory", "disk"] | None = None
    if need.total > wish.budget(hardware):
        fault, lacking = f"would need {size_text(need.total)}", "memory"
    elif disk_free is not None and candidate.disk_bytes > disk_free:
        fault = (
            f"would need up to {size_text(candidate.disk_bytes)} of disk, where {size_text(max(0, disk_free))} are free"
        )
        lacking = "disk"
    slow = f"would write about {speed:.1f} tokens/s, below {wish.enough:g}" if speed < wish.enough else ""
    return Option(candidate, need, speed, full, fault, lacking, slow)


def _speed(
    candidate: Candidate, model_size: fit.ModelSize, host: Host, state: tuple[int, float], kv_type: str
) -> float:
    """Tokens per second by measured rates, else by the memory's bandwidth.

    `state` is the number of tokens in the cache, and the part of the layers on cards (0 to 1).
    """
    context, on_cards = state
    if host.rates and candidate.reads:
        seconds = step_time.seconds(host.rates, candidate.reads, context)
        if host.card_rates:
            seconds += on_cards * (step_time.seconds(host.card_rates, candidate.reads, context) - seconds)
        return 1 / max(1e-9, seconds)
    return fit.speed(model_size, candidate.weights_bytes, host.hardware.bandwidth, context, kv_type)


def _by_rule(options: Sequence[Option], usual_level: str) -> Option | None:
    fitting = [option for option in options if not option.fault]
    names = [option.level for option in options]
    usual = options[names.index(usual_level)].candidate.weights_bytes if usual_level in names else 0
    decent = [option for option in fitting if option.candidate.weights_bytes >= usual]
    fast = [option for option in decent if not option.slow]
    if fast:
        return fast[0]
    if decent:  # the usual level, or one above it that costs no speed
        last = decent[-1]
        return next(option for option in decent if option.speed >= last.speed)
    return fitting[0] if fitting else None


def _forced(options: Sequence[Option], level: str, budget: int, context: int) -> Choice:
    for option in options:
        if option.level == level:
            if option.lacking == "disk":
                smaller = [other.candidate.level for other in options if not other.fault]
                rest = f"{smaller[0]} would fit" if smaller else "no level would fit"
                raise DoesNotFit(f"{level} {option.fault}", f"make room; {rest}")
            reason = f"{level}: asked for, {_fits(option, budget, context)}"
            if option.fault:
                total = size_text(option.need.total)
                need = f"{_sum(option.need, context)} need {total}, and models may use {size_text(budget)} here"
                reason = f"{level}: asked for, although {need}"
            return Choice(level, option.need, context, reason, ())
    levels = ", ".join(option.level for option in options)
    raise BadRequest(f"there is no level `{level}` for this model", f"choose one of {levels}")


def _fits(option: Option, budget: int, context: int) -> str:
    need = option.need
    if not need.cards or not need.on_cards:
        return f"{_sum(need, context)} fit the {size_text(budget)} that models may use"
    sizes = _large_parts(need, context)
    cards = " and ".join(card.name for card in need.cards)
    layers = len(option.candidate.layers.blocks) + 1 if option.candidate.layers else need.card_layers
    if need.card_layers == layers:
        return f"{sizes} fit on {cards}"
    rest = f"the rest takes {size_text(need.total)} of the {size_text(budget)} that models may use"
    return f"{sizes} fit with {need.card_layers} of {layers} layers on {cards}; {rest}"


def _sum(need: fit.Need, context: int) -> str:
    """The parts of a need, which add up to its total."""
    return f"{_large_parts(need, context)} + {size_text(need.compute)} buffers"


def _large_parts(need: fit.Need, context: int) -> str:
    return f"{size_text(need.weights)} weights + {size_text(need.cache)} cache for {context:,} tokens"


def _ending(chosen: Option, options: Sequence[Option], rejected: tuple[tuple[str, str], ...], wish: Wish) -> str:
    if not rejected:
        return ""
    usual = next((option for option in options if option.level == wish.usual), None)
    if usual and chosen.candidate.weights_bytes < usual.candidate.weights_bytes:
        return f"; {usual.lacking} forces a level below {wish.usual}, which {usual.fault}"
    level, why = rejected[-1]
    if chosen.slow:
        return f"; no level reaches {wish.enough:g} tokens/s here, this one about {chosen.speed:.1f}"
    return f"; {level} {why}"


def _nothing_fits(options: Sequence[Option], budget: int, context: int, states: int) -> DoesNotFit:
    """The refusal with what would fit: a lower level, or a shorter context; `states` bytes of caches never shrink."""
    usable = [option for option in options if option.candidate.worthwhile] or list(options)
    if not usable:
        return DoesNotFit("this model has no level to choose from", "name one with `--level`")
    least = usable[-1]
    if least.lacking == "disk":
        return DoesNotFit(f"even {least.level} {least.fault}", "make room on the disk of the store")
    lower = next((option for option in options if not option.fault), None)
    hints = [f"`--level {lower.level}` fits, at a loss of quality"] if lower else []
    for option in (least, *([] if lower else options[-1:])):
        room = _room(option.need, budget, context, states)
        if room and len(hints) < 2:
            hints.append(f"{option.level} fits with a context of {room:,} tokens (`lm fit --ctx {room}`, LM_CONTEXT)")
            break
    parts = _sum(least.need, context)
    message = f"even {least.level} {least.fault} ({parts}), and models may use {size_text(budget)} here"
    return DoesNotFit(message, "; ".join(hints) or "take a smaller model")


def _room(need: fit.Need, budget: int, context: int, states: int) -> int:
    """Tokens of context with which a need of `context` tokens is met by the budget; 0 where no context does it."""
    rest = budget - need.weights - need.compute - states
    per_token = max(1, -(-(need.cache - states) // max(1, context)))
    tokens = max(0, rest) // per_token // CONTEXT_STEP * CONTEXT_STEP
    return min(tokens, context)
