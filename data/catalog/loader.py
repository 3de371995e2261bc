"""Reads catalog files: the benchmark's own and, with the same code, the user's.

Whatever is wrong in one is refused with the file, the key and the choices.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import re2
from pydantic import Field, PositiveInt

from crossearth.data.catalog.colours import distinct_colours
from crossearth.data.catalog.domains import (
    DEFAULT_TEST_SHARE,
    IN_DOMAIN,
    STATES_SUFFIX,
    TIMING_SUFFIX,
    UNSEEN,
    Archive,
    Catalog,
    ClassSet,
    Dataset,
    Domain,
    Files,
    Form,
    Masks,
    OwnFiles,
    Pairs,
    PublishedScore,
    Setting,
    Tiling,
    Unlabelled,
    compiled_pattern,
    known_entry,
    plain_name,
)
from crossearth.data.catalog.labels import (
    IGNORE,
    IGNORE_NAME,
    LabelSpec,
    Unknown,
    class_id,
    parse_labels,
    parse_names,
)
from crossearth.data.common.config import (
    Rising,
    checked,
    home_path,
    listed,
    load_config,
    nearest,
    read_yaml,
    shown,
)
from crossearth.data.common.errors import InputError

BUILT_IN = (Path(__file__).with_name("catalog.yaml"), Path(__file__).with_name("settings.yaml"))
DEFAULT_DATA_DIR = Path("datasets")
DEFAULT_TILE_PX = 512
MAX_CLASSES = 250
MAX_GAP = 40
# keys of `masks` that say its form, and what else may stand beside each
SHAPES = ("outside", "order", "all_touched")
FORMS: dict[Form, tuple[str, ...]] = {
    "polygons": (*SHAPES, "attribute", "layer", "crs"),
    "coco": SHAPES,
    "yolo": (*SHAPES, "names"),
    "labelme": SHAPES,
    "cvat": (),
    "class_folders": ("outside", "order"),
    "imagefolder": ("column",),
    "band": (),
    "page": (),
}
PerCent = Annotated[float, Field(ge=0, le=100)]
# names become folders, MLflow tags and URLs
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*", re.IGNORECASE)


def load_catalog(extra: Sequence[Path] = (), data_dir: Path | None = None) -> Catalog:
    """The benchmark's catalog and the user's files on top.

    Args:
        extra: the user's catalog files.
        data_dir: where relative paths in them start [default: ./datasets].

    Raises:
        InputError: a file, key or value that is wrong, with the file, the key and the choices; two entries of
            one name; a setting whose domains' classes cannot become its class set.
    """
    catalog = Catalog({}, {}, {}, {}, {})
    own = {Path(path).resolve(): Path(path) for path in extra}  # named twice, it counts once
    files = [
        (path, load_config(_File, _mapping(read_yaml(path) or {}, path), path))
        for path in (*BUILT_IN, *own.values())
    ]
    # class sets of all files first, settings last: an entry may name what stands in another file
    for section, known, add in (
        ("class_sets", catalog.class_sets, _add_class_set),
        ("datasets", catalog.datasets, _add_dataset),
        ("domains", catalog.domains, _add_domain),
        ("settings", catalog.settings, _add_setting),
    ):
        for path, file in files:
            for name, values in getattr(file, section).items():
                place = _Place(
                    f"{path}: {section}.{name}", Path(data_dir or DEFAULT_DATA_DIR), path not in BUILT_IN
                )
                twin = next((other for other in known if plain_name(other) == plain_name(name)), None)
                if twin is not None:
                    beside = "" if twin == name else f", or almost: {twin!r} may be written to the same place"
                    raise InputError(
                        f"a second entry of the name {name!r}{beside}",
                        where=place.where,
                        next_step="rename one",
                    )
                add(catalog, name, _mapping(values, place.where), place)
    catalog.recipes()
    return catalog


@checked
class _File:
    class_sets: dict[str, Any] = field(default_factory=dict)
    datasets: dict[str, Any] = field(default_factory=dict)
    domains: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@checked
class _ClassSetEntry:
    classes: tuple[str, ...]
    palette: tuple[str, ...] | None = None
    primary_metric: Literal["mean", "foreground"] = "mean"
    maps: dict[str, dict[str, str]] = field(default_factory=dict)


@checked
class _DatasetEntry:
    title: str
    homepage: str = ""
    licence: str = ""
    archives: tuple[Archive, ...] = ()


@checked
class _BlockEntry:
    by: Literal["block"]
    test: Annotated[float, Field(gt=0, lt=1)] = DEFAULT_TEST_SHARE


@checked
class _NamesEntry:
    by: Literal["folder", "lists"]
    train: tuple[str, ...]
    test: tuple[str, ...]


SPLITS: dict[str, type[_BlockEntry | _NamesEntry]] = {
    "block": _BlockEntry,
    "folder": _NamesEntry,
    "lists": _NamesEntry,
}


@checked
class _MasksEntry:
    polygons: str | None = None
    coco: str | None = None
    yolo: str | None = None
    labelme: str | None = None
    cvat: str | None = None
    class_folders: str | None = None
    imagefolder: str | None = None
    band: PositiveInt | None = None
    page: PositiveInt | None = None
    attribute: str | None = None
    layer: str | None = None
    crs: str | None = None
    all_touched: bool = False
    names: str | None = None
    column: str | None = None
    outside: str | None = None
    order: tuple[str, ...] | Literal["file"] | None = None


@checked
class _DomainEntry:
    bands: tuple[str, ...] | tuple[int, ...] | dict[str, int] | None = None
    tile: Tiling | None = None
    class_set: str | None = None
    labels: dict[Any, Any] | None = None
    unknown_labels: Unknown | None = None
    gsd_m: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    key: str | None = None
    scene: str = "(.+)"
    dataset: str | None = None
    lossy_labels: tuple[str, ...] = ()
    train: Files | None = None
    test: Files | None = None
    images: str | None = None
    masks: str | dict[str, Any] | None = None
    pairs: str | None = None
    unlabelled: Unlabelled | None = None
    split: Any = None
    value_range: Rising | None = None
    nodata: float | None = None


@checked
class _PublishedEntry:
    miou: PerCent
    certainty: str
    per_class: tuple[PerCent, ...] | None = None


@checked
class _SettingEntry:
    source: str
    target: str
    gap: str
    id: str | int | None = None
    class_set: str | None = None
    evidence: str = ""
    published: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Place:
    """Where an entry stands, where its relative paths start, and whether its file is one of the user."""

    where: str
    data_dir: Path
    own: bool

    def path(self, text: str) -> Path:
        """A path of the entry; ~ is the user's home, as in a shell."""
        return self.data_dir / home_path(Path(text))


def _add_class_set(catalog: Catalog, name: str, values: Mapping[str, Any], place: _Place) -> None:
    entry = load_config(_ClassSetEntry, values, place.where)
    _check_name(name, place.where)
    classes, palette = entry.classes, entry.palette
    if not 2 <= len(classes) <= MAX_CLASSES:  # pydantic would print all of them
        raise InputError(f"{len(classes)} classes", where=place.where, expected=f"2 to {MAX_CLASSES}")
    if twice := [name for name, count in Counter(classes).items() if count > 1]:
        raise InputError(f"classes: {listed(twice)} more than once", where=place.where)
    if IGNORE_NAME in classes:
        raise InputError(
            f"classes: {IGNORE_NAME!r} is no class", where=place.where, next_step="use it in `labels`"
        )
    if palette is None:
        palette = distinct_colours(len(classes))
    if len(palette) != len(classes) or not all(re.fullmatch("#[0-9a-fA-F]{6}", colour) for colour in palette):
        raise InputError(
            f"palette: {shown(list(palette))}",
            where=place.where,
            expected=f'{len(classes)} colours "#rrggbb", one per class',
        )
    if entry.primary_metric == "foreground" and len(classes) != 2:
        raise InputError(
            "primary_metric: foreground", where=place.where, expected="mean, or a class set of 2 classes"
        )
    catalog.class_sets[name] = ClassSet(
        name,
        classes,
        palette,
        entry.primary_metric,
        tuple(
            (other, _read_map(catalog, other, table, classes, place.where))
            for other, table in entry.maps.items()
        ),
    )


def _read_map(
    catalog: Catalog, other: str, table: Mapping[str, str], classes: tuple[str, ...], where: str
) -> tuple[str, ...]:
    theirs = known_entry(catalog.class_sets, other, "class set", f"{where}: maps").classes
    where = f"{where}: maps.{other}"
    for name in (*table, *theirs):
        if name not in theirs:
            raise InputError(f"{other} has no class {name!r}", where=where, expected=nearest(name, theirs))
        if name not in table:
            raise InputError(f"class {name!r} of {other} is not mapped", where=where)
        if table[name] not in classes:
            raise InputError(
                f"unknown class {table[name]!r}", where=where, expected=nearest(table[name], classes)
            )
    return tuple(table[name] for name in theirs)


def _add_dataset(catalog: Catalog, name: str, values: Mapping[str, Any], place: _Place) -> None:
    entry = load_config(_DatasetEntry, values, place.where)
    _check_name(name, place.where)
    catalog.datasets[name] = Dataset(name, **vars(entry))


def _add_domain(catalog: Catalog, name: str, values: Mapping[str, Any], place: _Place) -> None:
    entry = load_config(_DomainEntry, values, place.where)
    where = place.where
    _check_name(name, where)
    if (entry.images is None) == (entry.train is None and entry.test is None):
        raise InputError(
            "says neither or both of where its images are",
            where=where,
            expected="`images` and `masks` (your folders), or `dataset`, `train`, `test` (a publisher's)",
        )
    for name_of, pattern in (("key", entry.key), ("scene", entry.scene)):
        if pattern is not None:
            _check_pattern(pattern, f"{where}: {name_of}")
    bands, indexes = _read_bands(entry.bands, f"{where}: bands")
    own = _read_own(catalog, entry, place) if entry.images is not None else None
    if own is None:
        _check_published(catalog, entry, where)
    if plain_name(name) in {plain_name(each) for each in catalog.datasets if each != entry.dataset}:
        raise InputError(f"{name!r} is the name of a dataset", where=where, next_step="rename the domain")
    if own is not None:
        catalog.datasets[name] = Dataset(name, name)
    labels = _read_labels(catalog, entry, own, where)
    if entry.unknown_labels is not None and labels is None:
        raise InputError("unknown_labels: there are no labels", where=where)
    if entry.lossy_labels and (labels is None or labels.kind != "colour"):
        raise InputError("lossy_labels: only colours can be snapped", where=where)
    catalog.domains[name] = Domain(
        name=name,
        dataset=name if own else str(entry.dataset),
        class_set=entry.class_set,
        bands=bands,
        band_indexes=indexes,
        file_bands=None if own else 3,
        gsd_m=entry.gsd_m,
        tile=entry.tile or Tiling(DEFAULT_TILE_PX),
        key=entry.key,
        scene=entry.scene,
        labels=labels,
        unknown_labels=entry.unknown_labels,
        lossy_labels=entry.lossy_labels,
        value_range=entry.value_range,
        nodata=entry.nodata,
        train=entry.train,
        test=entry.test,
        own=own,
    )


def _check_published(catalog: Catalog, entry: _DomainEntry, where: str) -> None:
    known_entry(catalog.datasets, entry.dataset or "", "dataset", f"{where}: dataset")
    for name in ("masks", "split", "pairs", "unlabelled"):
        if getattr(entry, name) is not None:
            raise InputError(f"`{name}` goes with `images`", where=where)
    both = [files for files in (entry.train, entry.test) if files]
    if len(both) > 1 and (shared := set.intersection(*(set(files.scenes) for files in both))):
        raise InputError(f"scenes in both splits: {listed(sorted(shared))}", where=where)
    if any((files.labels is None) != (entry.labels is None) for files in both):
        raise InputError("a label map without label files, or label files without a map", where=where)


def _read_own(catalog: Catalog, entry: _DomainEntry, place: _Place) -> OwnFiles:
    if entry.dataset is not None:
        raise InputError("`dataset` goes with `train` and `test`", where=place.where)
    if entry.key is not None:
        raise InputError(
            f"key: {shown(entry.key)}",
            where=place.where,
            expected="`pairs`, which says how the names of an image and its mask are alike",
            next_step='write e.g. pairs: "{}_sat.jpg -> {}_mask.png", where {} is what both share',
        )
    if entry.masks is None and (lone := [name for name in ("pairs", "unlabelled") if getattr(entry, name)]):
        raise InputError(f"`{lone[0]}` goes with `masks`", where=place.where)
    images, image_pattern = _folder_and_pattern(place, str(entry.images))
    masks = _read_masks(catalog, entry, images, place)
    if masks is None and entry.labels is not None:
        raise InputError("`masks` and `labels` go together", where=place.where)
    own = OwnFiles(
        images,
        masks,
        image_pattern,
        None if entry.pairs is None else _read_pairs(entry.pairs, f"{place.where}: pairs"),
        entry.unlabelled or "error",
    )
    if own.unlabelled == "outside" and (masks is None or masks.outside is None):
        raise InputError(
            "unlabelled: outside", where=place.where, expected="error or skip: these masks know no `outside`"
        )
    return _with_split(own, entry.split, place)


def _read_masks(catalog: Catalog, entry: _DomainEntry, images: Path, place: _Place) -> Masks | None:
    if entry.masks is None:
        return None
    if isinstance(entry.masks, str):
        folder, pattern = _folder_and_pattern(place, entry.masks)
        return Masks("files", folder, pattern)
    where = f"{place.where}: masks"
    found = load_config(_MasksEntry, entry.masks, where)
    forms = [form for form in FORMS if form in entry.masks]
    if len(forms) != 1:
        raise InputError(
            f"says {' and '.join(forms) or 'no form'}", where=where, expected=f"one of {', '.join(FORMS)}"
        )
    form = forms[0]
    for name in entry.masks:
        if name != form and name not in FORMS[form]:
            raise InputError(
                f"`{name}` does not go with `{form}`", where=where, expected=listed(FORMS[form]) or "nothing"
            )
    value = getattr(found, form)
    if value is None:
        raise InputError(f"{form}: {value}", where=where, expected="a place, or a number from 1")
    folder, pattern = (images, "*") if isinstance(value, int) else _folder_and_pattern(place, value)
    number = value if isinstance(value, int) else None
    names = place.path(found.names) if found.names else None
    said = {key: getattr(found, key) for key in ("attribute", "layer", "crs", "all_touched", "column")}
    masks = Masks(form, folder, pattern, number, names=names, **said)
    if "outside" not in FORMS[form]:
        return masks
    return _with_overlaps(masks, found, _class_set(catalog, entry, place.where))


def _with_overlaps(masks: Masks, entry: _MasksEntry, class_set: ClassSet) -> Masks:
    """The labels with what lies outside of all shapes, and which lies on top."""
    classes = class_set.classes
    where = f"class set {class_set.name}"
    if entry.outside is None:
        raise InputError(
            f"masks: {masks.form}: nothing says what lies outside of all shapes",
            where=where,
            expected=f"outside: one of {listed([*classes, IGNORE_NAME])}",
            next_step=f"write e.g. masks: {{{masks.form}: ..., outside: {classes[0]}}}",
        )
    order: tuple[int, ...] | None = None
    if entry.order != "file":
        given = [class_id(name, classes, f"{where}: masks: order") for name in entry.order or ()]
        if len({*given}) < len(given):
            raise InputError(f"masks: order: {shown(entry.order)}", where=where, expected="each class once")
        order = (*(id for id in (*range(len(classes)), IGNORE) if id not in given), *given)
    return replace(masks, outside=class_id(entry.outside, classes, f"{where}: masks: outside"), order=order)


def _read_pairs(text: str, where: str) -> Pairs:
    image, arrow, mask = (part.strip() for part in text.partition("->"))
    if not arrow or image.count("{}") != mask.count("{}") or "{}" not in image or image == mask:
        raise InputError(
            shown(text),
            where=where,
            expected='"IMAGE -> MASK" with as many {} on both sides, e.g. "{}.png -> {}_mask.png"',
        )
    return Pairs(image, mask)


def _with_split(own: OwnFiles, split: Any, place: _Place) -> OwnFiles:
    where = f"{place.where}: split"
    if split is None:
        return own
    if isinstance(split, Mapping):
        kind = known_entry(SPLITS, str(split.get("by", "block")), "rule", where)
        rule = load_config(kind, {"by": "block", **split}, where)
        if isinstance(rule, _BlockEntry):
            return replace(own, by=rule.by, test=rule.test)
        if not rule.train or not rule.test or {*rule.train} & {*rule.test}:
            raise InputError(shown(dict(split)), where=where, expected="other names for train than for test")
        sides = [rule.train, rule.test]
        if rule.by == "lists":
            sides = [tuple(str(place.path(name)) for name in names) for names in sides]
        return replace(own, by=rule.by, train_from=sides[0], test_from=sides[1])
    if split in ("train", "test"):
        return replace(own, by=split)
    if isinstance(split, str):
        return replace(own, by="file", file=place.path(split))
    raise InputError(
        f"{split!r}",
        where=where,
        expected="{by: block, test: 0.25}, {by: folder, train: [train], test: [val]}, {by: lists, train: "
        "[train.txt], test: [val.txt]}, train, test, or a CSV file",
    )


def _folder_and_pattern(place: _Place, text: str) -> tuple[Path, str]:
    """`roads/*_sat.jpg` is the pattern `*_sat.jpg` in the folder `roads`; a folder alone means all in it."""
    parts = PurePosixPath(text).parts
    fixed = list(takewhile(lambda part: "*" not in part, parts))
    return place.path(str(PurePosixPath(*fixed))), "/".join(parts[len(fixed) :]) or "*"


def _class_set(catalog: Catalog, entry: _DomainEntry, where: str) -> ClassSet:
    return known_entry(catalog.class_sets, entry.class_set or "", "class set", f"{where}: class_set")


def _read_labels(catalog: Catalog, entry: _DomainEntry, own: OwnFiles | None, where: str) -> LabelSpec | None:
    named = bool(own and own.masks and own.masks.named)
    if entry.labels is None and not named:
        if own and own.masks:
            raise InputError(
                "`masks` and `labels` go together",
                where=where,
                next_step="say what the masks' values mean, e.g. labels: {0: background, 255: road}; "
                "`crossearth init FOLDER` finds them",
            )
        if entry.class_set is not None:
            raise InputError(
                "class_set: there are no labels", where=where, next_step="give `labels`, or drop `class_set`"
            )
        return None
    classes = _class_set(catalog, entry, where).classes
    if named:
        return parse_names(entry.labels, classes, f"{where}: labels")
    return parse_labels(entry.labels or {}, classes, f"{where}: labels")


def _read_bands(bands: Any, where: str) -> tuple[tuple[str, str, str], tuple[int, int, int]]:
    if bands is None:
        return ("red", "green", "blue"), (1, 2, 3)
    if isinstance(bands, Mapping):
        names, indexes = tuple(bands), tuple(bands.values())
    elif all(isinstance(band, int) for band in bands):
        names, indexes = tuple(f"band {index}" for index in bands), tuple(bands)
    else:
        names, indexes = tuple(bands), (1, 2, 3)
    if len(names) != 3 or min(indexes) < 1:
        raise InputError(
            shown(bands),
            where=where,
            expected="three names, places in the file from 1, or both: {red: 3, green: 2, blue: 1}",
        )
    return names, indexes


def _add_setting(catalog: Catalog, abbr: str, values: Mapping[str, Any], place: _Place) -> None:
    entry = load_config(_SettingEntry, values, place.where)
    where = place.where
    if not re.fullmatch(r"[^\s/\\]+", abbr):
        raise InputError(f"{abbr!r} is no abbreviation", where=where, expected="no blanks, no slashes")
    source = known_entry(catalog.domains, entry.source, "domain", f"{where}: source")
    target = known_entry(catalog.domains, entry.target, "domain", f"{where}: target")
    for domain, split in ((source, "train"), (target, "test")):
        if domain.class_set is None or split not in domain.splits:
            lack = "labels" if domain.class_set is None else f"{split} split"
            raise InputError(
                f"domain {domain.name} has no {lack}", where=where, next_step="choose another domain"
            )
    _check_gap(entry, where)
    class_set = entry.class_set or str(source.class_set)
    known_entry(catalog.class_sets, class_set, "class set", f"{where}: class_set")
    for domain in (source, target):
        try:
            catalog.remap(str(domain.class_set), class_set)
        except InputError as error:
            raise InputError(f"domain {domain.name}: {error}", where=where) from error
    catalog.settings[abbr] = Setting(
        str(entry.id if entry.id is not None else abbr),
        abbr,
        source.name,
        target.name,
        entry.gap,
        class_set,
        entry.evidence,
        place.own,
    )
    catalog.scores[abbr] = tuple(
        _read_score(catalog.class_sets[class_set], method, score, f"{where}: published.{method}")
        for method, score in entry.published.items()
    )


def _check_gap(entry: _SettingEntry, where: str) -> None:
    if not (plain_name(entry.gap).strip() and entry.gap.isprintable() and len(entry.gap) <= MAX_GAP):
        raise InputError(
            f"gap: {entry.gap!r}",
            where=where,
            expected=f"what lies between source and target, in at most {MAX_GAP} signs",
        )
    # the report has these means of all settings
    if entry.gap == UNSEEN or (entry.gap == IN_DOMAIN and entry.source != entry.target):
        raise InputError(
            f"gap: {entry.gap!r} is another mean of the report",
            where=where,
            expected=f"another word; {IN_DOMAIN} where source and target are one",
        )


def _read_score(class_set: ClassSet, method: str, values: Any, where: str) -> PublishedScore:
    entry = load_config(_PublishedEntry, _mapping(values, where), where)
    if entry.per_class is not None and len(entry.per_class) != len(class_set.classes):
        raise InputError(
            f"{len(entry.per_class)} scores per class",
            where=where,
            expected=f"{len(class_set.classes)}: {class_set.name}",
        )
    return PublishedScore(method, entry.miou, entry.per_class, entry.certainty)


def _check_name(name: str, where: object) -> None:
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name", where=where, expected="letters, digits, dots and dashes")
    if name.casefold().endswith((STATES_SUFFIX, TIMING_SUFFIX)):
        raise InputError(
            f"{name!r}: a training keeps its states in folders of such names",
            where=where,
            expected=f"a name that ends neither in {STATES_SUFFIX} nor in {TIMING_SUFFIX}",
        )


def _check_pattern(pattern: str, where: object) -> None:
    try:
        groups = compiled_pattern(pattern).groups
    except re2.error as error:
        raise InputError(
            f"{pattern!r} is no regular expression: {error.args[0].decode()}",
            where=where,
            expected="RE2's syntax, which has neither lookaround nor references back",
        ) from error
    if groups < 1:
        raise InputError(
            f"{pattern!r} has no group", where=where, expected="one group in brackets: the name itself"
        )


def _mapping(values: Any, where: object) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise InputError(f"not a map: {shown(values)}", where=where, expected="key: value")
    return {str(key): value for key, value in values.items()}
