"""Which label belongs to which image, by their paths."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from posixpath import commonprefix
from typing import Any, Literal
from unicodedata import normalize

import re2

from crossearth.data.annotations.recognise import told
from crossearth.data.catalog.domains import Domain, OwnFiles, Pairs, compiled_pattern
from crossearth.data.common.config import some
from crossearth.data.common.errors import InputError
from crossearth.data.raster.archives import Member

SAMPLED = 20  # images whose names are looked at
LOSSY = (".jpg", ".jpeg")
# words by which people tell masks from images
MASK_WORDS = re.compile(r"mask|label|annot|ann_|truth|target|seg|lbl|gt|^[_-]m$", re.IGNORECASE)
Kind = Literal["image", "mask"]


def keys_of(own: OwnFiles, images: Sequence[Member], masks: Sequence[Member]) -> Callable[[Member], str]:
    """What gives the key of a user's image or mask: what the two have in common.

    It is what the stars of their patterns stand for, or the braces of `pairs`: of that only the last name,
    unless two images or two masks have the same.
    """
    kinds: tuple[tuple[Kind, str, Sequence[Member]], ...] = (
        ("image", own.image_pattern, images),
        ("mask", own.masks.pattern if own.masks else "*", masks),
    )
    found = [
        {
            member: own.pairs.key(member.path, kind) if own.pairs else _starred(pattern, member.path)
            for member in members
        }
        for kind, pattern, members in kinds
    ]
    key_of = {member: normalize("NFC", key) for keys in found for member, key in keys.items()}
    if all(len({folded(PurePosixPath(key).name) for key in keys.values()}) == len(keys) for keys in found):
        return lambda member: PurePosixPath(key_of[member]).name
    return key_of.__getitem__


def folded(name: str) -> str:
    """What of a name counts: neither its case nor how its accents are written, which hang on the disk."""
    return normalize("NFC", name).lower()


def stars(pattern: str) -> Any:
    """The regular expression of a pattern in which `*` stands for anything, folders too."""
    return compiled_pattern("(?s)^" + "(.*)".join(map(re2.escape, pattern.split("*"))) + "$")


def _starred(pattern: str, path: str) -> str:
    """`berlin/0` of `berlin/images/0.tif` under `*/images/*`."""
    stem = str(PurePosixPath(path).with_suffix(""))
    match = stars(str(PurePosixPath(pattern).with_suffix(""))).search(stem)
    return "/".join(filter(None, match.groups())) if match else stem


def apart(
    domain: Domain, own: OwnFiles, images: Sequence[Member], masks: Sequence[Member], others: Sequence[Member]
) -> tuple[list[Member], list[Member]]:
    """Images that are no masks and masks that are no images: what the narrower of both rules means counts.

    Args:
        others: what lies beside them, for the message.

    Raises:
        InputError: neither is narrower.
    """
    image_at = {_place(image): image for image in images}
    mask_at = {_place(mask): mask for mask in masks}
    shared = image_at.keys() & mask_at.keys()
    if not shared:
        return list(images), list(masks)
    if len(shared) == len(mask_at) < len(image_at):
        return [image for path, image in image_at.items() if path not in shared], list(masks)
    if len(shared) == len(image_at) < len(mask_at):
        return list(images), [mask for path, mask in mask_at.items() if path not in shared]
    likely = suggested([image.path for image in images], [mask.path for mask in masks])
    raise InputError(
        f"{domain.name}: {len(shared)} files are both images and masks: "
        + some(sorted(image_at[path].path for path in shared))
        + (told(others) if len(images) == len(masks) else ""),
        where=own.images,
        expected="`images` and `masks` that match different files, or `pairs`",
        next_step=f'say which are which, e.g. pairs: "{likely or "{}_sat.jpg -> {}_mask.png"}"',
    )


def _place(member: Member) -> str:
    return f"{member.container.resolve()}:{member.name}"


def suggested(images: Sequence[str], masks: Sequence[str]) -> Pairs | None:
    """The pattern that gives every image one mask, or every mask one image, if their names show one.

    Args:
        images, masks: paths; the same ones where it is not known which are which.
    """
    same = {*images} == {*masks}
    choices: Counter[Pairs] = Counter()
    for image in images[:SAMPLED]:
        paired = [
            (_likeness(image, mask), pairs)
            for mask in masks
            if mask != image
            for pairs in _patterns(PurePosixPath(image), PurePosixPath(mask), told=not same)
        ]
        best = max((likeness for likeness, _ in paired), default=0)
        choices.update(pairs for likeness, pairs in paired if likeness == best)
    likely: Pairs | None = None
    for pairs in sorted(choices, key=lambda each: (-choices[each], "label" not in each.mask.lower())):
        theirs = {name for path in masks if (name := PurePosixPath(folded(pairs.key(path, "mask"))).name)}
        ours = [folded(pairs.key(path, "image")) for path in images if not (same and pairs.key(path, "mask"))]
        names = {PurePosixPath(name).name for name in ours}
        if ours and len({*ours}) == len(ours) and names <= theirs:
            return pairs
        # publishers keep the labels of their tests
        if likely is None and len(theirs) > 1 and theirs <= names and MASK_WORDS.search(pairs.mask):
            likely = pairs
    return likely


def _likeness(one: str, other: str) -> int:
    """How many letters two files' names share at their beginning and at their end."""
    stems = PurePosixPath(one).stem, PurePosixPath(other).stem
    shared = _common(*stems) + _common(stems[0][::-1], stems[1][::-1])
    return min(shared, *map(len, stems))


def _common(one: str, other: str) -> int:
    return len(commonprefix([one, other]))


def _patterns(image: PurePosixPath, mask: PurePosixPath, told: bool) -> Iterator[Pairs]:
    """How one image's name becomes one mask's: at its end, at its beginning, or between.

    Args:
        told: whether it is known that it is a mask; else the name has to have a word that masks have.
    """
    ours, theirs = image.stem, mask.stem
    ahead = ours[: _common(ours, theirs)]
    behind = ours[len(ours) - _common(ours[::-1], theirs[::-1]) :]
    # the sign between words belongs to what differs: {}_mask and not {}mask
    if len(ahead) < max(len(ours), len(theirs)):
        ahead, behind = ahead.rstrip("_-. "), behind.lstrip("_-. ")
    shared = []
    if ahead and len(ahead) >= len(behind):
        shared.append((ahead, ""))
    elif behind:
        shared.append(("", behind))
    # between words: {}_sat_{} and not {}s{}
    before, after = (
        re.search(r"^(.*)[_\-. ]$", ours[: len(ahead) + 1]),
        re.search(r"[_\-. ](.*)$", ours[len(ours) - len(behind) - 1 :]),
    )
    if before and after and len(ahead) + len(behind) < min(len(ours), len(theirs)):
        shared.append((before[1], after[1]))
    for first, last in shared:
        ends = [name[len(first) : len(name) - len(last)] for name in (ours, theirs)]
        by_word = MASK_WORDS.search(ends[1]) is not None and MASK_WORDS.search(ends[0]) is None
        by_suffix = ends == ["", ""] and image.suffix != mask.suffix and mask.suffix.lower() not in LOSSY
        if told or by_word or by_suffix:
            start, stop = "{}" if first else "", "{}" if last else ""
            image_end, mask_end = (f"{start}{end}{stop}" for end in ends)
            yield Pairs(f"{image_end}{image.suffix}", f"{mask_end}{mask.suffix}")


class ImageNames:
    """Images by the names that lists and tables give them: key, path or name, with the suffix or without."""

    def __init__(self, images: Mapping[str, Member]) -> None:
        self._keys: dict[str, set[str]] = {}
        for key, image in images.items():
            file = PurePosixPath(folded(image.path))
            for name in {key, str(file), str(file.with_suffix("")), file.name, file.stem}:
                self._keys.setdefault(name, set()).add(key)

    def find(self, text: str) -> set[str]:
        """Keys of the images that a name may mean: of a path, those that agree with most of it."""
        parts = PurePosixPath(folded(text.strip().replace("\\", "/"))).parts
        for first in range(len(parts)):
            below = PurePosixPath(*parts[first:])
            if keys := self._keys.get(str(below)) or self._keys.get(str(below.with_suffix(""))):
                return keys
        return set()

    def one(self, text: str, where: object) -> str | None:
        """The key of the image that a name means; None where there is none.

        Raises:
            InputError: it may mean several.
        """
        keys = self.find(text)
        if len(keys) > 1:
            raise InputError(
                f"{text.strip()!r} may be {some(sorted(keys))}", where=where, expected="one of them"
            )
        return next(iter(keys), None)


def unpaired(own: OwnFiles, images: Sequence[Member], masks: Sequence[Member]) -> str:
    """What to do about images without a mask."""
    pairs = suggested([image.path for image in images], [mask.path for mask in masks])
    if pairs is not None and own.pairs is None:
        return f'give the domain the line\n    pairs: "{pairs}"'
    skip = "`unlabelled: skip` in the catalog file leaves such images out"
    if own.masks is not None and own.masks.outside is not None:
        skip += ", `unlabelled: outside` takes them for images that no shape covers"
    return f"add the labels, or say so: {skip}"
