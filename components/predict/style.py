"""How a GIS and a reader see a map: QGIS style, legend, and what GDAL tells of the classes."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np
from numpy.typing import NDArray

ROW_PX, SWATCH_PX = 26, 18
# GDAL's numbers of types and of what a column of an attribute table is for
INTEGER, TEXT = 0, 2
PIXEL_COUNT, NAME, MINIMUM_AND_MAXIMUM, RED, GREEN, BLUE = 1, 2, 5, 6, 7, 8


def attribute_table(classes: Sequence[str], palette: Sequence[str], pixels: NDArray[np.int64]) -> Element:
    """GDAL's raster attribute table of a map: value, name, colour and px of each class."""
    table = Element("GDALRasterAttributeTable", tableType="thematic")
    columns = [
        ("Value", INTEGER, MINIMUM_AND_MAXIMUM),
        ("Class", TEXT, NAME),
        ("Count", INTEGER, PIXEL_COUNT),
        ("Red", INTEGER, RED),
        ("Green", INTEGER, GREEN),
        ("Blue", INTEGER, BLUE),
    ]
    for index, (name, kind, usage) in enumerate(columns):
        column = SubElement(table, "FieldDefn", index=str(index))
        for tag, value in (("Name", name), ("Type", kind), ("Usage", usage)):
            SubElement(column, tag).text = str(value)
    for index, (name, colour) in enumerate(zip(classes, palette, strict=True)):
        row = SubElement(table, "Row", index=str(index))
        for value in (index, name, int(pixels[index]), *bytes.fromhex(colour.removeprefix("#"))):
            SubElement(row, "F").text = str(value)
    return table


def write_qgis_style(path: Path, classes: Sequence[str], palette: Sequence[str]) -> None:
    """A QML file: QGIS takes it up by itself for a raster and for polygons of its name.

    A layer reads the part that is for its kind: `pipe` is a raster's, `renderer-v2` that of polygons.
    """
    style = Element("qgis", version="3.22.0", styleCategories="Symbology")
    pipe = SubElement(style, "pipe")
    raster = SubElement(pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1")
    entries = SubElement(raster, "colorPalette")
    vector = SubElement(style, "renderer-v2", type="categorizedSymbol", attr="class_id", symbollevels="0")
    categories, symbols = SubElement(vector, "categories"), SubElement(vector, "symbols")
    for index, (name, colour) in enumerate(zip(classes, palette, strict=True)):
        SubElement(entries, "paletteEntry", value=str(index), label=name, color=colour, alpha="255")
        SubElement(
            categories,
            "category",
            value=str(index),
            symbol=str(index),
            label=name,
            render="true",
            type="long",
        )
        symbol = SubElement(symbols, "symbol", name=str(index), type="fill", alpha="1", force_rhr="0")
        layer = SubElement(symbol, "layer", attrib={"class": "SimpleFill"}, enabled="1", locked="0")
        options = SubElement(layer, "Option", type="Map")
        red, green, blue = bytes.fromhex(colour.removeprefix("#"))
        for key, value in (
            ("color", f"{red},{green},{blue},160"),
            ("outline_color", f"{red},{green},{blue},255"),
            ("outline_width", "0.26"),
            ("style", "solid"),
        ):
            SubElement(options, "Option", name=key, value=value, type="QString")
    _write(path, style, "<!DOCTYPE qgis>\n")


def write_legend(path: Path, classes: Sequence[str], palette: Sequence[str]) -> None:
    """Colours and names as an SVG picture, to be put beside the map on paper or a slide."""
    width = SWATCH_PX + 24 + 9 * max(map(len, classes))
    height = ROW_PX * len(classes) + 8
    svg = Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        width=str(width),
        height=str(height),
        viewBox=f"0 0 {width} {height}",
    )
    for index, (name, colour) in enumerate(zip(classes, palette, strict=True)):
        top = 8 + ROW_PX * index
        size = str(SWATCH_PX)
        SubElement(svg, "rect", x="8", y=str(top), width=size, height=size, fill=colour, stroke="#333333")
        text = SubElement(svg, "text", x=str(SWATCH_PX + 16), y=str(top + 14), fill="#16202a")
        text.set("font-family", "sans-serif")
        text.set("font-size", "14")
        text.text = name
    _write(path, svg)


def _write(path: Path, root: Element, head: str = "") -> None:
    ElementTree.indent(root)
    path.write_bytes(head.encode() + ElementTree.tostring(root, encoding="utf-8") + b"\n")
