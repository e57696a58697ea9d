"""How the page looks and whom it keeps out: axe-core, pictures at three widths, the requests before the first paint.

`LM_PAGE_PICTURES=FOLDER ./scripts/test -m slow tests/page/test_looks.py` leaves the pictures in FOLDER.
`LM_PAGE_README=1` writes the README's own as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.sources.opening import DEMO
from tests.daemon import Daemon, put_model
from tests.hub import Hub
from tests.page.conftest import VIEWS, ask, opened, settled, start, until
from tests.test_architecture import ROOT

pytestmark = pytest.mark.slow
SCHEMES = ("light", "dark")
WIDTHS = {390: 844, 1280: 800, 2560: 1440}
# A view's address, and what is there once its data are.
FULL = {
    "models": ("models", "tbody tr"),
    "fit": ("fit/org%2Fdemo", ".levels tbody tr"),
    "machine": ("machine", ".findings li"),
}
ANSWER = r"""<think>A table says it best, and the formula once.</think>### What a level costs

A *level* is **how many bits a weight gets**; `lm fit` weighs all of them.

1. Fewer bits take less memory, and less time for each token.
2. The answers move away from those of the original weights:
   - by a little down to four bits,
   - by much below three.

| level | size | KL |
|---|--:|--:|
| Q4_K_M | 4.9 GB | 0.021 |
| Q8_0 | 8.5 GB | 0.001 |

```python
def fits(need: int, free: int) -> bool:
    return need <= free  # both in bytes
```

The distance is the divergence $D(p \| q) = \sum_i p_i \log (p_i / q_i)$ of both models' next tokens."""


@pytest.fixture(scope="module")
def daemon(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with one answer that has something of everything."""
    home = tmp_path_factory.mktemp("looks")
    put_model(home, "qwen3", level="Q4_K_M")
    put_model(home, "smollm2", level="Q8_0", context=8192)
    tokens = re.findall(r"\s*\S+", ANSWER)
    with Hub({"org/demo": DEMO}) as hub:
        nowhere = {"HF_HOME": str(home / "none"), "OLLAMA_MODELS": str(home / "none")}
        with Daemon(home, script={"tokens": tokens, "delay": 0.004}, env={"HF_ENDPOINT": hub.url} | nowhere) as running:
            yield running


@pytest.fixture(params=[f"{scheme}-{width}" for scheme in SCHEMES for width in WIDTHS])
def looked(request: pytest.FixtureRequest, browser: Any) -> Iterator[Any]:
    scheme, width = request.param.split("-")
    size = {"width": int(width), "height": WIDTHS[int(width)]}
    yield from opened(browser, color_scheme=scheme, viewport=size)


def barriers(page: Any, axe: str) -> list[str]:
    """What axe-core finds wrong: rule, and the element."""
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [f"{each['id']}: {node['html'][:150]}" for each in found["violations"] for node in each["nodes"]]


def talked(page: Any, daemon: Daemon) -> None:
    start(page, daemon, "#/chat/qwen3")
    ask(page, "What does a level cost? A table, please.")
    settled(page)


def visit(page: Any, daemon: Daemon, view: str) -> None:
    route, sign = FULL[view]
    page.goto(f"{daemon.url}/ui/#/{route}")
    page.wait_for_selector(f"#view-{view} {sign}", state="attached")


def test_nobody_is_kept_out_of_the_chat(looked: Any, daemon: Daemon, axe: str) -> None:
    start(looked, daemon)
    assert barriers(looked, axe) == []
    talked(looked, daemon)
    looked.click(".thinking summary")
    assert barriers(looked, axe) == []
    looked.click("[aria-label=Settings].icon-button")
    assert barriers(looked, axe) == []


def test_no_view_is_wider_than_its_window(looked: Any, daemon: Daemon) -> None:
    talked(looked, daemon)
    for view in VIEWS:
        if view != "chat":
            visit(looked, daemon, view)
        width = looked.evaluate("[document.documentElement.scrollWidth, document.getElementById('main').scrollWidth]")
        assert max(width) <= looked.viewport_size["width"], view


def test_pictures(looked: Any, daemon: Daemon, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = Path(os.environ.get("LM_PAGE_PICTURES") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    name = request.node.callspec.id
    talked(looked, daemon)
    looked.screenshot(path=folder / f"chat-{name}.png")
    if name == "light-1280" and os.environ.get("LM_PAGE_README"):
        picture = ROOT / "docs" / "page.png"
        looked.screenshot(path=picture)
        assert picture.stat().st_size <= 200_000
    for view in VIEWS[1:]:
        visit(looked, daemon, view)
        looked.screenshot(path=folder / f"{view}-{name}.png")
    print(f"pictures: {folder}")


def test_the_readmes_picture_is_small() -> None:
    assert (ROOT / "docs" / "page.png").stat().st_size <= 200_000


def test_two_requests_come_before_the_first_paint(browser: Any, daemon: Daemon) -> None:
    for page in opened(browser):
        start(page, daemon)
        until(page, "performance.getEntriesByName('first-contentful-paint').length > 0")
        blocking = page.evaluate(
            "performance.getEntriesByType('resource').filter(each => each.renderBlockingStatus === 'blocking')"
            ".map(each => each.name)"
        )
        assert blocking == [f"{daemon.url}/ui/style.css"]  # beside the page itself


def test_motion_can_be_left_out(browser: Any, daemon: Daemon) -> None:
    for page in opened(browser, reduced_motion="reduce"):
        start(page, daemon)
        ask(page, "x")
        settled(page)
        assert page.evaluate("document.getAnimations().filter(each => each.playState === 'running').length") == 0
