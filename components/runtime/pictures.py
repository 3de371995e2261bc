"""Words on pictures: titles over a row of them, and the legend of classes below."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

INK, PAPER = (32, 32, 32), (255, 255, 255)
LINE_PX = 18
FONT_PX = 12
GAP_PX = 8


def titled(picture_HW3: NDArray[np.uint8], titles: Sequence[str]) -> NDArray[np.uint8]:
    """A picture (RGB, 0..255) of equally wide columns under their titles; a longer title is cut."""
    height, width = picture_HW3.shape[:2]
    page = Image.new("RGB", (width, height + LINE_PX), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(FONT_PX)
    column = width / len(titles)
    for place, title in enumerate(titles):
        while title and pen.textlength(title, font) > column - 2:
            title = title[:-1]
        pen.text((place * column + 1, 1), title, INK, font)
    page.paste(Image.fromarray(picture_HW3), (0, LINE_PX))
    return np.asarray(page)


def with_legend(
    picture_HW3: NDArray[np.uint8], names: Sequence[str], colours: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """A picture over a legend that takes as many lines as its width needs.

    Args:
        picture_HW3: RGB, 0..255; it is made wider where a name needs that.
        names: of the classes.
        colours: RGB of each of them, (classes, 3).
    """
    font = ImageFont.load_default(FONT_PX)
    widths = [LINE_PX + round(font.getlength(name)) + GAP_PX for name in names]
    width = max(picture_HW3.shape[1], *widths)
    places, left, line = [], 0, 0
    for each in widths:
        if left + each > width:
            left, line = 0, line + 1
        places.append((left, picture_HW3.shape[0] + GAP_PX // 2 + line * LINE_PX))
        left += each
    page = Image.new("RGB", (width, places[-1][1] + LINE_PX), PAPER)
    page.paste(Image.fromarray(picture_HW3), (0, 0))
    pen = ImageDraw.Draw(page)
    for (x, y), name, colour in zip(places, names, colours.tolist(), strict=True):
        pen.rectangle((x + 1, y + 2, x + LINE_PX - 6, y + LINE_PX - 5), tuple(colour), INK)
        pen.text((x + LINE_PX - 2, y), name, INK, font)
    return np.asarray(page)
