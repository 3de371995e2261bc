"""Finds the scenes of a domain among files and archives, and pairs images with labels."""

import fnmatch
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from crossearth.components.ingest.labelling import (
    by_key,
    class_of,
    image_folder,
    is_one_file,
    label_files,
    of_images,
)
from crossearth.components.ingest.pairing import apart, folded, keys_of, stars, unpaired
from crossearth.components.ingest.splits import split_images
from crossearth.data.annotations.recognise import told
from crossearth.data.annotations.source import LabelSource
from crossearth.data.catalog.domains import Domain, Masks, OwnFiles, Split, is_file_name
from crossearth.data.common.config import some
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import digest
from crossearth.data.raster.archives import Member, index, rasters, refuse_unreadable
from crossearth.data.raster.names import RASTER_SUFFIXES
from crossearth.data.tiles.manifest import natural

log = logging.getLogger(__name__)

MAX_NAME_BYTES = 200  # file systems allow 255, and tiles' names are longer


@dataclass(frozen=True)
class SceneSource:
    """One image with its labels.

    Attributes:
        key: what image and label share; unique in the split. It may have slashes.
        scene: the piece of ground; equal names in both splits mean one place.
        label: None where the domain has no labels.
    """

    split: Split
    key: str
    scene: str
    image: Member
    label: LabelSource | None

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
        label = self.label.identity if self.label else ""
        return digest([self.split, self.key, self.scene, LabelSource.of(self.image).identity, label])


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
            lacking = f"scenes {some(missing)}" if missing else "all images"
            raise InputError(
                f"{domain.name}: of the {split} split there is no file for {lacking}",
                where=root,
                expected=f"{files.images!r}, in the publisher's archives or unpacked; "
                f"here is {some(sorted({member.path.split('/')[0] for member in members})) or 'nothing'}",
                next_step=f"crossearth fetch {domain.name}",
            )
        labels = None
        if files.labels is not None:
            found_labels = _by_key(domain, key_of, _matching(members, files.labels), files.scenes)
            labels = {key: LabelSource.of(member) for key, member in found_labels.items()}
        # without a list of scenes a split is a folder, and equal names in two folders mean nothing
        prefix = "" if files.scenes else f"{split}/"
        sources += _pair(domain, key_of, split, images, labels, prefix)
    return sources


def _own(domain: Domain, own: OwnFiles, scratch: Path) -> list[SceneSource]:
    members = index(own.images, scratch)
    masks, lying = own.masks, list[Member]()
    if masks is not None and not is_one_file(masks):
        lying = members if masks.place == own.images else index(masks.place, scratch)
    pattern = stars(own.image_pattern)
    found = [member for member in rasters(members) if pattern.search(member.path)]
    files = label_files(masks, lying) if masks else []
    if masks and masks.form == "imagefolder":
        _, files = image_folder(masks, lying)
    if own.pairs is not None:
        files = [each for each in files if own.pairs.key(each.path, "mask")]
        found = [each for each in found if own.pairs.key(each.path, "image")]
    found, files = apart(domain, own, found, files, lying)
    if not found:
        refuse_unreadable(members)
        raise InputError(
            f"{domain.name}: no images in this folder{told(members)}",
            where=own.images / own.image_pattern.removesuffix("*"),
            expected=f"files that end in {', '.join(RASTER_SUFFIXES)}"
            + (f", named as in {own.pairs.image}" if own.pairs else ""),
            next_step="correct `images` in the catalog file, or put images there",
        )
    key_of = keys_of(own, found, files)
    images = _by_key(domain, key_of, found, ())
    labels = _labels(domain, masks, images, files, key_of, lying, scratch) if masks else None
    counted = images
    if labels is not None and own.unlabelled == "skip":
        counted = {key: image for key, image in images.items() if key in labels}
    split_of = split_images(domain, own, images, counted, scratch)
    images = {key: image for key, image in images.items() if key in split_of}
    if labels is not None:
        images = _labelled(domain, own, images, labels, files, lying)
    sources: list[SceneSource] = []
    for split in domain.splits:
        of_split = {key: image for key, image in images.items() if split_of[key] == split}
        if not of_split:
            raise InputError(
                f"{domain.name}: no image{' with a label' if masks else ''} in the {split} split",
                where=own.images,
                next_step="say another `split` in the catalog file, e.g. split: {by: block, test: 0.25}, "
                f"or `split: {'train' if split == 'test' else 'test'}` for one that has no {split} split",
            )
        sources += _pair(domain, key_of, split, of_split, labels, prefix="")
    return sources


def _labels(
    domain: Domain,
    masks: Masks,
    images: Mapping[str, Member],
    files: Sequence[Member],
    key_of: Callable[[Member], str],
    lying: Sequence[Member],
    scratch: Path,
) -> dict[str, LabelSource]:
    """The labels by the keys of their images.

    Args:
        files: those of one image each.
        lying: all files at the labels' place.
    """
    if masks.form in ("coco", "imagefolder", "band", "page") or is_one_file(masks):
        return of_images(domain, masks, images, lying, scratch)
    if masks.form == "class_folders":
        grouped: dict[str, list[Member]] = {}
        for file in files:
            key = folded(key_of(file)).removeprefix(f"{folded(class_of(masks, file))}/")
            grouped.setdefault(key, []).append(file)
    else:
        grouped = {key: [file] for key, file in _by_key(domain, key_of, files, ()).items()}
    if odd := sorted(set(grouped) - set(images), key=natural):
        named = some([str(grouped[key][0]) for key in odd])
        log.warning("%s: %d masks have no image and are left out: %s", domain.name, len(odd), named)
    return by_key(masks, {key: grouped[key] for key in grouped if key in images}, lying, scratch)


def _labelled(
    domain: Domain,
    own: OwnFiles,
    images: Mapping[str, Member],
    labels: dict[str, LabelSource],
    files: Sequence[Member],
    lying: Sequence[Member],
) -> dict[str, Member]:
    """The images that stay; adds to `labels` those of images that are `outside` as a whole.

    Raises:
        InputError: images without a label, unless the domain says what becomes of them.
    """
    lacking = sorted(set(images) - set(labels), key=natural)
    if not lacking:
        return dict(images)
    named = some([str(images[key]) for key in lacking])
    if own.unlabelled == "error" or len(lacking) == len(images):
        taken = {part.path for each in labels.values() for part in each.files}
        others = [file for file in files if file.path not in taken]
        theirs = f", a label that is left over is {others[0]}" if others else ""
        raise InputError(
            f"{domain.name}: {len(lacking)} of {len(images)} images have no label: {named}"
            + ("" if files else told(lying)),
            where=own.masks.place if own.masks else "",
            expected="in the one file of labels something for every image"
            if own.masks and (own.masks.form == "coco" or is_one_file(own.masks))
            else f"labels of the images' names; that of {images[lacking[0]]} is {lacking[0]!r}{theirs}",
            next_step=unpaired(own, list(images.values()), files),
        )
    if own.unlabelled == "skip":
        log.warning("%s: %d images without a label are left out: %s", domain.name, len(lacking), named)
        return {key: image for key, image in images.items() if key in labels}
    log.warning("%s: %d images have no label and are all `outside`: %s", domain.name, len(lacking), named)
    labels |= {key: LabelSource(f"{own.masks.place if own.masks else ''}: {key}") for key in lacking}
    return dict(images)


def _matching(members: Sequence[Member], pattern: str) -> list[Member]:
    # a pattern that starts with "*" may match at the top as well: paths are rooted for it
    return [member for member in members if fnmatch.fnmatchcase(f"/{member.path}".lower(), pattern.lower())]


def _by_key(
    domain: Domain, key_of: Callable[[Member], str], members: Sequence[Member], scenes: Sequence[str]
) -> dict[str, Member]:
    """Members by their folded key, those of `scenes` only if there are any."""
    wanted = {scene.lower() for scene in scenes}
    found: dict[str, Member] = {}
    named: dict[str, Member] = {}
    for member in members:
        key = folded(key_of(member))
        if wanted and domain.scene_of(key) not in wanted:
            continue
        other = named.setdefault(_file_name(key), member)
        if other is not member:
            raise InputError(
                f"{domain.name}: two files of the name {key!r}: {other} and {member}",
                next_step="say which are meant, e.g. images: FOLDER/*.tif"
                if domain.own
                else "move one of them away",
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
    labels: Mapping[str, LabelSource] | None,
    prefix: str,
) -> list[SceneSource]:
    keys = sorted(images, key=natural)
    if labels is not None and (unlabelled := [key for key in keys if key not in labels]):
        raise InputError(
            f"{domain.name}: {len(unlabelled)} of {len(keys)} images of the {split} split have no label: "
            + some([str(images[key]) for key in unlabelled]),
            expected=f"a label of the name {unlabelled[0]!r}",
            next_step=f"crossearth fetch {domain.name}",
        )
    sources = []
    for key in keys:
        image = images[key]
        if not is_file_name(_file_name(key)) or len(key.encode()) > MAX_NAME_BYTES:
            raise InputError(
                f"{domain.name}: {key!r} cannot be the name of a file",
                where=image,
                expected=f"at most {MAX_NAME_BYTES} bytes",
                next_step="rename the file",
            )
        scene = prefix + domain.scene_of(key_of(image))
        sources.append(SceneSource(split, key_of(image), scene, image, labels[key] if labels else None))
    return sources
