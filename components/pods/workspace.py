"""The folder that all pods of a pipeline share, and one step's stay in it.

It looks like a checkout in which `dvc repro` runs: `params.yaml` at the top, results below `artifacts/`.
A step enters it and calls the function that dvc.yaml's command calls: the same paths, results and identities.

    params.yaml                                   what this run was started with, as JSON (which is YAML)
    artifacts/run/catalog-*.yaml                  the user's catalogs
    artifacts/workspace.json                      which folder this is, part of every key of Kubeflow's cache
    artifacts/run/id                              stands in MLflow for the run that is in the folder now
    artifacts/run/failures/<step>[-<item>].json   why a step failed, for the pipeline's exit handler
"""

import logging
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from crossearth.components.runtime import places
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.places import ARTIFACTS
from crossearth.components.runtime.shell import quieten, refusals
from crossearth.components.runtime.tracking import PIPELINE_RUN
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.config import parse_yaml
from crossearth.data.common.errors import InputError, print_uncaught, without_credentials
from crossearth.data.common.files import atomic_path, digest, read_json, sha256_file, write_json

PARAMS = Path("params.yaml")
IDENTITY = ARTIFACTS / "workspace.json"
RUN = ARTIFACTS / "run"
FAILURES = RUN / "failures"
# a working folder that holds this is somebody's checkout, not a pipeline's workspace
CHECKOUT_MARKS = ("dvc.yaml", ".git", "pyproject.toml")


def enter(workspace: str) -> None:
    """Makes the shared folder the working folder; InputError: it is absent, a checkout or read-only."""
    sys.excepthook = print_uncaught  # what fails from here on ends the pod
    quieten()
    # kfp's executor makes every library talk: botocore says at each request where its keys are from
    for talker in ("botocore", "boto3", "s3transfer", "urllib3"):
        logging.getLogger(talker).setLevel(logging.WARNING)
    folder = Path(workspace)
    if not folder.is_dir():
        raise InputError(
            "no such folder",
            where=workspace,
            next_step="mount the workspace's claim here, or create the folder",
        )
    if not os.access(folder, os.W_OK):
        raise InputError(
            f"user {os.getuid()} may not write here",
            where=workspace,
            next_step="chown it to 1000:1000; on a cluster the Job crossearth-workspace does so once: "
            "kubectl apply -k infra/kustomize/standalone, or profile",
        )
    marks = [mark for mark in CHECKOUT_MARKS if (folder / mark).exists()]
    if marks:
        raise InputError(
            f"a checkout ({marks[0]} is here): a pipeline would overwrite its params.yaml and artifacts",
            where=workspace,
            expected="a folder of its own",
        )
    os.chdir(folder)


def begin(params: str, catalogs: str) -> None:
    """Writes what the run is started with, which every later step reads; forgets earlier failures.

    Args:
        params: contents of params.yaml; its own `catalogs` give way to the argument.
        catalogs: YAML list of the contents of catalog files.

    Raises:
        InputError: a text that is not YAML, or not what it should be.
    """
    shutil.rmtree(FAILURES, ignore_errors=True)
    with atomic_path(PIPELINE_RUN) as partial:
        partial.write_text(uuid4().hex, encoding="utf-8")
    paths = []
    for number, values in enumerate(_parse(catalogs, list, "catalogs")):
        path = RUN / f"catalog-{number}.yaml"
        write_json(path, values)
        paths.append(path.as_posix())
    write_json(PARAMS, {**_parse(params, dict, "params"), "catalogs": paths})


def _parse(text: str, kind: type, where: str) -> Any:
    values = parse_yaml(text, where)
    if not isinstance(values, kind):
        raise InputError(f"a {type(values).__name__}", where=where, expected=f"a {kind.__name__}")
    return values


def inputs() -> tuple[Params, Catalog]:
    return places.inputs(PARAMS, None)


def identity() -> str:
    """Which workspace this is: drawn at its first use, and gone with what was made in it.

    Kubeflow's cache knows nothing of the folder: in a new or an emptied one its keys must be others.
    """
    if not IDENTITY.is_file():
        write_json(IDENTITY, {"id": uuid4().hex})
    return str(read_json(IDENTITY)["id"])


@contextmanager
def step(workspace: str, name: str, item: str = "") -> Iterator[None]:
    """Enters the workspace; leaves a note in it if the body fails, and takes away that of an earlier try."""
    enter(workspace)
    # a stopped pod gets SIGTERM: what is open is closed, and a TrainJob taken away
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    note = FAILURES / f"{re.sub(r'[^A-Za-z0-9._-]', '_', f'{name}-{item}' if item else name)}.json"
    try:
        with refusals():
            yield
    except BaseException as error:
        story = {
            "step": name,
            "item": item,
            "error": type(error).__name__,
            "message": without_credentials(str(error)),
            "traceback": without_credentials(traceback.format_exc()),
        }
        with suppress(OSError):  # a full disk takes no note: the pod's log has the error too
            write_json(note, story)
        raise
    note.unlink(missing_ok=True)


def failures() -> list[dict[str, str]]:
    """The notes of the steps that failed in this run, by step and item."""
    return [read_json(path) for path in sorted(FAILURES.glob("*.json"))]


def run_id() -> str:
    """What the MLflow runs of this run carry; "" before its first step."""
    return PIPELINE_RUN.read_text(encoding="utf-8").strip() if PIPELINE_RUN.is_file() else ""


def expect(made_by: str, where: Path, found: str, handed_on: Collection[str]) -> None:
    """Holds what lies in the workspace against the digests that an earlier step of the run has handed on.

    Kubeflow takes a step's result from its cache; the bytes in the workspace may be those of another run, or
    gone.

    Args:
        made_by: the step that made it, with its item.
        found: digest of what lies there; anything where nothing does.

    Raises:
        InputError: `found` is none of them.
    """
    if holds(where) and found in handed_on:
        return
    again = f"submit again with --no-cache, which runs {made_by} and all else again"
    if not holds(where):
        raise InputError(
            f"what this run's step {made_by} made is gone, its result came from Kubeflow's cache",
            where=where,
            next_step=again,
        )
    raise InputError(
        f"not what this run's step {made_by} made, another run has been here since",
        where=where,
        next_step=f"{again}; runs with other parameters want workspaces of their own",
    )


def expect_content(made_by: str, path: Path, *handed_on: str) -> None:
    """`expect` of a file, or of all files below a folder, by `content_digest`."""
    expect(made_by, path, content_digest(path) if holds(path) else "", handed_on)


def holds(path: Path) -> bool:
    """Whether a file is there, or a folder with one in it."""
    return path.is_file() or any(each.is_file() for each in path.rglob("*"))


def content_digest(*paths: Path) -> str:
    """Digest of names and bytes of files, also below folders; InputError where a path has none."""
    parts = []
    for path in paths:
        files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        if not files:
            raise InputError("nothing here", where=path)
        parts += [(each.as_posix(), sha256_file(each)) for each in files]
    return digest(parts)
