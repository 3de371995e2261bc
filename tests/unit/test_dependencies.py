"""What an audit of constraints.txt sees is all that an installation brings."""

import runpy
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from crossearth.data.common import torchvision_ops

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def pins() -> list[Requirement]:
    lines = CONSTRAINTS.read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def needed_by(requirement: Requirement, seen: set[Requirement]) -> Iterator[str]:
    """Names of what a requirement brings, itself included, as far as it is installed here."""
    seen.add(requirement)
    try:
        wanted = [Requirement(line) for line in requires(requirement.name) or []]
    except PackageNotFoundError:
        return
    yield canonicalize_name(requirement.name)
    for dependency in wanted:
        marker = dependency.marker
        asked_for = marker is None or any(
            marker.evaluate({"extra": extra}) for extra in requirement.extras or {""}
        )
        if asked_for and dependency not in seen:
            yield from needed_by(dependency, seen)


def test_every_dependency_is_pinned() -> None:
    installed = set(needed_by(Requirement("crossearth[dev,cluster,services]"), set()))
    assert len(installed) > 100
    assert installed - {canonicalize_name(pin.name) for pin in pins()} == {"crossearth"}


def test_every_pin_is_one_public_version() -> None:
    """No range, no address, no local version such as `+cpu`: an audit could not look it up."""
    for pin in pins():
        (clause,) = pin.specifier
        assert clause.operator == "==" and "*" not in clause.version and "+" not in clause.version, str(pin)
        assert not pin.url and not pin.extras and not pin.marker, str(pin)


@pytest.mark.parametrize(("loads", "defined"), [(True, []), (False, ["nms", "qnms"])])
def test_torchvisions_operators_are_defined_only_where_its_own_do_not_load(
    loads: bool, defined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def load(path: Path) -> None:
        assert path.parts[-2:] == ("torchvision", "_C.so") and path.exists()
        if not loads:
            raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(torch.ops, "load_library", load)
    monkeypatch.setattr(torch.library.Library, "define", lambda _, schema: found.append(schema.split("(")[0]))
    runpy.run_path(torchvision_ops.__file__)
    assert found == defined


@pytest.mark.parametrize("captured", [False, True])
def test_imports_leave_the_processs_warnings_alone(captured: bool) -> None:
    """Who uses the package as a library has set up what becomes of warnings, and knows why."""
    code = f"""
import logging, warnings
logging.captureWarnings({captured})
shown = warnings.showwarning
import crossearth.components.validate.expectations, crossearth.data.tiles.scenes
assert warnings.showwarning is shown
assert not any("geotransform" in str(each[1]) for each in warnings.filters)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
