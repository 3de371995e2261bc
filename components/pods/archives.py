"""Brings the archives that a run reads: synthetic ones, a git repository's, or those that lie here."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from crossearth.components.pods.workspace import content_digest, holds
from crossearth.data.common.errors import InputError, without_credentials
from crossearth.data.common.files import digest, read_json, replace_dir, write_json

# Kubeflow tries a step again whose pod was lost, none that ends with an error: what a lost connection cuts
# off is tried again here
PAUSES_S = (5.0, 20.0, 60.0)
LOST = re.compile(
    r"connection|could not resolve|timed? ?out|unreachable|unable to access|early EOF|RPC failed|\b50[234]\b",
    re.I,
)


def draw_archives(draw: Callable[[], object], archives: Path, key: str) -> str:
    """Fills the folder of archives with `draw`, unless they lie there as they were drawn for this key.

    Args:
        key: digest of what they depend on.

    Returns:
        Digest of the archives.
    """
    note = _note(archives)
    if not (note.is_file() and holds(archives) and read_json(note) == _about(archives, key)):
        note.unlink(missing_ok=True)
        draw()
        write_json(note, _about(archives, key))
    return str(read_json(note)["content"])


def fetch_archives(archives: Path, repository: str, revision: str, path: str, needed: Sequence[str]) -> str:
    """Puts the archives that a git repository versions with DVC where `archives` points.

    Args:
        archives: the folder of archives.
        repository: address of the git repository, "" = the archives lie there already.
        revision: git revision.
        path: the folder in the repository whose `.dvc` file is there.
        needed: folders of archives that this run reads; without any nothing is brought.

    Returns:
        What the cache takes for their content.

    Raises:
        InputError: archives that are needed are not there, or DVC cannot bring them.
    """
    if not needed:
        return digest([])
    note = _note(archives)
    source = {"repository": without_credentials(repository), "revision": revision, "path": path}
    # a branch moves on, a commit's archives are hundreds of gigabytes that are here already
    here = re.fullmatch("[0-9a-f]{40}", revision) and note.is_file() and read_json(note) == source
    if repository and not (here and archives.is_dir()):
        partial = archives.with_name(f".{archives.name}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        command = ["dvc", "get", repository, path, "--rev", revision, "--out", str(partial)]
        for pause in (*PAUSES_S, None):
            shutil.rmtree(partial, ignore_errors=True)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if not done.returncode or pause is None or not LOST.search(done.stderr):
                break
            print(f"the connection was lost, again in {pause:.0f} s", flush=True)
            time.sleep(pause)
        if done.returncode:
            raise InputError(
                f"dvc cannot bring the archives: {done.stderr.strip()[-2000:]}",
                where=f"{repository} at {revision}: {path}",
                next_step="look at the revision, the path and the credentials of its remote",
            )
        note.unlink(missing_ok=True)
        replace_dir(partial, archives)
        write_json(note, source)
    absent = [name for name in needed if not (archives / name).is_dir()]
    if absent:
        raise InputError(
            f"no archives of {', '.join(absent)}",
            where=archives.resolve(),
            next_step="put the publishers' archives here, or give dvc_repository, dvc_revision and dvc_path",
        )
    # sizes, not bytes: hundreds of gigabytes lie here, and ingest hashes every tile
    files = sorted(each for name in needed for each in (archives / name).rglob("*") if each.is_file())
    described = [(each.relative_to(archives).as_posix(), each.stat().st_size) for each in files]
    return digest([repository, revision, path, described])


def _about(archives: Path, key: str) -> dict[str, str]:
    return {"key": key, "content": content_digest(archives)}


def _note(archives: Path) -> Path:
    """Says what the archives are, beside their folder."""
    return archives.with_name(f"{archives.name}.from.json")
