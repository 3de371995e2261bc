"""params.yaml: presets, overrides of single recipes, wrong keys."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from crossearth.components.plan.step import parameters
from crossearth.components.runtime.params import DvcConfig, Params, load_params
from crossearth.components.runtime.places import data_dir, style_weights_dir
from crossearth.components.train.setup import RUNTIME_FIELDS, TrainConfig
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.errors import InputError
from crossearth.data.style.earth import StyleConfig
from crossearth.model.training.multitask import TaskConfig

OWN = Path(__file__).parents[3] / "params.yaml"
LARGE = {"loveda-urban", "loveda-rural", "deepglobe", "casid-sub", "casid-tem", "casid-tms", "casid-trf"}


@dataclass(frozen=True)
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
    assert numbers.pop("tasks") == asdict(TaskConfig())
    assert numbers == {
        "network": "large",
        "sizes": {},
        "backbone": None,
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
    train: {iterations: 5, style: {probability: 0.5, keep_ratio: 0.1}, tasks: {segmentation: {num_points: 9}}}
    recipes:
      deepglobe: {style: {alpha: 1}, tasks: {segmentation: {oversample: 2.0}}, scale: [1, 1.5]}
      casid-sub: {style: {alfa: 1}}
"""


def test_a_recipe_overrides_what_it_names_and_nothing_beside_it(tmp_path: Path) -> None:
    params = load_params(write(tmp_path, DEEP))
    config = params.config(TrainConfig, "train", "deepglobe")
    style, segmentation = config.style, config.tasks.segmentation
    assert (style.alpha, style.probability, style.keep_ratio) == (1.0, 0.5, 0.1)
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
    assert found["style.probability"] == (0.5, "train")
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
        ("preset: mini\npresets: {mini: {}}\nseed: -1", "seed: -1"),
        (
            f"preset: mini\npresets: {{mini: {{}}}}\nseed: {2**63}",
            "seed: 9223372036854775808.*9223372036854775807",
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


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ("lr: .inf", "lr inf"),
        ("lr: 1.5", "lr 1.5"),
        ("lr: 0", "lr 0"),
        ("weight_decay: .nan", "weight_decay nan"),
        ("tasks: {weight_seg: .nan}", "weight_seg: nan"),
        ("tasks: {weight_mim: -1}", "weight_mim: -1"),
        ("tasks: {weight_delta: .inf}", "weight_delta: inf"),
    ],
)
def test_numbers_that_no_training_survives_are_refused(tmp_path: Path, numbers: str, named: str) -> None:
    path = write(tmp_path, f"preset: mini\npresets: {{mini: {{train: {{{numbers}}}}}}}")
    with pytest.raises(InputError, match=f"(?s)presets.mini.train.*{named}"):
        load_params(path).config(TrainConfig, "train")


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
    with pytest.raises(InputError, match=r"dvc\.seeds"):
        Params(preset="a", presets={"a": {}}, dvc=DvcConfig(seeds=tuple(seeds)))
