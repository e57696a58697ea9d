"""A picture of a tune: divergence against speed, the Pareto front as a line. Needs the extra `picture`."""

from __future__ import annotations

from pathlib import Path

from cli.errors import Failure
from server.tuning.search import Search

_FORMS = (".svg", ".png")


def check_picture(path: str) -> None:
    """Raise Failure where no picture can be drawn into this file."""
    if Path(path).suffix.lower() not in _FORMS:
        raise Failure(f"`{path}` ends neither with .svg nor with .png", "name a file that does", "usage")
    if not Path(path).absolute().parent.is_dir():
        raise Failure(f"the folder of `{path}` is not there", "make it first", "usage")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise Failure("a picture needs matplotlib, which is not installed", "`pip install 'lm[picture]'`") from None


def draw(search: Search, path: Path) -> None:
    """Draw the levels with a speed and a divergence. Raises Failure."""
    from matplotlib.figure import Figure

    whole = {level: t.figures for level, t in search.trials.items() if {"kl", "tokens/s"} <= t.figures.keys()}
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.margins(0.15)
    axes.set_xlabel("tokens/s")
    axes.set_ylabel("KL divergence from the original")
    for level, figures in whole.items():
        best = search.best is not None and search.best.candidate.name == level
        axes.scatter(figures["tokens/s"], figures["kl"], s=70 if best else 30, color="#0a7" if best else "#555")
        axes.annotate(level, (figures["tokens/s"], figures["kl"]), xytext=(5, 5), textcoords="offset points")
    front = sorted((whole[level]["tokens/s"], whole[level]["kl"]) for level in search.front() if level in whole)
    axes.plot([speed for speed, _ in front], [kl for _, kl in front], color="#0a7", linewidth=1)
    for bound in search.goals.bounds:
        if bound.name == "kl":
            axes.axhline(bound.value, color="#b40", linestyle=":", linewidth=1)
        if bound.name == "tokens/s":
            axes.axvline(bound.value, color="#b40", linestyle=":", linewidth=1)
    if whole and min(figures["kl"] for figures in whole.values()) > 0:
        axes.set_yscale("log")
    try:
        figure.savefig(path)
    except OSError as error:
        raise Failure(f"`{path}` cannot be written ({error.strerror})", "name another file") from None
