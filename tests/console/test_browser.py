"""The page in a real Chromium on a real Kafka and Redis: by key alone, quick, for everybody, and never a line of a
stranger's.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import chromium
from tests.console.harness import PASSWORD, Console, Outside, picture, smaller
from tests.deploy.tools import Missing
from tests.integration.harness import wait_until
from worker.evidence import Evidence, FileMetadata, Nearest, Neighbour

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make setup-all")
axe_library = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe is not installed: make setup-all"
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
DESKTOP, PHONE = {"width": 1366, "height": 850}, {"width": 390, "height": 844}
EVIDENCE = Evidence(
    declared="generated",
    metadata=FileMetadata(tool="stable-diffusion-webui"),
    nearest=Nearest(real=Neighbour(distance=0.21, label="photos"), fake=Neighbour(distance=0.08, label="sdxl")),
)
# Milliseconds from the key to the next image on the screen: the page notes both (performance.now()).
PAINTED = (
    "(({paintedAt, decidedAt}) => Number(paintedAt) - Number(decidedAt))(document.querySelector('#review').dataset)"
)
SHIFTS = """() => new Promise(done => new PerformanceObserver(list => done(
  list.getEntries().filter(one => !one.hadRecentInput).reduce((sum, one) => sum + one.value, 0)))
  .observe({type: 'layout-shift', buffered: true}) || setTimeout(() => done(0), 500))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        program, variables = chromium()
    except Missing as error:
        pytest.skip(str(error))
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(
            executable_path=program,
            env={**os.environ, **variables},
            chromium_sandbox=os.geteuid() != 0,
            args=["--disable-gpu"],
        )
        yield found
        found.close()


class Screen:
    """Somebody's browser, logged in by key; what it said on the console, and what it asked for from elsewhere."""

    def __init__(
        self, browser: Any, console: Console, name: str, *, phone: bool = False, scheme: str = "light"
    ) -> None:
        self.context = browser.new_context(viewport=PHONE if phone else DESKTOP, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.said: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog: {dialog.message}"))
        self.page.on(
            "request", lambda asked: None if asked.url.startswith(console.url) else self.elsewhere.append(asked.url)
        )
        self.page.goto(f"{console.url}/login")
        self.page.wait_for_function("() => document.activeElement.name === 'name'")
        self.page.keyboard.type(name)
        self.page.keyboard.press("Tab")
        self.page.keyboard.type(PASSWORD)
        self.page.keyboard.press("Enter")
        self.page.wait_for_url("**/review" if name != "otto" else "**/queues")

    def shown(self, but: str = "") -> str:
        """The id of the image on the screen, once it is painted, and is another than `but`."""
        self.page.wait_for_function(
            "but => { const p = document.querySelector('#review').dataset.painted; return p && p !== but; }", arg=but
        )
        found: str = self.page.get_attribute("#review", "data-painted")
        return found

    def ids_done(self) -> list[str]:
        found: list[str] = self.page.locator("#log li.done .id").all_inner_texts()
        return found

    def close(self) -> None:
        self.context.close()


def test_by_key_alone_and_quickly(browser: Any, outside: Outside, open_console: Callable[..., Console]) -> None:
    """Log-in, reason, note, decide, undo, skip, move, zoom, help: no mouse; the next image is there at once, nothing
    jumps, and nothing is asked for from elsewhere.
    """
    console = open_console(undo_s="2")
    outside.judged({f"image-{n:02}": picture(n, (900, 700)) for n in range(12)}, evidence=EVIDENCE)
    screen = Screen(browser, console, "anna")
    page, press = screen.page, screen.page.keyboard.press
    first = screen.shown()
    assert "blur" in page.locator("#picture").get_attribute("class")
    press("Space")
    assert "hidden" not in page.locator("#picture").get_attribute("class")
    press("c")
    page.wait_for_function("() => document.querySelector('#picture.crop img')?.naturalWidth === 224")
    press("?")
    assert page.locator("#keys").is_visible()
    press("Escape")
    press("2")
    press("n")
    page.keyboard.type("rfu six fingers")
    press("Enter")
    image_id = page.locator("#image-id").inner_text()
    press("f")
    second = screen.shown(first)
    page.wait_for_function("() => document.querySelector('#log li.done')")
    wait_until(lambda: len(outside.reviews()) == 1, "the first is on Kafka")
    (event,) = outside.reviews()
    assert (event["image_id"], event["decision"], event["reason"], event["note"]) == (
        image_id,
        "fake",
        "known_source",
        "rfu six fingers",
    )
    press("r")
    screen.shown(second)
    press("z")
    page.wait_for_function("id => document.querySelector('#review').dataset.painted === id", arg=second)
    press("s")
    third = screen.shown(second)
    page.locator("#hide").focus()
    times = []
    press("Tab")
    page.evaluate("() => document.activeElement.blur()")
    for _ in range(6):
        page.wait_for_timeout(700)  # a person looks for longer: the next one has been fetched by then
        press("u")
        third = screen.shown(third)
        times.append(page.evaluate(PAINTED))
    print("key to next image painted, ms:", sorted(round(one) for one in times), "median", statistics.median(times))
    wait_until(lambda: len(outside.reviews()) == 7, "all are on Kafka")
    assert "real" not in {one["decision"] for one in outside.reviews()}
    assert page.evaluate(SHIFTS) < 0.05
    assert [line for line in screen.said if "favicon" not in line] == [] and screen.elsewhere == []
    screen.close()


@pytest.mark.parametrize(("phone", "scheme"), [(False, "light"), (False, "dark"), (True, "light"), (True, "dark")])
def test_nothing_keeps_people_out(
    browser: Any, outside: Outside, open_console: Callable[..., Console], phone: bool, scheme: str
) -> None:
    """axe finds nothing serious on any page, on a desktop and a phone, light and dark; no page scrolls sideways.

    With CONSOLE_SCREENSHOTS=<folder> each page is kept as a picture, for somebody to look at.
    """
    console = open_console(near_duplicates="true")
    beach = {f"holiday/beach-{n}.jpg": smaller(picture(7, (900, 700)), 0.9 - n / 10) for n in range(4)}
    outside.judged(beach | {"portraits/0815.jpg": picture(2, (700, 900))}, evidence=EVIDENCE)
    groups = f"{outside.prefix}{{console}}:group:*"
    wait_until(lambda: any(outside.redis.scard(key) == 4 for key in outside.redis.keys(groups)), "the group")
    screen = Screen(browser, console, "lea", phone=phone, scheme=scheme)
    first = screen.shown()
    screen.page.keyboard.press("1")
    screen.page.keyboard.press("f")
    screen.shown(first)
    screen.page.wait_for_function("() => document.querySelector('#log li.done')")
    _look(screen, f"review-{phone}-{scheme}")
    for key in ("Space", "c"):
        screen.page.keyboard.press(key)
        _look(screen, f"review-{key}-{phone}-{scheme}")
    screen.page.keyboard.press("c")
    screen.page.keyboard.press("g")
    screen.page.wait_for_function("() => document.querySelectorAll('#alike img').length >= 2")
    screen.page.wait_for_function("() => [...document.querySelectorAll('#alike img')].every(one => one.complete)")
    _look(screen, f"group-{phone}-{scheme}")
    screen.page.keyboard.press("?")
    _look(screen, f"keys-{phone}-{scheme}")
    screen.page.keyboard.press("Escape")
    screen.page.keyboard.press("r")
    screen.page.wait_for_function("() => document.querySelector('#log li.done')?.textContent.includes('and 2 alike')")
    together = [one for one in outside.reviews() if one["decision"] == "real"]
    assert len(together) == 3 and len({one["group"] for one in together}) == 1
    for path in ("queues", "history", "audit"):
        screen.page.goto(f"{console.url}/{path}")
        _look(screen, f"{path}-{phone}-{scheme}")
    screen.context.clear_cookies()
    screen.page.goto(f"{console.url}/login")
    _look(screen, f"login-{phone}-{scheme}")
    screen.close()


def _look(screen: Screen, name: str) -> None:
    if folder := os.environ.get("CONSOLE_SCREENSHOTS"):
        screen.page.screenshot(path=Path(folder) / f"{name.replace('True', 'phone').replace('False', 'desktop')}.png")
    # Its script is put in by the test's own hand: the page's policy would not let it.
    found = axe_library.Axe().run(screen.page).response["violations"]
    serious = [
        f"{one['id']}: {one['help']}: {[node['html'][:120] for node in one['nodes'][:3]]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert not serious, f"{name}: {serious}"
    wide = screen.page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"{name} is {wide} px too wide"


def test_markup_is_shown_not_run(browser: Any, outside: Outside, open_console: Callable[..., Console]) -> None:
    """Ids, reasons, labels, headers, notes that carry markup are text on every page; nothing of them runs."""
    console = open_console(undo_s="0")
    evil = '"><img src=x onerror=alert(1)><script>alert(2)</script>\u202etxt'
    outside.judged({evil: picture(1)}, reasons=[evil], labels=[evil], headers={evil: evil}, evidence=EVIDENCE)
    screen = Screen(browser, console, "lea")
    screen.shown()
    text = screen.page.locator("aside").inner_text()
    assert "<script>alert(2)</script>" in text and "\u202e" not in text
    screen.page.keyboard.press("n")
    screen.page.keyboard.type(evil.replace("\u202e", ""))
    screen.page.keyboard.press("Enter")
    screen.page.keyboard.press("f")
    wait_until(outside.reviews, "it is decided")
    time.sleep(1)
    screen.page.goto(f"{console.url}/history")
    assert "<script>alert(2)</script>" in screen.page.locator("table").inner_text()
    assert screen.page.locator("table script, table img").count() == 0
    assert not any("dialog" in line for line in screen.said) and screen.elsewhere == []
    screen.close()
