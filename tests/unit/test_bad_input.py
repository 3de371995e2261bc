"""A corpus of malformed inputs.

Each is refused by the command line with exit code 2, by the file or key and what is wrong with it, without a
traceback, and leaves nothing behind. What else a reader refuses stands in its own tests: here
are one or a few of each kind.
"""

import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hostile_archives import HOSTILE
from own_domain import NAME, own_domain, save

from crossearth.components.ingest.step import IngestConfig, ingest
from crossearth.components.styles.step import StylesConfig, fit_styles
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.files import verified, write_checksummed
from crossearth.data.tiles.manifest import read_manifest
from crossearth.model.crossearth import crossearth_tiny
from crossearth.model.weights import checkpoint
from crossearth.pipelines.cli import main

SIZES = {"embed": 48, "channels": 16, "mask_channels": 16, "decoder_layers": 1, "norm_groups": 4}
TASKS = {"mask_block_px": 16, "segmentation": {"num_points": 32}}
TRAIN = {
    "network": "tiny",
    "sizes": SIZES,
    "tasks": TASKS,
    "iterations": 1,
    "batch_size": 1,
    "crop_px": 32,
    "style": {"block_px": 16},
    "workers": 0,
}
SCENE, MODEL, DOMAIN = "scene.tif", "model", f"artifacts/domains/{NAME}/{NAME}"
PREDICT = f"predict {SCENE} --model {MODEL} --out map.tif --device cpu"
TRAINING = f"train {NAME} --catalog catalog.yaml"
Edit = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """Something that is wrong in a user's folder, what the user types, and words of the answer."""

    edit: Edit
    command: str
    words: tuple[str, ...]


class Runs:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def nothing(_: Path) -> None: ...


def text(path: str, content: str | bytes) -> Edit:
    def edit(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())

    return edit


def written(path: str, make: Callable[[], bytes]) -> Edit:
    return lambda folder: text(path, make())(folder)


def plain(words: str) -> list[str]:
    """The texts that a regular expression joins."""
    return words.split(".*")


def cut(path: str, share: float = 0.5) -> Edit:
    def edit(folder: Path) -> None:
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[: int(len(content) * share)])

    return edit


def removed(path: str) -> Edit:
    def edit(folder: Path) -> None:
        place = folder / path
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    return edit


def several(*edits: Edit) -> Edit:
    return lambda folder: [edit(folder) for edit in edits]


def entry(**changes: Any) -> Edit:
    """Changes keys of the domain in the catalog; None takes one away."""

    def edit(folder: Path) -> None:
        known = yaml.safe_load((folder / "catalog.yaml").read_text())
        known["domains"][NAME] |= changes
        known["domains"][NAME] = {
            key: value for key, value in known["domains"][NAME].items() if value is not None
        }
        (folder / "catalog.yaml").write_text(yaml.safe_dump(known))

    return edit


def beside(**sections: Any) -> Edit:
    """Adds sections to the catalog."""

    def edit(folder: Path) -> None:
        known = yaml.safe_load((folder / "catalog.yaml").read_text())
        (folder / "catalog.yaml").write_text(yaml.safe_dump(known | sections))

    return edit


def numbers(**changes: Any) -> Edit:
    """Changes numbers of the training."""

    def edit(folder: Path) -> None:
        params = {"preset": "mine", "presets": {"mine": {"train": {**TRAIN, **changes}}}}
        (folder / "params.yaml").write_text(yaml.safe_dump(params))

    return edit


def rows(change: Callable[[list[dict[str, Any]]], object]) -> Edit:
    """Changes rows of the manifest."""

    def edit(folder: Path) -> None:
        written = read_manifest(folder / DOMAIN, "train")
        change(written.rows)
        table = pa.Table.from_pylist(written.rows, written.table.schema)
        pq.write_table(table, folder / DOMAIN / "train.parquet")

    return edit


def described(**changes: Any) -> Edit:
    """Changes keys of model.json; None takes one away."""

    def edit(folder: Path) -> None:
        path = folder / MODEL / "model.json"
        meta = verified(json.loads(path.read_text()), path) | changes
        write_checksummed(path, {key: meta[key] for key in meta if changes.get(key, meta) is not None})

    return edit


def network(**changes: Any) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / MODEL / "model.json"
        meta = verified(json.loads(path.read_text()), path)
        meta["network"] |= changes
        write_checksummed(path, meta)

    return edit


def zipped(path: str, **members: bytes) -> Edit:
    def edit(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name.replace("__", "/").replace("UP", ".."), content)

    return edit


SETTINGS, INGEST = "settings --catalog catalog.yaml", f"ingest {NAME} --catalog catalog.yaml"
LOVEDA = "artifacts/archives/loveda"
TILE = f"{DOMAIN}/{{}}"
LIST = "pipeline list --host"
VALUES = "pipeline compile training -o out.yaml --values values.yaml"

CASES = {
    # catalogs
    "catalog: no file": Case(removed("catalog.yaml"), SETTINGS, ("catalog.yaml", "cannot read")),
    "catalog: a folder": Case(nothing, "settings --catalog images", ("images",)),
    "catalog: broken YAML": Case(text("catalog.yaml", "domains: ["), SETTINGS, ("catalog.yaml", "YAML")),
    "catalog: code in YAML": Case(
        text("catalog.yaml", "domains: !!python/object/apply:os.system ['touch pwned']"),
        SETTINGS,
        ("python",),
    ),
    "catalog: unknown key": Case(entry(imagse="x"), SETTINGS, ("town", "'imagse'", "'images'")),
    "catalog: unknown split": Case(entry(split="validation"), INGEST, ("validation",)),
    "catalog: nodata in words": Case(entry(nodata="black"), SETTINGS, ("nodata", "black")),
    # numbers
    "params: a list": Case(text("params.yaml", "- 1"), TRAINING, ("params.yaml", "dictionary")),
    "params: numbers of a recipe that are none": Case(
        text("params.yaml", "preset: a\npresets: {a: {recipes: {town: 5}}}"), TRAINING, ("recipes.town", "5")
    ),
    "params: numbers of an unknown recipe": Case(
        text("params.yaml", "preset: a\npresets: {a: {recipes: {twon: {lr: 0.1}}}}"),
        TRAINING,
        ("'twon'", "'town'"),
    ),
    "params: numbers of an unknown recipe of another preset": Case(
        text("params.yaml", "preset: a\npresets: {a: {}, b: {recipes: {potsdam-rbg: {lr: 0.1}}}}"),
        "evaluate town --catalog catalog.yaml",
        ("presets.b.recipes", "'potsdam-rbg'", "'potsdam-rgb'"),
    ),
    "params: dvc's unknown recipe": Case(
        text("params.yaml", "preset: a\npresets: {a: {}}\ndvc: {recipes: [potsdam-rbg]}"),
        "settings",
        ("dvc.recipes", "'potsdam-rbg'", "'potsdam-rgb'"),
    ),
    "params: a misspelt style of training": Case(
        text("params.yaml", "preset: a\npresets: {a: {train: {stlye: {alpha: 0.1}}}}"),
        "styles coverage",
        ("presets.a.train", "'stlye'", "'style'"),
    ),
    "params: a date where a number should be": Case(
        numbers(lr=date(2026, 1, 1)), "pipeline compile benchmark -o out.yaml", ("presets.mine.train", "lr")
    ),
    "params: a wrong number of a later step": Case(
        text("params.yaml", "preset: a\npresets: {a: {report: {worst_tiles: -1}}}"), "plan", ("worst_tiles",)
    ),
    "params: none for a pipeline": Case(
        removed("params.yaml"), "pipeline compile benchmark -o out.yaml", ("params.yaml", "--params")
    ),
    "params: no iterations": Case(numbers(iterations=0), TRAINING, ("iterations", "0")),
    "params: precision": Case(numbers(precision="fp8"), TRAINING, ("precision", "bfloat16")),
    "params: no backbone": Case(numbers(backbone="vit.safetensors"), TRAINING, ("vit.safetensors",)),
    "params: styles of another engine": Case(
        numbers(style={"engine": "ghiasi", "block_px": 16}), TRAINING, ("ghiasi",)
    ),
    "params: seed": Case(nothing, f"{TRAINING} --seed -1", ("seed", "-1")),
    "params: seed that no generator takes": Case(nothing, f"{TRAINING} --seed {2**63}", ("seed", f"{2**63}")),
    "params: unknown recipe": Case(nothing, "train twon --catalog catalog.yaml", ("twon", "'town'")),
    # images and labels
    "ingest: images are a file": Case(several(removed("images"), text("images", "x")), INGEST, ("images",)),
    "ingest: no masks": Case(removed("masks"), INGEST, ("masks",)),
    "ingest: a mask too few": Case(removed("masks/scene_3.png"), INGEST, ("scene_3",)),
    "ingest: nothing for an image": Case(text("images/scene_3.tif", ""), INGEST, ("scene_3.tif",)),
    "ingest: two images of one name": Case(
        lambda folder: shutil.copy(folder / "images/scene_3.tif", folder / "images/scene_3.TIFF"),
        INGEST,
        ("scene_3",),
    ),
    "ingest: unknown domain": Case(nothing, "ingest twon --catalog catalog.yaml", ("twon", "'town'")),
    # archives
    "archive: none": Case(nothing, "ingest loveda", ("loveda", "archives")),
    "archive: a broken provenance": Case(
        several(zipped(f"{LOVEDA}/Train.zip", a=b"x"), text(f"{LOVEDA}/PROVENANCE.json", "{")),
        "ingest loveda",
        ("PROVENANCE.json", "not JSON"),
    ),
    "archive: an unknown provenance": Case(
        several(zipped(f"{LOVEDA}/Train.zip", a=b"x"), text(f"{LOVEDA}/PROVENANCE.json", "{}")),
        "ingest loveda",
        ("PROVENANCE.json", "provenance None", "publisher"),
    ),
    "archive: other files": Case(zipped(f"{LOVEDA}/Train.zip", a=b"x"), "ingest loveda", ("loveda",)),
    "archive: of a kind that is not read": Case(
        text(f"{LOVEDA}/Train.7z", b"7z\xbc\xaf"), "ingest loveda", ("7z x",)
    ),
    **{
        f"archive: {case}": Case(written(f"{LOVEDA}/{name}", make), "ingest loveda", (name, *plain(words)))
        for case, (name, make, words) in HOSTILE.items()
    },
    # manifests and tiles
    "manifest: none": Case(removed(DOMAIN), TRAINING, (NAME, "crossearth ingest")),
    "manifest: another table": Case(
        lambda folder: pq.write_table(pa.table({"a": [1]}), folder / DOMAIN / "train.parquet"),
        TRAINING,
        ("train.parquet",),
    ),
    "manifest: no rows": Case(rows(lambda found: found.clear()), TRAINING, ("train", NAME)),
    "manifest: another row": Case(
        rows(lambda found: found[0].update(class_pixels=[0, 9])), TRAINING, ("train.parquet", "digest")
    ),
    # models
    "model: none": Case(removed(MODEL), PREDICT, ("model", "no such")),
    "model: no network": Case(described(network=None), PREDICT, ("model.json", "network")),
    "model: an enormous network": Case(
        network(depth=10**9), PREDICT, ("depth", "less than or equal to 1000")
    ),
    "model: a header that lies": Case(
        text("model/model.safetensors", struct.pack("<Q", 2**60) + b"{}"), PREDICT, ("model.safetensors",)
    ),
    "model: a pickle for weights": Case(
        text("model/model.safetensors", pickle.dumps(Runs())), PREDICT, ("model.safetensors",)
    ),
    "model: not from the registry": Case(
        nothing, f"predict {SCENE} --model models:/x@champion --out m.tif", ("registry",)
    ),
    "model: a registry's address": Case(
        nothing, f"predict {SCENE} --model models:/x --out m.tif", ("models:/",)
    ),
    # released checkpoints
    "convert: a pickle that runs": Case(
        lambda folder: torch.save({"state_dict": Runs()}, folder / "a.pth"),
        "convert a.pth --out m --backbone b.pth --class-set road",
        ("a.pth", "system"),
    ),
    "convert: unknown class set": Case(
        lambda folder: torch.save({"a": torch.ones(9)}, folder / "a.pth"),
        "convert a.pth --out m --backbone b.pth --class-set raod",
        ("raod", "'road'"),
    ),
    # scenes
    "scene: none": Case(removed(SCENE), PREDICT, (SCENE, "no such scene")),
    "scene: bands in words": Case(nothing, f"{PREDICT} --bands red", ("bands", "red")),
    "scene: range without an end": Case(nothing, f"{PREDICT} --value-range 0,inf", ("inf", "finite")),
    "scene: a file where the map's folder should be": Case(
        nothing, f"predict {SCENE} --model {MODEL} --out {SCENE}/map.tif", (SCENE, "a file lies where")
    ),
    "scene: a folder where the preview should be": Case(
        several(text("map.png/x", ""), removed("map.png/x")), PREDICT, ("map.png", "move it away")
    ),
    "scene: a name too long": Case(
        nothing, f"predict {SCENE} --model {MODEL} --out {'m' * 300}.tif", ("mmm", "shorter")
    ),
    "scene: no crops at a time": Case(nothing, f"{PREDICT} --batch-size 0", ("batch",)),
    # styles
    "styles: a name that is no UTF-8": Case(
        text(f"x/{os.fsdecode(bytes([255]))}.tif", ""), "styles fit x", ("x/\\xff.tif", "not UTF-8")
    ),
    "styles: shard": Case(nothing, "styles fit images --shard 3/3", ("shard 3 of 3", "0 <= index")),
    "styles: none for a training": Case(
        several(removed("artifacts/styles"), numbers(ablation="+style")), TRAINING, ("styles",)
    ),
    "styles: half of them": Case(
        several(cut("artifacts/styles/earth.safetensors"), numbers(ablation="+style")),
        TRAINING,
        ("earth.safetensors",),
    ),
    "styles: an image that is none": Case(
        text("bad.tif", "no image"), "styles show bad.tif", ("bad.tif", "not an image that can be read")
    ),
    "styles: a folder where the sheet should be": Case(
        text("sheet.png/x", ""),
        "styles show images/scene_0.tif --out sheet.png",
        ("sheet.png", "a folder where a file"),
    ),
    "plan: a file where its folder should be": Case(
        text("artifacts/plan", "mine"), "plan", ("artifacts/plan", "a file lies where a folder should")
    ),
    "stylize: unknown domain": Case(nothing, "stylize twon --catalog catalog.yaml", ("twon", "'town'")),
    # results
    "report: no results": Case(nothing, "report", ("scores",)),
    "report: damaged results": Case(text("artifacts/scores/a/scores.json", "{"), "report", ("scores",)),
    "show: unknown recipe": Case(nothing, "show twon --catalog catalog.yaml", ("twon",)),
    "compare: no such results": Case(nothing, "compare a b", ("a",)),
    "evaluate: no model": Case(nothing, f"evaluate {NAME} --catalog catalog.yaml", ("models/town",)),
    "register: nothing trained": Case(nothing, f"register {NAME} --catalog catalog.yaml", (NAME,)),
    "rollback: nothing registered": Case(nothing, f"rollback {NAME} --catalog catalog.yaml", (NAME,)),
    "register: a slash in the prefix": Case(
        text("params.yaml", "preset: a\npresets: {a: {register: {prefix: a/b}}}"),
        f"register {NAME} --catalog catalog.yaml",
        ("prefix", "a/b"),
    ),
    "push: no address": Case(nothing, f"push {NAME} --catalog catalog.yaml --store /mnt", ("s3://",)),
    # pipelines
    "pipeline: unknown": Case(nothing, "pipeline compile trianing -o out.yaml", ("trianing", "training")),
    "pipeline: no values file": Case(nothing, VALUES, ("values.yaml", "cannot read")),
    "pipeline: values that run": Case(
        text("values.yaml", "image: !!python/object/apply:os.system ['touch pwned']"), VALUES, ("python",)
    ),
    "pipeline: a password in plain sight": Case(
        text("values.yaml", "image: a\nenvironment: {S3_PASSWORD: x}"), VALUES, ("S3_PASSWORD", "Secret")
    ),
    "pipeline: a folder of the YAML's name": Case(
        nothing, "pipeline compile training -o images", ("images", "a folder where a file")
    ),
    "pipeline: a port in words": Case(nothing, f"{LIST} http://x:port", ("http://x:port", "nonnumeric port")),
    "pipeline: a host with a gap": Case(nothing, f"{LIST} http://", ("http://", "no host")),
    "ingest: a file named artifacts": Case(
        several(removed("artifacts"), text("artifacts", "")),
        f"ingest {NAME} --catalog catalog.yaml",
        ("artifacts/domains", "Not a directory"),
    ),
    "ingest: a file where the domain's folder should be": Case(
        several(removed(DOMAIN), text(DOMAIN, "mine")), INGEST, (DOMAIN, "Not a directory")
    ),
    "pipeline: unknown recipe": Case(nothing, "pipeline run training --recipe twon", ("twon",)),
    "pipeline: a host": Case(
        text("values.yaml", "image: a@sha256:" + "0" * 64),
        "pipeline submit training --values values.yaml --host ftp://x",
        ("ftp://x", "http"),
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder in which everything is well."""
    folder = tmp_path_factory.mktemp("sound")
    own_domain(folder, num=4)
    beside(settings={"T2T": {"source": NAME, "target": NAME, "gap": "in-domain"}})(folder)
    known = load_catalog([folder / "catalog.yaml"], folder)
    numbers()(folder)
    ingest([NAME], known, folder, folder / "artifacts/domains", IngestConfig(workers=1))
    fit_styles(folder / "images", folder / "artifacts/styles", StylesConfig())
    about = {"classes": ["background", "road"], "palette": ["#000000", "#ffffff"], "provenance": "own"}
    checkpoint.save(crossearth_tiny(2, 32, crop_px=32, stride_px=32, **SIZES), folder / MODEL, about)
    save(folder / SCENE, np.full((3, 64, 64), 50, np.uint8))
    (folder / "masks/none").mkdir()
    return folder


def tree(folder: Path) -> dict[Path, bytes | None]:
    """Every file and folder below `folder`."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_by_name_and_leaves_nothing(
    name: str,
    sound: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case, folder = CASES[name], tmp_path / "user"
    shutil.copytree(sound, folder, symlinks=True)
    case.edit(folder)
    before = tree(tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CROSSEARTH_DATA", str(folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db")
    monkeypatch.setattr(sys, "argv", ["crossearth", *case.command.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    said = " ".join(capsys.readouterr().err.split())
    assert stop.value.code == 2, said
    assert "Traceback" not in said
    for word in case.words:
        assert word in said
    assert tree(tmp_path) == before


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 100
