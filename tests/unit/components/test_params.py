"""params.yaml: presets, overrides of single recipes, wrong keys."""

import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from own_domain import own_domain

from crossearth.components.convert.step import ConvertConfig
from crossearth.components.evaluate.step import EvaluateConfig
from crossearth.components.ingest.step import IngestConfig
from crossearth.components.plan.step import parameters
from crossearth.components.predict.config import PredictConfig
from crossearth.components.register.promotion import RegisterConfig
from crossearth.components.report.step import ReportConfig
from crossearth.components.runtime.params import DvcConfig, Params, load_params
from crossearth.components.runtime.places import data_dir
from crossearth.components.styles.step import StylesConfig
from crossearth.components.stylize.step import StylizeConfig
from crossearth.components.synthesize.step import SynthesizeConfig
from crossearth.components.train.setup import RUNTIME_FIELDS, TrainConfig
from crossearth.components.validate.validation import ValidateConfig
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.config import checked
from crossearth.data.common.errors import InputError
from crossearth.data.style.earth import StyleConfig
from crossearth.data.style.weights import style_weights_dir
from crossearth.data.tiles.augment import Augmentation
from crossearth.model.crossearth import large_config
from crossearth.model.layers.lora import LoraConfig
from crossearth.model.method import METHODS, described
from crossearth.model.training.losses import SegmentationLossConfig
from crossearth.model.training.multitask import TaskConfig

OWN = Path(__file__).parents[3] / "params.yaml"
LARGE = {"loveda-urban", "loveda-rural", "deepglobe", "casid-sub", "casid-tem", "casid-tms", "casid-trf"}


@checked
class Numbers:
    iterations: int = 10
    lr: float = 1e-4


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text)
    return path


def test_the_projects_own_file_is_valid() -> None:
    params = load_params(OWN)
    assert params.preset == "mini"
    assert set(params.presets) == {"mini", "paper"}


def test_the_methods_numbers_are_the_defaults_of_a_training() -> None:
    numbers = {name: value for name, value in asdict(TrainConfig()).items() if name not in RUNTIME_FIELDS}
    assert numbers.pop("style") == asdict(StyleConfig())
    assert numbers.pop("style_probability") == 0.1
    assert numbers.pop("tasks") == asdict(TaskConfig())
    assert numbers.pop("lora") == asdict(LoraConfig())
    assert numbers == {
        "method": "paper",
        "network": "large",
        "sizes": {},
        "backbone": None,
        "adapter": "rein",
        "head": "mask2former",
        "ablation": "full",
        "iterations": 30_000,
        "batch_size": 1,
        "crop_px": 512,
        "scale": (0.5, 2.0),
        "photometric": True,
        "lr": 1e-4,
        "schedule": "poly",
        "schedule_iterations": 40_000,
        "warmup_iterations": 10_000,
        "weight_decay": 0.05,
        "precision": "bfloat16",
        "held_out_share": 0.0,
        "validate_every": 1000,
        "selection": "last",
        "allow_absent_classes": False,
        "seed": 0,
    }


def test_the_method_of_the_paper_is_the_defaults() -> None:
    config = asdict(TrainConfig())
    for section, values in METHODS["paper"].items():
        if section != "sizes":
            found = config[section]
            assert ({name: found[name] for name in values} if isinstance(values, dict) else found) == values
    assert asdict(large_config(6)).items() >= METHODS["paper"]["sizes"].items()
    assert described(config) == "paper"
    assert all(values.keys() == METHODS["paper"].keys() for values in METHODS.values())


def test_a_method_is_one_word_and_what_is_given_besides_goes_before_it(tmp_path: Path) -> None:
    train = "{method: snapshot-dinov2, style: {alpha: 0.5}, tasks: {mask_block_px: 32}}"
    recipes = "{deepglobe: {method: snapshot-rvsa, tasks: {mask_ratio: 0.6}}}"
    path = write(tmp_path, f"preset: a\npresets:\n  a:\n    train: {train}\n    recipes: {recipes}\n")
    params = load_params(path)
    whole, own = (params.config(TrainConfig, "train", name) for name in (None, "deepglobe"))
    assert (whole.tasks.mask_ratio, whole.tasks.inject_plain, whole.style.keep_ratio) == (0.1, False, 0.3)
    assert (whole.tasks.mask_block_px, whole.style.alpha) == (32, 0.5)
    assert (own.tasks.mask_ratio, own.tasks.inject_plain, own.tasks.inject_styled) == (0.6, True, False)
    assert own.style.keep_ratio == 0.9
    assert described(asdict(own)) == "snapshot-rvsa (but tasks.mask_block_px 32, tasks.mask_ratio 0.6)"
    origins = {name: origin for name, _, origin in parameters(params, "deepglobe")}
    assert origins["style.keep_ratio"] == "method snapshot-rvsa"
    assert origins["tasks.mask_ratio"] == "recipes.deepglobe"
    # without the extractor on in training there is none
    assert not whole.network_config(3).geospatial and own.network_config(3).geospatial


def test_an_unknown_method_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "preset: a\npresets: {a: {train: {method: snapshot}}}\n")
    with pytest.raises(InputError, match="method"):
        load_params(path).config(TrainConfig, "train")


def test_the_preset_paper_trains_every_recipe_with_the_methods_numbers() -> None:
    params = replace(load_params(OWN), preset="paper")
    method = TrainConfig(backbone="vit_large_patch14_dinov2.lvd142m")
    at_1024_px = replace(method, crop_px=1024, lr=6e-5, schedule="warmup-poly")
    for recipe in load_catalog().recipes():
        expected = at_1024_px if recipe in LARGE else method
        assert params.config(TrainConfig, "train", recipe) == expected, recipe


def test_without_a_file_the_defaults_of_the_config_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_params(None).config(Numbers, "train") == Numbers()


def test_a_recipes_numbers_override_the_steps(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "preset: mini\n"
        "presets: {mini: {train: {iterations: 5, lr: 0.1}, recipes: {deepglobe: {iterations: 7}}}}",
    )
    params = load_params(path)
    assert params.config(Numbers, "train", "deepglobe") == Numbers(7, 0.1)
    assert params.config(Numbers, "train", "casid-sub") == Numbers(5, 0.1)


DEEP = """
preset: mini
seed: 7
presets:
  mini:
    train:
      iterations: 5
      style_probability: 0.5
      style: {keep_ratio: 0.1}
      tasks: {segmentation: {num_points: 9}}
    recipes:
      deepglobe: {style: {alpha: 1}, tasks: {segmentation: {oversample: 2.0}}, scale: [1, 1.5]}
      casid-sub: {style: {alfa: 1}}
"""


def test_a_recipe_overrides_what_it_names_and_nothing_beside_it(tmp_path: Path) -> None:
    params = load_params(write(tmp_path, DEEP))
    config = params.config(TrainConfig, "train", "deepglobe")
    style, segmentation = config.style, config.tasks.segmentation
    assert (style.alpha, config.style_probability, style.keep_ratio) == (1.0, 0.5, 0.1)
    assert (segmentation.num_points, segmentation.oversample) == (9, 2.0)
    assert config.scale == (1.0, 1.5)
    with pytest.raises(InputError, match=r"(?s)recipes.casid-sub: style: unknown key 'alfa'.*'alpha'"):
        params.config(TrainConfig, "train", "casid-sub")


def test_the_plan_says_where_a_number_comes_from(tmp_path: Path) -> None:
    found = {
        name: (value, origin)
        for name, value, origin in parameters(load_params(write(tmp_path, DEEP)), "deepglobe")
    }
    assert found["style.alpha"] == (1.0, "recipes.deepglobe")
    assert found["style_probability"] == (0.5, "train")
    assert found["tasks.segmentation.num_points"] == (9, "train")
    assert found["scale"] == ([1.0, 1.5], "recipes.deepglobe")
    assert found["lr"] == (1e-4, "default")
    assert found["schedule_iterations"] == (40_000, "default")
    assert found["seed"] == (7, "seed")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("preset: mini\npresets: {mini: {}}\nsede: 1", "'sede'.*'seed'"),
        ("preset: minii\npresets: {mini: {}}", "'minii'.*'mini'"),
        ("preset: mini\npresets: {mini: {trian: {}}}", "'trian'.*'train'"),
        ("preset: mini\npresets: {mini: {}}\nseed: many", "seed"),
        ("preset: mini\npresets: {mini: {}}\nseed: -1", "seed: .*greater than or equal to 0, found -1"),
        (
            f"preset: mini\npresets: {{mini: {{}}}}\nseed: {2**63}",
            "seed: .*9223372036854775807, found 9223372036854775808",
        ),
        ("preset: mini\npresets: {mini: {train: {seed: 3}}}", "mini.train.seed: 3.*top of the file"),
        ("preset: mini\npresets: {mini: {stylize: {seed: 3}}}", "mini.stylize.seed: 3.*top of the file"),
        ("preset: mini\npresets: {mini: {recipes: {a: {seed: 3}}}}", "recipes.a.seed: 3.*top of the file"),
        ("preset: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InputError, match=f"(?s)params.yaml.*{named}"):
        load_params(write(tmp_path, text))


def test_a_wrong_key_of_a_step_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "preset: mini\npresets: {mini: {train: {iteration: 5}}}")
    with pytest.raises(InputError, match=r"(?s)presets.mini.train.*'iteration'.*'iterations'"):
        load_params(path).config(Numbers, "train")


def test_the_users_home_is_known_where_no_shell_has_read_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CROSSEARTH_DATA", "~/x")
    monkeypatch.setenv("CROSSEARTH_STYLE_WEIGHTS", "~/w")
    assert (data_dir(), style_weights_dir()) == (tmp_path / "x", tmp_path / "w")
    params = load_params(
        write(tmp_path, "{preset: a, presets: {a: {}}, archives: ~/a, catalogs: [~/c.yaml]}")
    )
    assert (params.archives, params.catalogs) == (tmp_path / "a", (tmp_path / "c.yaml",))
    (tmp_path / "c.yaml").write_text("domains: {town: {images: ~/i}}")
    own = load_catalog(params.catalogs, data_dir()).domain("town").own
    assert own is not None and own.images == tmp_path / "i"
    monkeypatch.setenv("CROSSEARTH_DATA", "~nobody-of-this-name/x")
    assert data_dir() == Path("~nobody-of-this-name/x")


@pytest.mark.parametrize("seeds", [[0], [1, 1], [-1]])
def test_further_seeds_are_other_seeds(seeds: list[int]) -> None:
    Params(preset="a", presets={"a": {}}, dvc=DvcConfig(seeds=(1, 2)))
    with pytest.raises(InputError, match="seeds"):
        Params(preset="a", presets={"a": {}}, dvc=DvcConfig(seeds=tuple(seeds)))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Augmentation, {"crop_px": 8}),
        *(
            (Augmentation, {"scale": scale})
            for scale in (
                (2.0, 0.5),
                (0.0, 0.5),
                (1e-9, 1.0),
                (1.0, 1e6),
                (math.inf, math.inf),
                (math.nan, 1.0),
            )
        ),
        *((partial(ConvertConfig, "backbone"), {"image_px": px}) for px in (0, 8, 500)),
        (EvaluateConfig, {"batch_size": 0}),
        (EvaluateConfig, {"panels": -1}),
        (IngestConfig, {"workers": 0}),
        (IngestConfig, {"tile_px": 8}),
        *((PredictConfig, {"bands": bands}) for bands in ((1, 2), (0, 1, 2))),
        *((PredictConfig, {"value_range": ends}) for ends in ((5.0, 5.0), (0.0, math.inf), (math.nan, 1.0))),
        (RegisterConfig, {"margin": 5}),
        (RegisterConfig, {"prefix": "../x"}),
        (ReportConfig, {"replicates": 10}),
        (ReportConfig, {"worst_tiles": -1}),
        (SegmentationLossConfig, {"oversample": 0.5}),
        (SegmentationLossConfig, {"oversample": math.inf}),
        (SegmentationLossConfig, {"importance": 1.5}),
        (SegmentationLossConfig, {"num_points": 0}),
        (SegmentationLossConfig, {"weight_dice": -1.0}),
        (SegmentationLossConfig, {"weight_no_object": 0.0}),
        (StyleConfig, {"alpha": 1.1}),
        (StyleConfig, {"keep_ratio": -0.1}),
        (TrainConfig, {"style_probability": 2}),
        (StyleConfig, {"block_px": 0}),
        (StyleConfig, {"engine": "gatys"}),
        (StylesConfig, {"image_px": 32}),
        (StylesConfig, {"value_range": (2.0, 1.0)}),
        (StylizeConfig, {"counterparts": 0}),
        (SynthesizeConfig, {"workers": 0}),
        (TaskConfig, {"mask_ratio": 1.5}),
        (TaskConfig, {"mask_block_px": 0}),
        (TaskConfig, {"weight_seg": math.nan}),
        *((TaskConfig, {"weight_mim": weight}) for weight in (-1, math.inf)),
        (TaskConfig, {"weight_delta": math.inf}),
        (TrainConfig, {"batch_size": 0}),
        (TrainConfig, {"held_out_share": 1.5}),
        (TrainConfig, {"lr": 0.0}),
        *((TrainConfig, {"lr": lr}) for lr in (math.nan, math.inf, 1.5)),
        *((TrainConfig, {"weight_decay": decay}) for decay in (2, math.nan)),
        (TrainConfig, {"schedule_iterations": 0}),
        (TrainConfig, {"seed": 2**63}),
        (ValidateConfig, {"max_nodata_share": -1}),
        (ValidateConfig, {"near_duplicate_bits": 99}),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_name(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(values))}"):
        kind(**values)


def test_dvcs_folder_of_an_own_domain_holds_its_labels_too(tmp_path: Path) -> None:
    own_domain(tmp_path)
    catalog = load_catalog([tmp_path / "catalog.yaml"], tmp_path)
    DvcConfig(own={"town": tmp_path}).check(catalog)
    with pytest.raises(InputError, match=r"dvc\.own\.town: .*images does not hold all of town: .*masks"):
        DvcConfig(own={"town": tmp_path / "images"}).check(catalog)
