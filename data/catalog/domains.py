"""The domains, class sets and settings of the benchmark and of the user, as frozen dataclasses."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal, TypeVar

import re2
from pydantic import PositiveInt

from crossearth.data.catalog.labels import LabelSpec, Unknown
from crossearth.data.common.config import checked, nearest
from crossearth.data.common.errors import InputError

Split = Literal["train", "test"]
Rule = Literal["cut", "whole", "fit"]
# how labels lie on the disk; data/README.md has a line for each
Form = Literal[
    "files", "polygons", "coco", "yolo", "labelme", "cvat", "class_folders", "imagefolder", "band", "page"
]
# labels of these are names, and no raw values of a raster
NAMED: tuple[Form, ...] = ("polygons", "coco", "yolo", "labelme", "cvat", "class_folders")
Unlabelled = Literal["error", "skip", "outside"]
SplitRule = Literal["found", "block", "file", "folder", "lists", "train", "test"]
Entry = TypeVar("Entry")

DEFAULT_TEST_SHARE = 0.25
VOC_LISTS = Path("ImageSets", "Segmentation")  # where Pascal VOC has its splits, beside the images' folder
STATES_SUFFIX = ".checkpoints"  # of the folder beside a model in which its training keeps its states
TIMING_SUFFIX = ".timing.json"  # of the file beside a model that says how long its training took
# names of the means over all settings whose target the training has not seen, and has seen
UNSEEN, IN_DOMAIN = "unseen domains", "in-domain"


@dataclass(frozen=True)
class ClassSet:
    """The classes that a network predicts.

    Attributes:
        classes: names in id order, ids 0..K-1; in binary sets the foreground is 1.
        palette: one "#rrggbb" per class.
        primary_metric: "mean" = mIoU over the classes present; "foreground" = IoU of class 1 (binary sets).
        maps: how others become this one: (other class set, class of ours per class of the other).
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[str, ...]
    primary_metric: Literal["mean", "foreground"] = "mean"
    maps: tuple[tuple[str, tuple[str, ...]], ...] = ()


@checked
class Archive:
    """A file that a publisher ships.

    Attributes:
        name: its name.
        download_gb: size of the file, where published.
        unpacked_gb: about the size of the rasters in it.
        url: where it may be downloaded openly; None: on the dataset's home page, by hand.
        md5: of the file, where published.
    """

    name: str
    download_gb: float | None = None
    unpacked_gb: float | None = None
    url: str | None = None
    md5: str | None = None

    def __post_init__(self) -> None:
        if not is_file_name(self.name):
            raise InputError(f"name: {self.name!r} is no file's name", expected="a name without a folder")


@dataclass(frozen=True)
class Dataset:
    """What one publisher ships: one or several domains. A user's domain is a dataset of its own."""

    name: str
    title: str
    homepage: str = ""
    licence: str = ""
    archives: tuple[Archive, ...] = ()


@checked
class Tiling:
    """How scenes become tiles.

    Attributes:
        px: side of a tile.
        rule: "cut" = windows of px with step px, the last one shifted back inside; "whole" = the image as it
            comes; "fit" = the whole image, resampled so that its longer side is px (its label: nearest px).
    """

    px: PositiveInt
    rule: Rule = "cut"


def window_starts(side_px: int, crop_px: int, stride_px: int) -> list[int]:
    """First pixels of the windows that cover a side; the last window is shifted back inside.

    A side that is no longer than the crop has one window, at 0, as long as the side.
    """
    last = max(side_px - crop_px, 0)
    return [min(start, last) for start in range(0, last + stride_px, stride_px)]


@checked
class Files:
    """Where a split's files lie; patterns as data/catalog/catalog.yaml explains.

    Attributes:
        images: pattern of the images' paths.
        labels: pattern of the labels' paths; None: no labels.
        scenes: the scenes of this split where one pattern serves both; empty: all.
        tiles: tiles that the paper has, at the publisher's sizes.
    """

    images: str
    labels: str | None = None
    scenes: tuple[str, ...] = ()
    tiles: int | None = None


@dataclass(frozen=True)
class Masks:
    """Where a user's labels lie, and in which form.

    Attributes:
        form: "files" = a raster an image; "band" and "page" = in the image's own file; "class_folders" = a
            raster an image and class; the others as the tools of these names write them.
        place: folder, or file.
        pattern: which files in the folder, by their paths in it; `*` stands for anything, folders too.
        number: the band or the page, from 1.
        attribute: of polygons: the one that holds the class; None = all are of the class "polygon".
        layer: of a file of several.
        crs: of polygons whose file says none or a wrong one.
        all_touched: whether shapes take every px that they touch; else those whose middle they cover.
        names: YOLO's file that has the classes' names; None = labels are numbers.
        column: of an image folder's table: the one that names masks; None = the only one.
        outside: id of the px that no shape covers.
        order: ids from the lowest to the topmost, where shapes overlap; None: as they stand in the file.
    """

    form: Form
    place: Path
    pattern: str = "*"
    number: int | None = None
    attribute: str | None = None
    layer: str | None = None
    crs: str | None = None
    all_touched: bool = False
    names: Path | None = None
    column: str | None = None
    outside: int | None = None
    order: tuple[int, ...] | None = None

    @property
    def named(self) -> bool:
        """Whether labels are names, and no raw values of a raster."""
        return self.form in NAMED


@dataclass(frozen=True)
class Pairs:
    """How the paths of an image and its mask are alike.

    Attributes:
        image, mask: what a path ends in; `{}` stands for what both share, `*` for anything within a name.
    """

    image: str
    mask: str

    def key(self, path: str, of: Literal["image", "mask"]) -> str:
        """What stands for `{}` in a path, with the folders before it; empty where the path is another's."""
        match = _braces(self.image if of == "image" else self.mask).search(path)
        if match is None:
            return ""
        folder, *names = match.groups()
        return "/".join(filter(None, [folder, "_".join(names)]))

    def __str__(self) -> str:
        return f"{self.image} -> {self.mask}"


def _braces(pattern: str) -> Any:
    names = ["[^/]*".join(re2.escape(part) for part in piece.split("*")) for piece in pattern.split("{}")]
    return compiled_pattern("(?s)^(?:(.*)/)?" + "([^/]+)".join(names) + "$")


@dataclass(frozen=True)
class OwnFiles:
    """A user's files and how they are split.

    Attributes:
        images: folder of images, searched recursively.
        masks: the labels; None: none.
        image_pattern: which files in the folder, by their paths in it; `*` stands for anything, folders too.
        pairs: how an image and its mask are named; None: they share what the stars of their patterns mean.
        unlabelled: what becomes of images without a label: an error, left out, or all of them `outside`.
        by: "block" = of the scenes in natural order, the last `test` share are the test split; "file" = as
            `file` says; "folder" = by a folder in the images' paths; "lists" = by lists of names; "found" =
            as a publisher's folders or lists say if there are some, else "block"; "train", "test" = all.
        test: share of scenes, 0..1.
        file: CSV (header, then one `id,train|test` a line) that names every image's split.
        train_from, test_from: names of folders, or files of lists.
    """

    images: Path
    masks: Masks | None
    image_pattern: str = "*"
    pairs: Pairs | None = None
    unlabelled: Unlabelled = "error"
    by: SplitRule = "found"
    test: float = DEFAULT_TEST_SHARE
    file: Path | None = None
    train_from: tuple[str, ...] = ()
    test_from: tuple[str, ...] = ()

    @property
    def places(self) -> tuple[Path, ...]:
        """The files and folders that the domain is made of."""
        named = (self.masks.place, self.masks.names) if self.masks else ()
        lists = map(Path, (*self.train_from, *self.test_from)) if self.by == "lists" else ()
        published = self.images.parent / VOC_LISTS if self.by == "found" else None
        return tuple(path for path in (self.images, *named, self.file, *lists, published) if path)


@dataclass(frozen=True)
class Domain:
    """One sensor over one region: images of one kind, with labels.

    Attributes:
        dataset: whose files hold it; of a user's domain, its own name.
        class_set: of its labels; None: it has none and serves as style source.
        bands: names of the three bands in the order that the network sees. IRRG's first is near infrared.
        band_indexes: where they stand in the file, from 1.
        file_bands: bands that the file must have; None: any number that has `band_indexes`.
        gsd_m: metres per px; None: unknown or mixed.
        key: of a published domain: regular expression; its first group that matches is what image and label
            share. None: the file's name without suffix.
        scene: the same, searched in the key: the piece of ground, never in two splits.
        labels: None where there are none.
        unknown_labels: what becomes of label values outside the map; None: as ingest is configured.
        lossy_labels: scenes whose published labels went through a lossy format.
        value_range, nodata: as `Reading` has them.
        train, test: files of a published domain's splits; None: it has no such split.
        own: folders of a user's domain; None: a published one.
    """

    name: str
    dataset: str
    class_set: str | None
    bands: tuple[str, str, str]
    band_indexes: tuple[int, int, int]
    file_bands: int | None
    gsd_m: float | None
    tile: Tiling
    key: str | None
    scene: str
    labels: LabelSpec | None
    unknown_labels: Unknown | None = None
    lossy_labels: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None
    nodata: float | None = None
    train: Files | None = None
    test: Files | None = None
    own: OwnFiles | None = None

    @property
    def masks(self) -> Masks | None:
        """The labels of a user's domain; None of a publisher's, whose are a raster an image."""
        return self.own.masks if self.own else None

    @property
    def splits(self) -> tuple[Split, ...]:
        if self.own is None:
            return tuple(split for split, files in (("train", self.train), ("test", self.test)) if files)  # type: ignore[misc]
        return (self.own.by,) if self.own.by in ("train", "test") else ("train", "test")

    def files(self, split: Split) -> Files:
        """Files of a published split; InputError where the domain has no such split."""
        files = {"train": self.train, "test": self.test}[split]
        if files is None:
            raise InputError(f"domain {self.name} has no {split} split", expected=", ".join(self.splits))
        return files

    def key_of(self, path: str) -> str:
        """What `key` finds in the name of an image or a label without suffix, else all of that.

        The files of a publisher may lie any number of folders deep.
        """
        stem = PurePosixPath(path).stem
        return _first_group(self.key or "(.+)", stem) or stem

    def scene_of(self, key: str) -> str:
        return _first_group(self.scene, key) or key

    def label_spec(self, scene: str) -> LabelSpec | None:
        return replace(self.labels, snap=True) if self.labels and scene in self.lossy_labels else self.labels


@dataclass(frozen=True)
class PublishedScore:
    """A score that the paper gives, per cent as printed.

    Attributes:
        per_class_iou: in the class set's order; None: not published.
        certainty: "printed" in a table, or "radar figure".
    """

    method: str
    miou: float
    per_class_iou: tuple[float, ...] | None
    certainty: str


@dataclass(frozen=True)
class Setting:
    """One row of the benchmark: trained on `source`, scored on the test split of `target`.

    Attributes:
        gap: what lies between the two, in a few words: settings of one gap have a mean of their own.
        own: whether a catalog file of the user has it, and not the benchmark.
    """

    id: str
    abbr: str
    source: str
    target: str
    gap: str
    class_set: str
    evidence: str = ""
    own: bool = False

    @property
    def unseen(self) -> bool:
        """Whether the target is another domain than the one trained on."""
        return self.source != self.target


@dataclass(frozen=True)
class Recipe:
    """One model to train: a source domain and a class set. Derived from the settings, never listed.

    `name` is the source's name where the class set is the source's own, else "<source>-<class_set>".
    """

    name: str
    source: str
    class_set: str
    settings: tuple[Setting, ...] = field(default=())


@dataclass(frozen=True)
class Catalog:
    """Everything that is known of datasets, domains and settings, checked against each other.

    Attributes:
        scores: published ones, by setting.
    """

    class_sets: dict[str, ClassSet]
    datasets: dict[str, Dataset]
    domains: dict[str, Domain]
    settings: dict[str, Setting]
    scores: dict[str, tuple[PublishedScore, ...]]

    def domain(self, name: str) -> Domain:
        """The domain of that name, or InputError with the nearest."""
        return known_entry(self.domains, name, "domain")

    def dataset(self, name: str) -> Dataset:
        """The dataset of that name, or InputError with the nearest."""
        return known_entry(self.datasets, name, "dataset")

    def setting(self, abbr: str) -> Setting:
        """The setting of that abbreviation, or InputError with the nearest."""
        return known_entry(self.settings, abbr, "setting")

    def recipe(self, name: str) -> Recipe:
        """The recipe of that name, or InputError with the nearest."""
        return known_entry(self.recipes(), name, "recipe")

    def recipes(self) -> dict[str, Recipe]:
        """One recipe per (source, class set) that some setting needs, in the order of the settings."""
        groups: dict[tuple[str, str], list[Setting]] = {}
        for setting in self.settings.values():
            groups.setdefault((setting.source, setting.class_set), []).append(setting)
        recipes: dict[str, Recipe] = {}
        for (source, class_set), settings in groups.items():
            name = source if class_set == self.domain(source).class_set else f"{source}-{class_set}"
            if plain_name(name) in map(plain_name, recipes):
                raise InputError(
                    f"two recipes of the name {name!r}", next_step="rename a domain or a class set"
                )
            recipes[name] = Recipe(name, source, class_set, tuple(settings))
        return recipes

    def domains_of(self, dataset: str) -> list[Domain]:
        return [domain for domain in self.domains.values() if domain.dataset == dataset]

    def domains_named(self, name: str) -> list[Domain]:
        """All domains of the dataset of that name, else the domain of that name, else InputError."""
        if name in self.datasets:
            return self.domains_of(name)
        if name in self.domains:
            return [self.domains[name]]
        raise InputError(
            f"unknown domain or dataset {name!r}",
            expected=nearest(name, {*self.domains, *self.datasets}),
            next_step="a domain of your own comes with --catalog FILE",
        )

    def classes_of(self, domain: Domain) -> tuple[str, ...]:
        """Names of a domain's classes in id order; none where it has no labels."""
        return self.class_sets[domain.class_set].classes if domain.class_set else ()

    def domain_dir(self, domains_dir: Path, name: str) -> Path:
        """Folder of an ingested domain, `domains_dir/<dataset>/<domain>`; InputError: an unknown domain."""
        return Path(domains_dir, self.domain(name).dataset, name)

    def remap(self, from_class_set: str | None, to_class_set: str) -> tuple[int, ...]:
        """New id per old id; the identity where the class sets are one.

        Args:
            from_class_set: a domain's; None = it has no labels, which is refused.

        Raises:
            InputError: no labels, an unknown class set, or no map between the two.
        """
        ours = known_entry(self.class_sets, to_class_set, "class set")
        theirs = known_entry(self.class_sets, from_class_set or "", "class set")
        if ours == theirs:
            return tuple(range(len(ours.classes)))
        maps = dict(ours.maps)
        if theirs.name not in maps:
            raise InputError(
                f"labels of class set {theirs.name!r} do not become those of {to_class_set!r}",
                expected=f"{to_class_set} or a class set that it maps: {', '.join(maps) or 'none'}",
                next_step=f"give {to_class_set} `maps: {{{theirs.name}: ...}}`, or choose another setting",
            )
        return tuple(ours.classes.index(name) for name in maps[theirs.name])


def plain_name(name: str) -> str:
    """What a disk that is blind to case, and MLflow, leave of a name: those of two entries must differ."""
    return mlflow_name(name).casefold()


def mlflow_name(name: str) -> str:
    """A name that MLflow takes: "P(i)2V" becomes "P-i-2V"."""
    return re.sub(r"[^\w\-. ]+", "-", name).strip("-")


def is_file_name(name: str) -> bool:
    """Whether a file of that name lies in the folder where it is put, and neither above it nor below."""
    return PurePath(name).name == name and name not in ("", "..") and "\0" not in name


def known_entry(known: Mapping[str, Entry], name: str, kind: str, where: object = "") -> Entry:
    """The entry of a name; InputError with the choices where there is none."""
    if name not in known:
        raise InputError(
            f"unknown {kind} {name!r}" if name else f"no {kind} given",
            where=where,
            expected=nearest(name, known),
        )
    return known[name]


def compiled_pattern(pattern: str) -> Any:
    """A catalog's regular expression, as RE2: no name makes it run for long.

    Raises:
        re2.error: it is none, or wants what takes exponential time (lookaround, references back).
    """
    options = re2.Options()
    options.case_sensitive = options.log_errors = False
    return re2.compile(pattern, options)


def _first_group(pattern: str, text: str) -> str:
    """What the first group that matches has matched; empty where none has."""
    match = compiled_pattern(pattern).search(text)
    return next(filter(None, match.groups()), "") if match else ""
