"""How images and labels may lie in a folder: the entries of a catalog file that are worth trying."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from posixpath import commonpath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from crossearth.components.ingest.pairing import MASK_WORDS, suggested
from crossearth.data.annotations import cvat
from crossearth.data.annotations.recognise import FILES_READ, Recognised, recognise
from crossearth.data.annotations.source import LabelSource
from crossearth.data.common.errors import InputError
from crossearth.data.raster.archives import Member, rasters
from crossearth.data.raster.reader import gdal, open_raster

Entry = dict[str, Any]
CLASS_WORDS = ("class", "type", "label", "landuse", "category", "kind", "name", "code")
MAX_NAMES = 100
OUTSIDE = "background"
INSTANCES = "instances"
FEW = 32  # values of a band of labels, at most


class Layouts:
    """The folder, its files, and what they may be.

    Attributes:
        root: as a catalog file writes the folder.
    """

    def __init__(self, root: str, members: Sequence[Member]) -> None:
        self.root = root
        self.members = members
        self.rasters = rasters(members)
        self.kinds = recognise(members)

    def entries(self) -> Iterator[Entry]:
        """Domains to try, the likeliest first; `masks` that are absent mean images alone."""
        for kind in self.kinds:
            if kind.form != "polygons":
                yield from self._labels_of(kind)
        yield from self._folders(paired=False)
        yield from self._siblings()
        yield from self._class_folders()
        yield from self._folders(paired=True)
        yield from self._flat()
        for kind in self.kinds:  # beside masks, outlines of an area lie as often
            if kind.form == "polygons":
                yield from self._labels_of(kind)
        yield from self._within()
        yield {"images": self.root}

    def at(self, *parts: str) -> str:
        """A place below the folder, as a catalog file writes it."""
        return str(PurePosixPath(self.root, *parts))

    def _images(self) -> str:
        """The folder of the images, where labels are no rasters."""
        folders = Counter(PurePosixPath(each.path).parts[0] for each in self.rasters if "/" in each.path)
        named = [name for name in folders if name.lower() in IMAGE_FOLDERS]
        return self.at(named[0]) if len(named) == 1 and len(folders) > 1 else self.root

    def _labels_of(self, kind: Recognised) -> Iterator[Entry]:
        """Entries for labels that are no rasters, or have a table."""
        first, images = kind.files[0].path, self._images()
        folder = str(PurePosixPath(first).parent)
        if kind.form == "polygons":
            paths = [each.path for each in self.rasters], [each.path for each in kind.files]
            pairs = suggested(*paths) if len(kind.files) > 1 else None
            for masks in self._polygons(kind.files):
                yield {"images": images, "masks": masks}
                if pairs:
                    yield {"images": self.root, "masks": masks, "pairs": str(pairs)}
        elif kind.form == "coco":
            # in COCO itself captions and keypoints of the same images lie beside
            files = [each for each in kind.files if each.stem.startswith(INSTANCES)]
            start, files = (INSTANCES, files) if files else ("", list(kind.files))
            names = {PurePosixPath(each.path).name for each in files}
            pattern = f"*{names.pop()}" if len(names) == 1 else f"{_common_folder(files)}/{start}*.json"
            place = self.at(files[0].path if len(files) == 1 else pattern)
            yield {"images": images, "masks": {"coco": place, "outside": OUTSIDE}}
        elif kind.form == "labelme":
            place = self.at(_common_folder(kind.files))
            yield {"images": images, "masks": {"labelme": place, "outside": OUTSIDE}}
        elif kind.form == "yolo":
            yield from self._yolo(kind)
        elif kind.form == "cvat":
            yield {"images": images, "masks": {"cvat": self.at(folder)}}
        elif kind.form == "imagefolder":
            yield {"images": self.root, "masks": {"imagefolder": self.root}}

    def _yolo(self, kind: Recognised) -> Iterator[Entry]:
        """`labels/train` beside `images/train`, or `train/labels` beside `train/images`."""
        tables = [each.path for each in kind.files if not each.path.endswith(".txt")]
        names = {"names": self.at(tables[0])} if tables else {}
        texts = [each.path for each in self.members if each.path.lower().endswith(".txt")]
        folders = [PurePosixPath(path).parts for path in texts]
        labelled = [parts for parts in folders if "labels" in parts[:-1]]
        ahead = {parts[0] for parts in labelled}
        for at in sorted({parts.index("labels") for parts in labelled}):
            before = [*ahead] if at == 1 and len(ahead) == 1 else ["*"] * at
            after = ["*"] if "*" in before else []
            images, labels = (self.at(*before, word, *after) for word in ("images", "labels"))
            yield {"images": images, "masks": {"yolo": labels, **names, "outside": OUTSIDE}}
        yield {"images": self.root, "masks": {"yolo": self.root, **names, "outside": OUTSIDE}}

    def _polygons(self, files: Sequence[Member]) -> Iterator[Entry]:
        """One file for all images, or one an image, with each attribute that may hold the class."""
        place = files[0].path if len(files) == 1 else _common_folder(files)
        for named in _attributes(files, self.members):
            yield {"polygons": self.at(place), **named, "outside": OUTSIDE}

    def _folders(self, paired: bool) -> Iterator[Entry]:
        """Folders whose names say which holds images and which masks; `paired`: where names differ."""
        # Semantic_masks/images/a.png is a mask, and labels_of_2020/images/a.png may be an image
        for any_says_masks in (False, True):
            found: dict[str, dict[tuple[str, ...], list[str]]] = {"images": {}, "masks": {}}
            for each in self.rasters:
                parts = PurePosixPath(each.path).parts[:-1]
                kinds = [(at, kind) for at, part in enumerate(parts) if (kind := _kind_of_folder(part))]
                if any_says_masks:
                    kinds = [each for each in kinds if each[1] == "masks"][:1] or kinds
                if kinds:
                    at, kind = kinds[-1]
                    folder = (*("*" for _ in parts[:at]), parts[at])
                    found[kind].setdefault(folder, []).append(each.path)
            for mask in sorted(
                found["masks"], key=lambda folder: (bool(OF_OBJECTS.search(folder[-1])), folder)
            ):
                for image in sorted(found["images"]):
                    if len(image) == len(mask):
                        entry = {"images": self._pattern(image), "masks": self._pattern(mask)}
                        if not paired:
                            yield entry
                        elif pairs := suggested(found["images"][image], found["masks"][mask]):
                            yield {**entry, "pairs": str(pairs)}

    def _siblings(self) -> Iterator[Entry]:
        """`train` beside `train_labels`."""
        folders = {str(PurePosixPath(each.path).parent) for each in self.rasters}
        ends = {
            (str(PurePosixPath(one).parent), other.removeprefix(one))
            for one in folders
            for other in folders
            if other != one and other.startswith(one) and MASK_WORDS.search(other.removeprefix(one))
        }
        for parent, end in ends if len(ends) == 1 else ():
            if "/" not in end:
                yield {"images": self.at(parent, "*", "*"), "masks": self.at(parent, f"*{end}", "*")}

    def _pattern(self, parts: tuple[str, ...]) -> str:
        return self.at(*parts, *(["*"] if len(parts) > 1 else []))

    def _flat(self) -> Iterator[Entry]:
        """Images and masks in one folder, told apart by their names."""
        paths = [each.path for each in self.rasters]
        if pairs := suggested(paths, paths):
            yield {"images": self.root, "masks": self.root, "pairs": str(pairs)}

    def _class_folders(self) -> Iterator[Entry]:
        """A folder of images, and folders of masks that are named after classes."""
        by_folder: dict[str, set[str]] = {}
        for each in self.rasters:
            folder = str(PurePosixPath(each.path).parent)
            by_folder.setdefault(folder, set()).add(PurePosixPath(each.path).stem.lower())
        images = [name for name in by_folder if PurePosixPath(name).name.lower() in IMAGE_FOLDERS]
        for image in images:
            classes = [name for name in by_folder if name != image and by_folder[name] <= by_folder[image]]
            parents = {str(PurePosixPath(name).parent) for name in classes}
            if classes and len(parents) == 1:
                yield {
                    "images": self.at(image),
                    "masks": {"class_folders": self.at(parents.pop()), "outside": OUTSIDE},
                }

    def _within(self) -> Iterator[Entry]:
        """Labels as the last band, or the second page, of the images' own files."""
        first = self.rasters[0]
        with gdal(), open_raster(first) as image:
            bands = image.dataset.count
            if len(image.dataset.subdatasets) == 2:
                yield {"images": self.root, "masks": {"page": 2}}
            if bands < 4:
                return
            kinds = [len(np.unique(image.read([band]))) for band in (1, bands)]
        if kinds[1] <= FEW < kinds[0]:
            yield {"images": self.root, "masks": {"band": bands}}


# masks of instances, beside those of classes
OF_OBJECTS = re.compile(r"instance|object", re.IGNORECASE)
IMAGE_FOLDERS = (
    *("images", "image", "imgs", "img", "sat", "satellite", "rgb", "ortho", "tiles", "jpegimages", "scenes"),
    *("input", "inputs", "source", "leftimg8bit", "pictures", "photos", "img_dir", "x"),
)


def _kind_of_folder(name: str) -> str | None:
    if name.lower() in IMAGE_FOLDERS:
        return "images"
    says_masks = MASK_WORDS.search(name) and name != "SegmentationObject"
    return "masks" if name == cvat.MASKS or says_masks or name.lower() == "y" else None


def _common_folder(files: Sequence[Member]) -> str:
    """The folder below which all of them lie."""
    return str(PurePosixPath(commonpath([PurePosixPath(each.path).parent for each in files])))


def _attributes(files: Sequence[Member], members: Sequence[Member]) -> list[dict[str, str]]:
    """Layer and attribute of polygons that may hold their class, the likeliest first, and no attribute."""
    from crossearth.data.annotations import polygons  # its libraries take a second to import

    found: dict[str, dict[str, int]] = {}
    for file in files[:FILES_READ]:  # of an image without polygons there may be an empty one
        with TemporaryDirectory() as scratch, suppress(InputError):
            parts = polygons.on_disk(polygons.parts(file, members), Path(scratch))
            found = polygons.attributes(LabelSource(str(file), parts))
        if any(found.values()):
            break
    choices = []
    for layer, counts in found.items():
        named = {"layer": layer} if len(found) > 1 else {}
        few = [name for name, count in counts.items() if 1 < count <= MAX_NAMES]
        likely = dict.fromkeys(name for word in CLASS_WORDS for name in few if word in name.lower())
        choices += [{**named, "attribute": name} for name in likely]
    return [*choices, *({"layer": layer} for layer in found if len(found) > 1), {}]
