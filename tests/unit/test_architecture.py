"""The house's rules that a reader would otherwise have to police."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ["data", "model", "components", "pipelines"]
OWNERS = {
    "timm": {"model/layers/backbone.py"},
    "torchmetrics": {"model/metrics.py"},
    "boto3": {"data/tiles/store.py"},
    "great_expectations": {"components/validate/expectations.py"},
    "mlflow": {
        f"components/{name}.py" for name in ("tracking", "tracking_server", "registry", "register", "mapper")
    },
}
SOURCES = [path for layer in LAYERS for path in sorted((ROOT / layer).glob("*.py"))]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_imports_only_its_own_layer_and_those_below(path: Path) -> None:
    layer = LAYERS.index(path.parent.name)
    above = {f"crossearth.{name}" for name in LAYERS[layer + 1 :]}
    assert not {name for name in imports(path) if name.startswith(tuple(above))}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_heavy_library_is_imported_by_its_owner_alone(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    for library, owners in OWNERS.items():
        if place not in owners:
            assert library not in {name.split(".")[0] for name in imports(path)}, library
