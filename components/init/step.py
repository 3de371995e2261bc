"""Init: looks at a folder of images and labels and writes the catalog and the numbers that fit them."""

import logging
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging.handlers import BufferingHandler
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from crossearth.components.ingest.scene import Plan, ingest_scene
from crossearth.components.ingest.sources import SceneSource, find_scenes
from crossearth.components.ingest.splits import UndecidedError
from crossearth.components.init.facts import ImageFacts, Raw, class_shares, image_facts, raw_values
from crossearth.components.init.layouts import Entry, Layouts
from crossearth.components.init.text import Class, catalog_text, params_text
from crossearth.components.runtime.params import load_params
from crossearth.data.annotations.recognise import told
from crossearth.data.catalog.labels import IGNORE, IGNORE_NAME, plain_label
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.config import some
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import write_text
from crossearth.data.raster.archives import Member, index

INGEST = find_scenes.__module__.rpartition(".")[0]
PARAMS = Path("params.yaml")
SMALL_PX = 1024  # images up to this size are tiles as they are
STUB = ("background", "foreground")


@dataclass(frozen=True)
class Written:
    """What init wrote and found.

    Attributes:
        files: the catalog, and params.yaml unless one was there.
        name: the domain's.
        lines: what was found, for the terminal.
        options: what the next commands need beside the domain's name.
    """

    files: list[Path]
    name: str
    lines: list[str]
    options: str


def init(folder: Path, data_dir: Path, out_dir: Path) -> Written:
    """Writes `out_dir/<name>.yaml`, and `out_dir/params.yaml` where there is none.

    Args:
        folder: of images and labels, in one of the layouts that data/README.md lists.
        data_dir: where relative paths of a catalog start; a folder elsewhere is named in full.

    Raises:
        InputError: no images; labels that fit no layout; files of these names that are there already; what
            ingest would refuse.
    """
    folder = Path(folder)
    name = _name(folder)
    path, params = Path(out_dir) / f"{name}.yaml", Path(out_dir) / PARAMS
    if path.exists():
        raise InputError(
            "is there already", where=path, next_step=f"mv {path} {path}.old, or rename the folder"
        )
    with TemporaryDirectory() as scratch:
        layouts = Layouts(_root(folder, Path(data_dir)), index(folder, Path(scratch)))
        if not layouts.rasters:
            raise InputError(f"no images in this folder{told(layouts.members)}", where=folder)
        tried = _Trial(name, Path(data_dir), Path(scratch))
        entry, sources = tried.first(layouts)
        facts = image_facts(sources)
        entry |= _reading(facts)
        classes = _classes(raw_values(masks, sources)) if (masks := _masks(tried, entry)) else []
        domain = tried.load(entry, classes).domain(name)
        shares = class_shares(domain, sources) if classes else {}
        classes = [replace(each, share=shares.get(each.id, 0.0)) for each in classes]
        tried.ingest_one(entry, classes, sources)
    splits: Counter[str] = Counter(source.split for source in sources)
    recipe = bool(classes) and len(splits) == 2
    lines = _lines(facts, entry, classes, splits, _alone(layouts, sources))
    used = entry.get("masks")
    lines += [
        f"left out: {kind.files[0]}: {kind.what}"
        for kind in layouts.kinds
        if not isinstance(used, Mapping) or kind.form not in used
    ]
    text = catalog_text(name, folder, entry, classes, lines, recipe)
    files = [path]
    write_text(path, text)
    options = ""
    if params.exists():
        known = {each.resolve() for each in load_params(params).catalogs}
        options = "" if path.resolve() in known else f" --catalog {shlex.quote(str(path))}"
    else:
        write_text(params, params_text(path.name, facts, entry))
        files.append(params)
    return Written(files, name, lines, options)


def _name(folder: Path) -> str:
    """The folder's name as a domain's, and none that the benchmark or params.yaml has."""
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-") or "images"
    known = load_catalog()
    taken = {PARAMS.stem, *known.class_sets, *known.datasets, *known.domains}
    return f"my-{name}" if name in taken else name


def _root(folder: Path, data_dir: Path) -> str:
    try:
        return folder.resolve().relative_to(data_dir.resolve()).as_posix()
    except ValueError:
        return folder.resolve().as_posix()


class _Trial:
    """Catalogs that are tried before one is written."""

    def __init__(self, name: str, data_dir: Path, scratch: Path) -> None:
        self.name, self.data_dir, self.scratch = name, data_dir, scratch

    def load(self, entry: Entry, classes: Sequence[Class]) -> Any:
        """The catalog of an entry; without classes, one that takes any label."""
        path = self.scratch / "catalog.yaml"
        text = catalog_text(self.name, Path(), entry, classes, [], False)
        path.write_text(text, encoding="utf-8")
        return load_catalog([path], self.data_dir)

    def first(self, layouts: Layouts) -> tuple[Entry, list[SceneSource]]:
        """The first layout that gives images, with their labels if there are any.

        Raises:
            InputError: that of the likeliest, where labels are there and none fits.
        """
        errors: list[InputError] = []
        for entry in layouts.entries():
            if "masks" not in entry and errors:
                break
            for more in [{}, {"unlabelled": "skip"}] if "masks" in entry else [{}]:
                try:
                    return self._found({**entry, **more})
                except InputError as error:
                    errors.append(error)
        raise errors[0]

    def _found(self, entry: Entry) -> tuple[Entry, list[SceneSource]]:
        """An entry and its scenes; with a split, where it takes somebody to say one."""
        stub = {**entry, "unknown_labels": "ignore"} if "masks" in entry else entry
        try:
            with _held_back(logging.getLogger(INGEST)) as said:
                domain = self.load(stub, []).domain(self.name)
                found = find_scenes(domain, Path(), self.scratch / "unpacked")
        except UndecidedError as error:
            if "split" in entry:
                raise
            return self._found({**entry, "split": self._from_the_data(error.choice)})
        for record in said:
            logging.getLogger(record.name).handle(record)
        return entry, found

    def _from_the_data(self, split: Any) -> Any:
        """A split whose lists are named as a catalog file names places."""
        if isinstance(split, str) or split["by"] != "lists":
            return split
        return {
            side: names if side == "by" else [_root(Path(name), self.data_dir) for name in names]
            for side, names in split.items()
        }

    def ingest_one(self, entry: Entry, classes: Sequence[Class], sources: Sequence[SceneSource]) -> None:
        """Ingests one scene for nothing: what ingest refuses is refused before anything is written."""
        catalog = self.load(entry, classes)
        plan = Plan.of(catalog.domain(self.name), catalog, None, sources[0])
        ingest_scene(plan, self.scratch / "work", sources[0])


@contextmanager
def _held_back(log: logging.Logger) -> Iterator[list[logging.LogRecord]]:
    """What is logged meanwhile: of layouts that do not fit nobody wants to hear."""
    kept = BufferingHandler(sys.maxsize)
    log.addHandler(kept)
    log.propagate = False
    try:
        yield kept.buffer
    finally:
        log.propagate = True
        log.removeHandler(kept)


def _masks(tried: _Trial, entry: Entry) -> Any:
    if "masks" not in entry:
        return None
    own = tried.load({**entry, "unknown_labels": "ignore"}, []).domain(tried.name).own
    return own.masks


def _reading(facts: ImageFacts) -> dict[str, Any]:
    """How the images are read and cut."""
    found: dict[str, Any] = {}
    least = min(facts.bands)
    if least < 3:
        found["bands"] = [1, least, least] if least == 2 else [1, 1, 1]
    if facts.value_range is not None:
        found["value_range"] = list(facts.value_range)
    small = facts.largest_px <= SMALL_PX
    found["tile"] = {"px": facts.largest_px if small else 512, "rule": "whole" if small else "cut"}
    return found


def _classes(raw: Mapping[Raw, int]) -> list[Class]:
    """A class for each value, colour or name; of two values the greater is the foreground."""
    values = sorted(raw, key=lambda value: (isinstance(value, str), value))
    names: dict[Raw, str] = {}
    if len(values) <= 2 and all(_is_value(value) for value in values):
        names = dict(zip(values, STUB, strict=False))
        if len(values) == 1 and values[0] != 0:
            names = {values[0]: STUB[1]}
    elif all(isinstance(value, int) for value in values):
        names = {
            value: STUB[0] if value == 0 else f"class_{value}".replace("-", "minus_") for value in values
        }
        if values[-1] == 255 and int(values[-2]) < 250:
            names[255] = IGNORE_NAME
    elif all(re.fullmatch("#[0-9a-f]{6}", str(value)) for value in values):
        names = {value: STUB[0] if value == "#000000" else f"class_{str(value)[1:]}" for value in values}
    else:
        # of names that differ in their case alone, one stands for all
        first = {plain_label(str(value)) or "unnamed": value for value in reversed(values)}
        names = {first[name]: name for name in reversed(first)}
    found = dict.fromkeys([STUB[0], *(name for name in names.values() if name != IGNORE_NAME)])
    if len(found) < 2:
        found |= {STUB[1]: None}
    ids = {name: id for id, name in enumerate(found)} | {IGNORE_NAME: IGNORE}
    classes = [Class(ids[name], name, value) for value, name in names.items()]
    return classes + [Class(ids[name], name, None) for name in found if name not in names.values()]


def _is_value(value: Raw) -> bool:
    return isinstance(value, int) or str(value).startswith(("<", ">", "#"))


def _lines(
    facts: ImageFacts, entry: Entry, classes: Sequence[Class], splits: Mapping[str, int], alone: Sequence[str]
) -> list[str]:
    """What was found, in words."""

    def listed(counts: Mapping[Any, int], shown: Any = str) -> str:
        most = sorted(counts, key=lambda value: (-counts[value], str(value)))
        words = [shown(value) + (f" ({counts[value]})" if len(most) > 1 else "") for value in most[:4]]
        return ", ".join(words) + (f" and {len(most) - 4} more" if len(most) > 4 else "")

    lines = [
        f"images: {facts.number}, {listed(facts.formats)}"
        + (f"; {facts.looked_at} of them were opened" if facts.looked_at < facts.number else ""),
        f"sizes: {listed(facts.sizes, lambda size: f'{size[0]} x {size[1]} px')}",
        f"bands: {listed(facts.bands)}; type: {listed(facts.dtypes)}",
        f"CRS: {listed(facts.crs)}" + (f"; {facts.gsd_m:.3g} m a px" if facts.gsd_m else ""),
        "split: " + ", ".join(f"{number} {split}" for split, number in splits.items()),
    ]
    masks = entry.get("masks")
    if masks is None:
        lines.append("labels: none were found: these images may give styles")
    else:
        form = "a raster an image" if isinstance(masks, str) else next(iter(masks))
        lines.append(f"labels: {form}")
        labelled = [each for each in classes if each.raw is not None]
        lines += [f"  {each.raw!r}: {each.name}, {each.share:.1%} of the pixels" for each in labelled]
    if alone:
        lines.append(f"left out, neither an image of a split nor its label: {some(alone)}")
    return lines


def _alone(layouts: Layouts, sources: Sequence[SceneSource]) -> list[str]:
    """Rasters that are neither an image of the domain nor a label of one."""

    def place(file: Member) -> tuple[Path, str]:
        return file.container.resolve(), file.name

    used = {place(source.image) for source in sources}
    used |= {place(file) for source in sources if source.label for file in source.label.files}
    # what came out of a tar lies elsewhere in every unpacking
    there = [each for each in layouts.rasters if each.name or not each.packed]
    return [each.path for each in there if place(each) not in used]
