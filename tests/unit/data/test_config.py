"""YAML from a user's hand: what is no YAML, and what would never end."""

from dataclasses import field
from pathlib import Path

import pytest

from crossearth.data.common.config import MAX_BYTES, checked, load_config, parse_yaml, read_yaml
from crossearth.data.common.errors import InputError


def test_aliases_and_merged_maps_are_read() -> None:
    assert parse_yaml("a: &a {b: 1, c: [2]}\nd: {<<: *a, b: 3}\ne: *a", "file") == {
        "a": {"b": 1, "c": [2]},
        "d": {"b": 3, "c": [2]},
        "e": {"b": 1, "c": [2]},
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: b: c", "mapping values"),
        ("a: 1\nb: 2\na: 3", "'a' stands twice"),
        ("? [a]\n: 1", "unhashable key"),
        ("day: 2026-13-45", "month must be in 1..12"),
        ("px: " + "9" * 5000, "4300 digits"),
        ("!!bool maybe", "maybe"),
        ("!!timestamp noon", "groupdict"),
        ('!!int ""', "index out of range"),
    ],
)
def test_what_is_no_yaml_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=f"^file: not valid YAML: (.|\n)*{problem}"):
        parse_yaml(text, "file")


@pytest.mark.parametrize("path", [Path("/dev/zero"), Path("/"), Path("a\0b"), Path("nowhere")])
def test_what_is_no_file_is_not_read(path: Path) -> None:
    with pytest.raises(InputError, match="cannot read: "):
        read_yaml(path)


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "long.yaml").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match=r"long\.yaml: cannot read: more than 1 MiB"):
        read_yaml(tmp_path / "long.yaml")
    (tmp_path / "full.yaml").write_text("#" * MAX_BYTES)
    assert read_yaml(tmp_path / "full.yaml") is None


def test_a_file_of_other_bytes_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"a\.yaml: cannot read: 'utf-8'"):
        read_yaml(tmp_path / "a.yaml")


@checked
class Inner:
    px: int = 1


@checked
class Numbers:
    count: int = 0
    share: float = 0.0
    enabled: bool = False
    most: int | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    bands: tuple[str, ...] | tuple[int, ...] | dict[str, int] = ()
    inner: Inner | None = None
    known: dict[str, Inner] = field(default_factory=dict)
    folder: Path | None = None


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("count: true", "file: count: Input should be a valid integer, found True"),
        ("count: '1'", "file: count: Input should be a valid integer, found '1'"),
        ("count: 1.5", "file: count: Input should be a valid integer, found 1.5"),
        ("count: .inf", "file: count: Input should be a valid integer, found inf"),
        ("count: null", "file: count: Input should be a valid integer, found None"),
        ("share: true", "file: share: Input should be a valid number, found True"),
        ("share: '0.5'", "file: share: Input should be a valid number, found '0.5'"),
        ("enabled: 1", "file: enabled: Input should be a valid boolean, found 1"),
        ("enabled: 'yes'", "file: enabled: Input should be a valid boolean, found 'yes'"),
        ("most: true", "file: most: Input should be a valid integer, found True"),
        ("scale: [1, true]", r"file: scale.1: Input should be a valid number, found True"),
        ("bands: [true, 1]", r"file: bands.0: Input should be a valid string, found True"),
        ("inner: {px: true}", "file: inner.px: Input should be a valid integer, found True"),
        ("inner: {py: 1}", "file: inner: unknown key 'py'"),
        ("known: {a: {px: '1'}}", "file: known.a.px: Input should be a valid integer, found '1'"),
    ],
)
def test_a_value_of_another_kind_is_not_made_to_fit(text: str, place: str) -> None:
    with pytest.raises(InputError, match=f"^{place}"):
        load_config(Numbers, parse_yaml(text, "file"), "file")


def test_every_way_to_write_a_number_is_one() -> None:
    text = (
        "{count: 3.0, share: 1e-4, most: 1e3, scale: [1, 2E0], bands: [3, 2, 1], inner: {px: 2}, folder: a}"
    )
    assert load_config(Numbers, parse_yaml(text, "file"), "file") == Numbers(
        3, 1e-4, False, 1000, (1.0, 2.0), (3, 2, 1), Inner(2), {}, Path("a")
    )
    assert parse_yaml("[1e-4, '1e-4', e4, 1e, v1e4]", "file") == [1e-4, "1e-4", "e4", "1e", "v1e4"]
