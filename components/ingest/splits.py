"""Which split an image is in: as the user says, or as its publisher did."""

import csv
import logging
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

from crossearth.components.ingest.pairing import ImageNames, folded
from crossearth.data.catalog.domains import VOC_LISTS, Domain, OwnFiles, Split, SplitRule
from crossearth.data.common.config import some
from crossearth.data.common.errors import InputError
from crossearth.data.raster.archives import Member, file_at, index, on_the_disk, read
from crossearth.data.tiles.manifest import natural

log = logging.getLogger(__name__)

WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}


class UndecidedError(InputError):
    """No split that is clear by itself; `choice` is what the catalog file may say."""

    choice: Any = "train"


def word_of(name: str) -> str | None:
    """The split that a folder's or a list's name means: train2017 is one of "train"."""
    return WORDS.get(name.lower().rstrip("0123456789_-"))


def split_images(
    domain: Domain, own: OwnFiles, images: Mapping[str, Member], counted: Mapping[str, Member], scratch: Path
) -> dict[str, Split]:
    """Split of a user's images by key; those that a published split leaves out are in none.

    Args:
        images: all of them.
        counted: those of which a share is taken, or which a list of all must name.
        scratch: where archives without random access are unpacked.

    Raises:
        InputError: a published split that is none of train and test alone; a list that names other images; a
            scene in both splits.
    """
    told = own.by in ("file", "folder", "lists")  # who says it himself is not asked what the publisher says
    published = None if told else _published(domain, own, counted, scratch)
    if own.by == "found":
        if published is None:
            own = replace(own, by="block")
        elif published.by == "found":
            raise _undecided(domain, own, published)
        else:
            own = published
            sides = (
                " and ".join(Path(name).name for name in each) for each in (own.train_from, own.test_from)
            )
            log.warning("%s: split as published: %s is train, %s is test", domain.name, *sides)
    elif published is not None and own.by in ("block", "train", "test"):
        log.warning("%s: `split` is said, and so the split that was published is not used", domain.name)
    if own.by == "file":
        return _by_file(domain, own, images, counted, scratch)
    if own.by == "folder":
        return _once(domain, _by_folder(domain, own, images))
    if own.by == "lists":
        return _once(domain, _by_lists(domain, own, images, scratch))
    if own.by in ("train", "test"):
        return dict.fromkeys(images, "train" if own.by == "train" else "test")
    scenes = sorted({domain.scene_of(key) for key in counted}, key=natural)
    if len(scenes) < 2:
        raise UndecidedError(
            f"{domain.name}: one scene cannot be split into train and test",
            where=own.images,
            next_step="say `split: train` or `split: test`, or cut the image into several files",
        )
    held = min(len(scenes) - 1, max(1, round(own.test * len(scenes))))
    tested = set(scenes[-held:])
    return {key: "test" if domain.scene_of(key) in tested else "train" for key in counted}


def _published(domain: Domain, own: OwnFiles, images: Mapping[str, Member], scratch: Path) -> OwnFiles | None:
    """The split that a publisher made, if folders or lists show one; by "found" where it takes a person."""
    folders = {part.lower(): part for image in images.values() for part in _folders(image)}
    of_word = _by_word((part, folders[part]) for part in sorted(folders))
    if of_word and of_word.keys() != {"train"}:
        unsaid = [image for image in images.values() if not any(map(word_of, _folders(image)))]
        return _chosen(own, "folder", of_word, bool(unsaid))
    lists = _lists_beside(own.images.parent / VOC_LISTS, scratch)
    if not lists:
        lists = _lists_of(domain, images, (own.images.parent, own.images), scratch)
    of_word = _by_word((path.stem, str(path)) for path in lists)
    if "train" in of_word and len(of_word) > 1:
        return _chosen(own, "lists", of_word, False)
    return None


def _by_word(named: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Places of each split that a name means."""
    found: dict[str, list[str]] = {}
    for name, place in named:
        if word := word_of(name):
            found.setdefault(word, []).append(place)
    return found


def _lists_of(
    domain: Domain, images: Mapping[str, Member], places: Iterable[Path], scratch: Path
) -> list[Path]:
    """train.txt and its like beside the images, where they name them."""
    names = ImageNames(images)
    for place in places:
        lists = [path for path in sorted(place.glob("*.txt")) if word_of(path.stem)]
        firsts = [_text(path, scratch).strip().partition("\n")[0] for path in lists]
        if len(lists) > 1 and all(map(names.find, firsts)):
            return lists
        if lists:
            named = some([str(path) for path in lists])
            log.warning("%s: %s name no images of these, and are not used as a split", domain.name, named)
    return []


def _lists_beside(place: Path, scratch: Path) -> list[Path]:
    """The lists of a folder, which may lie in an archive."""
    if not on_the_disk(place):
        return []
    try:
        members = index(place, scratch)
    except InputError:
        return []  # the images' archive has none
    return [place / member.path for member in members if member.path.lower().endswith(".txt")]


def _folders(image: Member) -> tuple[str, ...]:
    return PurePosixPath(image.path).parts[:-1]


def _chosen(own: OwnFiles, by: SplitRule, of_word: Mapping[str, Sequence[str]], unsaid: bool) -> OwnFiles:
    held = [word for word in ("val", "test") if word in of_word]
    clear = "train" in of_word and len(held) == 1 and not unsaid
    return replace(
        own,
        by=by if clear else "found",
        train_from=tuple(of_word.get("train", ())),
        test_from=tuple(name for word in held for name in of_word[word]),
    )


def _undecided(domain: Domain, own: OwnFiles, published: OwnFiles) -> InputError:
    names = [*published.train_from, *published.test_from]
    by = "lists" if published.train_from and Path(published.train_from[0]).suffix else "folder"
    train, test = list(published.train_from), list(published.test_from)
    if by == "lists":  # these paths start here, and those of a catalog at the data folder
        train, test = ([str(Path(name).resolve()) for name in side] for side in (train, test))
    if not train:
        line = "split: test, where all of them are for scores, or {by: block, test: 0.25}"
    else:
        line = (
            f"split: {{by: {by}, train: [{', '.join(train)}], test: [{test[-1]}]}}; "
            "what it does not name is left out"
        )
    undecided = UndecidedError(
        f"{domain.name}: a published split of {some([Path(name).name for name in names])}"
        + (", and images outside of it" if len(names) == 2 and train else ""),
        where=own.images,
        expected="a line that says which are trained on, and which are scored",
        next_step=f"write {line}",
    )
    undecided.choice = {"by": by, "train": train, "test": [test[-1]]} if train else "test"
    return undecided


def _by_folder(domain: Domain, own: OwnFiles, images: Mapping[str, Member]) -> dict[str, Split]:
    sides: dict[str, Split] = {
        **dict.fromkeys(map(folded, own.train_from), "train"),
        **dict.fromkeys(map(folded, own.test_from), "test"),
    }
    split_of: dict[str, Split] = {}
    for key, image in images.items():
        found = {sides[part] for part in map(folded, _folders(image)) if part in sides}
        if len(found) > 1:
            raise InputError(f"{domain.name}: below folders of both splits", where=image)
        if found:
            split_of[key] = found.pop()
    for side, names in (("train", own.train_from), ("test", own.test_from)):
        if side not in split_of.values():
            raise InputError(
                f"{domain.name}: no images below {some(names)}",
                where=own.images,
                expected=f"folders of the {side} split: "
                + some(sorted({part for image in images.values() for part in _folders(image)})),
                next_step="correct `split` in the catalog file",
            )
    return _told(domain, images, split_of)


def _by_lists(domain: Domain, own: OwnFiles, images: Mapping[str, Member], scratch: Path) -> dict[str, Split]:
    names = ImageNames(images)
    split_of: dict[str, Split] = {}
    sides: tuple[tuple[Split, tuple[str, ...]], ...] = (("train", own.train_from), ("test", own.test_from))
    for split, files in sides:
        for file in files:
            for number, line in enumerate(_text(Path(file), scratch).splitlines(), 1):
                if not line.strip():
                    continue
                key = names.one(line, f"{file}: line {number}")
                if key is None:
                    raise InputError(
                        f"line {number}: {line.strip()!r} is no image's name",
                        where=file,
                        expected=f"one name a line, as in {own.images}: {some(sorted(images, key=natural))}",
                    )
                if split_of.setdefault(key, split) != split:
                    raise InputError(f"line {number}: {key!r} is in both splits", where=file)
    return _told(domain, images, split_of)


def _told(domain: Domain, images: Mapping[str, Member], split_of: dict[str, Split]) -> dict[str, Split]:
    if left := sorted(set(images) - set(split_of), key=natural):
        log.warning("%s: %d images are in no split and left out: %s", domain.name, len(left), some(left))
    return split_of


def _once(domain: Domain, split_of: dict[str, Split]) -> dict[str, Split]:
    """The splits, if no scene is in both."""
    of_scene: dict[str, Split] = {}
    for key, split in split_of.items():
        if of_scene.setdefault(domain.scene_of(key), split) != split:
            raise InputError(f"{domain.name}: scene {domain.scene_of(key)!r} is in both splits")
    return split_of


def _text(file: Path, scratch: Path) -> str:
    """A list's text, which may lie in an archive: what Excel calls Unicode text is UTF-16."""
    try:
        content = file.read_bytes() if file.is_file() else read(file_at(file, scratch))
        text = content.decode("utf-16" if content[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig")
        if "\0" in text:  # UTF-16 without its mark, or UTF-32
            raise ValueError("not text in UTF-8")
        return text
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read the split file: {error}",
            where=file,
            expected="UTF-8, or UTF-16 that begins with its mark",
            next_step="save it again, in a spreadsheet as CSV UTF-8",
        ) from error


def _by_file(
    domain: Domain, own: OwnFiles, images: Mapping[str, Member], counted: Mapping[str, Member], scratch: Path
) -> dict[str, Split]:
    assert own.file is not None  # noqa: S101  (OwnFiles: by "file" has one)
    text = _text(own.file, scratch)
    header = text.lstrip().partition("\n")[0]
    # a CSV of Windows has semicolons in much of the world, and tabs where it is "Unicode text"
    between = next((mark for mark in ",;\t" if mark in header), ",")
    try:
        lines = [line for line in csv.reader(StringIO(text, newline=""), delimiter=between) if line][1:]
    except csv.Error as error:
        raise InputError(f"cannot read the split file: {error}", where=own.file) from error
    names = ImageNames(images)
    split_of: dict[str, Split] = {}
    split_of_scene: dict[str, Split] = {}
    for number, line in enumerate(lines, 2):
        named = len(line) == 2 and PurePosixPath(line[0].strip().replace("\\", "/")).name
        if not named or line[1].strip() not in ("train", "test"):
            raise InputError(
                f"line {number}: {','.join(line)!r}", where=own.file, expected="id,train or id,test"
            )
        key = names.one(line[0], f"{own.file}: line {number}") or folded(str(named))
        split: Split = "train" if line[1].strip() == "train" else "test"
        scene = domain.scene_of(key)
        if split_of_scene.setdefault(scene, split) != split:
            raise InputError(f"line {number}: scene {scene!r} is in both splits", where=own.file)
        split_of[key] = split
    for what, odd in (
        ("images that the split file does not name", set(counted) - set(split_of)),
        ("names in the split file without an image", set(split_of) - set(images)),
    ):
        if odd:
            raise InputError(f"{len(odd)} {what}: {some(sorted(odd, key=natural))}", where=own.file)
    return split_of
