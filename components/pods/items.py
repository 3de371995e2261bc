"""What an item of a loop stands for: held against the workspace, and handed on with more behind it."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from crossearth.components.pods.workspace import expect, holds, inputs
from crossearth.components.runtime.places import DOMAINS, VALIDATION
from crossearth.data.common.files import digest, sha256_file
from crossearth.data.tiles.manifest import read_manifest
from crossearth.data.tiles.store import StoreConfig, pull, push

Item = dict[str, Any]  # with a name and the digest of all that its step depends on


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
    """Refuses domains of the workspace that are not those that were validated for an item (InputError)."""
    _expect_domains("ingest", item["domains"], [item["tiles"]])


def expect_datasets(items: Sequence[Item], keys: Sequence[str]) -> None:
    """Refuses (InputError) domains that are not what `ingest` made of the datasets and said in `keys`."""
    for item in items:
        _expect_domains(f"ingest {item['name']}", item["domains"], keys)


def stylize_items(recipes: Sequence[Item], shards: int, key: str) -> list[Item]:
    """One item per source domain and shard; `key`: digest of what `stylize` depends on besides the tiles."""
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


def _expect_domains(made_by: str, domains: Sequence[str], keys: Collection[str]) -> None:
    gone = next((folder for folder in map(_folder, domains) if not holds(folder)), None)
    expect(made_by, gone or DOMAINS, "" if gone else count_tiles(domains)[1], keys)


def _with_tiles(domains: set[str]) -> Item:
    """Domains and the digest of their manifests, as `expect_tiles` reads them."""
    return {"domains": sorted(domains), "tiles": count_tiles(sorted(domains))[1]}


def _digests(domain: str) -> Path:
    return VALIDATION / "digests" / f"{domain}.json"


def _folder(domain: str) -> Path:
    return inputs()[1].domain_dir(DOMAINS, domain)
