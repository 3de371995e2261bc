"""The report in a real Chromium: it draws, sorts and filters, asks nobody, fits a phone and prints."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from results_factory import write_benchmark, write_fake_results

from crossearth.components.report import step
from crossearth.components.report.step import ReportConfig, report
from crossearth.data.catalog.domains import Catalog
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.files import write_checksummed

expect = pytest.importorskip("playwright.sync_api").expect
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SAFE_COLOURS = {"#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#7a8794"}
MOST_BYTES, MOST_PAGES = 6_000_000, 12
# what watches the sizes of elements has seen those of now
DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def styles_and_validation(folder: Path) -> None:
    """What other steps leave for the report."""
    (folder / "styles").mkdir(parents=True)
    rng = np.random.default_rng(0)
    summary = {"count": 90, "engine": "spectral", "dim": 40, "shrinkage": 0.1}
    digests = {"corpus_digest": "c" * 64, "styles_digest": "d" * 64}
    write_checksummed(folder / "styles" / "summary.json", summary | digests)
    setting = {"alpha": 0.1, "covered_before": 0.2, "covered_after": 0.8}
    setting |= {"distance_before": 9.0, "distance_after": 3.0}
    scatter = {
        name: rng.normal(size=(30, 2)).tolist() for name in ("Earth samples", "a (source)", "b (target)")
    }
    coverage = {"components": 9, "settings": {"P(i)2V": setting}, "scatter": scatter}
    write_checksummed(folder / "coverage" / "coverage.json", coverage)
    Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(folder / "styles" / "sheet.png")
    checks = [
        {"domain": "potsdam-rgb", "expectation": "no tile in two splits", "found": "3", "passed": False}
    ]
    domain = {
        "provenance": "synthetic",
        "docs": "docs/potsdam.html",
        "splits": {"train": {"tiles": 4}, "test": {"tiles": 3}},
        "checks": checks,
    }
    found = {"potsdam-rgb": domain | {"equal_tiles_across_splits": 0, "alike_tiles_across_splits": 1}}
    (folder / "validation" / "docs").mkdir(parents=True)
    (folder / "validation" / "docs" / "potsdam.html").write_text("<title>Data Docs</title>")
    write_checksummed(folder / "validation" / "summary.json", {"domains": found})


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Path:
    """A report of all 32 settings, compared with a second set of results."""
    folder = tmp_path_factory.mktemp("report")
    write_benchmark(folder / "scores", catalog)
    write_benchmark(folder / "others", catalog, 3, seed=1)
    styles_and_validation(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "_track", lambda *_: None)
        report(
            [folder / "scores"],
            catalog,
            folder / "report",
            ReportConfig(replicates=200),
            against=[folder / "others"],
        )
    return folder / "report" / "index.html"


class Opened:
    """A page and what happened on it."""

    def __init__(self, browser: Any, path: Path, viewport: dict[str, int], scheme: str = "light") -> None:
        self.page = browser.new_page(viewport=viewport, color_scheme=scheme)
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.problems.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        # the last that the page does when it has drawn all charts
        self.page.wait_for_selector(".chart .main-svg[aria-hidden]", state="attached")

    def column(self, number: int) -> list[str]:
        """Text of a column of the visible rows of the table, 1 = the first."""
        selector = f"#scores tbody tr:not(.group):not([hidden]) > :nth-child({number})"
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]


@pytest.fixture(params=["desktop", "phone"])
def opened(request: pytest.FixtureRequest, browser: Any, page_path: Path) -> Iterator[Opened]:
    page = Opened(browser, page_path, DESKTOP if request.param == "desktop" else PHONE)
    yield page
    page.page.close()


@pytest.fixture
def desktop(browser: Any, page_path: Path) -> Iterator[Opened]:
    page = Opened(browser, page_path, DESKTOP)
    yield page
    page.page.close()


def test_charts_draw_without_errors_and_nothing_leaves_the_page(opened: Opened, page_path: Path) -> None:
    page = opened.page
    assert page.locator("#bars .barlayer .point").count() == 32
    assert page.locator("#radar .scatterlayer .point").count() == 33, "closed line"
    assert page.locator("#drops .scatterlayer .point").count() == 14
    assert page.locator("#curves .scatterlayer .js-line").count() == 14
    assert page.locator("#scatter .scatterlayer .point").count() == 60, "sources are hidden at first"
    page.locator("#unfold").click()
    page.evaluate("Promise.all([...document.images].map((each) => (each.loading = 'eager', each.decode())))")
    assert opened.problems == []
    outside = [url for url in opened.requests if not url.startswith(("data:", "blob:"))]
    assert outside == [page_path.as_uri()]


def test_it_fits_the_screen(opened: Opened) -> None:
    opened.page.locator("#unfold").click()
    width = opened.page.evaluate("document.documentElement.scrollWidth")
    assert width <= opened.page.viewport_size["width"]


def test_the_table_sorts(desktop: Opened) -> None:
    header = desktop.page.locator("#scores thead th", has_text="IoU")
    header.locator("button").click()
    scores = [float(text) for text in desktop.column(5)]
    assert scores == sorted(scores, reverse=True) and len(scores) == 32
    assert header.get_attribute("aria-sort") == "descending"
    assert desktop.page.locator("#scores tr.group:not([hidden])").count() == 0
    header.locator("button").click()
    assert [float(text) for text in desktop.column(5)] == sorted(scores)
    desktop.page.locator("#scores thead th", has_text="Source").locator("button").press("Enter")
    assert desktop.column(2) == sorted(desktop.column(2))
    desktop.page.locator("#scores thead th", has_text="Gap").locator("button").click()
    assert desktop.page.locator("#scores tr.group:not([hidden])").count() == 6


def test_the_table_filters(desktop: Opened, catalog: Catalog) -> None:
    page = desktop.page
    page.locator("#search").fill("casid-trf")
    expected = [abbr for abbr, each in catalog.settings.items() if "casid-trf" in (each.source, each.target)]
    assert sorted(desktop.column(1)) == sorted(expected)
    assert page.locator("#count").inner_text() == f"{len(expected)} of 32 settings"
    page.locator("#gap").select_option("in-domain")
    assert desktop.column(1) == ["Trf2Trf"]
    page.locator("#search").fill("")
    assert len(desktop.column(1)) == 7


def test_a_setting_opens_from_the_table(desktop: Opened) -> None:
    desktop.page.locator("#scores a", has_text="P(i)2V").click()
    section = desktop.page.locator("#settings ~ details[open]")
    expect(section).to_contain_text("vaihingen-irrg")
    assert section.locator(".matrix tbody tr").count() == 6
    assert section.locator("figure img").count() == 2, "of so many settings the worst and the best tile"


def test_the_numbers_are_those_of_the_csv(desktop: Opened, page_path: Path) -> None:
    lines = [line.split(",") for line in (page_path.parent / "scores.csv").read_text().splitlines()]
    place = {name: index for index, name in enumerate(lines[0])}
    means = {line[0]: float(line[place["iou"]]) for line in lines[1:] if line[place["metric"]] != "IoU"}
    shown = dict(zip(desktop.column(1), desktop.column(5), strict=True))
    assert shown == {setting: f"{100 * iou:.1f}" for setting, iou in means.items()}


def test_data_docs_are_a_click_away(desktop: Opened) -> None:
    desktop.page.locator("section:has(#validation) a").click()
    expect(desktop.page).to_have_title("Data Docs")


def test_synthetic_numbers_stand_apart_from_published_ones(desktop: Opened) -> None:
    page = desktop.page
    assert "Synthetic data" in page.locator("header .notice").inner_text()
    assert page.locator("#scores th", has_text="Published").count() == 0
    assert "not comparable" in page.locator("section:has(#published) > p").inner_text()
    assert page.locator("section:has(#published) details:not([open])").count() == 1


def test_a_reader_without_eyes_or_mouse_gets_everything(desktop: Opened) -> None:
    page = desktop.page
    page.keyboard.press("Tab")
    expect(page.locator(".skip[href='#table']")).to_be_focused()
    page.locator("#unfold").click()
    assert page.evaluate("[...document.images].every((image) => image.alt.length > 20)")
    assert page.locator(".chart:not([aria-label])").count() == 0
    assert page.evaluate("[...document.querySelectorAll('th')].every((cell) => cell.scope)")
    assert page.evaluate("document.documentElement.lang") == "en"


def test_bars_have_colours_that_colour_blind_readers_tell_apart(desktop: Opened) -> None:
    colours = desktop.page.evaluate("document.getElementById('bars').data.map((trace) => trace.marker.color)")
    assert set(colours) == SAFE_COLOURS


def test_it_prints_on_a_few_pages_what_the_reader_opened(desktop: Opened, tmp_path: Path) -> None:
    desktop.page.locator("#scores a", has_text="P(i)2V").click()
    opened = desktop.page.locator("#settings ~ details[open]")
    expect(opened).to_have_count(1)
    desktop.page.emulate_media(media="print")
    expect(desktop.page.locator("nav")).to_be_hidden()
    desktop.page.pdf(path=str(tmp_path / "report.pdf"), format="A4")
    assert len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "report.pdf").read_bytes())) <= MOST_PAGES
    expect(opened).to_have_count(1)


@pytest.mark.parametrize(("viewport", "scheme"), [(DESKTOP, "dark"), (PHONE, "light")])
def test_everybody_can_read_and_use_it(
    viewport: dict[str, int], scheme: str, browser: Any, page_path: Path, violations: Any
) -> None:
    opened = Opened(browser, page_path, viewport, scheme)
    opened.page.locator("#unfold").click()
    opened.page.evaluate(DRAWN)
    assert violations(opened.page) == []
    chart = opened.page.locator("#bars .xtick text").first
    ink = opened.page.evaluate("getComputedStyle(document.body).color")
    assert chart.evaluate("(text) => getComputedStyle(text).fill") == ink
    opened.page.close()


def test_no_button_sends_the_numbers_away(desktop: Opened) -> None:
    button = desktop.page.locator("#bars .modebar-btn")
    button.first.wait_for(state="attached")
    assert [each.get_attribute("aria-label") for each in button.all()] == ["Download plot as a PNG"]


def test_the_table_is_copied(desktop: Opened, page_path: Path) -> None:
    page = desktop.page
    page.locator("summary", has_text="The table as LaTeX").click()
    page.locator(".copy button:visible").click()
    copied = page.evaluate("getSelection().toString()")
    assert copied.strip() == (page_path.parent / "scores.tex").read_text().strip()
    expect(page.locator(".copy button:visible")).to_have_text(re.compile("^(Copied|Press Ctrl[+]C)$"))


def test_charts_fit_the_paper_and_then_the_screen_again(desktop: Opened) -> None:
    page = desktop.page
    charts = page.locator(".chart .main-svg").all()
    before = [chart.evaluate("(each) => each.clientWidth") for chart in charts]
    assert before and 640 not in before
    for event, widths in (("beforeprint", [640] * len(charts)), ("afterprint", before)):
        page.evaluate(f"dispatchEvent(new Event('{event}'))")
        for chart, width in zip(charts, widths, strict=True):
            expect(chart).to_have_js_property("clientWidth", width)


def test_the_page_is_small_enough_for_a_mail(page_path: Path) -> None:
    assert page_path.stat().st_size < MOST_BYTES


OWN = """
domains:
  north: {class_set: road, images: images, masks: masks, labels: {0: background, 1: road}}
  south: {class_set: road, images: images, masks: masks, labels: {0: background, 1: road}}
settings:
  N2S: {source: north, target: south, gap: region}
  N2N: {source: north, target: north, gap: in-domain}
"""


def test_the_report_of_own_data_is_about_own_data(browser: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(step, "_track", lambda *_: None)
    (tmp_path / "own.yaml").write_text(OWN)
    catalog = load_catalog([tmp_path / "own.yaml"], tmp_path)
    for seed in (0, 1):
        folder = tmp_path / f"scores/{seed}"
        write_fake_results(folder, catalog, catalog.recipe("north"), seed=seed, provenance="own")
    report([tmp_path / "scores"], catalog, tmp_path / "report", ReportConfig(replicates=100))
    opened = Opened(browser, tmp_path / "report" / "index.html", DESKTOP)
    page = opened.page
    assert page.title() == "north, south: 2 settings" and page.locator("h1").inner_text() == "north, south"
    assert "all of your catalog" in page.locator(".figures").inner_text()
    assert "Not scored" not in page.locator("body").inner_text()
    assert page.locator("#radar, #published").count() == 0
    (cell,) = page.locator("section:has(#matrices) td:not(.home)").all_inner_texts()
    assert cell == shown_score(opened, "N2S")
    assert "mIoU" not in page.locator("body").inner_text()
    assert {"SD of seeds", "Seeds"} <= set(page.locator("#scores thead th").all_inner_texts())
    assert "mean of 2 seeds" in page.locator("#N2S-last").text_content()
    assert opened.problems == []
    page.close()


def shown_score(opened: Opened, setting: str) -> str:
    return dict(zip(opened.column(1), opened.column(5), strict=True))[setting]


def test_one_setting_is_enough(browser: Any, catalog: Catalog, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(step, "_track", lambda *_: None)
    write_benchmark(tmp_path / "scores", catalog, 3)
    (one, *_) = sorted((tmp_path / "scores").iterdir())
    report([one], catalog, tmp_path / "report", ReportConfig(replicates=100))
    opened = Opened(browser, tmp_path / "report" / "index.html", PHONE)
    assert opened.problems == []
    assert "missing" in opened.page.locator(".figures").inner_text()
    opened.page.close()
