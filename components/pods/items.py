"""The items that a pipeline's loops run over, and what the thin components do with them.

An item is a plain dictionary with a name and the digest of everything that its step depends on: Kubeflow's
cache looks at nothing but a step's inputs.
"""

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from crossearth.components.pods.workspace import (
    ARTIFACTS,
    RUN,
    content_digest,
    crossearth,
    expect,
    holds,
    inputs,
)
from crossearth.components.predict.step import PredictConfig, predict, refuse_clashes
from crossearth.components.register.promotion import RegisterConfig
from crossearth.components.register.step import register
from crossearth.components.runtime.params import Params
from crossearth.components.train.setup import TrainConfig
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.config import load_config
from crossearth.data.common.errors import InputError, without_credentials
from crossearth.data.common.files import digest, read_json, replace_dir, sha256_file, write_json
from crossearth.data.raster.archives import on_the_disk
from crossearth.data.raster.names import LONE_SUFFIXES, RASTER_SUFFIXES, rasters_among, sidecar_names
from crossearth.data.raster.reader import LONE_KINDS, harmless, rasters_in
from crossearth.data.tiles.manifest import read_manifest
from crossearth.data.tiles.store import StoreConfig, download, list_objects, pull, push
from crossearth.model.training.multitask import BRANCHES

Item = dict[str, Any]
PLAN = ARTIFACTS / "plan"
DOMAINS = ARTIFACTS / "domains"
VALIDATION = ARTIFACTS / "validation"
SCENES = ARTIFACTS / "scenes"
SHARDS = RUN / "shards"
# Kubeflow tries a step again whose pod was lost, none that ends with an error: what a lost connection cuts
# off is tried again here
PAUSES_S = (5.0, 20.0, 60.0)
LOST = re.compile(
    r"connection|could not resolve|timed? ?out|unreachable|unable to access|early EOF|RPC failed|\b50[234]\b",
    re.I,
)
MLFLOW_RETRIES = "5"  # of a request to the registry, half a minute in all


def recipe_items(catalog: Catalog, params: Params, names: Sequence[str], identity: str) -> list[Item]:
    """One item per recipe: name, source, settings, digest of its plan, of the seed and of the workspace.

    Raises:
        InputError: no recipe, or one that the catalog does not derive.
    """
    if not names:
        raise InputError("no recipe is asked for", where="recipes", expected=", ".join(catalog.recipes()))
    return [
        {
            "name": recipe.name,
            "source": recipe.source,
            "settings": [setting.abbr for setting in recipe.settings],
            "train_key": digest([_plan("train", recipe.name), params.seed, identity]),
            "evaluate_key": digest([_plan("evaluate", recipe.name), identity]),
        }
        for recipe in map(catalog.recipe, dict.fromkeys(names))
    ]


def dataset_items(
    catalog: Catalog, params: Params, recipes: Sequence[str], versions: dict[str, str], identity: str
) -> list[Item]:
    """One item per dataset that the recipes train on or are scored on.

    Args:
        versions: domain -> its version in the store; a dataset all of whose domains have one is pulled.

    Raises:
        InputError: an unknown domain in `versions`, or a dataset of which only some domains have a version.
    """
    needed = {
        domain
        for recipe in map(catalog.recipe, recipes)
        for domain in (recipe.source, *(setting.target for setting in recipe.settings))
    }
    for name, version in versions.items():
        catalog.domain(name)
        if version == "latest":
            raise InputError(
                "latest moves on, which Kubeflow's cache cannot see",
                where=f"versions: {name}",
                expected="the version that `crossearth push` printed",
            )
    items = []
    for dataset in dict.fromkeys(catalog.domain(name).dataset for name in sorted(needed)):
        domains = [domain.name for domain in catalog.domains_of(dataset)]
        pulled = {name: versions[name] for name in domains if name in versions}
        absent = [name for name in domains if name in needed and name not in pulled]
        if pulled and absent:
            raise InputError(
                f"a version is given for {', '.join(pulled)} but none for {', '.join(absent)}",
                where="versions",
                next_step=f"give one for each domain of {dataset}, or for none",
            )
        items.append(
            {
                "name": dataset,
                "domains": sorted(pulled) or domains,
                "versions": pulled,
                "key": digest(
                    [
                        _plan("ingest", dataset),
                        params.values("ingest"),
                        _own_files(catalog, domains),
                        identity,
                    ]
                ),
            }
        )
    return items


def archives_needed(
    catalog: Catalog, params: Params, datasets: Sequence[Item], recipes: Sequence[str], shards: int
) -> list[str]:
    """Folders below `archives` that this run reads: of publishers' datasets, and of the styles' images.

    Args:
        datasets: their items; what is pulled from the store needs no archive.
        shards: of stylized tiles, which need styles whatever the recipes do.
    """
    published = [
        item["name"]
        for item in datasets
        if not item["versions"] and any(catalog.domain(name).own is None for name in item["domains"])
    ]
    styled = [BRANCHES[params.config(TrainConfig, "train", name).ablation].style for name in recipes]
    return [*published, *([params.corpus] if shards or any(styled) else [])]


def _own_files(catalog: Catalog, domains: Sequence[str]) -> list[Any]:
    """What the cache takes for the content of the users' own images and masks: no archive holds them."""
    owned = [own for name in domains if (own := catalog.domain(name).own)]
    # a file's name stands for those beside it that belong to it; a place in an archive for the archive
    roots = dict.fromkeys(root for own in owned for place in own.places for root in on_the_disk(place))
    files = [path for root in roots for path in sorted([root, *root.rglob("*")]) if path.is_file()]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def digest_of_step(params: Params, step: str, identity: str) -> str:
    """Digest of a step's plan, of the seed, of the user's catalogs and of the workspace."""
    catalogs = [sha256_file(path) for path in params.catalogs]
    return digest([sha256_file(PLAN / f"{step}.json"), params.seed, catalogs, identity])


def with_digests(item: Item, styles: str) -> Item:
    """A recipe's item that also stands for the tiles that it is trained and scored on, and for the styles."""
    source = _digests(item["source"])
    targets = VALIDATION / "recipes" / f"{item['name']}.json"
    catalog = inputs()[1]
    return {
        **item,
        "train_key": digest([item["train_key"], sha256_file(source)]),
        "evaluate_key": digest([item["evaluate_key"], sha256_file(targets)]),
        "styles": styles,
        **_with_tiles({item["source"], *(catalog.setting(abbr).target for abbr in item["settings"])}),
    }


def expect_tiles(item: Item) -> None:
    """Holds the workspace's domains of an item against those that were validated for it.

    Raises:
        InputError: they are others.
    """
    _expect_domains("ingest", item["domains"], [item["tiles"]])


def expect_datasets(items: Sequence[Item], keys: Sequence[str]) -> None:
    """Holds the workspace's domains against what `ingest` made of the datasets.

    Args:
        keys: what `ingest` returned, in any order.

    Raises:
        InputError: a dataset's are others.
    """
    for item in items:
        _expect_domains(f"ingest {item['name']}", item["domains"], keys)


def _expect_domains(made_by: str, domains: Sequence[str], keys: Collection[str]) -> None:
    gone = next((folder for folder in map(_folder, domains) if not holds(folder)), None)
    expect(made_by, gone or DOMAINS, "" if gone else count_tiles(domains)[1], keys)


def _with_tiles(domains: set[str]) -> Item:
    """Domains and the digest of their manifests, as `expect_tiles` reads them."""
    return {"domains": sorted(domains), "tiles": count_tiles(sorted(domains))[1]}


def stylize_items(recipes: Sequence[Item], shards: int, key: str) -> list[Item]:
    """One item per source domain and shard.

    Args:
        key: digest of what `stylize` depends on besides the tiles.
    """
    return [
        {
            "name": f"{source} {shard}/{shards}",
            "domain": source,
            "shard": f"{shard}/{shards}",
            "key": digest([sha256_file(_digests(source)), key]),
            "styles": styles,
            **_with_tiles({source}),
        }
        for source, styles in dict.fromkeys((recipe["source"], recipe["styles"]) for recipe in recipes)
        for shard in range(shards)
    ]


def draw_archives(archives: Path, key: str) -> str:
    """Draws miniature archives of every dataset, unless they lie there as they were drawn for this key.

    Args:
        archives: the folder of archives.
        key: digest of what they depend on.

    Returns:
        Digest of the archives.
    """
    note = _note(archives)
    if not (note.is_file() and holds(archives) and read_json(note) == _drawn(archives, key)):
        note.unlink(missing_ok=True)
        crossearth("synthesize")
        write_json(note, _drawn(archives, key))
    return str(read_json(note)["content"])


def _drawn(archives: Path, key: str) -> dict[str, str]:
    return {"key": key, "content": content_digest(archives)}


def _note(archives: Path) -> Path:
    """Says what the archives are, beside their folder."""
    return archives.with_name(f"{archives.name}.from.json")


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


def pull_domains(versions: dict[str, str], store: str) -> None:
    """Makes the workspace's domains those of the store in the given versions."""
    for domain, version in versions.items():
        print(pull(domain, StoreConfig(store), _folder(domain).parent, version))


def push_domains(domains: Sequence[str], store: str) -> None:
    """Mirrors ingested domains to the store, if there is one."""
    for domain in domains if store else ():
        print(push(_folder(domain), StoreConfig(store)))


def count_tiles(domains: Sequence[str]) -> tuple[dict[str, int], str]:
    """Number of tiles per domain and split, and the digest of their manifests."""
    catalog = inputs()[1]
    folders = [catalog.domain_dir(DOMAINS, domain) for domain in domains]
    manifests = [
        read_manifest(folder, path.stem) for folder in folders for path in sorted(folder.glob("*.parquet"))
    ]
    numbers = {f"{manifest.domain} {manifest.split} tiles": len(manifest) for manifest in manifests}
    return numbers, digest([(each.domain, each.split, each.digest) for each in manifests])


def deal_scenes(source: str, shards: int) -> list[Item]:
    """Lists the rasters of a folder or of an s3:// prefix and deals them out, one after the other.

    A shard's list lies in the workspace: an item is one argument of a command, which has 128 KiB.

    Returns:
        One item per shard: name, file of its list and the file's digest.

    Raises:
        InputError: fewer than one shard, no raster there, two of one name, or in a store one of a kind that
            may point to other files.
    """
    if shards < 1:
        raise InputError(f"shards: {shards}", expected="at least 1")
    if urlsplit(source).scheme == "s3":
        found = _scenes_in_store(source)
    elif Path(source).is_dir():
        found = [str(path.resolve()) for path in rasters_in(Path(source))]
    else:
        raise InputError("no such folder", where=source, next_step="put the scenes there")
    if not found:
        raise InputError(
            "no scene here", where=source, expected=f"files that end in {', '.join(RASTER_SUFFIXES)}"
        )
    refuse_clashes({address: Path(f"{PurePosixPath(address).stem}.tif") for address in found})
    dealt = [found[start::shards] for start in range(min(shards, len(found)))]
    items = []
    for number, scenes in enumerate(dealt):
        path = SHARDS / f"shard-{number}.json"
        write_json(path, {"scenes": scenes})
        items.append({"name": path.stem, "list": path.as_posix(), "digest": sha256_file(path)})
    return items


def read_shard(item: Item) -> list[str]:
    """The scenes of a shard.

    Raises:
        InputError: its list is gone or was written by another run.
    """
    path = Path(item["list"])
    expect("scenes", path, sha256_file(path) if path.is_file() else "", [item["digest"]])
    return list(read_json(path)["scenes"])


def predict_scenes(scenes: Sequence[str], model: str, out: str, config: dict[str, Any]) -> list[str]:
    """Maps scenes into the folder `out`; scenes of an object store are fetched first.

    Raises:
        InputError: as `predict`.
        PartlyDoneError: some are broken; all others are mapped.
    """
    stored = any(urlsplit(scene).scheme == "s3" for scene in scenes)  # all of one source
    local = [fetch_scene(scene) if stored else Path(scene) for scene in scenes]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    settings = load_config(PredictConfig, config, "predict")
    return [str(written) for written in predict(local, Path(model), folder, settings, own=not stored)]


def register_models(recipes: Sequence[str]) -> tuple[list[str], str]:
    """Registers the recipes' models; returns the promoted ones, and the decisions as Markdown."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", MLFLOW_RETRIES)
    params, catalog = inputs()
    outcomes = register(
        [catalog.recipe(name) for name in recipes],
        catalog,
        ARTIFACTS / "models",
        ARTIFACTS / "scores",
        ARTIFACTS / "registry",
        params.config(RegisterConfig, "register"),
    )
    lines = ["| recipe | version | promoted | champion | refused by |", "|---|---|---|---|---|"]
    for each in outcomes:
        refused = "; ".join(check.question for check in each.checks if not check.holds)
        promoted = "yes" if each.promoted else "no"
        lines.append(f"| {each.recipe} | {each.version} | {promoted} | {each.champion} | {refused} |")
    return [each.recipe for each in outcomes if each.promoted], "\n".join(lines) + "\n"


def _plan(step: str, name: str) -> str:
    return sha256_file(PLAN / step / f"{name}.json")


def _digests(domain: str) -> Path:
    return VALIDATION / "digests" / f"{domain}.json"


def _folder(domain: str) -> Path:
    return inputs()[1].domain_dir(DOMAINS, domain)


def _scenes_in_store(source: str) -> list[str]:
    """Addresses of the images below a prefix.

    Raises:
        InputError: one is of a kind that is not read from a store.
    """
    prefix = f"{source.rstrip('/')}/"

    def content(name: str) -> bytes:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "report.json"
            download(prefix + name, path)
            return path.read_bytes()

    names = [address.removeprefix(prefix) for address in list_objects(source) if address.startswith(prefix)]
    found = rasters_among(names, content)
    for name in found:
        if not name.lower().endswith(LONE_SUFFIXES):
            raise InputError(
                "a raster of a kind that may point to other files",
                where=prefix + name,
                expected=f"in a store {LONE_KINDS}",
                next_step=f"gdal_translate -of COG {shlex.quote(PurePosixPath(name).name)} "
                f"{shlex.quote(PurePosixPath(name).stem)}.tif where its files lie, and store that",
            )
    return [prefix + name for name in found]


def fetch_scene(address: str) -> Path:
    """Brings an image of a store here, with the files beside it that are read with it."""
    parts = urlsplit(address)
    path = SCENES / parts.netloc / parts.path.lstrip("/")
    download(address, path)
    name = path.name
    beside = sidecar_names(name)
    for other in list_objects(address.removesuffix(PurePosixPath(address).suffix)):
        other_name = other.removeprefix(address.removesuffix(name))
        if other_name.lower() in beside:
            sidecar = path.with_name(other_name)
            download(other, sidecar)
            if other.lower().endswith(".aux.xml"):
                sidecar.write_bytes(harmless(sidecar.read_bytes(), other))
    return path
