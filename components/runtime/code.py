"""Which code a step runs: the digest of the sources that it imports, and of no others.

A step's digest is part of its identity, wherever that is asked: in dvc (through the plan's files), in
Kubeflow's keys and in what a step takes for done already. So an edit makes stale what runs the edited code,
and nothing else.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from crossearth.data.common.files import digest, sha256_file

PACKAGE = "crossearth"
ROOT = Path(__file__).parents[2]
# these do not change what a step writes: they report to people and MLflow, stop it, or find its section of
# params.yaml and its folders, which are inputs of their own
TELLING = {
    f"{PACKAGE}.{name}"
    for name in (
        "components.ingest.preview",
        "components.runtime.code",
        "components.runtime.interrupts",
        "components.runtime.job_status",
        "components.runtime.memory",
        "components.runtime.params",
        "components.runtime.places",
        "components.runtime.tracking",
        "components.runtime.tracking_internals",
        "components.runtime.tracking_server",
        "components.runtime.tracking_store",
        "components.runtime.trial",
        "components.runtime.version",
        "components.train.panel",
        "components.validate.first_page",
        "data.common.errors",
        "data.common.progress",
    )
}


@cache
def code_digest(step: str) -> str:
    """Digest of the sources that a step runs, 16 hex digits.

    As they were when this process first asked: what is edited while it runs is not what it runs.

    Args:
        step: name of a folder in components/ with a `step.py`, or a module of one, such as `styles.coverage`.
    """
    module = f"{PACKAGE}.components.{step if '.' in step else f'{step}.step'}"
    return digest([(path.relative_to(ROOT).as_posix(), sha256_file(path)) for path in _sources(module)])[:16]


@cache
def _sources(module: str) -> list[Path]:
    """Sources of a module and of our modules that it imports, and the data files that these sources name."""
    found: set[Path] = set()
    todo = [module]
    seen = {*TELLING}
    while todo:
        module = todo.pop()
        path = _path(module)
        if module in seen or path is None:
            continue
        seen.add(module)
        imported, named = _references(path)
        found |= {path, *named}
        todo += imported
    return sorted(found)


@cache
def _references(path: Path) -> tuple[list[str], list[Path]]:
    """Our modules that a source imports, and files beside it that it names; steps share most sources."""
    tree = ast.parse(path.read_bytes())
    return list(_imported(tree)), list(_named(tree, path))


def _path(module: str) -> Path | None:
    """The source of one of our modules; None if no module has this name."""
    place = ROOT.joinpath(*module.split(".")[1:])
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def _imported(tree: ast.AST) -> Iterator[str]:
    """Our modules that a source imports, at module level or in a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(f"{PACKAGE}."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _named(tree: ast.AST, path: Path) -> Iterator[Path]:
    """Files beside a source that it names, such as a page's template."""
    beside = {other.name: other for other in path.parent.iterdir() if other.is_file()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in beside:
            yield beside[node.value]
