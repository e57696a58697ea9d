"""The house's own rules: imports go down, each process imports only what it may, rooms stay small."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from server.config import VERSION
from server.settings import SETTINGS
from tests.floors import FLOORS
from tests.parsed import tree

ROOT = Path(__file__).parent.parent
PACKAGES = ("cli", "server", "runtime", "registry", "quant")
MAY_IMPORT = {
    "quant": set(),
    "registry": set(),
    "runtime": {"quant"},
    "server": {"runtime", "registry", "quant"},
    "cli": {
        "server.config",
        "server.settings",
        "server.settings_file",
        "server.audit",
        "server.telemetry",
        "server.tuning",
        "server.keys",
        "server.values",
        "runtime.defaults",
        "runtime.units",
        "registry.names",
        "registry.words",
        "registry.modelfile",
        "registry.errors",
        "quant.levels.recipes",
    },
}
# Files that read the clock on the wall, which may be set at any moment: to show a moment, or for one that is a date. No
# length of time is measured by it, except where a machine or a file outlives the clocks that nobody sets.
MAY_READ_THE_WALL = {
    "cli/commands/key.py": "keys end at a date",
    "cli/commands/ps.py": "a date of the daemon's, shown",
    "cli/console.py": "a date of the daemon's, shown",
    "quant/kernels/vectors/cache.py": "which folder was used last",
    "registry/net/retries.py": "a date that a source names, where it does not say its own",
    "registry/signatures/keys.py": "certificates end at a date",
    "registry/store/older.py": "the age of a file that is kept for two weeks at most",
    "runtime/machine/rates.py": "the age of a file, either way",
    "runtime/text/gotemplate/functions.py": "the date, for a model",
    "runtime/text/sandbox.py": "the date, for a model",
    "runtime/text/template.py": "the date, for a model",
    "server/access/limits.py": "how long the machine was off, never less than nothing; a date for clients",
    "server/access/table.py": "keys end at a date",
    "server/api/ollama/models.py": "a date for clients",
    "server/api/ollama/writer.py": "a date for clients",
    "server/quality/card.py": "the date of a measurement",
    "server/quality/learning.py": "statistics in the cache go by the age of their files",
    "server/api/openai/moments.py": "a date for clients",
    "server/audit/line.py": "when an entry was made",
    "server/audit/log.py": "the age of a file, in days",
    "server/creates/create.py": "a date in a file",
    "server/doctor/governance.py": "certificates end at a date",
    "server/doctor/exposure.py": "keys end at a date",
    "server/improving/idle.py": "the hour of the day, as settings allow it",
    "server/improving/improvement.py": "a date in a manifest",
    "server/improving/improver.py": "the date of a record",
    "server/keys/record.py": "when a key was made",
    "server/report/__main__.py": "a date in a report",
    "server/report/gathering.py": "a date in a report, and keys end at a date",
    "server/telemetry/sampler.py": "when a sample was taken; how long counters count goes by the steady clock",
    "server/pulls/adapting.py": "a date in a file",
    "server/pulls/lines.py": "a date for clients",
    "server/pulls/provenance.py": "a date in a file",
    "server/watching/activity.py": "a date for clients",
    "server/watching/examining.py": "a date for clients",
    "server/watching/sampling.py": "a date for clients",
}
_WALL = re.compile(
    r"\btime\.(time|time_ns|localtime|gmtime)\b|\bCLOCK_REALTIME\b|\bst_[amc]time\b|date(time)?\.(utc)?(now|today)\b"
)
FILE_LINES = 400
FUNCTION_LINES = 50
# May only shrink.
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()
STILL_UP = {}


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def allowed(module: str, package: str) -> bool:
    top = module.split(".")[0]
    if top not in PACKAGES or top == package:
        return True
    return any(module == name or module.startswith(f"{name}.") for name in MAY_IMPORT[package])


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_down(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources(package)
        for module in imported(path)
        if not allowed(module, package)
    ]
    assert not wrong


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def arrows(package: str) -> Iterator[tuple[str, str]]:
    """Which module of a package imports which other one of it, not counting what only type checkers read."""
    modules = {module_of(path): path for path in sources(package)}
    for module, path in modules.items():
        for name in imported(path):
            target = next((known for known in (name, name.rpartition(".")[0]) if known in modules), None)
            if target is not None and target != module:
                yield module, target


def floor_of(module: str) -> tuple[int, str]:
    """The floor of a module, and its room."""
    found = [
        (len(room), floor, room)
        for floor, rooms in enumerate(FLOORS[module.split(".")[0]])
        for room in rooms
        if module == room or module.startswith(f"{room}.")
    ]
    _, floor, room = max(found)
    return floor, room


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_down_between_rooms(package: str) -> None:
    wrong = {
        f"{module} imports {target}"
        for module, target in arrows(package)
        if floor_of(module)[1] != floor_of(target)[1] and floor_of(module)[0] <= floor_of(target)[0]
    }
    assert wrong == {arrow for arrow in STILL_UP if arrow.startswith(f"{package}.")}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_imports_go_in_a_circle(package: str) -> None:
    graph: dict[str, set[str]] = {}
    for module, target in arrows(package):
        graph.setdefault(module, set()).add(target)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize(
    ("entry", "never"),
    [
        ("cli.main", {"aiohttp", "numpy", "numba", "llama_cpp", "msgspec", "rich", "prompt_toolkit", "gguf", "jinja2"}),
        ("server.__main__", {"numba", "llama_cpp", "gguf", "jinja2", "tokenizers"}),
        ("server.pulls.puller", {"llama_cpp"}),
        ("server.pulls.compiling", {"llama_cpp", "aiohttp"}),
        ("server.advice.adviser", {"llama_cpp", "numba", "gguf", "tokenizers"}),
        ("server.doctor.__main__", {"llama_cpp", "numba", "aiohttp"}),
        ("server.quality.meter", {"llama_cpp", "numba", "aiohttp"}),
        ("server.report.__main__", {"llama_cpp", "numba", "aiohttp"}),
        ("server.returning.__main__", {"llama_cpp", "numba", "aiohttp"}),
        ("server.doctor.reporter", {"llama_cpp", "numba", "aiohttp"}),
        ("runtime.worker", {"numba"}),
    ],
)
def test_processes_import_only_what_they_may(entry: str, never: set[str]) -> None:
    code = f"import sys, json, {entry}; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT).stdout)
    assert not never & set(loaded)


def test_every_library_that_is_imported_is_a_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # What needs an extra, such as `server/verify`, signatures and pictures, says so where it is missing.
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *extras["oracle"], *extras["signing"], *extras["picture"]]
    wanted = {re.split("[<>=]", text)[0].lower().replace("_", "-") for text in texts}
    known = importlib.metadata.packages_distributions()
    modules = {name.split(".")[0] for path in sources(*PACKAGES) for name in imported(path)}
    # A part of Numba, and a package of the standard library from Python 3.14 on.
    libraries = modules - set(PACKAGES) - sys.stdlib_module_names - {"llvmlite", "compression"}
    # A package that is not installed has no other name than its own.
    packages = {name: {each.lower().replace("_", "-") for each in known.get(name, [name])} for name in libraries}
    assert {name for name in libraries if not wanted & packages[name]} == set()


def test_files_are_small() -> None:
    long = {
        str(path.relative_to(ROOT)) for path in sources(*PACKAGES) if len(path.read_text().splitlines()) > FILE_LINES
    }
    assert long == LONG_FILES


def test_functions_are_short() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.name}"
        for path in sources(*PACKAGES)
        if "kernels" not in path.parts
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES
    }
    assert long == LONG_FUNCTIONS


def test_every_module_says_what_it_does() -> None:
    silent = [str(path.relative_to(ROOT)) for path in sources(*PACKAGES) if not ast.get_docstring(tree(path))]
    assert not silent


@pytest.mark.parametrize("page", ["house", "api", "settings", "commands"])
def test_the_pages_are_written_from_the_code(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert text == runpy.run_path(str(ROOT / "scripts" / "pages"))[page](text), "run ./scripts/pages"


def test_the_docs_have_every_setting() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    rows = {row.split("`")[1]: row.rstrip("| ").rpartition("|")[2].strip() for row in text.splitlines() if "| `" in row}
    assert rows.keys() == SETTINGS.keys() and all(len(words) > 5 for words in rows.values())


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 150


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]


def test_pages_lead_somewhere() -> None:
    links = [(page, link) for page in pages() for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
    assert not [(page.name, link) for page, link in links if not (page.parent / link).exists()]


def test_no_message_names_a_page_that_a_wheel_lacks() -> None:
    named = []
    for path in sources(*PACKAGES):
        nodes = list(ast.walk(tree(path)))
        prose = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        texts = [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in prose]
        named += [f"{path}: {text}" for text in texts if isinstance(text, str) and re.search(r"docs/\w+\.md", text)]
    assert not named


def test_pages_name_files_that_are_there() -> None:
    folders = "cli|server|runtime|registry|quant|tests|benchmarks|scripts|docs"
    named = {path for page in pages() for path in re.findall(rf"`((?:{folders})/[\w/.]*)`", page.read_text())}
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_version_is_written_once() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]
    assert importlib.metadata.version("lm") == VERSION


def test_only_these_files_read_the_clock_on_the_wall() -> None:
    found = {str(path.relative_to(ROOT)) for path in sources(*PACKAGES) if _WALL.search(path.read_text())}
    assert found == set(MAY_READ_THE_WALL)
