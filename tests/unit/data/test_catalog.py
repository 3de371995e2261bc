"""The catalog: what is in it, and what of a user's file is refused and how."""

import csv
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from crossearth.data.catalog.colours import distinct_colours
from crossearth.data.catalog.domains import (
    Catalog,
    ClassSet,
    Masks,
    OwnFiles,
    PublishedScore,
    Recipe,
    Tiling,
)
from crossearth.data.catalog.loader import MAX_CLASSES, load_catalog
from crossearth.data.common.errors import InputError

CATALOG = load_catalog()
PAPER = Path(__file__).parents[2] / "paper"
POTSDAM = (
    "2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 "
    "6_7 6_8 6_9 6_10 6_11 6_12 7_7 7_8 7_9 7_10 7_11 7_12",
    "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13",
)
VAIHINGEN = ("1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37", "2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38")
OWN: dict[str, Any] = {
    "images": "town/images",
    "masks": "town/masks",
    "class_set": "road",
    "labels": {0: "background", 1: "road"},
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str = "own.yaml", **sections: Any) -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(sections, sort_keys=False))
        return path

    return written


def refused(path: Path | list[Path], problem: str) -> str:
    with pytest.raises(InputError, match=problem) as caught:
        load_catalog(path if isinstance(path, list) else [path])
    return str(caught.value)


def test_32_settings_14_recipes_14_labelled_domains_and_a_style_source() -> None:
    assert len(CATALOG.settings) == 32
    assert len(CATALOG.recipes()) == 14
    unlabelled = [name for name, domain in CATALOG.domains.items() if domain.class_set is None]
    assert unlabelled == ["million-aid"]
    used = {name for setting in CATALOG.settings.values() for name in (setting.source, setting.target)}
    assert len(used) == 14
    assert used <= CATALOG.domains.keys() - {*unlabelled}
    assert {domain.dataset for domain in CATALOG.domains.values()} == set(CATALOG.datasets)


def paper(name: str) -> list[dict[str, str]]:
    with (PAPER / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_settings_are_the_papers() -> None:
    found = []
    for setting in CATALOG.settings.values():
        source, target = CATALOG.domain(setting.source), CATALOG.domain(setting.target)
        about = asdict(setting) | {
            "num_classes": len(CATALOG.class_sets[setting.class_set].classes),
            "train_tiles": source.files("train").tiles,
            "test_tiles": target.files("test").tiles,
            "tile_px": source.tile.px,
        }
        found.append({name: str(value) for name, value in about.items()})
    assert [about.pop("own") for about in found] == ["False"] * 32
    assert found == paper("settings.csv")


def test_the_published_scores_are_the_papers() -> None:
    printed = [
        (
            row["setting"],
            PublishedScore(
                row["method"],
                float(row["miou"]),
                tuple(map(float, row["per_class_iou"].split())) or None,
                row["certainty"],
            ),
        )
        for row in paper("scores.csv")
    ]
    found = [(abbr, score) for abbr in CATALOG.settings for score in CATALOG.scores[abbr]]
    assert sorted(found, key=str) == sorted(printed, key=str)


@pytest.mark.parametrize(
    ("domain", "train", "test"),
    [("potsdam-rgb", *POTSDAM), ("potsdam-irrg", *POTSDAM), ("vaihingen-irrg", *VAIHINGEN)],
)
def test_the_scenes_of_both_splits_are_the_papers(domain: str, train: str, test: str) -> None:
    assert CATALOG.domain(domain).files("train").scenes == tuple(train.split())
    assert CATALOG.domain(domain).files("test").scenes == tuple(test.split())


def test_recipes_take_the_sources_name_unless_the_class_set_is_another() -> None:
    recipes = CATALOG.recipes()
    assert recipes["potsdam-rgb"].class_set == "isprs"
    rescue = recipes["potsdam-rgb-rescue"]
    assert (rescue.source, rescue.class_set, [item.abbr for item in rescue.settings]) == (
        "potsdam-rgb",
        "rescue",
        ["P(r)2Res"],
    )
    assert sum(len(recipe.settings) for recipe in recipes.values()) == 32


def test_published_means_agree_with_their_classes() -> None:
    # two printed means of MTP differ from those of its printed classes
    odd = {("P(i)2V", "MTP"), ("V2P(r)", "MTP")}
    for abbr in CATALOG.settings:
        for score in CATALOG.scores[abbr]:
            if score.per_class_iou and (abbr, score.method) not in odd:
                mean = sum(score.per_class_iou) / len(score.per_class_iou)
                assert mean == pytest.approx(score.miou, abs=0.1), abbr


def test_the_bands_of_irrg_start_with_near_infrared() -> None:
    for name in ("potsdam-irrg", "vaihingen-irrg"):
        assert CATALOG.domain(name).bands == ("near infrared", "red", "green")
    assert CATALOG.domain("potsdam-rgb").bands == ("red", "green", "blue")


def test_keys_and_scenes_of_the_publishers_names() -> None:
    potsdam, casid = CATALOG.domain("potsdam-irrg"), CATALOG.domain("casid-sub")
    assert (
        potsdam.key_of("top_potsdam_2_10_irrg")
        == potsdam.key_of("top_potsdam_2_10_label_noboundary")
        == "2_10"
    )
    assert CATALOG.domain("vaihingen-irrg").key_of("top_mosaic_09cm_area7_noboundary") == "7"
    assert CATALOG.domain("deepglobe").key_of("100034_sat") == CATALOG.domain("deepglobe").key_of(
        "100034_mask"
    )
    assert CATALOG.domain("rescuenet").key_of("10778_lab") == "10778"
    assert casid.key_of("city0012_07-label") == "city0012_07"
    assert casid.scene_of("city0012_07") == casid.scene_of("city0012_24") == "city0012"
    assert casid.scene_of("a_3_0_4") == casid.scene_of("a_3_2_1") == "a_3"
    assert casid.scene_of("nameless") == "nameless"


def test_names_that_are_not_known_bring_the_nearest() -> None:
    for look, name, expected in (
        (CATALOG.domain, "potsdam-rbg", "'potsdam-rgb'?"),
        (CATALOG.setting, "P(i)2W", "'P(i)2V'?"),
        (CATALOG.recipe, "casid-subb", "'casid-sub'?"),
        (CATALOG.dataset, "lovdea", "'loveda'?"),
    ):
        with pytest.raises(InputError) as caught:
            look(name)
        assert f"unknown {look.__name__} {name!r}" in str(caught.value)
        assert expected in str(caught.value)


def test_a_users_folders_become_a_domain_a_dataset_and_recipes(write: Write, tmp_path: Path) -> None:
    path = write(
        domains={"town": OWN | {"bands": [4, 3, 2], "value_range": [0, 4095], "gsd_m": 0.5}},
        settings={"Town2D": {"source": "town", "target": "massachusetts", "gap": "dry season, nadir"}},
    )
    catalog = load_catalog([path], tmp_path)
    town = catalog.domain("town")
    assert town.own == OwnFiles(tmp_path / "town/images", Masks("files", tmp_path / "town/masks"))
    assert (town.dataset, town.band_indexes, town.value_range) == ("town", (4, 3, 2), (0.0, 4095.0))
    assert town.splits == ("train", "test")
    assert town.tile == Tiling(512, "cut")
    assert town.labels is not None and town.labels.table == ((0, 0), (1, 1))
    assert catalog.recipe("town") == Recipe("town", "town", "road", (catalog.setting("Town2D"),))
    assert len(catalog.settings) == 33
    assert catalog.setting("Town2D").gap == "dry season, nadir"


@pytest.mark.parametrize(
    ("split", "by", "splits"),
    [
        ("train", "train", ("train",)),
        ("test", "test", ("test",)),
        ("town/split.csv", "file", ("train", "test")),
        ({"by": "block", "test": 0.4}, "block", ("train", "test")),
    ],
)
def test_a_users_split(write: Write, tmp_path: Path, split: Any, by: str, splits: tuple[str, ...]) -> None:
    town = load_catalog([write(domains={"town": OWN | {"split": split}})], tmp_path).domain("town")
    assert town.own is not None
    assert (town.own.by, town.splits) == (by, splits)
    assert town.own.file == (tmp_path / "town/split.csv" if by == "file" else None)


def test_one_split_of_a_publisher_may_list_its_scenes(write: Write) -> None:
    files = {"images": "*.png", "scenes": ["a", "b"]}
    path = write(domains={"town": {"dataset": "loveda", "train": files}})
    assert load_catalog([path]).domain("town").files("train").scenes == ("a", "b")
    both = write(domains={"town": {"dataset": "loveda", "train": files, "test": files}})
    refused(both, "scenes in both splits: a, b")


def test_a_users_class_set_gets_a_palette(write: Write) -> None:
    path = write(class_sets={"farm": {"classes": ["other", "field", "barn"]}})
    farm = load_catalog([path]).class_sets["farm"]
    assert isinstance(farm, ClassSet)
    assert len(set(farm.palette)) == 3


def test_files_may_stand_in_any_order(write: Write) -> None:
    settings = write(
        "a.yaml", settings={"T2M": {"source": "town", "target": "massachusetts", "gap": "region"}}
    )
    domains = write("b.yaml", domains={"town": OWN})
    assert load_catalog([settings, domains]) == load_catalog([domains, settings])


def test_the_readmes_road_domains_are_nine_settings(
    documented: Callable[[str], list[str]], tmp_path: Path
) -> None:
    roads = tmp_path / "roads.yaml"
    roads.write_text(documented("yaml")[0])
    catalog = load_catalog([roads])
    own = [setting for abbr, setting in catalog.settings.items() if abbr not in CATALOG.settings]
    assert [setting.gap for setting in own].count("in-domain") == 3
    assert len(own) == 9
    assert list(catalog.recipes())[14:] == ["road-epfl", "road-vegas", "road-shanghai"]
    assert catalog.domain("road-shanghai").nodata == 0


TOWN = {"source": "town", "target": "massachusetts", "gap": "region"}
BROKEN = {
    "no map": (["a"], "not a map"),
    "section": ({"domain": {}}, r"unknown key 'domain'\n  expected: 'domains'"),
    "key": (
        {"domains": {"town": OWN | {"imges": "x"}}},
        r"domains.town: unknown key 'imges'\n  expected: 'images'",
    ),
    "tile key": (
        {"domains": {"town": OWN | {"tile": {"px": 9, "rul": "cut"}}}},
        r"town: tile: unknown key 'rul'",
    ),
    "tile rule": ({"domains": {"town": OWN | {"tile": {"px": 9, "rule": "slice"}}}}, "tile.rule.*'slice'"),
    "tile px": ({"domains": {"town": OWN | {"tile": {"px": 0}}}}, "tile.px: .*greater than 0, found 0"),
    "name": ({"domains": {"my town": OWN}}, "'my town' is no name"),
    "path as name": ({"domains": {"../town": OWN}}, "is no name"),
    "class set": (
        {"domains": {"town": OWN | {"class_set": "roads"}}},
        r"unknown class set 'roads'\n.*'road'\?",
    ),
    "no class set": ({"domains": {"town": OWN | {"class_set": None}}}, "no class set given"),
    "label class": (
        {"domains": {"town": OWN | {"labels": {1: "raod"}}}},
        r"town: labels: unknown class 'raod'",
    ),
    "masks without labels": (
        {"domains": {"town": OWN | {"labels": None}}},
        "`masks` and `labels` go together",
    ),
    "no images": ({"domains": {"town": {"class_set": "road"}}}, "neither or both of where its images are"),
    "both": (
        {"domains": {"town": OWN | {"train": {"images": "*"}}}},
        "neither or both of where its images are",
    ),
    "dataset": (
        {"domains": {"town": {"dataset": "lovdea", "train": {"images": "*"}}}},
        r"'lovdea'\n.*'loveda'\?",
    ),
    "dataset's name": ({"domains": {"loveda": OWN}}, "is the name of a dataset"),
    "bands": ({"domains": {"town": OWN | {"bands": [1, 2]}}}, r"town: bands: \(1, 2\)"),
    "band 0": ({"domains": {"town": OWN | {"bands": [0, 1, 2]}}}, r"town: bands: \(0, 1, 2\)"),
    "value range": ({"domains": {"town": OWN | {"value_range": [9, 9]}}}, "value_range"),
    "gsd": ({"domains": {"town": OWN | {"gsd_m": 0}}}, "gsd_m: .* greater than 0, found 0"),
    "split rule": ({"domains": {"town": OWN | {"split": {"by": "chance"}}}}, "split.*'chance'"),
    "split share": (
        {"domains": {"town": OWN | {"split": {"test": 1.0}}}},
        "split: test: .* less than 1, found 1.0",
    ),
    "split": ({"domains": {"town": OWN | {"split": 3}}}, "split: 3"),
    "dataset's name in capitals": ({"domains": {"LoveDA": OWN}}, "is the name of a dataset"),
    "another dataset's name": (
        {"domains": {"whu": {"dataset": "loveda", "train": {"images": "*"}}}},
        "'whu' is the name of a dataset",
    ),
    "name in capitals": ({"domains": {"a": OWN, "A": OWN}}, "domains.a: a second entry .*almost: 'A'"),
    "setting in capitals": ({"settings": {"d2m": TOWN}}, "settings.d2m: a second entry .*almost: 'D2M'"),
    "setting in other signs": ({"settings": {"P[i]2V": TOWN}}, r"a second entry .*almost: 'P\(i\)2V'"),
    "name of a training's time": ({"domains": {"a.timing.json": OWN}}, "ends neither in"),
    "name of a training's states": ({"domains": {"a.checkpoints": OWN}}, "keeps its states in"),
    "regex": ({"domains": {"town": OWN | {"scene": "(a"}}}, "no regular expression"),
    "lookahead": (
        {"domains": {"town": OWN | {"scene": "(a)(?=b)"}}},
        "neither lookaround nor references back",
    ),
    "group": ({"domains": {"town": OWN | {"scene": "a+"}}}, "'a\\+' has no group"),
    "lossy": ({"domains": {"town": OWN | {"lossy_labels": ["a"]}}}, "only colours can be snapped"),
    "known domain": ({"domains": {"deepglobe": OWN}}, "a second entry of the name 'deepglobe'"),
    "known setting": ({"settings": {"D2M": TOWN}}, "a second entry of the name 'D2M'"),
    "source": ({"settings": {"A": TOWN}}, r"settings.A: source: unknown domain 'town'"),
    "source without train": (
        {"settings": {"A": TOWN | {"source": "rescuenet"}}},
        "rescuenet has no train split",
    ),
    "target without test": (
        {"settings": {"A": TOWN | {"source": "deepglobe", "target": "deepglobe"}}},
        "deepglobe has no test split",
    ),
    "no labels": ({"settings": {"A": TOWN | {"source": "million-aid"}}}, "million-aid has no labels"),
    "class sets": (
        {"settings": {"A": TOWN | {"source": "whu-aerial"}}},
        r"settings.A: domain massachusetts: labels of class set 'road' do not become those of 'building'",
    ),
    "gap": ({"settings": {"A": TOWN | {"source": "deepglobe", "gap": " "}}}, "gap: ' '"),
    "gap of signs": ({"settings": {"A": TOWN | {"source": "deepglobe", "gap": "?"}}}, r"gap: '\?'"),
    "gap of the seen": (
        {"settings": {"A": TOWN | {"source": "deepglobe", "gap": "in-domain"}}},
        "'in-domain' is another mean of the report",
    ),
    "abbreviation": ({"settings": {"A B": TOWN}}, "'A B' is no abbreviation"),
    "score": (
        {
            "settings": {
                "A": TOWN | {"source": "deepglobe", "published": {"X": {"miou": 101, "certainty": "?"}}}
            }
        },
        "published.X: miou: .*100, found 101",
    ),
    "scores": (
        {
            "settings": {
                "A": TOWN
                | {"source": "deepglobe", "published": {"X": {"miou": 1, "per_class": [1], "certainty": "?"}}}
            }
        },
        "1 scores per class",
    ),
    "classes": ({"class_sets": {"a": {"classes": ["x", "x"]}}}, r"class_sets.a: classes: x more than once"),
    "one class": ({"class_sets": {"a": {"classes": ["x"]}}}, "1 classes\n  expected: 2 to"),
    "ignore": ({"class_sets": {"a": {"classes": ["x", "ignore"]}}}, "'ignore' is no class"),
    "palette": ({"class_sets": {"a": {"classes": ["x", "y"], "palette": ["#000000"]}}}, "palette"),
    "primary_metric": (
        {"class_sets": {"a": {"classes": ["x", "y", "z"], "primary_metric": "foreground"}}},
        "primary_metric",
    ),
    "map": (
        {"class_sets": {"a": {"classes": ["x", "y"], "maps": {"road": {"road": "x"}}}}},
        "'background' of road is not",
    ),
    "map to": (
        {"class_sets": {"a": {"classes": ["x", "y"], "maps": {"road": {"background": "x", "road": "q"}}}}},
        r"maps.road: unknown class 'q'",
    ),
    "map from": (
        {"class_sets": {"a": {"classes": ["x", "y"], "maps": {"roads": {}}}}},
        "unknown class set 'roads'",
    ),
    "archive": (
        {"datasets": {"a": {"title": "A", "archives": [{"nam": "x"}]}}},
        r"archives.0: unknown key 'nam'",
    ),
    **{
        f"archive's name {name!r}": (
            {"datasets": {"a": {"title": "A", "archives": [{"name": name}]}}},
            r"archives.0: name: '.*' is no file's name",
        )
        for name in ("../../../pwned.zip", "/etc/a.zip", "a/b.zip", "a/", "..", ".", "", "a\0b")
    },
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_entry_is_refused_with_file_and_key(tmp_path: Path, case: str) -> None:
    sections, problem = BROKEN[case]
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(sections))
    assert refused(path, problem).startswith(f"{path}")


def test_two_domains_of_one_name_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("domains:\n  town: {images: a, split: train}\n  town: {images: b, split: train}\n")
    assert "the key 'town' stands twice" in refused(path, "not valid YAML")


def test_two_domains_of_one_name_in_two_files(write: Write) -> None:
    files = [write("a.yaml", domains={"town": OWN}), write("b.yaml", domains={"town": OWN})]
    assert refused(files, "a second entry of the name 'town'").startswith(str(files[1]))


def test_a_setting_of_a_recipe_that_takes_anothers_name(write: Write) -> None:
    sets = {"b": {"classes": ["x", "y"], "maps": {"road": {"background": "x", "road": "y"}}}}
    settings = {
        "1": {"source": "a", "target": "a", "gap": "in-domain", "class_set": "b"},
        "2": {"source": "a-b", "target": "a-b", "gap": "in-domain"},
    }
    path = write(class_sets=sets, domains={"a": OWN, "a-b": OWN}, settings=settings)
    refused(path, "two recipes of the name 'a-b'")


@pytest.mark.parametrize("content", ["domains: [", "a: b: c", "\x00", "- 1"])
def test_files_that_are_no_catalog(tmp_path: Path, content: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(content)
    assert refused(path, "not valid YAML|not a map").startswith(str(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "none.yaml", "cannot read")


def test_an_empty_file_adds_nothing(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    assert load_catalog([path]) == CATALOG


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)
junk = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 300) | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.integers(0, 9), inner, max_size=3),
    max_leaves=6,
)


ENTRIES: dict[str, dict[str, Any]] = {
    "domains": OWN
    | dict.fromkeys(
        ["bands", "tile", "split", "key", "scene", "gsd_m", "value_range", "nodata", "train", "dataset"]
    ),
    "class_sets": {"classes": ["x", "y"], "palette": None, "primary_metric": "mean", "maps": {}},
    "settings": {
        **{"source": "deepglobe", "target": "massachusetts", "gap": "region"},
        **{"class_set": "road", "id": 1, "evidence": "", "published": {}},
    },
    "datasets": {"title": "A", "homepage": "", "archives": []},
}


@given(
    place=st.sampled_from([(section, key) for section, entry in ENTRIES.items() for key in entry]), value=junk
)
@settings(max_examples=60, deadline=None)
def test_whatever_stands_in_an_entry_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[str, str], value: Any
) -> None:
    section, key = place
    entry = {name: given for name, given in ENTRIES[section].items() if given is not None} | {key: value}
    path = tmp_path_factory.mktemp("junk") / "own.yaml"
    path.write_text(yaml.safe_dump({section: {"mine": entry}}))
    try:
        catalog = load_catalog([path])
    except InputError as error:
        assert str(error).startswith(str(path))
    else:
        assert "mine" in getattr(catalog, section)


def test_classes_without_a_palette_have_colours_that_an_eye_tells_apart() -> None:
    colours = distinct_colours(MAX_CLASSES)
    assert len(set(colours)) == MAX_CLASSES
    assert distinct_colours(16) == colours[:16]
    levels = np.array([list(bytes.fromhex(colour[1:])) for colour in colours[:40]], int)
    apart = np.abs(levels[:, None] - levels).sum(-1)
    assert apart[~np.eye(40, dtype=bool)].min() >= 50


def test_of_255_classes_a_message_names_few(tmp_path: Path) -> None:
    file = tmp_path / "many.yaml"
    file.write_text(yaml.safe_dump({"class_sets": {"many": {"classes": [f"class {n}" for n in range(255)]}}}))
    with pytest.raises(InputError, match=r"class_sets\.many: 255 classes\n  expected: 2 to 250") as caught:
        load_catalog([file])
    assert len(str(caught.value)) < 200


OKABE_ITO = {
    "#e6e6e6",
    "#0072b2",
    "#56b4e9",
    "#009e73",
    "#f0e442",
    "#d55e00",
    "#e69f00",
    "#cc79a7",
    "#333333",
}


def test_colour_blind_readers_tell_the_benchmarks_classes_apart(catalog: Catalog) -> None:
    for class_set in catalog.class_sets.values():
        assert len(set(class_set.palette)) == len(class_set.classes) and set(class_set.palette) <= OKABE_ITO
