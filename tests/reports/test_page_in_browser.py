"""The page in a real browser: nothing overflows, sorting and filtering work, links lead to cells.

Needs playwright and a Chromium (its own, or one on the path): skipped, with the reason, where there is none.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kerple_eval.reports.page import page
from tests.helpers.made_cells import cell, drawn, shifted, write_finished

pytestmark = pytest.mark.slow

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
MODELS = {f"m{i}": shift for i, shift in enumerate((0.3, 0.0, 0.9, 0.1, 0.7, 0.2, 0.5, 0.4, 0.6, 0.8))}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="no playwright here")
    with sync.sync_playwright() as playwright:
        found = next((path for name in NAMES if (path := shutil.which(name))), None)
        try:
            opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except sync.Error as error:
            pytest.skip(f"no browser here: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = drawn(3, [30, 40, 50, 30, 40, 50])
    cells = [
        cell(model, shifted(base, [by + length / 1000] * 6), length=length)
        for model, by in MODELS.items()
        for length in (64, 128, 256)
    ]
    folder = write_finished(tmp_path_factory.mktemp("browser") / "run", cells)
    (path,) = page.make([folder], against="m1")
    return path


def opened(
    browser: Any, report: Path, width: int, scheme: str = "light", **options: Any
) -> tuple[Any, list[str]]:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, **options
    )
    tab, wrong = context.new_page(), list[str]()
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda request: wrong.append(request.url) if request.url != report.as_uri() else None)
    tab.goto(report.as_uri())
    return tab, wrong


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_offline_at_desktop_and_phone_width(
    width: int, scheme: str, browser: Any, report: Path
) -> None:
    tab, wrong = opened(browser, report, width, scheme)
    assert wrong == []
    assert tab.evaluate("document.documentElement.scrollWidth") == width  # tables scroll inside themselves
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, background[4:-1].split(","))) > 3 * 128
    assert light == (scheme == "light")
    boxes = [svg.bounding_box() for svg in tab.locator("svg").all()]
    assert len(boxes) > 3
    for box in boxes:
        assert box["x"] >= 0
        assert 250 < box["width"] <= width
    ink = tab.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert ink == tab.evaluate("getComputedStyle(document.body).color")


def names(table: Any) -> list[str]:
    return [th.inner_text() for th in table.locator("tbody tr:visible > th").all()]


def test_sorting_by_mouse_and_keyboard(browser: Any, report: Path) -> None:
    tab, wrong = opened(browser, report, 1280)
    table = tab.locator("#results table").first
    heading = table.locator("thead th").nth(2)
    rising = sorted(MODELS, key=lambda name: MODELS[name])
    assert names(table) == list(MODELS)
    heading.get_by_role("button").click()
    assert names(table) == rising
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.get_by_role("button").focus()
    tab.keyboard.press("Enter")
    assert names(table) == rising[::-1]
    assert heading.get_attribute("aria-sort") == "descending"
    table.locator("thead th").first.get_by_role("button").click()
    assert names(table) == sorted(MODELS)
    assert heading.get_attribute("aria-sort") is None
    assert wrong == []


def test_filtering_and_a_link_into_what_is_filtered_out(browser: Any, report: Path) -> None:
    tab, wrong = opened(browser, report, 1280)
    box = tab.locator("#provenance .table").first
    field, status = box.get_by_role("searchbox"), box.get_by_role("status")
    field.fill("M3 256")
    assert names(box) == ["m3"]
    assert status.inner_text() == "1 of 30 rows"
    field.fill("no such thing")
    assert names(box) == []
    field.fill("m3")
    assert names(box) == ["m3"] * 3
    link = tab.locator("#results table").first.locator("tbody tr", has_text="m5").locator("a").first
    link.click()
    target = tab.locator(f"[id='{link.get_attribute('href')[1:]}']")
    target.wait_for(state="visible")
    assert target.locator("th").inner_text() == "m5"
    assert len(names(box)) == 30
    assert target.bounding_box()["y"] >= 0
    assert wrong == []


def test_without_javascript_tables_are_plain(browser: Any, report: Path) -> None:
    tab, _ = opened(browser, report, 390, java_script_enabled=False)
    assert tab.locator("#results table").first.locator("tbody tr").count() == len(MODELS)
    assert tab.locator("thead button, input[type=search]").count() == 0
    shown = tab.locator("#results .panel:visible p.caption")
    assert [text.split(":")[1].split(" against")[0] for text in shown.all_text_contents()] == [" perplexity"]
    tab.locator("#results .switch label").last.click()  # the switch needs no script
    assert "bits per byte" in shown.first.text_content()


def test_names_and_roles_as_a_screen_reader_finds_them(browser: Any, report: Path) -> None:
    tab, _ = opened(browser, report, 1280)
    figure = tab.locator("#results").get_by_role("img").first
    assert figure.get_attribute("aria-labelledby")
    assert tab.get_by_role("img", name="book, full-context").count() >= 1
    assert tab.get_by_role("table", name="book, full-context: perplexity").count() == 1
    assert tab.get_by_role("rowheader", name="m3").count() > 3
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the page"
