"""Opens the labels of one image, whatever their form: class ids on the image's grid come out."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from crossearth.data.annotations.source import LabelSource
from crossearth.data.catalog.domains import Masks
from crossearth.data.catalog.labels import LabelSpec, Unknown
from crossearth.data.raster.masks import ClassLayers, Labels, RasterLabels
from crossearth.data.raster.reader import Raster, open_raster


@contextmanager
def open_labels(
    source: LabelSource, masks: Masks | None, spec: LabelSpec, unknown: Unknown, image: Raster
) -> Iterator[tuple[Labels, list[Raster]]]:
    """The labels of an image, and the rasters that they are.

    Args:
        masks: their form; None: a publisher's rasters.
        spec: what their values or names mean.
        unknown: what becomes of others.
        image: open.

    Raises:
        InputError: files that cannot be read or are of another image; names that are not in the map.
    """
    form = masks.form if masks else "files"
    with ExitStack() as stack:
        if masks is not None and form == "class_folders":
            names = json.loads(source.part or "[]")
            id_of = spec.ids_of(dict.fromkeys(names, 1), source.where, unknown, "folders")
            rasters = [stack.enter_context(open_raster(file)) for file in source.files]
            layers = [(id_of[name], raster) for name, raster in zip(names, rasters, strict=True)]
            if masks.order is not None:
                layers.sort(key=lambda layer: masks.order.index(layer[0]))  # type: ignore[union-attr]
            yield ClassLayers(layers, masks.outside or 0), rasters
        elif masks is not None and masks.named and form != "cvat":
            yield _drawn(source, masks, spec, unknown, image), []
        elif masks is not None and form == "band":
            yield RasterLabels(image, spec, unknown, masks.number), [image]
        else:
            page = masks.number if masks and form == "page" else None
            raster = stack.enter_context(open_raster(source.files[0], page=page))
            if form == "cvat":
                spec = spec.of_colours(json.loads(source.part), source.where, unknown)
            yield RasterLabels(raster, spec, unknown), [raster]


def named_shapes(source: LabelSource, masks: Masks, image: Raster) -> list[Any]:
    """The shapes (`Shape`) of an image, of the forms that have them; raises as `open_labels`."""
    # these libraries take a second to import, and most labels are rasters
    from crossearth.data.annotations import coco, labelme, polygons, yolo

    if not source.files and not source.part:  # an image that is `outside` as a whole
        return []
    if masks.form == "polygons":
        return polygons.shapes(masks, source, image)
    if masks.form == "coco":
        return coco.shapes(source, image)
    if masks.form == "labelme":
        return labelme.shapes(source, image)
    return yolo.shapes(source, image, json.loads(source.part))


def _drawn(source: LabelSource, masks: Masks, spec: LabelSpec, unknown: Unknown, image: Raster) -> Labels:
    from crossearth.data.annotations import shapes

    found = named_shapes(source, masks, image)
    counts = {name: sum(each.name == name for each in found) for name in {each.name for each in found}}
    id_of = spec.ids_of(counts, source.where, unknown)
    drawn = shapes.in_order(((id_of[each.name], each.area) for each in found), masks.order)
    outside = 0 if masks.outside is None else masks.outside
    return shapes.DrawnLabels(
        source.where, image.dataset.width, image.dataset.height, drawn, outside, masks.all_touched
    )
