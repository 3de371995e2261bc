"""A against B on the same tiles."""

from dataclasses import replace
from pathlib import Path

import pytest
from results_factory import write_benchmark, write_fake_results

from crossearth.components.evaluate.results import read_results, write_results
from crossearth.components.report.compare import compare
from crossearth.components.report.show import comparison
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.errors import InputError


def test_a_better_model_is_found_better(catalog: Catalog, tmp_path: Path) -> None:
    write_benchmark(tmp_path / "a", catalog, 2, skill=0.5)
    write_benchmark(tmp_path / "b", catalog, 1, skill=0.75)
    found = compare([tmp_path / "a"], [tmp_path / "b"], catalog)
    assert [each.setting.abbr for each in found.differences if each.setting] == [
        "P(i)2V",
        "P(i)2P(r)",
        "P(i)2P(i)",
    ]
    for each in (*found.differences, found.mean):
        assert each.difference is not None and each.low is not None and each.high is not None
        assert each.low < each.difference < each.high
        assert each.low > 0 and each.p_value is not None and each.p_value < 0.01
    assert found.only_a == ("V2P(i)", "V2P(r)", "V2V") and found.only_b == ()


def test_the_same_model_is_no_better_than_itself(catalog: Catalog, tmp_path: Path) -> None:
    write_benchmark(tmp_path / "a", catalog, 1)
    found = compare([tmp_path / "a"], [tmp_path / "a"], catalog)
    assert {(each.difference, each.p_value) for each in found.differences} == {(0.0, 1.0)}


def test_other_tiles_cannot_be_compared(catalog: Catalog, tmp_path: Path) -> None:
    recipe = catalog.recipe("whu-aerial")
    write_fake_results(tmp_path / "a", catalog, recipe)
    write_fake_results(tmp_path / "b", catalog, recipe)
    result = read_results(tmp_path / "b")
    moved = tuple(replace(each, manifest_digest="f" * 64) for each in result.settings)
    write_results(replace(result, settings=moved))
    with pytest.raises(InputError, match="different tiles of whu-satellite"):
        compare([tmp_path / "a"], [tmp_path / "b"], catalog)


def test_nothing_in_common_is_said(catalog: Catalog, tmp_path: Path) -> None:
    write_fake_results(tmp_path / "a", catalog, catalog.recipe("whu-aerial"))
    write_fake_results(tmp_path / "b", catalog, catalog.recipe("casid-sub"))
    with pytest.raises(InputError, match="no setting in common"):
        compare([tmp_path / "a"], [tmp_path / "b"], catalog)


def test_a_target_without_the_foreground_has_no_difference(catalog: Catalog, tmp_path: Path) -> None:
    recipe = catalog.recipe("whu-aerial")
    for name, seed in (("a", 0), ("b", 1)):
        write_fake_results(tmp_path / name, catalog, recipe, seed=seed, absent=(1,))
    found = compare([tmp_path / "a"], [tmp_path / "b"], catalog)
    assert found.mean.difference is None and found.differences[0].p_value is None
    assert comparison(found, "a", "b")
