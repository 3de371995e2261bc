"""Whatever bytes or structures come from outside: a value or `InputError`, nothing else."""

import io
import json
import os
import pickle
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, integer_dtypes, unsigned_integer_dtypes

from crossearth.components.runtime.params import load_params
from crossearth.components.train.state import Checkpoints
from crossearth.data.catalog.labels import parse_labels
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.errors import InputError
from crossearth.data.raster.archives import index, read
from crossearth.data.style.earth import EarthStyles, StyleMoments
from crossearth.data.style.ghiasi import GhiasiEngine
from crossearth.data.style.weights import PREDICTOR_FILE, TRANSFER_FILE
from crossearth.data.tiles.manifest import read_manifest
from crossearth.model.weights.checkpoint import read_meta, read_tensors
from crossearth.model.weights.pickles import read_torch_file
from crossearth.pipelines.resources import load_values

bounded = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
    derandomize="CI" in os.environ,  # new examples are looked for where somebody can look at what they find
)
WORDS = ["domains", "settings", "class_sets", "town", "images", "masks", "labels", "tile", "px", "rule"]
WORDS += ["split", "bands", "image", "steps", "train", "memory", "secrets", "preset", "presets", "seed"]
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(WORDS)
)
structures = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | scalars, inner, max_size=5)
    ),
    max_leaves=20,
)
digits = st.integers(0, 99).map("{:02}".format)
# what YAML reads as dates, times and numbers, whether they are any or not
plain_words = (
    st.tuples(digits, digits, digits).map("20{0[0]}-{0[1]}-{0[2]}".format)
    | st.tuples(digits, digits, digits).map("2026-11-25T{0[0]}:{0[1]}:{0[2]}Z".format)
    | st.builds(
        "{}{}".format, st.sampled_from(["", "-", "0x", "0b", "0", "."]), st.text("0179af_:.e", max_size=9)
    )
    | st.builds(str.__mul__, digits, st.integers(1, 3000))
    | st.builds(
        "!!{} {}".format, st.sampled_from(["int", "float", "bool", "timestamp", "null", "set"]), digits
    )
    | st.builds(lambda mark, depth: mark * depth, st.sampled_from(["[", "{a: ", "- "]), st.integers(1, 9000))
)
documents = (
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "ignore"))
    | structures.map(lambda value: yaml.safe_dump(value).encode())
    | st.dictionaries(st.sampled_from(WORDS), plain_words, min_size=1, max_size=4).map(
        lambda words: "\n".join(f"{key}: {word}" for key, word in words.items()).encode()
    )
)


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """`whole` with bytes of it changed, or its end cut off."""
    places = st.integers(0, len(whole) - 1)

    def change(edits: list[tuple[int, int]], end: int) -> bytes:
        content = bytearray(whole)
        for place, value in edits:
            content[place] = value
        return bytes(content[:end])

    return st.builds(
        change, st.lists(st.tuples(places, st.integers(0, 255)), max_size=6), places | st.just(len(whole))
    )


def a_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/x.png", b"x" * 50)
        archive.writestr("a/y.png", b"y")
    return file.getvalue()


def a_tar(compression: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name in ("a/x.png", "a/y.png"):
            entry = tarfile.TarInfo(name)
            entry.size = 50
            archive.addfile(entry, io.BytesIO(b"x" * 50))
    return file.getvalue()


def a_torch_file(legacy: bool, content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def some_styles() -> bytes:
    moments = StyleMoments(2)
    moments.add(torch.arange(6.0).reshape(3, 2), ["0a"] * 3)
    with tempfile.TemporaryDirectory() as folder:
        return EarthStyles.from_moments(moments, "spectral").save(Path(folder, "a")).read_bytes()


@pytest.mark.parametrize(
    "load",
    [lambda path: load_catalog([path], path.parent), load_params, load_values],
    ids=["catalog", "params", "values"],
)
@bounded
@given(content=documents)
def test_yaml_files(load: Callable[[Path], object], tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    with suppress(InputError):
        load(path)


@bounded
@given(
    table=st.dictionaries(
        st.integers() | st.text(max_size=8), st.sampled_from(["a", "b", "ignore"]) | scalars
    ),
    raw=arrays(
        integer_dtypes() | unsigned_integer_dtypes() | st.sampled_from([np.dtype("f4"), np.dtype("f8")]),
        array_shapes(min_dims=2, max_dims=3, max_side=4),
    ),
)
def test_labels(table: dict[Any, Any], raw: Any) -> None:
    with suppress(InputError):
        assert parse_labels(table, ["a", "b"], "catalog").decode(raw).dtype == np.uint8


ARCHIVES = {
    "a.zip": a_zip(),
    "a.tar": a_tar(""),
    "a.tar.gz": a_tar("gz"),
    "a.tar.bz2": a_tar("bz2"),
    "a.tar.xz": a_tar("xz"),
}


@pytest.mark.parametrize(("name", "whole"), ARCHIVES.items(), ids=ARCHIVES)
@bounded
@given(data=st.data())
def test_archives(
    name: str, whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "in").mkdir()
    (folder / "in" / name).write_bytes(data.draw(st.binary(max_size=100) | damaged(whole)))
    with suppress(InputError):
        found = [read(member) for member in index(folder / "in", folder / "scratch")]
        # a plain tar has no checksum of what its files hold
        assert name == "a.tar" or found in ([], [b"x" * 50, b"x" * 50], [b"x" * 50, b"y"])
    assert {path.name for path in folder.iterdir()} <= {"in", "scratch"}


@pytest.mark.parametrize(
    "whole",
    [a_torch_file(legacy, {"a": torch.ones(3), "b": {"c": 1}}) for legacy in (False, True)],
    ids=["zip", "legacy"],
)
@bounded
@given(data=st.data())
def test_torch_files(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(data.draw(st.binary(max_size=100) | structures.map(pickle.dumps) | damaged(whole)))
    with suppress(InputError):
        read_torch_file(path)


@bounded
@given(content=st.binary(max_size=100) | damaged(some_styles()))
def test_earth_styles(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "earth.safetensors"
    path.write_bytes(content)
    with suppress(InputError):
        EarthStyles.load(path, "spectral")


@bounded
@given(
    content=st.binary(max_size=100)
    | structures.map(lambda value: a_torch_file(True, {"state_dict_ghiasi": value}))
    | damaged(a_torch_file(False, {"state_dict_ghiasi": {"a": torch.ones(3)}}))
    | damaged(a_torch_file(True, {"state_dict_ghiasi": {"a": torch.ones(3)}}))
)
def test_style_weights(tmp_path: Path, content: bytes) -> None:
    for name in (TRANSFER_FILE, PREDICTOR_FILE):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError):
        GhiasiEngine.from_dir(tmp_path)


@bounded
@given(
    content=documents | structures.map(lambda value: json.dumps(value, default=str, skipkeys=True).encode())
)
def test_models_manifests_and_states(tmp_path: Path, content: bytes) -> None:
    for name in ("model.json", "model.safetensors", "train.parquet", "step_00000001.safetensors"):
        (tmp_path / name).write_bytes(content)
    with suppress(InputError):
        read_meta(tmp_path)
    with suppress(InputError):
        list(read_tensors(tmp_path / "model.safetensors"))
    with suppress(InputError):
        read_manifest(tmp_path, "train")
    with suppress(InputError):
        Checkpoints(tmp_path, 1, {}).latest()
