"""Finds the scenes of a domain among files and archives, and pairs images with labels."""

import csv
import fnmatch
import logging
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import re2

from crossearth.data.catalog.domains import Domain, OwnFiles, Split, compiled_pattern, is_file_name
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import digest
from crossearth.data.raster.archives import Member, index, read, refuse_unreadable
from crossearth.data.raster.names import RASTER_SUFFIXES, rasters_among
from crossearth.data.tiles.manifest import natural

log = logging.getLogger(__name__)

SHOWN = 5
MAX_NAME_BYTES = 200  # file systems allow 255, and tiles' names are longer


@dataclass(frozen=True)
class SceneSource:
    """One raster of a publisher with its label.

    Attributes:
        key: what image and label share; unique in the split. It may have slashes.
        scene: the piece of ground; equal names in both splits mean one place.
        label: None where the domain has no labels.
    """

    split: Split
    key: str
    scene: str
    image: Member
    label: Member | None

    @property
    def name(self) -> str:
        """The key as the name of a file."""
        return _file_name(self.key)

    def stored(self, kind: Literal["images", "labels"]) -> str:
        """Path of the stored scene below the domain's folder."""
        return f"{self.split}/{kind}/{self.name}.tif"

    @property
    def identity(self) -> str:
        """Changes when one of its files does."""
        files = (self.image, self.label) if self.label else (self.image,)
        parts = [part for file in files for part in (file, *file.sidecars)]
        return digest(
            [self.split, self.key, self.scene, [(part.path, part.size, part.tag) for part in parts]]
        )


def find_scenes(domain: Domain, root: Path, scratch: Path) -> list[SceneSource]:
    """Pairs the images of every split with their labels, ordered by split and key.

    Args:
        root: folder of the domain's dataset; a user's domain says its folders itself.
        scratch: for archives that have no random access.

    Raises:
        InputError: no images; listed scenes or labels that are missing; two files of one name; a scene in
            both splits.
    """
    if domain.own is None:
        return _published(domain, root, scratch)
    return _own(domain, domain.own, scratch)


def _published(domain: Domain, root: Path, scratch: Path) -> list[SceneSource]:
    members = index(root, scratch)

    def key_of(member: Member) -> str:
        return domain.key_of(member.path)

    sources: list[SceneSource] = []
    for split in domain.splits:
        files = domain.files(split)
        images = _by_key(domain, key_of, _matching(members, files.images), files.scenes)
        found = {domain.scene_of(key) for key in images}
        missing = [scene for scene in files.scenes if scene.lower() not in found]
        if missing or not images:
            refuse_unreadable(members)
            lacking = f"scenes {_some(missing)}" if missing else "all images"
            raise InputError(
                f"{domain.name}: of the {split} split there is no file for {lacking}",
                where=root,
                expected=f"{files.images!r}, in the publisher's archives or unpacked; "
                f"here is {_some(sorted({member.path.split('/')[0] for member in members})) or 'nothing'}",
                next_step=f"crossearth fetch {domain.name}",
            )
        labels = None
        if files.labels is not None:
            labels = _by_key(domain, key_of, _matching(members, files.labels), files.scenes)
        # without a list of scenes a split is a folder, and equal names in two folders mean nothing
        prefix = "" if files.scenes else f"{split}/"
        sources += _pair(domain, key_of, split, images, labels, prefix)
    return sources


def _own(domain: Domain, own: OwnFiles, scratch: Path) -> list[SceneSource]:
    members = index(own.images, scratch / "images")
    found = _chosen(members, own.image_pattern)
    masks = None
    if own.masks is not None:
        beside = members if own.masks == own.images else index(own.masks, scratch / "masks")
        masks = _chosen(beside, own.mask_pattern)
        found, masks = _apart(domain, own, found, masks)
    if not found:
        refuse_unreadable(members)
        raise InputError(
            f"{domain.name}: no images in this folder",
            where=own.images / own.image_pattern.removesuffix("*"),
            expected=f"files that end in {', '.join(RASTER_SUFFIXES)}",
            next_step="correct `images` in the catalog file, or put images there",
        )
    key_of = _keys(domain, own, found, masks or ())
    images = _by_key(domain, key_of, found, ())
    labels = None if masks is None else _by_key(domain, key_of, masks, ())
    split_of = _split(domain, own, images)
    sources: list[SceneSource] = []
    for split in domain.splits:
        of_split = {key: image for key, image in images.items() if split_of[key] == split}
        sources += _pair(domain, key_of, split, of_split, labels, prefix="")
    for key in sorted(set(labels or ()) - set(images), key=natural):
        log.warning("%s: mask %s has no image and is left out", domain.name, labels and labels[key])
    return sources


def _chosen(members: Sequence[Member], pattern: str) -> list[Member]:
    """The rasters whose paths a user's pattern matches."""
    stars = _stars(pattern)
    return [member for member in _rasters(members) if stars.search(member.path)]


def _stars(pattern: str) -> Any:
    """The regular expression of a pattern in which `*` stands for anything, folders too."""
    return compiled_pattern("(?s)^" + "(.*)".join(map(re2.escape, pattern.split("*"))) + "$")


def _apart(
    domain: Domain, own: OwnFiles, images: Sequence[Member], masks: Sequence[Member]
) -> tuple[list[Member], list[Member]]:
    """Images that are no masks and masks that are no images: what the narrower of both rules means counts.

    Raises:
        InputError: neither is narrower.
    """
    roots = {"images": own.images.resolve(), "masks": (own.masks or own.images).resolve()}
    image_at = {roots["images"] / image.path: image for image in images}
    mask_at = {roots["masks"] / mask.path: mask for mask in masks}
    shared = image_at.keys() & mask_at.keys()
    if shared and len(shared) == len(mask_at) < len(image_at):
        return [image for path, image in image_at.items() if path not in shared], list(masks)
    if shared and len(shared) == len(image_at) < len(mask_at):
        return list(images), [mask for path, mask in mask_at.items() if path not in shared]
    if shared:
        folder = roots["images"].name
        raise InputError(
            f"{domain.name}: {len(shared)} files are both images and masks: "
            + _some(sorted(path.relative_to(roots["images"]).as_posix() for path in shared)),
            where=own.images,
            expected="`images` and `masks` that match different files",
            next_step=f"say which are which, e.g. images: {folder}/*_sat.jpg, masks: {folder}/*_mask.png",
        )
    return list(images), list(masks)


def _keys(
    domain: Domain, own: OwnFiles, images: Sequence[Member], masks: Sequence[Member]
) -> Callable[[Member], str]:
    """What gives the key of a user's image or mask.

    Without a `key` in the catalog it is what the stars of the patterns stand for: of that only the last name,
    unless two images or two masks have the same.
    """
    if domain.key is not None:
        return lambda member: domain.key_of(member.path)
    starred = [
        {member: _starred(pattern, member.path) for member in files}
        for pattern, files in ((own.image_pattern, images), (own.mask_pattern, masks))
    ]
    key_of = starred[0] | starred[1]
    if all(len({_last(key) for key in keys.values()}) == len(keys) for keys in starred):
        return lambda member: PurePosixPath(key_of[member]).name
    return key_of.__getitem__


def _starred(pattern: str, path: str) -> str:
    """`berlin/0` of `berlin/images/0.tif` under `*/images/*`."""
    stem = str(PurePosixPath(path).with_suffix(""))
    match = _stars(str(PurePosixPath(pattern).with_suffix(""))).search(stem)
    return "/".join(filter(None, match.groups())) if match else stem


def _last(key: str) -> str:
    return PurePosixPath(key).name.lower()


def _matching(members: Sequence[Member], pattern: str) -> list[Member]:
    # a pattern that starts with "*" may match at the top as well: paths are rooted for it
    return [member for member in members if fnmatch.fnmatchcase(f"/{member.path}".lower(), pattern.lower())]


def _rasters(members: Sequence[Member]) -> list[Member]:
    by_path = {member.path: member for member in members}
    return [by_path[path] for path in rasters_among(list(by_path), lambda path: read(by_path[path]))]


def _by_key(
    domain: Domain, key_of: Callable[[Member], str], members: Sequence[Member], scenes: Sequence[str]
) -> dict[str, Member]:
    """Members by their key in lower case, those of `scenes` only if there are any."""
    wanted = {scene.lower() for scene in scenes}
    found: dict[str, Member] = {}
    named: dict[str, Member] = {}
    for member in members:
        # lower case: an image and its label may differ in it, and some disks do not tell
        key = key_of(member).lower()
        if wanted and domain.scene_of(key) not in wanted:
            continue
        other = named.setdefault(_file_name(key), member)
        if other is not member:
            raise InputError(
                f"{domain.name}: two files of the name {key!r}: {other} and {member}",
                next_step="remove one, or give the domain a `key` that tells them apart",
            )
        found[key] = member
    return found


def _file_name(key: str) -> str:
    return key.replace("/", "_")


def _pair(
    domain: Domain,
    key_of: Callable[[Member], str],
    split: Split,
    images: Mapping[str, Member],
    labels: Mapping[str, Member] | None,
    prefix: str,
) -> list[SceneSource]:
    keys = sorted(images, key=natural)
    if labels is not None and (unlabelled := [key for key in keys if key not in labels]):
        theirs = next(
            (f", that of {label} {key!r}" for key, label in labels.items() if key not in images), ""
        )
        raise InputError(
            f"{domain.name}: {len(unlabelled)} of {len(keys)} images of the {split} split have no label: "
            + _some([str(images[key]) for key in unlabelled]),
            where=domain.own.masks if domain.own else "",
            expected="labels of the images' names, or a `key` that finds what their paths share; "
            f"the key of {images[unlabelled[0]]} is {unlabelled[0]!r}{theirs}",
            next_step="add the labels, or remove the images",
        )
    if odd := [
        key for key in keys if not is_file_name(_file_name(key)) or len(key.encode()) > MAX_NAME_BYTES
    ]:
        raise InputError(
            f"{domain.name}: {odd[0]!r} cannot be the name of a file",
            where=images[odd[0]],
            expected=f"at most {MAX_NAME_BYTES} bytes",
            next_step="give the domain a `key` that finds a part of the path, or rename the file",
        )
    return [
        SceneSource(
            split,
            key_of(images[key]),
            prefix + domain.scene_of(key_of(images[key])),
            images[key],
            labels[key] if labels is not None else None,
        )
        for key in keys
    ]


def _split(domain: Domain, own: OwnFiles, images: Mapping[str, Member]) -> dict[str, Split]:
    """Split of every key of a user's domain."""
    if own.by == "file":
        return _split_by_file(domain, own, images)
    if own.by != "block":
        return dict.fromkeys(images, own.by)
    scenes = sorted({domain.scene_of(key) for key in images}, key=natural)
    if len(scenes) < 2:
        raise InputError(
            f"{domain.name}: one scene cannot be split into train and test",
            where=own.images,
            next_step="say `split: train` or `split: test`, or cut the image into several files",
        )
    held = min(len(scenes) - 1, max(1, round(own.test * len(scenes))))
    tested = set(scenes[-held:])
    return {key: "test" if domain.scene_of(key) in tested else "train" for key in images}


def _split_by_file(domain: Domain, own: OwnFiles, images: Mapping[str, Member]) -> dict[str, Split]:
    assert own.file is not None  # noqa: S101  (OwnFiles: by "file" has one)
    try:
        # what Excel calls Unicode text is UTF-16 with tabs, and its CSV has semicolons in much of the world
        content = own.file.read_bytes()
        text = content.decode("utf-16" if content[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig")
        header = text.lstrip().partition("\n")[0]
        between = next((mark for mark in ",;\t" if mark in header), ",")
        lines = [line for line in csv.reader(StringIO(text, newline=""), delimiter=between) if line][1:]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the split file: {error}", where=own.file) from error
    keys_of: dict[str, set[str]] = {}
    for key, image in images.items():
        for name in _names(image.path) | {key}:
            keys_of.setdefault(name, set()).add(key)
    split_of: dict[str, Split] = {}
    split_of_scene: dict[str, Split] = {}
    for number, line in enumerate(lines, 2):
        named = len(line) == 2 and PurePosixPath(line[0].strip().replace("\\", "/")).name
        if not named or line[1].strip() not in ("train", "test"):
            raise InputError(
                f"line {number}: {','.join(line)!r}", where=own.file, expected="id,train or id,test"
            )
        key = _key_of_line(domain, own, line[0], number, keys_of)
        split: Split = "train" if line[1].strip() == "train" else "test"
        scene = domain.scene_of(key)
        if split_of_scene.setdefault(scene, split) != split:
            raise InputError(f"line {number}: scene {scene!r} is in both splits", where=own.file)
        split_of[key] = split
    for what, odd in (
        ("images that the split file does not name", set(images) - set(split_of)),
        ("names in the split file without an image", set(split_of) - set(images)),
    ):
        if odd:
            raise InputError(f"{len(odd)} {what}: {_some(sorted(odd, key=natural))}", where=own.file)
    return split_of


def _key_of_line(
    domain: Domain, own: OwnFiles, text: str, number: int, keys_of: Mapping[str, set[str]]
) -> str:
    """The key that a line of the split file means: by an image's key, path or name, the suffix aside."""
    name = text.strip().replace("\\", "/")
    parts = PurePosixPath(name.lower()).parts
    for first in range(len(parts)):
        below = PurePosixPath(*parts[first:])
        keys = keys_of.get(str(below)) or keys_of.get(str(below.with_suffix(""))) or set()
        if len(keys) > 1:
            raise InputError(
                f"line {number}: {name!r} may be {_some(sorted(keys, key=natural))}",
                where=own.file,
                expected="one of them",
            )
        if keys:
            return next(iter(keys))
    return domain.key_of(name).lower()


def _names(path: str) -> set[str]:
    """A path and its last name, both with the suffix and without it, in lower case."""
    file = PurePosixPath(path.lower())
    return {str(file), str(file.with_suffix("")), file.name, file.stem}


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
