"""Checks the machine: what works, what is missing, and what to do about it."""

import importlib.util
import os
import platform
import shutil
import socket
import sqlite3
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from crossearth.components.runtime.hub import URL, address, ask, look, refuse_own
from crossearth.components.runtime.tracking_store import LOST_ARTIFACTS, database_of, lost_artifacts
from crossearth.data.common.errors import InputError, without_credentials
from crossearth.data.style.weights import PREDICTOR_FILE, TRANSFER_FILE, style_weights_dir

Verdict = Literal["fine", "note", "missing"]
GIB = 2**30
MIN_FREE_DISK_GIB = 5
MIN_SHM_GIB = 1
# what MLflow takes besides a server's address
LOCAL_STORES = ("", "file")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql", "databricks")
NO_SERVER = "start the server, or unset MLFLOW_TRACKING_URI to use the local store"
INSTALL = "pip install -c constraints.txt -e ."
MAKE_DATA = "create it, or set CROSSEARTH_DATA, to map your own imagery"
MAKE_ARCHIVES = "run `crossearth synthesize`, or point `archives` in params.yaml at your downloads"


@dataclass(frozen=True)
class Finding:
    """One line of the examination: `missing` stops the steps, `note` limits them."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


def examine(data_dir: Path, archives: Path, tracking_uri: str) -> list[Finding]:
    """Examines the machine, what is installed, data, weights and servers; changes nothing."""
    return [
        Finding("Python", "fine", platform.python_version()),
        _dependencies(),
        *_devices(),
        _shared_memory(),
        _disk(),
        _folder("your data ($CROSSEARTH_DATA)", data_dir, MAKE_DATA),
        _folder("archives", archives, MAKE_ARCHIVES),
        _style_weights(),
        _tracking(tracking_uri),
        *_hub(tracking_uri),
    ]


def _dependencies() -> Finding:
    wrong = []
    for line in requires("crossearth") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is absent")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} is outside {requirement.specifier}")
    if wrong:
        return Finding("dependencies", "missing", "; ".join(wrong), INSTALL)
    return Finding("dependencies", "fine", "all at supported versions")


def _devices() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return [Finding("torch", "missing", "absent", INSTALL)]
    import torch

    from crossearth.data.common.cpu import has_amx

    found = Finding("torch", "fine", torch.__version__)
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return [found, Finding("devices", "fine", ", ".join(names))]
    cpu = f"CPU, {torch.get_num_threads()} threads, {'with AMX bfloat16' if has_amx() else 'without AMX'}"
    advice = "fine for the mini preset and for mapping; the paper preset wants a GPU"
    return [found, Finding("devices", "note", cpu, advice)]


def _shared_memory() -> Finding:
    shm = Path("/dev/shm")  # noqa: S108
    if not shm.is_dir():
        return Finding(str(shm), "note", "absent", "set the steps' workers to 0 or 1 in params.yaml")
    size = shutil.disk_usage(shm).total / GIB
    small = size < MIN_SHM_GIB
    advice = "for several GPUs: give the container at least 1 GiB (--shm-size)" if small else ""
    return Finding(str(shm), "note" if small else "fine", f"{size:.1f} GiB", advice)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / GIB
    scarce = free < MIN_FREE_DISK_GIB
    advice = f"the mini benchmark wants {MIN_FREE_DISK_GIB} GiB" if scarce else ""
    return Finding("free disk here", "note" if scarce else "fine", f"{free:.0f} GiB", advice)


def _folder(check: str, folder: Path, advice: str) -> Finding:
    if folder.is_dir():
        return Finding(check, "fine", str(folder))
    return Finding(check, "note", f"{folder} is absent", advice)


def _style_weights() -> Finding:
    folder = style_weights_dir()
    absent = [name for name in (TRANSFER_FILE, PREDICTOR_FILE) if not folder or not (folder / name).is_file()]
    if not absent:
        return Finding("style weights", "fine", str(folder))
    found = f"no {', '.join(absent)} in $CROSSEARTH_STYLE_WEIGHTS"
    advice = "only for the style engine `ghiasi`; the default engine `spectral` needs none"
    return Finding("style weights", "note", found, advice)


def _tracking(uri: str) -> Finding:
    try:
        address = urlsplit(uri)
        port = address.port or (443 if address.scheme == "https" else 80)
    except ValueError as error:
        return Finding("MLflow", "missing", f"{without_credentials(uri)}: {error}", NO_SERVER)
    if address.scheme in LOCAL_STORES or address.scheme.partition("+")[0] in DATABASES:
        return _store(uri)
    if address.scheme not in ("http", "https"):
        return Finding("MLflow", "missing", f"{without_credentials(uri)}: no address of a server", NO_SERVER)
    place = f"{address.hostname}:{port}"
    try:
        socket.create_connection((address.hostname or "", port), timeout=5).close()
    except OSError as error:
        return Finding("MLflow", "missing", f"{place}: {error}", NO_SERVER)
    return _answer(uri, place)


def _store(uri: str) -> Finding:
    """A store without a server, and whether the files of its runs are where it looks for them."""
    told, database = f"local store {without_credentials(uri)}", database_of(uri)
    try:
        lost = lost_artifacts(database) if database and database.exists() else []
    except sqlite3.Error as error:
        return Finding("MLflow", "missing", f"{told}: {error}", "move the file away to begin a new store")
    if not lost:
        return Finding("MLflow", "fine", told)
    folders = ", ".join(map(str, lost))
    return Finding("MLflow", "missing", f"{told} looks for artifacts in {folders}, not here", LOST_ARTIFACTS)


def _answer(uri: str, place: str) -> Finding:
    """How a running server answers the first request, and its version."""
    from crossearth.components.runtime import tracking_server as server
    from crossearth.components.runtime.tracking import connect

    ours = server.own_version()
    try:
        connect(uri).search_experiments(max_results=1)
        theirs = server.server_version(uri)
    except Exception as error:  # MLflow's client raises whatever it meets
        what, advice = server.refusal(error, uri) or (str(error)[:300], NO_SERVER)
        return Finding("MLflow", "missing", f"{place}: {without_credentials(what)}", advice)
    found = f"{place} is a server of MLflow {theirs or 'of no version'}, here is {ours}"
    if server.same_release(theirs):
        return Finding("MLflow", "fine", found)
    # training logs to older and newer ones; models are registered in another way since 3
    other = theirs.split(".")[0] != ours.split(".")[0]
    return Finding("MLflow", "missing" if other else "note", found, server.wanted())


def _hub(tracking_uri: str) -> list[Finding]:
    """Whether Kubeflow Hub can be told of models; nothing where it is not to be."""
    check, advice = "Kubeflow Hub", f"see `Kubeflow Hub` in infra/README.md, or unset {URL}"
    if importlib.util.find_spec("model_registry") is None:
        what = "model-registry is not installed: pip install 'crossearth[cluster]'"
        return [Finding(check, "missing", what, advice)] if os.environ.get(URL) else []
    try:
        url = address()
        if not url:
            return []
        refuse_own(tracking_uri)
        ask(look)
    except InputError as error:
        return [Finding(check, "missing", " ".join(str(error).split()), advice)]
    return [Finding(check, "fine", url)]
