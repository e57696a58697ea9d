"""How far the recurrent state of each sequence can go back: the books of llama.cpp's snapshots (`n_rs_seq`).

A step leaves a state for each of its last tokens. A sequence can go back to one of them once, before the next step.
llama.cpp would do so later and further as well, to states that others have left there (`seq_rm` of
`llama-memory-recurrent.cpp`). So it is asked only where the state is the right one. A batch may be computed in several
parts. Then a later part may move a sequence of an earlier one, and takes its last state alone along (`find_slot`). A
batch in which all sequences have equally many rows is computed whole.
"""

from __future__ import annotations


class Snapshots:
    """Counts for sequences by number; does nothing where `depth`, the snapshots of a sequence, is 0."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._put: dict[int, int] = {}
        """Rows of each sequence in the batch."""
        self._back: dict[int, int] = {}
        """How many tokens each sequence can go back; -1 after a step that failed, which leaves no state to rely on."""
        self._gone: set[int] = set()
        """Sequences that went back, and have not been computed since."""

    def put(self, sequence: int, rows: int) -> None:
        """Rows of a sequence are put into the batch."""
        if self._depth:
            self._put[sequence] = rows

    def computed(self, well: bool) -> None:
        """The batch was computed, or failed."""
        if not self._put:
            return
        whole = len(set(self._put.values())) == 1
        self._back = {sequence: back for sequence, back in self._back.items() if back < 0}
        for sequence, rows in self._put.items():
            self._back[sequence] = (min(rows - 1, self._depth) if whole else 0) if well else -1
            self._gone.discard(sequence)
        self._put.clear()

    def go_back(self, sequence: int, tokens: int) -> bool:
        """Whether a sequence can drop its last `tokens` (0 or less: none of them), which counts as done."""
        most = self._back.get(sequence, 0)
        if tokens > max(0, most) or most < 0:
            return False
        if tokens > 0:
            self._back[sequence] = 0
            self._gone.add(sequence)
        return True

    def went_back(self, sequence: int) -> bool:
        """Whether it has gone back since it was computed."""
        return sequence in self._gone

    def forget(self, sequence: int) -> None:
        """The sequence is emptied, or gets a state from elsewhere."""
        self._back.pop(sequence, None)
        self._gone.discard(sequence)
