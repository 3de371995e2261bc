"""`ablate`: a grid is checked before anything is trained, trained once, and stands in one table."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from domain_factory import write_domain
from earth_styles import write_styles
from rich.console import Console
from safetensors.torch import save_file

from crossearth.components.ablate import step
from crossearth.components.ablate.grid import Cell, Job, jobs, read_grid
from crossearth.components.ablate.step import run
from crossearth.components.ablate.table import text_table
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.tables import TextTable
from crossearth.components.train.setup import TrainConfig
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.errors import InputError, PartlyDoneError
from crossearth.model.layers.backbone import plain_vit
from crossearth.model.weights.checkpoint import load, read_meta

RECIPE = "loveda-urban"
TRAIN: dict[str, Any] = {
    "network": "tiny",
    "backbone": "weights.safetensors",
    "head": "linear",
    "iterations": 2,
    "batch_size": 2,
    "crop_px": 32,
    "scale": [1.0, 2.0],
    "precision": "float32",
    "schedule_iterations": None,
    "workers": 0,
    "style": {"block_px": 16},
    "tasks": {"mask_block_px": 16},
    "lora": {"rank": 4, "init": "soma"},
    "held_out_share": 0.3,
}
GRID: dict[str, Any] = {
    "recipes": [RECIPE],
    "seeds": [0, 1],
    "grid": {"adapter": ["rein", "lora"], "style.alpha": [0.5]},
    "train": {"ablation": "+style"},
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Path:
    """A working folder: source, targets, styles and a frozen backbone's weights."""
    folder = tmp_path_factory.mktemp("work")
    for setting in catalog.recipe(RECIPE).settings:
        for domain, split in {(RECIPE, "train"), (setting.target, "test")}:
            place = catalog.domain_dir(folder / "artifacts/domains", domain)
            write_domain(place, domain, "loveda", split=split, tiles=4)
    (folder / "artifacts/styles").mkdir()
    write_styles(folder / "artifacts/styles/earth.safetensors")
    torch.manual_seed(0)
    vit = plain_vit("vit_large_patch14_dinov2", img_size=64, patch_size=8, embed_dim=32, depth=4, num_heads=1)
    save_file(vit.state_dict(), folder / "weights.safetensors")
    return folder


@pytest.fixture(autouse=True)
def here(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(work)
    monkeypatch.setattr(step, "ABLATIONS", tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield


@pytest.fixture
def params() -> Params:
    return Params("own", {"own": {"train": TRAIN, "evaluate": {"panels": 0}}})


def write_grid(folder: Path, **changes: Any) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(GRID | changes))
    return path


def test_combinations_are_configurations_of_a_training(
    tmp_path: Path, params: Params, catalog: Catalog
) -> None:
    path = write_grid(tmp_path, grid={"adapter": ["rein", "none"], "style.alpha": [0.1, 0.9]})
    found = jobs(read_grid(path), params, catalog, tmp_path, path)
    assert len(found) == 2 * 2 * 2 and len({job.folder for job in found}) == 8
    assert [job.seed for job in found[:4]] == [0] * 4, "first one seed of everything"
    config = found[-1].config
    assert (config.adapter, config.style.alpha, config.seed) == ("none", 0.9, 1)
    assert (config.style.block_px, config.ablation) == (16, "+style")
    assert Cell({"backbone": "../weights/a.safetensors", "lr": 0.1}).label == "backbone a, lr 0.1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"adapter": ["rein", "loar"]}}, "adapter loar"),
        ({"grid": {"adaptor": ["rein"]}}, "did you mean|'adapter'"),
        ({"grid": {"style.alfa": [0.1]}}, "alpha"),
        ({"grid": {"seed": [1]}}, "seeds:"),
        ({"grid": {"adapter": []}}, "one value or more"),
        ({"seeds": [1, 1]}, "twice"),
        ({"recipes": ["loveda-urbn"]}, "loveda-urban"),
        ({"rows": 1}, "rows"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_is_trained(
    changes: dict[str, Any], message: str, tmp_path: Path, params: Params, catalog: Catalog
) -> None:
    with pytest.raises(InputError, match=message):
        run(params, catalog, write_grid(tmp_path, **changes))
    assert not (tmp_path / "grid").exists()


def shown(table: TextTable, width: int) -> str:
    console = Console(width=width)
    with console.capture() as written:
        console.print(table)
    return written.get()


def test_every_combination_is_trained_once_and_is_a_row(
    tmp_path: Path, params: Params, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []

    class Run:
        def __enter__(self) -> "Run":
            return self

        def __exit__(self, *_: object) -> None: ...

        def __getattr__(self, name: str) -> Any:
            return lambda *values: sent.append({name: values})

    for module in ("ablate", "train", "evaluate"):
        monkeypatch.setattr(f"crossearth.components.{module}.step.start_run", lambda *_, **__: Run())
    monkeypatch.setattr("crossearth.components.train.step._is_tracked", lambda *_: True)
    table, outcome = run(params, catalog, write_grid(tmp_path))
    rows = [line for line in table.read_text().splitlines() if line.startswith("|")]
    settings = [setting.abbr for setting in catalog.recipe(RECIPE).settings]
    assert all(name in rows[0] for name in (*settings, "mean unseen", f"held out of {RECIPE}"))
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["rein", "lora"]
    assert all("±" in row for row in rows[2:])
    assert "seeds: 0, 1" in table.read_text() and "4 of 4 trainings" in table.read_text()
    assert "method: paper (but tasks.mask_block_px 16, style.block_px 16" in table.read_text().replace(
        "style.block_px 16, tasks.mask_block_px 16", "tasks.mask_block_px 16, style.block_px 16"
    )
    narrow, wide = (shown(text_table(outcome, "grid"), width) for width in (60, 400))
    assert all(name in wide for name in settings) and not all(name in narrow for name in settings)
    for text in (narrow, wide):
        assert "mean unseen" in text and f"held out of {RECIPE}" in text and "…" not in text
    (adopted,) = [each["adopt"][0] for each in sent if "adopt" in each]
    assert len({*adopted}) == 4
    models = sorted((tmp_path / "grid").rglob("model.json"))
    meta = read_meta(models[0].parent)
    assert meta["pretrained"]["licence"].startswith("unknown") and meta["network"]["embed"] == 32
    assert {read_meta(path.parent)["network"]["adapter"] for path in models} == {"rein", "lora"}
    assert all(load(path.parent).lora is None for path in models)
    written = [path.stat().st_mtime_ns for path in models]
    run(params, catalog, write_grid(tmp_path))
    assert [path.stat().st_mtime_ns for path in models] == written


def test_what_is_refused_is_named_and_all_else_stands_in_the_table(
    tmp_path: Path, params: Params, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(job: Any, **_: object) -> None:
        if job.cell.values["adapter"] == "lora" and job.seed == 1:
            raise InputError("no memory")

    def none(job: Any, **_: object) -> None:
        raise InputError("no memory")

    monkeypatch.setattr(step, "carry_out", none)
    with pytest.raises(InputError, match="no memory"):  # nothing is there
        run(params, catalog, write_grid(tmp_path))
    monkeypatch.setattr(step, "carry_out", some)
    outcome = step.collect([], [])
    monkeypatch.setattr(
        step, "collect", lambda jobs, done: len(done) == 3 and step.Outcome(({},), (), (), outcome.cells, 4)
    )  # type: ignore[arg-type]
    monkeypatch.setattr(step, "markdown", lambda *_: "")
    monkeypatch.setattr(step, "_track", lambda *_: None)
    with pytest.raises(PartlyDoneError, match="1 of 4 trainings were refused") as error:
        run(params, catalog, write_grid(tmp_path))
    assert error.value.done == [tmp_path / "grid" / "table.md"]


def test_the_backbone_decides_the_networks_sizes_and_is_frozen_unless_asked() -> None:
    architecture = "vit_small_patch16_dinov3"
    weights = {"embed": 32, "depth": 4, "heads": 1, "taps": (0, 1, 2, 3), "architecture": architecture}
    config = TrainConfig(network="small", adapter="lora", ablation="full", crop_px=64)
    network = config.network_config(3, weights)
    assert (network.embed, network.architecture, network.frozen_backbone) == (
        32,
        weights["architecture"],
        True,
    )
    assert network.injector == "own", "LoRA has no map to lend"
    trained = TrainConfig(network="tiny", ablation="rein", sizes={"frozen_backbone": False})
    assert not trained.network_config(3, weights).frozen_backbone


def _stopped(job: Job, stop: BaseException) -> None:
    (job.folder / "began").touch()
    raise stop


@pytest.mark.parametrize("stop", [SystemExit(143), KeyboardInterrupt()])
def test_a_process_that_is_stopped_begins_no_other_training(
    stop: BaseException, tmp_path: Path, params: Params, catalog: Catalog
) -> None:
    path = write_grid(tmp_path)
    wanted = jobs(read_grid(path), params, catalog, tmp_path, path)[:2]
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        wait([pool.submit(step._in_process, job, partial(_stopped, stop=stop), 1) for job in wanted])
    assert [(job.folder / "began").exists() for job in wanted] == [True, False]
