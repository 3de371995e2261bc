"""What `crossearth predict` says beside its maps: of the model before, of the areas after."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from crossearth.components.cli.terminal import err, out, print_table
from crossearth.components.runtime.places import MODELS, SCORES
from crossearth.data.common.errors import InputError

MAPS_IN_FULL = 5  # whose areas are printed


@contextmanager
def opened(model: str) -> Iterator[tuple[Path, Path | None]]:
    """A model by what the user calls it: a path, or models:/NAME@ALIAS of the registry.

    Yields:
        Its folder or file, and the file of its shared backbone where the registry has it apart.

    Raises:
        InputError: there is no such model.
    """
    from crossearth.components.register.registry import open_model

    with open_model(model) as (path, backbone):
        if not path.exists():
            _refuse(path)
        yield path, backbone


def _refuse(model: Path) -> NoReturn:
    """Says that no model is there, with the nearest name of one."""
    from crossearth.data.common.config import nearest

    known = sorted(
        path
        for folder in {model.parent, MODELS}
        for path in folder.glob("*")
        if (path / "model.json").is_file()
    )
    if not known:
        raise InputError(
            "no such model",
            where=model,
            expected="a folder with model.safetensors and model.json",
            next_step="crossearth train RECIPE, or crossearth convert, makes one",
        )
    names = {path.name: path for path in known}
    meant = get_close_matches(model.name, names, n=1)
    raise InputError(
        "no such model",
        where=model,
        expected=nearest(str(names[meant[0]] if meant else model), map(str, known)),
        next_step=f"--model {shlex.quote(str(names[meant[0]] if meant else known[0]))}",
    )


def warn_of(model: Path) -> None:
    """Says loudly what is wrong with a model, as far as its description and its scores beside it tell."""
    from crossearth.components.evaluate.doubts import doubts
    from crossearth.components.evaluate.results import DETAILS, read_results
    from crossearth.model.weights.checkpoint import read_meta

    meta = read_meta(model)
    # in the working folder they lie apart, in the registry beside it
    folders = (model.resolve().parent.parent / SCORES.name / model.name, model.parent)
    results = (read_results(folder) for folder in folders if (folder / DETAILS).is_file())
    scored = next((each for each in results if each.model_sha256 == meta["sha256"]), None)
    for doubt in doubts(meta, scored):
        err.print(f"WARNING: {doubt}", style="bold yellow")


def tell(report: dict[str, Any]) -> None:
    """Prints how a scene was read, what is to be known of its place, and the area of every class."""
    used = f"bands {', '.join(map(str, report['bands']))} ({report['bands_from']})"
    scaled = "{:g} to {:g}".format(*(report["value_range"] or (0, 255)))
    used += f", values {scaled} ({report['value_range_from']})"
    for line in (used, *report["notes"]):
        out.print(f"{report['scene']}: {line}")


def print_areas(path: Path, report: dict[str, Any]) -> None:
    """Prints share and area of every class of a map, and where it can be looked at."""
    from crossearth.components.evaluate.results import per_cent

    rows = [[each["name"], per_cent(each["share"]), _area(each["area_m2"])] for each in report["classes"]]
    print_table(str(path), ["class", "share %", "area"], rows, numbers=("share %", "area"))
    preview = path.with_suffix(".png")
    if preview.exists():
        out.print(f"preview: {preview}")


def _area(area_m2: float | None) -> str:
    """An area in the unit that suits its size."""
    if area_m2 is None:
        return "unknown"
    for unit, size in (("km2", 1e6), ("ha", 1e4)):
        if area_m2 >= size:
            return f"{area_m2 / size:,.2f} {unit}"
    return f"{area_m2:,.0f} m2"
