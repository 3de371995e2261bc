"""Fetch: downloads what publishers offer openly; says where to get the rest."""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from requests import RequestException, Response, Session
from requests.adapters import HTTPAdapter
from rich.progress import DownloadColumn, TransferSpeedColumn
from urllib3 import Retry

from crossearth.data.catalog.domains import Archive, Catalog, Dataset
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import fsync_dir, read_checksummed, require_free, write_checksummed
from crossearth.data.common.progress import bar

CHUNK = 2**16
TIMEOUT_S = 60
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416
# a server that does not answer or is busy is asked again
RETRY = Retry(3, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False)
# a connection that breaks in the middle of a file is taken up again where it broke
PAUSES_S = (1, 3, 9)


def fetch(names: Sequence[str], catalog: Catalog, archives_dir: Path) -> list[Path]:
    """Downloads the openly offered archives of domains or datasets into `archives_dir/<dataset>`.

    A file that is there and whole is not fetched again; one that was cut off is continued.

    Returns:
        The archives that are there now. `by_hand` lists the others.

    Raises:
        InputError: an unknown name; an address that does not answer; too little disk; a wrong checksum.
    """
    return [_fetch(archive, path) for archive, path in _offered(names, catalog, archives_dir)]


def to_download(names: Sequence[str], catalog: Catalog, archives_dir: Path) -> list[str]:
    """What `fetch` has yet to download, a line each with its size, and the sum of the known ones."""
    absent = [each for each in _offered(names, catalog, archives_dir) if not each[1].is_file()]
    sizes = [archive.download_gb for archive, _ in absent]
    told = [f"{size:g} GB" if size else "size not published" for size in sizes]
    lines = [f"to download: {path}, {size}" for (_, path), size in zip(absent, told, strict=True)]
    if lines:
        lines.append(f"{sum(size or 0 for size in sizes):.1f} GB in all; after a break give the command anew")
    return lines


def by_hand(names: Sequence[str], catalog: Catalog) -> list[tuple[Dataset, Archive]]:
    """The archives of domains or datasets that the user must fetch, because their publisher wants it so."""
    return [each for each in _archives(names, catalog) if not each[1].url]


def _offered(names: Sequence[str], catalog: Catalog, archives_dir: Path) -> list[tuple[Archive, Path]]:
    """The archives that are offered openly, and where each comes to lie."""
    return [
        (archive, Path(archives_dir) / dataset.name / archive.name)
        for dataset, archive in _archives(names, catalog)
        if archive.url
    ]


def _archives(names: Sequence[str], catalog: Catalog) -> list[tuple[Dataset, Archive]]:
    wanted = dict.fromkeys(domain.dataset for name in names for domain in catalog.domains_named(name))
    return [(each, archive) for each in map(catalog.dataset, wanted) for archive in each.archives]


def _fetch(archive: Archive, path: Path) -> Path:
    url = str(archive.url)
    scheme = url.partition(":")[0].lower()
    if scheme not in ("https", "http", "s3"):
        raise InputError(f"address {url!r}", where=archive.name, expected="https://... or s3://...")
    if path.is_file() and (archive.md5 is None or _md5(path) == archive.md5):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if scheme == "s3":
        from crossearth.data.tiles.store import download

        download(url, path)
        _check(path, archive)
        return path
    partial = path.with_name(f".{path.name}.part")
    _download(url, partial)
    _check(partial, archive)
    partial.replace(path)
    _memo(partial).unlink(missing_ok=True)
    fsync_dir(path.parent)
    return path


def _check(path: Path, archive: Archive) -> None:
    if archive.md5 is not None and (found := _md5(path)) != archive.md5:
        path.unlink()
        raise InputError(
            f"md5 {found}, not the publisher's {archive.md5}",
            where=archive.name,
            next_step="fetch it again; if that does not help, the publisher has changed the file",
        )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _memo(partial: Path) -> Path:
    """Beside a partial file: which version of the address's content it is a part of."""
    return partial.with_name(partial.name + ".json")


def _read_memo(partial: Path) -> dict[str, Any]:
    """Empty where there is none to go by."""
    try:
        return read_checksummed(_memo(partial)) if partial.exists() else {}
    except (FileNotFoundError, InputError):
        return {}


def _download(url: str, partial: Path) -> None:
    """Fetches `url` to `partial`, continuing what is there; a broken connection is taken up again."""
    with Session() as session:
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(max_retries=RETRY))
        for pause in (*PAUSES_S, None):
            try:
                return _continue(session, url, partial)
            except RequestException as error:
                if pause is None:
                    raise _broken(url, error) from error
            time.sleep(pause)


def _broken(url: str, error: Exception) -> InputError:
    return InputError(
        f"cannot download: {error}", where=url, next_step="run the command again, it goes on where it stopped"
    )


def _continue(session: Session, url: str, partial: Path) -> None:
    memo = _read_memo(partial)
    start = partial.stat().st_size if memo.get("url") == url else 0
    if start and start == memo.get("bytes"):
        return
    headers = {"User-Agent": "crossearth", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if memo.get("version"):
            headers["If-Range"] = memo["version"]
    with _open(session, url, headers) as answer:
        if answer.status_code == RANGE_NOT_SATISFIABLE:  # there is more here than there: begin again
            partial.unlink()
            return _continue(session, url, partial)
        if not answer.ok:
            raise InputError(f"the server says {answer.status_code} {answer.reason}", where=url)
        if answer.status_code != PARTIAL_CONTENT:
            start = 0
        total = start + (answer.raw.length_remaining or 0)
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        require_free(partial.parent, total - start, url)
        write_checksummed(_memo(partial), {"url": url, "version": version, "bytes": total})
        with (
            partial.open("ab" if start else "wb") as file,
            bar(DownloadColumn(), TransferSpeedColumn()) as progress,
        ):
            task = progress.add_task(partial.name, total=total or None, completed=start)
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))


def _open(session: Session, url: str, headers: dict[str, str]) -> Response:
    try:
        return session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S)
    except ValueError as error:  # this one, or one that the server refers to
        raise InputError(
            f"not an address: {error}", where=url, next_step="correct `url` in the catalog"
        ) from error
    except RequestException as error:
        raise _broken(url, error) from error
