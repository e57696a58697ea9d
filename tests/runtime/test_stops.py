"""Text set free piece by piece: against the whole text, for every way to cut it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from runtime.text.stops import Assembler, Stops


def feed(pieces: list[bytes], stops: list[str]) -> tuple[list[str], str]:
    assembler = Assembler(Stops(stops))
    shown = []
    for piece in pieces:
        shown.append(assembler.push(piece))
        if assembler.stop:
            return shown, assembler.stop
    return [*shown, assembler.finish()], ""


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(i % (len(data) + 1) for i in at)})
    return [data[a:b] for a, b in pairwise(edges)]


@given(
    st.text(alphabet="ab€😀\n", max_size=30),
    st.lists(st.text(alphabet="ab€\n", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 200), max_size=12),
)
def test_any_cut_shows_the_text_up_to_the_first_stop(text: str, stops: list[str], at: list[int]) -> None:
    shown, stop = feed(cut(text.encode(), at), stops)
    found = [text.index(string) for string in stops if string in text]
    if found:
        # A longer string that begins earlier may still be incomplete when a shorter one is: then the shorter one ends
        # it.
        assert stop in stops
        assert text.startswith("".join(shown) + stop)
    else:
        assert ("".join(shown), stop) == (text, "")
    assert not any("�" in part for part in shown)


@given(st.text(max_size=20), st.lists(st.integers(0, 200), max_size=12))
def test_without_stops_every_whole_character_is_shown_at_once(text: str, at: list[int]) -> None:
    assembler = Assembler(Stops([]))
    read, shown = b"", ""
    for piece in cut(text.encode(), at):
        read += piece
        shown += assembler.push(piece)
        assert shown == read.decode(errors="ignore")  # all that is incomplete is the last character


def test_stop_across_pieces_never_leaks() -> None:
    assert feed([b"Hello <", b"|im_", b"end|", b"> more"], ["<|im_end|>"]) == (["Hello ", "", "", ""], "<|im_end|>")
    assert feed([b"a<", b"|im_", b"x"], ["<|im_end|>"]) == (["a", "", "<|im_x", ""], "")
    assert feed([b"aab"], ["ab"]) == (["a"], "ab")
    assert feed([b"aa", b"ab"], ["aab"]) == (["", "a"], "aab")


def test_broken_bytes_become_one_replacement_and_a_torn_end_too() -> None:
    assert feed([b"a\xff", b"b\xe2\x82"], []) == (["a�", "b", "�"], "")


def test_an_empty_stop_string_stops_nothing() -> None:
    assert Stops(["", ""]).strings == []
