"""The labels of a user's images, by the images' keys, in each form in which they lie on the disk."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from crossearth.components.ingest.pairing import ImageNames, stars
from crossearth.data.annotations import cvat, imagefolder
from crossearth.data.annotations.source import VECTOR_SUFFIXES, LabelSource
from crossearth.data.catalog.domains import Domain, Masks
from crossearth.data.common.config import some
from crossearth.data.common.errors import InputError
from crossearth.data.raster.archives import Member, file_at, index, rasters

log = logging.getLogger(__name__)

# texts beside YOLO's labels
NO_YOLO = ("classes.txt", "train.txt", "val.txt", "test.txt")
TEXTS = {"polygons": VECTOR_SUFFIXES, "yolo": (".txt",), "labelme": (".json",)}


def is_one_file(masks: Masks) -> bool:
    """Whether one file of polygons serves all images."""
    return masks.form == "polygons" and masks.place.suffix.lower() in VECTOR_SUFFIXES


def label_files(masks: Masks, members: Sequence[Member]) -> list[Member]:
    """The files that hold labels of one image each; none where labels lie otherwise.

    Args:
        members: all files at the labels' place.

    Raises:
        InputError: there are none.
    """
    if masks.form in ("files", "class_folders"):
        found = rasters(members)
    elif masks.form == "cvat":
        found = [each for each in rasters(members) if cvat.MASKS in PurePosixPath(each.path).parts]
    elif masks.form in TEXTS and not is_one_file(masks):
        found = [each for each in members if each.path.lower().endswith(TEXTS[masks.form])]
        if masks.form == "yolo":
            found = [each for each in found if PurePosixPath(each.path).name.lower() not in NO_YOLO]
    else:
        return []
    pattern = stars(masks.pattern)
    return [member for member in found if pattern.search(member.path)]


def class_of(masks: Masks, member: Member) -> str:
    """The class that a raster of "class_folders" is of: the first folder of its path."""
    first, slash, _ = member.path.partition("/")
    if not slash:
        raise InputError(
            "a mask outside of the classes' folders", where=member, expected=f"{masks.place}/CLASS/NAME"
        )
    return first


def by_key(
    masks: Masks, files: Mapping[str, Sequence[Member]], members: Sequence[Member], scratch: Path
) -> dict[str, LabelSource]:
    """Labels of the forms in which every image has a file, or one a class.

    Args:
        files: key -> its files: several of "class_folders" only.
        members: all files at the labels' place.
        scratch: where files from archives are unpacked that are read from the disk only.
    """
    part = ""
    if masks.form == "yolo":
        from crossearth.data.annotations import yolo

        part = json.dumps(yolo.read_names(file_at(masks.names, scratch)) if masks.names else None)
    if masks.form == "cvat":
        tables = [each for each in members if PurePosixPath(each.path).name.lower() == cvat.LABELMAP]
        if not tables:
            raise InputError(f"no {cvat.LABELMAP}", where=masks.place, expected="CVAT's export, whole")
        part = json.dumps(cvat.read_colours(tables[0]))
    found = {}
    for key, theirs in files.items():
        if masks.form == "class_folders":
            names = json.dumps([class_of(masks, each) for each in theirs])
            found[key] = LabelSource(f"{masks.place}: {key}", tuple(theirs), names)
        elif masks.form == "polygons":
            from crossearth.data.annotations import polygons

            placed = polygons.on_disk(polygons.parts(theirs[0], members), scratch)
            found[key] = LabelSource(str(theirs[0]), placed)
        else:
            found[key] = LabelSource(str(theirs[0]), (theirs[0],), part)
    return found


def of_images(
    domain: Domain, masks: Masks, images: Mapping[str, Member], members: Sequence[Member], scratch: Path
) -> dict[str, LabelSource]:
    """Labels of the forms in which a file is of many images, or an image holds its own.

    Args:
        images: by key.
        members: all files at the labels' place.

    Raises:
        InputError: a file that cannot be read; names that are not in the map; no image that labels are of.
    """
    if masks.form in ("band", "page"):
        return {key: LabelSource.of(image) for key, image in images.items()}
    if masks.form == "polygons":
        return _of_polygons(domain, masks, images, scratch)
    if masks.form == "coco":
        return _of_coco(domain, masks, images, members, scratch)
    return _of_imagefolder(masks, images, members)


def _check_names(domain: Domain, counts: Mapping[str, int], where: object, what: str = "shapes") -> None:
    """Refuses names that the domain's labels lack, unless it ignores them."""
    assert domain.labels is not None  # noqa: S101  (the loader sees to it)
    domain.labels.ids_of(counts, where, domain.unknown_labels or "error", what)


def _of_polygons(
    domain: Domain, masks: Masks, images: Mapping[str, Member], scratch: Path
) -> dict[str, LabelSource]:
    from crossearth.data.annotations import polygons

    main = file_at(masks.place, scratch)
    files = polygons.on_disk(polygons.parts(main, index(masks.place, scratch)), scratch)
    source = polygons.indexed(masks, LabelSource(str(main), files), scratch)
    _check_names(domain, polygons.names(masks, source), source, "polygons")
    outside, covered = polygons.meeting(masks, source, list(images.values()))
    keys = [key for key, image in images.items() if image in covered]
    if not keys:
        raise InputError(
            f"{domain.name}: all {outside} polygons lie outside of every image",
            where=source,
            expected="polygons where images are",
            next_step="compare the coordinates of both; where the file says a wrong CRS, `crs` beside "
            "`polygons` says the right one",
        )
    if outside:
        log.warning("%s: %d polygons of %s lie outside of every image", domain.name, outside, source)
    return dict.fromkeys(keys, source)


def _of_coco(
    domain: Domain, masks: Masks, images: Mapping[str, Member], members: Sequence[Member], scratch: Path
) -> dict[str, LabelSource]:
    from crossearth.data.annotations import coco

    pattern = stars(masks.pattern)
    files = [each for each in members if each.path.lower().endswith(".json") and pattern.search(each.path)]
    if masks.place.suffix.lower() == ".json":
        files = [each for each in files if PurePosixPath(each.path).name == masks.place.name]
    names = ImageNames(images)
    key_at = {_address(image, ""): key for key, image in images.items()}
    found: dict[str, LabelSource] = {}
    lacking = []
    for file in files:
        said = coco.read_file(file, scratch)
        _check_names(domain, said.names, file)
        for name, part in said.parts.items():
            key = key_at.get(_address(file, name)) or names.one(name, file)
            if key is None:
                lacking.append(name)
            elif key in found:
                raise InputError(f"{domain.name}: two entries for {images[key]}: {name!r}", where=file)
            else:
                found[key] = part
    if not found:
        raise InputError(
            f"{domain.name}: no image that a COCO file names"
            + (f": {some(lacking)}" if lacking else ", and no COCO file"),
            where=masks.place,
            expected=f"names of {some(sorted(images))}",
            next_step="correct `images` or `masks` in the catalog file",
        )
    if lacking:
        log.warning("%s: labels without an image are left out: %s", domain.name, some(lacking))
    return found


def _address(member: Member, name: str) -> str:
    """Where a file lies; with a name, where that would lie beside it."""
    path = PurePosixPath(member.name or member.container.as_posix())
    if name:
        path = path.parent / name.replace("\\", "/")
    return f"{member.container if member.name else ''}:{path}"


def _of_imagefolder(
    masks: Masks, images: Mapping[str, Member], members: Sequence[Member]
) -> dict[str, LabelSource]:
    table, _ = image_folder(masks, members)
    by_path = {_address(member, ""): member for member in members}
    mask_of = {key: by_path.get(table.get(_address(image, ""), "")) for key, image in images.items()}
    return {key: LabelSource.of(mask) for key, mask in mask_of.items() if mask is not None}


def image_folder(masks: Masks, members: Sequence[Member]) -> tuple[dict[str, str], list[Member]]:
    """Address of an image -> that of its mask, as the tables of an image folder say; and the masks.

    Raises:
        InputError: no table; one that is none; a mask that is not there.
    """
    tables = [each for each in members if PurePosixPath(each.path).name.lower() in imagefolder.TABLES]
    if not tables:
        raise InputError(
            "no table of images and masks", where=masks.place, expected=" or ".join(imagefolder.TABLES)
        )
    by_path = {member.path: member for member in members}
    found: dict[str, str] = {}
    chosen = []
    for table in tables:
        for image, mask in imagefolder.read_table(table, masks.column).items():
            if mask not in by_path:
                raise InputError(f"no mask {mask!r}", where=table, expected=f"a file below {masks.place}")
            if image in by_path:
                found[_address(by_path[image], "")] = _address(by_path[mask], "")
                chosen.append(by_path[mask])
    return found, chosen
