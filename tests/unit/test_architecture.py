"""The house's rules that a reader would otherwise have to police."""

import ast
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from crossearth.components.steps import STEPS, load

ROOT = Path(__file__).parents[2]
LAYERS = ["data", "model", "components", "pipelines"]
OWNERS = {
    "timm": {"model/layers/backbone.py"},
    "torchmetrics": {"model/metrics.py"},
    "boto3": {"data/tiles/store.py"},
    "pycocotools": {"data/annotations/coco.py"},
    "ijson": {"data/annotations/documents.py"},
    "dvc": {"components/tune/experiments.py"},
    "onnxruntime": {"components/export/step.py"},
    "great_expectations": {"components/validate/expectations.py"},
    "model_registry": {"components/runtime/hub.py", "components/register/publish.py"},
    "mlflow": {
        *(f"components/runtime/{name}.py" for name in ("tracking", "tracking_internals", "tracking_server")),
        *(f"components/register/{name}.py" for name in ("registry", "step", "mapper")),
    },
}
API = Path("components/api")  # installed as `crossearth` itself
SOURCES = [path.relative_to(ROOT) for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]
MODULES = {"crossearth." + ".".join(path.with_suffix("").parts): path for path in SOURCES}


@cache
def imports(path: Path) -> set[str]:
    """Modules that a file imports, at its top or within a function."""
    return imported(ast.parse((ROOT / path).read_text()))


def imported(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES.keys()) or {node.module}
    return found


def imported_at_once(path: Path) -> set[str]:
    """Modules that a file brings in before any of its functions runs, and those that these bring."""
    found: set[str] = set()
    todo = {path}
    seen: set[Path] = set()
    while todo - seen:
        path = (todo - seen).pop()
        seen.add(path)
        tree = ast.parse((ROOT / path).read_text())
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = imported(tree)
        todo |= {MODULES[name] for name in names & MODULES.keys()}
        found |= names
    return found


def room(path: Path) -> str:
    """A folder below a layer is a room; a file that stands in a layer itself is one, too."""
    return path.as_posix() if len(path.parts) == 2 else path.parent.as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=Path.as_posix)
def test_a_file_imports_only_its_own_layer_and_those_below(path: Path) -> None:
    above = {f"crossearth.{name}" for name in LAYERS[LAYERS.index(path.parts[0]) + 1 :]}
    assert not {name for name in imports(path) if name.startswith(tuple(above))}


@pytest.mark.parametrize("path", SOURCES, ids=Path.as_posix)
def test_a_heavy_library_is_imported_by_its_owner_alone(path: Path) -> None:
    for library, owners in OWNERS.items():
        if path.as_posix() not in owners:
            assert library not in {name.split(".")[0] for name in imports(path)}, library


@pytest.mark.parametrize("step", ["ingest", "init"])
def test_who_has_no_shapes_waits_for_no_library_of_shapes(step: str) -> None:
    libraries = {name.split(".")[0] for name in imported_at_once(Path("components", step, "step.py"))}
    assert "rasterio" in libraries
    assert not libraries & {"geopandas", "pycocotools", "pyogrio", "shapely", "torch"}


@pytest.mark.parametrize(
    ("step", "library"),
    [
        ("train", "torchmetrics"),
        ("evaluate", "torchmetrics"),
        ("styles", "torchvision"),
        ("stylize", "torchvision"),
    ],
)
def test_who_does_not_count_or_paint_waits_for_no_library_of_it(step: str, library: str) -> None:
    libraries = {name.split(".")[0] for name in imported_at_once(Path("components", step, "step.py"))}
    assert "torch" in libraries and library not in libraries


def test_no_room_stands_in_a_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for path in SOURCES:
        used = {room(MODULES[name]) for name in imports(path) & MODULES.keys()}
        arrows[room(path)] = arrows.get(room(path), set()) | used - {room(path)}
    TopologicalSorter(arrows).prepare()  # raises CycleError with the circle
    assert not arrows["data/common"], "what everybody may import imports nothing of ours"


def test_rooms_are_at_most_two_levels_deep_and_all_of_them_are_packages() -> None:
    assert max(len(path.parts) for path in SOURCES) <= 3
    folders = {path.parent for path in SOURCES}
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    # an editable install hides a package that is missing from this list, a wheel does not
    named = {".".join(("crossearth", *folder.parts)) for folder in folders - {API}}
    own = {"crossearth", "crossearth.benchmark"}  # the API, and the tree's top with the benchmark's files
    assert {*project["tool"]["setuptools"]["packages"]} == own | named


def test_a_step_is_a_folder_and_a_row() -> None:
    folders = {path.parent.name for path in SOURCES if path.name == "step.py"}
    named = {step.module.removesuffix(".step") for step in STEPS.values() if step.module.endswith(".step")}
    assert folders == named
    for step in STEPS.values():
        for place in filter(None, (step.function, step.config)):
            assert callable(load(place)), place


def test_imports_lead_from_the_graphs_to_the_work_of_every_step() -> None:
    graphs = {path for path in SOURCES if path.parts[0] == "pipelines"}
    components = {path for path in SOURCES if path.name == "component.py"}
    called = {MODULES[name] for graph in graphs for name in imports(graph) & MODULES.keys()}
    assert components <= called
    work = {MODULES[name] for path in components for name in imports(path) & MODULES.keys()}
    of_room = {MODULES[name] for path in work for name in imports(path) & MODULES.keys()}
    wanted = {MODULES[f"crossearth.components.{step.module}"] for step in STEPS.values() if step.function}
    # commands of their own, in no pipeline
    alone = {"ablate", "convert", "export", "init", "tune"}
    assert {path.parent.name for path in wanted - work - of_room} == alone


def test_the_init_of_a_step_is_empty() -> None:
    inits = [
        path for path in SOURCES if path.name == "__init__.py" and len(path.parts) == 3 and path.parent != API
    ]
    assert not [path for path in inits if (ROOT / path).read_text()], "`crossearth --help` stays light"
