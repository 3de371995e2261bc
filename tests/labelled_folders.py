"""Images and labels in the layouts in which the tools write that people label with."""

import base64
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
from numpy.typing import NDArray
from own_domain import save
from PIL import Image
from pycocotools import mask as run_lengths
from rasterio.transform import from_origin
from shapely import Polygon, box

SIDE = 16
LEFT, TOP, PX = 300_000.0, 5_000_000.0, 0.5
UTM = {"crs": "EPSG:32633", "transform": from_origin(LEFT, TOP, PX, PX)}
CLASSES = ("background", "building", "road")
BUILDING, ROAD = (2, 3, 8, 9), (6, 6, 12, 14)  # left, top, right, bottom in px; they overlap
LEFT_OUT = "left out"


def drawn(*areas: tuple[int, tuple[int, int, int, int]], outside: int = 0) -> NDArray[np.uint8]:
    """Ids of boxes, the later ones on top."""
    ids = np.full((SIDE, SIDE), outside, np.uint8)
    for id, (left, top, right, bottom) in areas:
        ids[top:bottom, left:right] = id
    return ids


BOTH = drawn((1, BUILDING), (2, ROAD))


def ring(area: tuple[int, int, int, int]) -> list[list[float]]:
    left, top, right, bottom = map(float, area)
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def on_ground(area: tuple[int, int, int, int], image: int = 0) -> Polygon:
    left, top, right, bottom = area
    shift = LEFT + image * 1000
    return box(shift + left * PX, TOP - bottom * PX, shift + right * PX, TOP - top * PX)


def images(folder: Path, *names: str, **options: Any) -> None:
    for number, name in enumerate(names or ("images/a1.tif", "images/a2.tif")):
        rng = np.random.default_rng(number)
        place = {**UTM, "transform": from_origin(LEFT + number * 1000, TOP, PX, PX)}
        place = options or (place if name.endswith(".tif") else {})
        save(folder / name, rng.integers(0, 256, (3, SIDE, SIDE)).astype(np.uint8), **place)


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def layer(
    path: Path, features: list[tuple[Any, Any]], crs: str | None = "EPSG:32633", **options: Any
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names, shapes = zip(*features, strict=True)
    frame = geopandas.GeoDataFrame({"landuse": names}, geometry=list(shapes), crs=crs)
    frame.to_file(path, **options)


# --- every form, in the layout of its tool: image a1 has a building under a road


SHAPES = [("Building", BUILDING), ("road", ROAD)]


def polygons(folder: Path, name: str, per_image: bool = False, **options: Any) -> None:
    images(folder)
    if per_image:
        for number in range(2):
            shapes = [(kind, on_ground(area, number)) for kind, area in SHAPES]
            layer(folder / name.replace("*", f"a{number + 1}"), shapes, **options)
    else:
        layer(
            folder / name, [(kind, on_ground(area, n)) for n in range(2) for kind, area in SHAPES], **options
        )


def in_degrees(folder: Path) -> None:
    polygons(folder, "labels.gpkg")
    frame = geopandas.read_file(folder / "labels.gpkg").to_crs("EPSG:4326")
    (folder / "labels.gpkg").unlink()
    frame.to_file(folder / "labels.geojson")


def zipped(folder: Path) -> None:
    polygons(folder, "data/labels.shp")
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        for path in sorted((folder / "data").iterdir()):
            archive.write(path, f"data/{path.name}")
            path.unlink()
    (folder / "data").rmdir()


def coco(as_run_lengths: str = "") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        images(folder, "images/a1.png", "images/a2.png")
        write(folder / "annotations.json", coco_file(as_run_lengths))

    return make


def coco_file(as_run_lengths: str = "") -> dict[str, Any]:
    def segmentation(area: tuple[int, int, int, int]) -> Any:
        if not as_run_lengths:
            return [[value for point in ring(area) for value in point]]
        packed = run_lengths.encode(np.asfortranarray(drawn((1, area))))
        if as_run_lengths == "packed":
            return {"size": [SIDE, SIDE], "counts": packed["counts"].decode()}
        flat = drawn((1, area)).T.ravel()
        edges = np.flatnonzero(np.diff(flat)) + 1
        return {"size": [SIDE, SIDE], "counts": np.diff([0, *edges, flat.size]).tolist()}

    return {
        "info": {},
        "images": [
            {"id": number, "file_name": f"a{number}.png", "width": SIDE, "height": SIDE} for number in (1, 2)
        ],
        "categories": [{"id": 3, "name": "Building"}, {"id": 7, "name": "road"}],
        "annotations": [
            {
                "id": 10 * image + category,
                "image_id": image,
                "category_id": category,
                "segmentation": segmentation(area),
                "iscrowd": 0,
            }
            for image in (1, 2)
            for category, area in ((3, BUILDING), (7, ROAD))
        ],
    }


def yolo_lines() -> str:
    return "\n".join(
        f"{kind} " + " ".join(f"{value / SIDE:.6f}" for point in ring(area) for value in point)
        for kind, area in ((0, BUILDING), (1, ROAD))
    )


def yolo(folder: Path) -> None:
    images(folder, "images/train/a1.jpg", "images/train/a2.jpg")
    for number in (1, 2):
        write(folder / f"labels/train/a{number}.txt", yolo_lines())
    write(folder / "data.yaml", "path: .\ntrain: images/train\nnames: {0: building, 1: road}\n")
    write(folder / "labels/train.cache", b"\0")


def labelme_file(name: str, **changes: Any) -> dict[str, Any]:
    mask = io.BytesIO()
    left, top, right, bottom = ROAD
    Image.fromarray(np.full((bottom - top, right - left), 255, np.uint8)).save(mask, "PNG")
    return {
        "version": "5.5.0",
        "shapes": [
            {"label": "building", "points": [[2, 3], [8, 9]], "shape_type": "rectangle", "mask": None},
            {
                "label": "Road",
                "points": [[left, top], [right - 1, bottom - 1]],
                "shape_type": "mask",
                "mask": base64.b64encode(mask.getvalue()).decode(),
            },
        ],
        "imagePath": name,
        "imageData": None,
        "imageHeight": SIDE,
        "imageWidth": SIDE,
        **changes,
    }


def labelme(folder: Path) -> None:
    images(folder, "images/a1.png", "images/a2.png")
    for number in (1, 2):
        write(folder / f"images/a{number}.json", labelme_file(f"a{number}.png"))


def colours(ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.array([[0, 0, 0], [250, 50, 83], [50, 183, 250]], np.uint8)[ids].transpose(2, 0, 1)


def cvat(folder: Path) -> None:
    """The export as it is downloaded: a zip."""
    images(folder, "images/a1.png", "images/a2.png")
    names = []
    for number in (1, 2):
        for kind in ("SegmentationClass", "SegmentationObject"):
            save(folder / f"{kind}/a{number}.png", colours(BOTH))
            names.append(f"{kind}/a{number}.png")
    write(
        folder / "labelmap.txt",
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nbuilding:250,50,83::\nroad:50,183,250::\n",
    )
    write(folder / "ImageSets/Segmentation/default.txt", "a1\na2\n")
    with zipfile.ZipFile(folder / "export.zip", "w") as archive:
        for name in [*names, "labelmap.txt", "ImageSets/Segmentation/default.txt"]:
            archive.write(folder / name, name)
            (folder / name).unlink()


def class_folders(folder: Path) -> None:
    images(folder)
    for number in (1, 2):
        save(folder / f"masks/building/a{number}.png", drawn((255, BUILDING)))
        # all above 0 counts
        save(folder / f"masks/road/a{number}.tif", np.float32(0.25) * drawn((1, ROAD)))


def image_folder(folder: Path) -> None:
    images(folder, "hf/train/a1.png", "hf/train/a2.png")
    lines = []
    for number in (1, 2):
        save(folder / f"hf/train/masks/{number}.png", BOTH)
        lines.append(json.dumps({"file_name": f"a{number}.png", "mask_file_name": f"masks/{number}.png"}))
    write(folder / "hf/train/metadata.jsonl", "\n".join(lines))


def fourth_band(folder: Path) -> None:
    for number in (1, 2):
        image = np.random.default_rng(number).integers(0, 256, (3, SIDE, SIDE)).astype(np.uint8)
        # as GDAL tags a fourth band unless it is told otherwise
        save(
            folder / f"images/a{number}.tif",
            np.concatenate([image, BOTH[None]]),
            photometric="RGB",
            alpha="yes",
        )


def second_page(folder: Path) -> None:
    for number in (1, 2):
        image = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
        path = folder / f"images/a{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, save_all=True, append_images=[Image.fromarray(BOTH)])


def one_folder(folder: Path) -> None:
    for number in (1, 2):
        images(folder, f"flat/a{number}.png")
        save(folder / f"flat/a{number}_mask.png", BOTH)


def space_net(folder: Path) -> None:
    """A GeoJSON an image, whose names differ in the middle; of an image without buildings an empty one."""
    images(folder, *(f"PS-RGB/SN2_AOI_2_PS-RGB_img{number}.tif" for number in (1, 2, 10)))
    for number in (1, 2, 10):
        features = [
            {
                "type": "Feature",
                "properties": {"landuse": kind},
                "geometry": on_ground(area, number - 1).__geo_interface__,
            }
            for kind, area in SHAPES * (number != 10)
        ]
        write(
            folder / f"geojson_buildings/SN2_AOI_2_geojson-buildings_img{number}.geojson",
            {
                "type": "FeatureCollection",
                "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}},
                "features": features,
            },
        )


def with_masks(folder: Path, *names: str) -> None:
    """Images and masks in pairs: "image.png -> mask.png"; an image alone has none."""
    for name in names:
        image, _, mask = name.partition(" -> ")
        images(folder, image)
        if mask:
            save(folder / mask, BOTH)


def inria(folder: Path) -> None:
    """The publisher keeps the labels of the test images."""
    with_masks(
        folder, *(f"train/images/{city}.tif -> train/gt/{city}.tif" for city in ("austin1", "vienna1"))
    )
    images(folder, "test/images/bellingham1.tif")


def deep_globe(folder: Path) -> None:
    with_masks(folder, *(f"train/{number}_sat.jpg -> train/{number}_mask.png" for number in (1, 20, 33)))
    images(folder, "valid/4_sat.jpg", "test/5_sat.jpg")
    write(folder / "metadata.csv", "image_id,split,sat_image_path\n1,train,train/1_sat.jpg\n")


def land_cover_ai(folder: Path) -> None:
    """What its split.py makes: tiles, and lists of them beside."""
    with_masks(folder, *(f"output/{name}.jpg -> output/{name}_m.png" for name in ("M_0", "M_1", "N_0")))
    for name, tile in (("train", "M_0"), ("val", "M_1"), ("test", "N_0")):
        write(folder / f"{name}.txt", f"{tile}\n")


def i_said(folder: Path) -> None:
    for name in ("P0003", "P0004"):
        with_masks(folder, f"images/{name}.png -> Semantic_masks/images/{name}_instance_color_RGB.png")
        save(folder / f"Instance_masks/images/{name}_instance_id_RGB.png", BOTH * 9)


def massachusetts(folder: Path) -> None:
    for split, name in (("train", "1"), ("train", "2"), ("val", "3"), ("test", "4")):
        with_masks(folder, f"tiff/{split}/{name}.tiff -> tiff/{split}_labels/{name}.tif")


def cityscapes(folder: Path) -> None:
    for split, city, name in (("train", "a", "a_1"), ("train", "a", "a_2"), ("val", "b", "b_3")):
        masks = f"gtFine/{split}/{city}/{name}_gtFine"
        with_masks(folder, f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png -> {masks}_labelIds.png")
        save(folder / f"{masks}_color.png", colours(BOTH))
        save(folder / f"{masks}_instanceIds.png", BOTH * 9)


def coco_2017(folder: Path) -> None:
    images(folder, "train2017/a1.png", "train2017/a2.png", "val2017/b1.png")
    write(folder / "annotations/instances_train2017.json", coco_file())
    content = coco_file()
    content |= {"images": [{"id": 1, "file_name": "b1.png"}], "annotations": content["annotations"][:2]}
    write(folder / "annotations/instances_val2017.json", content)
    captions = {"images": content["images"], "annotations": [{"id": 1, "image_id": 1, "caption": "x"}]}
    write(folder / "annotations/captions_val2017.json", captions)


VALUES = {0: "background", 1: "building", 2: "road"}
OUTSIDE = {"outside": "background"}
LANDUSE = {"attribute": "landuse", **OUTSIDE}
FORMS: dict[str, tuple[Callable[[Path], object], dict[str, Any]]] = {
    "GeoPackage": (lambda f: polygons(f, "labels.gpkg"), {"masks": {"polygons": "labels.gpkg", **LANDUSE}}),
    "shapefile": (lambda f: polygons(f, "v/labels.shp"), {"masks": {"polygons": "v/labels.shp", **LANDUSE}}),
    "FlatGeobuf": (lambda f: polygons(f, "labels.fgb"), {"masks": {"polygons": "labels.fgb", **LANDUSE}}),
    "GeoJSON in degrees": (in_degrees, {"masks": {"polygons": "labels.geojson", **LANDUSE}}),
    "shapefile in a zip": (zipped, {"masks": {"polygons": "data/labels.shp", **LANDUSE}}),
    "a GeoJSON an image": (
        lambda f: polygons(f, "v/*.geojson", True),
        {"masks": {"polygons": "v", **LANDUSE}},
    ),
    "a shapefile an image": (
        lambda f: polygons(f, "images/*.shp", True),
        {"masks": {"polygons": "images", **LANDUSE}},
    ),
    "COCO, polygons": (coco(), {"masks": {"coco": "annotations.json", **OUTSIDE}}),
    "COCO, run lengths": (coco("plain"), {"masks": {"coco": "annotations.json", **OUTSIDE}}),
    "COCO, packed run lengths": (coco("packed"), {"masks": {"coco": "annotations.json", **OUTSIDE}}),
    "YOLO": (yolo, {"masks": {"yolo": "labels", "names": "data.yaml", **OUTSIDE}}),
    "YOLO by numbers": (yolo, {"masks": {"yolo": "labels", **OUTSIDE}, "labels": {0: "building", 1: "road"}}),
    "labelme": (labelme, {"masks": {"labelme": "images", **OUTSIDE}}),
    "CVAT": (cvat, {"masks": {"cvat": "export.zip"}}),
    "a folder a class": (class_folders, {"masks": {"class_folders": "masks", **OUTSIDE}}),
    "Hugging Face": (image_folder, {"images": "hf", "masks": {"imagefolder": "hf"}, "labels": VALUES}),
    "fourth band": (fourth_band, {"masks": {"band": 4}, "labels": VALUES}),
    "second page": (second_page, {"masks": {"page": 2}, "labels": VALUES}),
    "one folder": (
        one_folder,
        {"images": "flat", "masks": "flat", "pairs": "{}.png -> {}_mask.png", "labels": VALUES},
    ),
}


def voc(folder: Path, **lists: str) -> dict[str, Any]:
    """Pascal VOC: many images, of which some have masks, and lists of those."""
    images(folder, *(f"VOC/JPEGImages/{name}.jpg" for name in ("a1", "a2", "a3", "a4")))
    for name in ("a1", "a2"):
        save(folder / f"VOC/SegmentationClass/{name}.png", BOTH)
    for name, text in lists.items():
        write(folder / f"VOC/ImageSets/Segmentation/{name}.txt", text)
    return {"images": "VOC/JPEGImages", "masks": "VOC/SegmentationClass", "labels": VALUES, "split": None}
