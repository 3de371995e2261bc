"""Mirrors domains in an S3 bucket: the only boto3 file. Below `s3://bucket/prefix/`:

    objects/<sha256>                  the files, under the hash of their bytes: equal files are stored once
    domains/<domain>/<version>.json   a domain's files with size and hash, its manifests' digests and its own
    domains/<domain>/latest.json      the version that was pushed last

`version` is the digest of the domain's manifest digests, and so of every pixel in it. An object never
changes: what was cut off goes on where it stopped. Endpoint, keys and region are the standard AWS variables.
"""

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.handlers import add_expect_header
from botocore.parsers import ResponseParserError
from pydantic import Field

from crossearth.data.common.config import checked, load_config
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import (
    atomic_path,
    digest,
    file_lock,
    read_json,
    replace_dir,
    sha256_file,
    write_json,
)
from crossearth.data.common.progress import progress_bar
from crossearth.data.tiles.manifest import read_manifest

MIB = 2**20
FORMAT = "2"
NO_OBJECT = ("404", "NoSuchKey")

PARALLEL = 8  # files at a time
PART_BYTES = 16 * MIB  # files above this size travel in parts of it, each checksummed
TIMEOUT_S = 30.0  # without an answer, then a request is tried again
ATTEMPTS = 5  # of a request, with growing pauses


@checked
class StoreConfig:
    """Where a store is: s3://bucket/prefix; the prefix may be empty."""

    url: str

    def __post_init__(self) -> None:
        try:
            sound = urlsplit(self.url).scheme == "s3" and self.bucket != ""
        except ValueError:  # such as one bracket of two
            sound = False
        if not sound:
            raise InputError(f"not a store: {self.url!r}", expected="s3://bucket/prefix")

    @property
    def bucket(self) -> str:
        return urlsplit(self.url).netloc

    def key(self, *parts: str) -> str:
        return "/".join(part for part in (urlsplit(self.url).path.strip("/"), *parts) if part)

    def place(self, *parts: str) -> dict[str, str]:
        """Bucket and key, as boto3's methods name them."""
        return {"Bucket": self.bucket, "Key": self.key(*parts)}


@dataclass(frozen=True)
class Transfer:
    """What a push or a pull did.

    Attributes:
        version: key of the domain's version.
        moved_files, moved_bytes: what travelled.
        kept_files: what was there already.
    """

    domain: str
    version: str
    moved_files: int
    moved_bytes: int
    kept_files: int


@checked
class _File:
    path: str
    sha256: str
    size: int

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in self.path:
            raise InputError(f"path {self.path!r} leaves the domain's folder")


@checked
class _Index:
    format: str
    domain: str
    version: str
    manifests: dict[str, str]
    files: Annotated[tuple[_File, ...], Field(min_length=1)]


def push(domain_dir: Path, config: StoreConfig) -> Transfer:
    """Mirrors an ingested domain to the store; files that it has are not sent again.

    Raises:
        InputError: the domain was not ingested; store down, bucket missing, or keys refused.
    """
    domain_dir = Path(domain_dir)
    digests = {
        path.stem: read_manifest(domain_dir, path.stem).digest
        for path in sorted(domain_dir.glob("*.parquet"))
    }
    if not digests:
        raise InputError(
            "no manifest here", where=domain_dir, next_step=f"crossearth ingest {domain_dir.name}"
        )
    paths = sorted(path for path in domain_dir.rglob("*") if path.is_file())
    # a ThreadPool: leaving it waits for no request, so a user who stops does not wait for a server that hangs
    with _speaking_to(config) as client, ThreadPool(PARALLEL) as pool:
        # some servers make a bucket of whatever name is written to
        client.list_objects_v2(Bucket=config.bucket, MaxKeys=1)
        files = _each(pool, lambda path: _describe(domain_dir, path), paths, "hash")
        distinct = list({file.sha256: file for file in files}.values())
        # each asked for by its name: a store holds many domains, and all of it would be listed otherwise
        there = _each(pool, lambda file: _is_there(client, config, file), distinct, "look")
        missing = [file for file, is_there in zip(distinct, there, strict=True) if not is_there]
        _each(pool, lambda file: _upload(client, config, domain_dir, file), missing, "push")
        version = digest(digests)
        index = asdict(_Index(FORMAT, domain_dir.name, version, digests, tuple(files)))
        body = json.dumps({**index, "digest": digest(index)}, indent=1).encode()
        # written last: a reader never sees a version whose files are not all there
        for name in (f"{version}.json", "latest.json"):
            place = config.place("domains", domain_dir.name, name)
            client.put_object(**place, Body=body, ContentType="application/json", ChecksumAlgorithm="SHA256")
    return _transfer(domain_dir.name, version, missing, files)


def pull(domain: str, config: StoreConfig, domains_dir: Path, version: str = "latest") -> Transfer:
    """Makes `domains_dir/<domain>` equal to a version in the store; fetches only the files that differ here.

    The folder is replaced at the end by two renames: a reader sees the old version or the new one whole, or
    between the two none. A pull that was cut off goes on where it stopped.

    Raises:
        InputError: no such domain or version; an object whose bytes are not what its name says; store down,
            bucket missing, or keys refused.
    """
    target = Path(domains_dir) / domain
    partial = target.with_name(f".{domain}.pull")
    target.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(target), _speaking_to(config) as client:
        index = _index(client, config, domain, version)
        with ThreadPool(PARALLEL) as pool:
            fetched = _each(
                pool, lambda file: _fetch(client, config, file, target, partial), index.files, "pull"
            )
        wanted = {partial / file.path for file in index.files}
        for extra in [path for path in partial.rglob("*") if path.is_file() and path not in wanted]:
            extra.unlink()
        replace_dir(partial, target)
    moved = [file for file, was_fetched in zip(index.files, fetched, strict=True) if was_fetched]
    return _transfer(domain, index.version, moved, index.files)


def _each(pool: ThreadPool, function: Callable[[Any], Any], items: Sequence[Any], what: str) -> list[Any]:
    return list(progress_bar(pool.imap(function, items), what, len(items)))


def _transfer(domain: str, version: str, moved: Sequence[_File], files: Sequence[_File]) -> Transfer:
    num_bytes = sum(file.size for file in moved)
    return Transfer(domain, version, len(moved), num_bytes, len(files) - len(moved))


def list_objects(url: str) -> list[str]:
    """Addresses of all objects below an s3:// prefix, sorted; InputError as `read_object`."""
    config = StoreConfig(url)
    with _speaking_to(config) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=config.bucket, Prefix=config.key())
        return sorted(
            f"s3://{config.bucket}/{entry['Key']}" for page in pages for entry in page.get("Contents", [])
        )


def download(url: str, path: Path) -> None:
    """Fetches the object at `url` (s3://bucket/key) to `path`, all of it or none; raises as `read_object`."""
    with _object(url) as (client, place), atomic_path(path) as partial:
        client.download_file(Filename=str(partial), **place)


def mirror(url: str, path: Path) -> None:
    """As `download`, but a file that was fetched before is kept where neither it nor the object has changed.

    A hidden file beside it says which object it is. Raises as `download`.
    """
    record = path.with_name(f".{path.name}.object")
    with _object(url) as (client, place):
        # asked for before the bytes: where they change meanwhile, the next call sees it
        etag = client.head_object(**place)["ETag"]
    if path.is_file() and _recorded(record) == _state(etag, path):
        return
    download(url, path)
    write_json(record, _state(etag, path))


def read_object(url: str, most_bytes: int = 16 * MIB) -> bytes:
    """The content of a small object, s3://bucket/key.

    Raises:
        InputError: no such object, or one of more than `most_bytes`; store down, bucket missing, or keys
            refused.
    """
    with _object(url) as (client, place):
        body = client.get_object(**place)["Body"]
        content: bytes = body.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise InputError("too large an object", where=url, expected=f"at most {most_bytes / MIB:g} MiB")
    return content


@contextmanager
def _object(url: str) -> Iterator[tuple[Any, dict[str, str]]]:
    """A client, and the bucket and key of the object at `url`; it is named where it is not there."""
    config = StoreConfig(url)
    with _speaking_to(config) as client:
        try:
            yield client, config.place()
        except ClientError as error:
            if error.response["Error"]["Code"] not in NO_OBJECT:
                raise
            raise InputError("no such object in the store", where=url) from error


def _state(etag: str, path: Path) -> dict[str, Any]:
    """Which object a file is, and how it was when it was fetched."""
    stat = path.stat()
    return {"etag": etag, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _recorded(record: Path) -> dict[str, Any]:
    """What was written of an earlier fetch; nothing where that cannot be read."""
    try:
        return read_json(record)
    except (OSError, InputError):
        return {}


def _describe(root: Path, path: Path) -> _File:
    return _File(path.relative_to(root).as_posix(), sha256_file(path), path.stat().st_size)


def _is_there(client: Any, config: StoreConfig, file: _File) -> bool:
    try:
        found = client.head_object(**config.place("objects", file.sha256))
    except ClientError as error:
        if error.response["Error"]["Code"] not in NO_OBJECT:
            raise
        return False
    return bool(found["ContentLength"] == file.size)


def _upload(client: Any, config: StoreConfig, root: Path, file: _File) -> None:
    path, place = root / file.path, config.place("objects", file.sha256)
    if file.size <= PART_BYTES:
        checksum = base64.b64encode(bytes.fromhex(file.sha256)).decode()
        client.put_object(**place, Body=path.read_bytes(), ChecksumSHA256=checksum)
        return
    before = path.stat()
    client.upload_file(str(path), **place, ExtraArgs={"ChecksumAlgorithm": "SHA256"}, Config=_parts())
    if (before.st_mtime_ns, before.st_size) != (path.stat().st_mtime_ns, path.stat().st_size):
        client.delete_object(**place)
        raise InputError("changed while it was sent", where=path, next_step="push again")


def _fetch(client: Any, config: StoreConfig, file: _File, present: Path, partial: Path) -> bool:
    """Puts a file into `partial`; false where it was here already."""
    to = partial / file.path
    if _is(to, file):
        return False
    to.parent.mkdir(parents=True, exist_ok=True)
    if _is(present / file.path, file):
        to.unlink(missing_ok=True)
        to.hardlink_to(present / file.path)
        return False
    place = config.place("objects", file.sha256)
    with atomic_path(to) as path:
        client.download_file(**place, Filename=str(path), Config=_parts())
        if not _is(path, file):
            raise InputError(
                "its bytes are not what its name says: changed in the store or on the way",
                where="s3://{Bucket}/{Key}".format(**place),
                next_step="run the command again; if it says the same, delete the object and push the domain "
                "again from where it was ingested",
            )
    return True


def _parts() -> TransferConfig:
    return TransferConfig(PART_BYTES, multipart_chunksize=PART_BYTES, use_threads=False)


def _is(path: Path, file: _File) -> bool:
    return path.is_file() and path.stat().st_size == file.size and sha256_file(path) == file.sha256


def _index(client: Any, config: StoreConfig, domain: str, version: str) -> _Index:
    place = config.place("domains", domain, f"{version}.json")
    where = "s3://{Bucket}/{Key}".format(**place)
    try:
        values = json.loads(client.get_object(**place)["Body"].read())
        if values.pop("digest") != digest(values):
            raise ValueError("its digest is another")
    except client.exceptions.NoSuchKey as error:
        raise InputError(
            f"no version {version!r} of domain {domain!r} in the store",
            where=config.url,
            next_step=f"push {domain} from where it was ingested",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"not an index, or changed in the store or on the way: {error}",
            where=where,
            next_step=f"run the command again; if it says the same, push {domain} again",
        ) from error
    if values.get("format") != FORMAT:
        raise InputError("an index of another version", where=where, next_step="push again")
    return load_config(_Index, values, where)


@contextmanager
def _speaking_to(config: StoreConfig) -> Iterator[Any]:
    """A client of the store; whatever goes wrong becomes one error that says where and what next."""
    try:
        yield _client()
    except (ClientError, BotoCoreError, Boto3Error, ResponseParserError) as error:
        cause = error.__context__ if isinstance(error, Boto3Error) else error
        code = cause.response["Error"]["Code"] if isinstance(cause, ClientError) else type(cause).__name__
        raise InputError(
            f"the store refuses or does not answer: {error}", where=config.url, next_step=_advice(code)
        ) from error


def _client() -> Any:
    try:
        # a session of its own: the default one keeps the keys of its first use
        client = boto3.session.Session().client(
            "s3",
            config=Config(
                connect_timeout=TIMEOUT_S,
                read_timeout=TIMEOUT_S,
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                max_pool_connections=PARALLEL,
                # servers that are not Amazon's may not know the newer checksum trailers
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
    except ValueError as error:
        raise InputError(
            str(error), where="AWS_ENDPOINT_URL", expected="http://... or https://..."
        ) from error
    # botocore waits for ever where the server goes away amid its "100 Continue"
    client.meta.events.unregister("before-call.s3", add_expect_header)
    return client


def _advice(code: str) -> str:
    if code == "NoSuchBucket":
        return "create the bucket, or correct its name"
    if code in NO_OBJECT:
        return "an object is gone from the store: push the domain again from where it was ingested"
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403", "NoCredentialsError"):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to keys that may read and write this bucket"
    if code == "NoRegionError":
        return "set AWS_DEFAULT_REGION (any value for a server of your own)"
    return "look at AWS_ENDPOINT_URL and at the server; run the command again, it goes on where it stopped"
