"""MLflow's store in a file of ours: who makes it, where its artifacts lie, what can be read without MLflow.

An SQLite database, by default `artifacts/mlflow/mlflow.db`, and beside it the folder `artifacts`. Of the
default one MLflow knows that folder relative to the working folder, in which all commands and `mlflow ui`
run: so the working folder may be moved, or mounted elsewhere, and everything is found again.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import urlsplit
from urllib.request import url2pathname

from crossearth.components.runtime.tracking_internals import create_tables
from crossearth.data.common.files import file_lock, partial_dir

STORE = Path("artifacts/mlflow")
DATABASE = STORE / "mlflow.db"
SQLITE = "sqlite:///"
LOST_ARTIFACTS = "move the folder back there, or move MLflow's store out of the way to begin a new one"


def database_of(uri: str) -> Path | None:
    """The file of a store at `uri`; None where a server has it."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


@contextmanager
def first_use(database: Path | None) -> Iterator[None]:
    """Two processes must not create the tables of one file at a time; None: a server sees to its own."""
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(database.parent / "first-use"):  # the database itself is held while it is made
        yield


def create_database(database: Path) -> None:
    """Makes MLflow's tables aside: it never mends a file in which a killed process made some of them."""
    if database.exists():
        return
    with partial_dir(database) as folder:
        # another name each time: MLflow keeps one engine per address
        new = Path(mkdtemp(dir=folder)) / database.name
        create_tables(f"{SQLITE}{new}", artifact_root(database))
        keep_relative(new, database)
        new.replace(database)


def artifact_root(database: Path) -> str:
    """Folder of the artifacts; MLflow itself would take the one that the process happens to run in."""
    return (database.resolve().parent / "artifacts").as_uri()


def keep_relative(written: Path, database: Path) -> None:
    """Makes the addresses of the default store's experiments relative: MLflow writes whole ones.

    Args:
        written: the file to correct.
        database: the store that it is, or is to become.
    """
    (database.parent / "artifacts").mkdir(parents=True, exist_ok=True)
    if database.resolve() != DATABASE.resolve():
        return
    whole = artifact_root(database)
    with closing(sqlite3.connect(written)) as store, store:
        store.execute(
            "UPDATE experiments SET artifact_location = ? || substr(artifact_location, ?)"
            " WHERE artifact_location = ? OR artifact_location LIKE ? || '/%'",
            ((STORE / "artifacts").as_posix(), len(whole) + 1, whole, whole),
        )


def lost_root(location: str) -> Path | None:
    """The folder of an experiment's `artifact_location` if it should be on this machine and is not.

    MLflow would make it anew: where a store was moved, at the place that it was moved from.
    """
    parts = urlsplit(location)
    if parts.scheme not in ("", "file"):
        return None
    folder = Path(url2pathname(parts.path))
    return None if folder.is_dir() else folder


def lost_artifacts(database: Path) -> list[Path]:
    """Folders in which MLflow looks for artifacts of runs, and which are not there."""
    with closing(_reading(database)) as store:
        query = (
            "SELECT DISTINCT artifact_location FROM experiments JOIN runs USING (experiment_id) ORDER BY 1"
        )
        return [lost for (location,) in store.execute(query) if (lost := lost_root(location))]


def experiment_id(database: Path, name: str) -> str | None:
    """Id of an experiment by its name; None where there is none."""
    with closing(_reading(database)) as store:
        row = store.execute("SELECT experiment_id FROM experiments WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else None


def _reading(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)
