"""The quick look of a map in a real Chromium: map over image, slider, legend; it asks nobody."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crossearth.components.predict.quick_look import write_quick_look

expect = pytest.importorskip("playwright.sync_api").expect
PALETTE = ["#cc3311", "#0072b2"]
REPORT: dict[str, Any] = {
    "scene": "town & <field>.tif",
    "width": 900,
    "height": 600,
    "crs": "EPSG:32633",
    "nodata_pixels": 1234,
    "notes": ["px of 0.5 m are seen at 0.1 m"],
    "classes": [
        {"name": "roof", "share": 0.75, "area_m2": 120_000.0, "area_interval_m2": [100_000.0, 140_000.0]},
        {
            "name": "lake & river",
            "share": 0.25,
            "area_m2": 40_000.0,
            "area_interval_m2": [30_000.0, 50_000.0],
        },
    ],
}


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quick")
    overlay = np.zeros((200, 300, 4), np.uint8)
    overlay[:, :150] = (204, 51, 17, 255)  # the right half is nodata
    Image.fromarray(overlay).save(folder / "map.png")
    image = np.full((200, 300, 3), 255, np.uint8)
    write_quick_look(folder / "map.html", image, folder / "map.png", REPORT, PALETTE)
    return folder / "map.html"


def opened(browser: Any, file: Path, width: int) -> tuple[Any, list[str], list[str]]:
    """The page, what it asked for, and what it complained about."""
    page = browser.new_page(viewport={"width": width, "height": 800})
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(file.as_uri())
    page.evaluate("Promise.all([...document.images].map((each) => each.decode()))")
    return page, asked, complaints


def colour(page: Any, x: float, y: float) -> tuple[int, ...]:
    """Of the map on the screen, at shares of its width and height."""
    image = Image.open(io.BytesIO(page.locator(".map").screenshot())).convert("RGB")
    return image.getpixel((int(x * image.width), int(y * image.height)))  # type: ignore[return-value]


def test_the_slider_lays_the_map_over_the_image(browser: Any, page_file: Path) -> None:
    page, asked, complaints = opened(browser, page_file, 1280)
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    slider = page.get_by_label("How much of the map is seen")
    seen = {}
    for value in ("0", "100"):
        slider.fill(value)
        seen[value] = colour(page, 0.25, 0.5), colour(page, 0.75, 0.5)
    assert seen["0"] == ((255, 255, 255), (255, 255, 255))
    assert np.abs(np.subtract(seen["100"][0], (204, 51, 17))).max() < 4
    assert seen["100"][1] == (255, 255, 255), "where there is no data the image is seen"
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#overlay")).to_have_css("opacity", "0.99")
    assert complaints == []


def test_the_legend_has_colours_areas_and_intervals(browser: Any, page_file: Path) -> None:
    page, _, _ = opened(browser, page_file, 1280)
    assert page.locator("h1").inner_text() == "Map of town & <field>.tif"
    rows = [row.inner_text().split("\t") for row in page.locator("tbody tr").all()]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["roof", "75.0 %", "12", "10 to 14"],
        ["lake & river", "25.0 %", "4", "3 to 5"],
    ]
    chip = page.locator(".chip").first.evaluate("each => getComputedStyle(each).backgroundColor")
    assert chip == "rgb(204, 51, 17)"
    assert "px of 0.5 m are seen at 0.1 m" in page.locator("main").inner_text()


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(browser: Any, page_file: Path, width: int) -> None:
    page, _, _ = opened(browser, page_file, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    map_, image = page.locator("#overlay").bounding_box(), page.locator(".map img").first.bounding_box()
    assert map_ == image, "the map lies where the image lies"


@pytest.mark.parametrize("width", [390, 1280])
def test_everybody_can_read_and_use_it(
    browser: Any, page_file: Path, width: int, violations: Callable[[Any], list[str]]
) -> None:
    page, _, _ = opened(browser, page_file, width)
    assert violations(page) == []
