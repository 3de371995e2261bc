"""The benchmark's own files for a folder: who installed the package has no clone that holds them."""

import shutil
from pathlib import Path

import crossearth.data
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_path

FILES = ("params.yaml", "dvc.yaml")
CODE = Path(crossearth.data.__file__).parents[1]


def write_benchmark(folder: Path) -> list[Path]:
    """Writes params.yaml and dvc.yaml as the package has them.

    Args:
        folder: made if absent.

    Raises:
        InputError: one of the files is there already; none is written then.
    """
    # a wheel holds them in a package of their own, a clone at its top
    held = CODE / "benchmark" if (CODE / "benchmark").is_dir() else CODE
    written = [Path(folder) / name for name in FILES]
    for path in written:
        if path.exists():
            raise InputError("is there already", where=path, next_step=f"mv {path} {path}.old")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path in written:
        with atomic_path(path) as partial:
            shutil.copyfile(held / path.name, partial)
    return written
