"""The training report in a real browser: it opens without errors, needs nothing from outside, and can be read on a
phone and in the dark.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.browser.chromium import chromium
from tests.browser.sample import GENERATORS, write_sample
from tests.deploy.tools import Missing

pytest.importorskip("torch", reason="training is not installed: make setup-all")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make setup-all")

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

pytestmark = pytest.mark.slow
FIGURES = {
    "by_generator",
    "roc",
    "det",
    "reliability",
    "histograms",
    "robustness",
    "tsne_label",
    "tsne_generator",
    "shortcuts",
    "training",
}
AA = 4.5  # WCAG 2.2, 1.4.3: contrast of text

# The contrast of every element that has text of its own against the nearest background that is painted, as WCAG
# computes it.
CONTRASTS = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const color = parse(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('body *')]
    .filter(node => [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim())
      && node.getClientRects().length)
    .map(node => {
      const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), node.tagName + ': ' + node.textContent.trim().slice(0, 40)];
    });
}"""


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("sample") / "made")


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    try:
        program, variables = chromium()
    except Missing as error:
        pytest.skip(str(error))
    with playwright.sync_playwright() as driver:
        # Chromium's sandbox refuses root, as whom containers run; the page is our own.
        sandbox = os.geteuid() != 0
        browser = driver.chromium.launch(
            executable_path=program, env={**os.environ, **variables}, chromium_sandbox=sandbox, args=["--disable-gpu"]
        )
        yield browser
        browser.close()


class Opened:
    """The page, opened; what it said and what it asked for from elsewhere."""

    def __init__(
        self, browser: playwright.Browser, path: Path, viewport: dict[str, int], scheme: str = "light"
    ) -> None:
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def test_page_opens_offline_without_a_word_on_the_console(browser: playwright.Browser, page_path: Path) -> None:
    """Nothing is said on the console, nothing fetched but the page itself, and text from the run is shown, not run."""
    with Opened(browser, page_path, DESKTOP) as opened:
        assert opened.said == []
        assert [url for url in opened.asked if not url.startswith("data:")] == [page_path.as_uri()]
        assert "<script>alert(1)</script>" in opened.page.locator("#run pre").first.inner_text()


def test_every_figure_is_drawn_and_described(browser: playwright.Browser, page_path: Path) -> None:
    """Each figure of the list is there, decoded, of a size to read, and told in words to those who do not see it."""
    with Opened(browser, page_path, DESKTOP) as opened:
        figures = opened.page.eval_on_selector_all(
            "figure",
            "all => all.map(f => { const i = f.querySelector('img'); "
            "return [f.id, i.naturalWidth, i.clientWidth, i.clientHeight, i.alt]; })",
        )
        assert {name for name, *_ in figures} == FIGURES
        for name, natural, width, height, description in figures:
            assert natural >= 2 * 400 and width >= 300 and height >= 150, name
            assert len(description) > 20, name
        assert "linear 0.8" in {name: text for name, *_, text in figures}["roc"]


def test_every_part_of_an_evaluation_is_there(browser: playwright.Browser, page_path: Path) -> None:
    """Summary, generators with intervals, protocol, curves, robustness, embeddings, shortcuts, training and recipe; the
    links lead to them.
    """
    with Opened(browser, page_path, DESKTOP) as opened:
        page = opened.page
        for link in page.locator("nav a").all():
            target = page.locator(link.get_attribute("href"))
            assert target.count() == 1 and target.locator("h2").inner_text() == link.inner_text()
        table = page.locator("#generators table").first
        for name in (*GENERATORS, "trained on", "unseen", "GAN"):
            assert table.locator("th[scope=row]", has_text=name).count() >= 2, name
        row = table.locator("tr", has=page.locator("th", has_text="flux-1-pro")).first
        # 40 fakes are enough for the intervals of AUC and balanced accuracy, and for what calibrated scores would
        # reach.
        auc, balanced_accuracy, calibration = row.locator("td small").all_inner_texts()
        assert "\N{EN DASH}" in auc and "\N{EN DASH}" in balanced_accuracy
        assert calibration.startswith("exact scores: below")
        assert page.locator("#protocol tbody tr").count() == 2 * (1 + len(GENERATORS))
        assert "optimisation" in page.locator("#run pre").first.inner_text()
        assert "Cramér" in page.locator("#data").inner_text()
        assert "broken.jpg" in page.locator("#data details").text_content()
        assert "0123456789ab" in page.locator("header dl").inner_text()


@pytest.mark.parametrize(
    "viewport", [DESKTOP, PHONE, {"width": 320, "height": 600}], ids=["desktop", "phone", "narrow"]
)
def test_page_never_scrolls_sideways(viewport: dict[str, int], browser: playwright.Browser, page_path: Path) -> None:
    """Wide tables and figures scroll in their own frame, also with every part unfolded; text is not cut."""
    with Opened(browser, page_path, viewport) as opened:
        page = opened.page
        page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        outside = page.evaluate(
            "() => [...document.querySelectorAll('h1, h2, p, dd, summary, figcaption, .wide, .scroll')]"
            ".filter(node => node.getBoundingClientRect().right > innerWidth + 1)"
            ".map(node => node.outerHTML.slice(0, 80))"
        )
        assert outside == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_schemes(scheme: str, browser: playwright.Browser, page_path: Path) -> None:
    """Every text stands out from its ground by WCAG's AA ratio, and the dark scheme really is dark."""
    with Opened(browser, page_path, DESKTOP, scheme) as opened:
        contrasts = opened.page.evaluate(CONTRASTS)
        assert len(contrasts) > 100
        assert [found for found in contrasts if found[0] < AA] == []
        ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_everything_that_scrolls_or_unfolds_is_reached_by_keyboard(
    browser: playwright.Browser, page_path: Path
) -> None:
    """Tab reaches each frame that scrolls and each part that unfolds; Enter unfolds it, the arrow keys scroll it."""
    with Opened(browser, page_path, PHONE) as opened:
        page = opened.page
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate("(document.activeElement.ariaLabel || document.activeElement.textContent).slice(0, 60)")
            )
        labels = page.eval_on_selector_all(
            ".wide:visible, .scroll:visible, summary",
            "all => all.map(one => (one.ariaLabel || one.textContent).slice(0, 60))",
        )
        assert len(labels) > 8 and set(labels) <= reached
        summary = page.locator("summary", has_text="Head knn")
        summary.focus()
        page.keyboard.press("Enter")
        assert page.locator("details[open] > summary", has_text="Head knn").count() == 1
        table = page.locator(".wide").first
        table.focus()
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        page.wait_for_function("document.querySelector('.wide').scrollLeft > 0")


def test_a_report_without_run_data_and_sweeps_says_what_is_missing(
    browser: playwright.Browser, page_path: Path, tmp_path: Path
) -> None:
    """What was not measured is named with the command that measures it; nothing is empty or broken."""
    import json
    import shutil

    from train.report import write_report

    results = tmp_path / "results"
    shutil.copytree(page_path.parents[1] / "results", results)
    told = json.loads((results / "results.json").read_text())
    del told["robustness"]
    (results / "results.json").write_text(json.dumps(told))
    with Opened(browser, write_report(results, tmp_path / "out"), PHONE) as opened:
        assert opened.said == []
        missing = opened.page.locator(".none").all_inner_texts()
        assert [option for text in missing for option in ("--robustness", "--data", "--run") if option in text] == [
            "--robustness",
            "--data",
            "--run",
        ]
