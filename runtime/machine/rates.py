"""Which speeds of this machine are known already? The results of probes, kept in the cache folder.

There is a file for each processor, build of llama.cpp and number of threads. A probe takes some seconds, so it is only
asked for where its result decides: a small model is fast enough at any level. A probe that was taken while something
else used the processors is repeated the next time it is needed, once it is some minutes old. Real answers correct it,
family by family.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import time
from pathlib import Path

import msgspec

from runtime.machine.hardware import measure_bandwidth
from runtime.machine.inspection import PROBE_SECONDS, Probe, Probed, ask
from runtime.machine.step_time import FAMILIES, Reads, seconds, seconds_by_family
from runtime.processor import processor_name
from runtime.small_files import replace_file

log = logging.getLogger("lm.measure")
UNSTEADY_SECONDS = 600.0
# How far one answer moves a correction: 0 not at all, 1 all the way to its own time.
_LEARNING_RATE = 0.25
# The largest correction; the smallest is its inverse.
_MAX_CORRECTION = 4.0


class Rates:
    """How fast the processor reads weights with `threads` threads, or the graphics card of the name `card`.

    Whatever cannot be read from `folder` counts as never measured; whatever cannot be written there is measured again.
    """

    def __init__(self, folder: Path, threads: int, card: str = "") -> None:
        self._card = bool(card)
        self._threads = threads
        key = f"{processor_name()} {importlib.metadata.version('llama-cpp-python')} {threads}{card}"
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        self.speed_file = folder / f"speed-{name}.json"
        self.corrections_file = folder / f"learned-{name}.json"
        self.bandwidth_file = folder / f"bandwidth-{name}.json"

    def known(self) -> Probed | None:
        """The last probe, corrected by answers; None where there was none."""
        probed = self._probed()
        if probed is None:
            return None
        corrections = self._corrections()
        rates = {family: rate / corrections.get(family, 1.0) for family, rate in probed.rates.items()}
        return msgspec.structs.replace(probed, rates=rates)

    def stale(self) -> bool:
        """Whether the rates were never measured, or on a busy machine and that some time ago."""
        probed = self._probed()
        if probed is None or probed.steady:
            return probed is None
        try:
            return abs(time.time() - self.speed_file.stat().st_mtime) > UNSTEADY_SECONDS  # the clock may be set back
        except OSError:
            return True

    def measure(self) -> Probed | None:
        """Probe now and keep the result; None where llama.cpp cannot be asked. Blocks for some seconds."""
        probed = ask(Probe(list(FAMILIES), self._threads, self._card), PROBE_SECONDS)
        if not isinstance(probed, Probed):
            return None
        self.keep(probed)
        return probed

    def keep(self, probed: Probed) -> None:
        """Keep the result of a probe. It starts without corrections."""
        with contextlib.suppress(OSError):
            self.corrections_file.unlink(missing_ok=True)
        _keep(self.speed_file, msgspec.json.encode(probed))

    def learn(self, reads: Reads, context: int, measured: float) -> float | None:
        """Correct the rates by a step of a real answer, which took `measured` seconds in the mean.

        Each family that it read is corrected by its share of the time. Returns the predicted seconds, None where there
        is no probe.
        """
        probed = self.known()
        if probed is None:
            return None
        predicted = seconds(probed, reads, context)
        corrections, ratio = self._corrections(), measured / predicted
        for family, share in seconds_by_family(probed, reads).items():
            factor = corrections.get(family, 1.0) * ratio ** (_LEARNING_RATE * share / predicted)
            corrections[family] = min(_MAX_CORRECTION, max(1 / _MAX_CORRECTION, factor))
        _keep(self.corrections_file, msgspec.json.encode(corrections))
        return predicted

    def bandwidth(self) -> float:
        """Bytes per second that the threads read from memory together, measured when first asked for."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            stored = float(json.loads(self.bandwidth_file.read_bytes()))
            if 1e8 < stored < 1e14:  # no memory has another bandwidth: the file is damaged
                return stored
        measured = measure_bandwidth(self._threads)
        _keep(self.bandwidth_file, json.dumps(round(measured)).encode())
        return measured

    def _probed(self) -> Probed | None:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            probed = msgspec.json.decode(self.speed_file.read_bytes(), type=Probed)
            if probed.head_seconds > 0 and all(rate > 0 for rate in probed.rates.values()):
                return probed
        return None

    def _corrections(self) -> dict[str, float]:
        """By which factor each family takes longer in answers than in the probe; a card's rates have none."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            stored = msgspec.json.decode(self.corrections_file.read_bytes(), type=dict[str, float])
            return {name: factor for name, factor in stored.items() if 1 / _MAX_CORRECTION <= factor <= _MAX_CORRECTION}
        return {}


def _keep(path: Path, data: bytes) -> None:
    try:
        replace_file(path, data)
    except OSError as error:
        log.warning("%s cannot be kept, and is measured again next time: %s", path, error)
