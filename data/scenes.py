"""Finds the scenes of a domain among files and archives, and pairs images with labels."""

import csv
import fnmatch
import logging
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePosixPath

from crossearth.data.archives import Member, index, read, refuse_unreadable
from crossearth.data.domains import Domain, OwnFiles, Split
from crossearth.data.errors import InputError
from crossearth.data.files import digest
from crossearth.data.manifest import natural
from crossearth.data.raster_names import RASTER_SUFFIXES, rasters_among

log = logging.getLogger(__name__)

SHOWN = 5


@dataclass(frozen=True)
class SceneSource:
    """One raster of a publisher with its label.

    Attributes:
        key: what image and label share; unique in the split.
        scene: the piece of ground; equal names in both splits mean one place.
        label: None where the domain has no labels.
    """

    split: Split
    key: str
    scene: str
    image: Member
    label: Member | None

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
    sources: list[SceneSource] = []
    for split in domain.splits:
        files = domain.files(split)
        images = _by_key(domain, _matching(members, files.images), files.scenes)
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
            labels = _by_key(domain, _matching(members, files.labels), files.scenes)
        # without a list of scenes a split is a folder, and equal names in two folders mean nothing
        prefix = "" if files.scenes else f"{split}/"
        sources += _pair(domain, split, images, labels, prefix)
    return sources


def _own(domain: Domain, own: OwnFiles, scratch: Path) -> list[SceneSource]:
    members = index(own.images, scratch / "images")
    if own.masks is not None and own.masks.is_relative_to(own.images) and own.masks != own.images:
        inside = own.masks.relative_to(own.images).as_posix() + "/"
        members = [member for member in members if not member.path.startswith(inside)]
    images = _by_key(domain, _rasters(members), ())
    if not images:
        refuse_unreadable(members)
        raise InputError(
            f"{domain.name}: no images in this folder",
            where=own.images,
            expected=f"files that end in {', '.join(RASTER_SUFFIXES)}",
            next_step="correct `images` in the catalog file, or put images there",
        )
    labels = None
    if own.masks is not None:
        labels = _by_key(domain, _rasters(index(own.masks, scratch / "masks")), ())
    split_of = _split(domain, own, sorted(images, key=natural))
    sources: list[SceneSource] = []
    for split in domain.splits:
        of_split = {key: image for key, image in images.items() if split_of[key] == split}
        sources += _pair(domain, split, of_split, labels, prefix="")
    for key in sorted(set(labels or ()) - set(images), key=natural):
        log.warning("%s: mask %s has no image and is left out", domain.name, labels and labels[key])
    return sources


def _matching(members: Sequence[Member], pattern: str) -> list[Member]:
    # a pattern that starts with "*" may match at the top as well: paths are rooted for it
    return [member for member in members if fnmatch.fnmatchcase(f"/{member.path}".lower(), pattern.lower())]


def _rasters(members: Sequence[Member]) -> list[Member]:
    by_path = {member.path: member for member in members}
    return [by_path[path] for path in rasters_among(list(by_path), lambda path: read(by_path[path]))]


def _by_key(domain: Domain, members: Sequence[Member], scenes: Sequence[str]) -> dict[str, Member]:
    """Members by their key in lower case, those of `scenes` only if there are any."""
    wanted = {scene.lower() for scene in scenes}
    found: dict[str, Member] = {}
    for member in members:
        # lower case: an image and its label may differ in it, and some disks do not tell
        key = domain.key_of(member.stem).lower()
        if wanted and domain.scene_of(key) not in wanted:
            continue
        other = found.setdefault(key, member)
        if other is not member:
            raise InputError(
                f"{domain.name}: two files of the name {key!r}: {other} and {member}",
                next_step="remove one, or give the domain a `key` that tells them apart",
            )
    return found


def _pair(
    domain: Domain,
    split: Split,
    images: Mapping[str, Member],
    labels: Mapping[str, Member] | None,
    prefix: str,
) -> list[SceneSource]:
    keys = sorted(images, key=natural)
    if labels is not None and (unlabelled := [key for key in keys if key not in labels]):
        raise InputError(
            f"{domain.name}: {len(unlabelled)} of {len(keys)} images of the {split} split have no label: "
            + _some([str(images[key]) for key in unlabelled]),
            where=domain.own.masks if domain.own else "",
            expected="labels of the images' names, or a `key` that finds what their names share",
            next_step="add the labels, or remove the images",
        )
    return [
        SceneSource(
            split,
            domain.key_of(images[key].stem),
            prefix + domain.scene_of(domain.key_of(images[key].stem)),
            images[key],
            labels[key] if labels is not None else None,
        )
        for key in keys
    ]


def _split(domain: Domain, own: OwnFiles, keys: Sequence[str]) -> dict[str, Split]:
    """Split of every key of a user's domain."""
    if own.by == "file":
        return _split_by_file(domain, own, keys)
    if own.by != "block":
        return dict.fromkeys(keys, own.by)
    scenes = sorted({domain.scene_of(key) for key in keys}, key=natural)
    if len(scenes) < 2:
        raise InputError(
            f"{domain.name}: one scene cannot be split into train and test",
            where=own.images,
            next_step="say `split: train` or `split: test`, or cut the image into several files",
        )
    held = min(len(scenes) - 1, max(1, round(own.test * len(scenes))))
    tested = set(scenes[-held:])
    return {key: "test" if domain.scene_of(key) in tested else "train" for key in keys}


def _split_by_file(domain: Domain, own: OwnFiles, keys: Sequence[str]) -> dict[str, Split]:
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
    split_of: dict[str, Split] = {}
    split_of_scene: dict[str, Split] = {}
    for number, line in enumerate(lines, 2):
        if len(line) != 2 or line[1].strip() not in ("train", "test"):
            raise InputError(
                f"line {number}: {','.join(line)!r}", where=own.file, expected="id,train or id,test"
            )
        name = line[0].strip().replace("\\", "/")
        either = [domain.key_of(text).lower() for text in (name, PurePosixPath(name).stem)]
        key = next((key for key in either if key in keys), either[0])
        split: Split = "train" if line[1].strip() == "train" else "test"
        scene = domain.scene_of(key)
        if split_of_scene.setdefault(scene, split) != split:
            raise InputError(f"line {number}: scene {scene!r} is in both splits", where=own.file)
        split_of[key] = split
    for what, odd in (
        ("images that the split file does not name", set(keys) - set(split_of)),
        ("names in the split file without an image", set(split_of) - set(keys)),
    ):
        if odd:
            raise InputError(f"{len(odd)} {what}: {_some(sorted(odd, key=natural))}", where=own.file)
    return split_of


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
