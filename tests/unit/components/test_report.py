"""The report's files: numbers, headings, what is missing, what is refused (the page: tests/browser)."""

import csv
import json
import re
import shutil
import sys
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from results_factory import write_benchmark, write_fake_results
from rich.console import Console

from crossearth.components.cli import app as cli
from crossearth.components.cli import model_commands
from crossearth.components.evaluate.results import metric_name, read_results, rows_of, write_results
from crossearth.components.report import show, step
from crossearth.components.report.markdown import title
from crossearth.components.report.page import picture
from crossearth.components.report.show import benchmark, run
from crossearth.components.report.step import ReportConfig, report
from crossearth.components.report.summary import summarise
from crossearth.components.runtime.tables import TextTable, View
from crossearth.data.catalog.domains import Catalog
from crossearth.data.catalog.loader import load_catalog
from crossearth.data.common.errors import InputError

CONFIG = ReportConfig(replicates=100)
COLUMNS = [
    *("setting", "source", "target", "gap", "recipe", "recipe_hash", "seed", "selection"),
    *("metric", "class", "iou", "pixels", "published", "evidence", "provenance"),
]


OWN = """
domains:
  north: {class_set: road, images: images, masks: masks, labels: {0: background, 1: road}}
  south: {class_set: road, images: images, masks: masks, labels: {0: background, 1: road}}
settings:
  N2S: {source: north, target: south, gap: region}
  S2N: {source: south, target: north, gap: region}
"""


@pytest.fixture
def no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_track", lambda *_: None)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Path:
    """Results of all recipes."""
    folder = tmp_path_factory.mktemp("scores")
    write_benchmark(folder, catalog)
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def test_all_settings_in_the_catalogs_order(
    scores: Path, catalog: Catalog, tmp_path: Path, no_tracking: None
) -> None:
    folder = report([scores], catalog, tmp_path / "report", CONFIG)
    table = rows(folder)
    assert list(table[0]) == COLUMNS
    assert list(dict.fromkeys(row["setting"] for row in table)) == list(catalog.settings)
    markdown = (folder / "scores.md").read_text()
    assert "Synthetic miniatures | selection: last" in markdown and "not comparable with" in markdown
    assert "published |" not in markdown
    for row in table:
        if row["metric"] != "IoU":
            assert re.search(rf"{re.escape(row['setting'])} .* {100 * float(row['iou']):.1f} +\|", markdown)


def test_equal_inputs_give_equal_bytes(
    scores: Path, catalog: Catalog, tmp_path: Path, no_tracking: None
) -> None:
    one, other = (report([scores], catalog, tmp_path / name, CONFIG) for name in ("one", "other"))
    for name in ("scores.csv", "scores.md", "scores.tex", "index.html"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_partial_results_say_what_is_missing(catalog: Catalog, tmp_path: Path, no_tracking: None) -> None:
    write_benchmark(tmp_path / "scores", catalog, 2)
    folder = report([tmp_path / "scores"], catalog, tmp_path / "report", CONFIG)
    assert "## Not scored" in (folder / "scores.md").read_text()
    assert "Trf2Tms" in (folder / "scores.md").read_text()
    with pytest.raises(InputError, match=r"of 32 settings have no result: .*Trf2Tms"):
        report([tmp_path / "scores"], catalog, tmp_path / "all", replace(CONFIG, require_all=True))
    assert not (tmp_path / "all").exists()


def test_absent_classes_are_blank(catalog: Catalog, tmp_path: Path, no_tracking: None) -> None:
    recipe = catalog.recipe("loveda-urban")
    result = write_fake_results(tmp_path / "scores", catalog, recipe, absent=(4,))
    folder = report([tmp_path / "scores"], catalog, tmp_path / "report", CONFIG)
    row = next(row for row in rows(folder) if row["class"] == "barren")
    assert (row["iou"], row["pixels"]) == ("", "0")
    (setting,) = summarise([result], catalog, 100).lines
    assert setting.iou[4] is None
    present = [iou for iou in setting.iou if iou is not None]
    assert setting.score == pytest.approx(np.mean(present))


def test_a_mean_counts_the_settings_that_are_in_it(catalog: Catalog, tmp_path: Path) -> None:
    scored, other = (
        write_fake_results(tmp_path / name, catalog, catalog.recipe(name))
        for name in ("casid-sub", "casid-tem")
    )
    nothing = tuple((0,) * len(other.classes) for _ in other.classes)
    blank = replace(other, settings=tuple(replace(each, confusion=nothing) for each in other.settings))
    means, both = (summarise(results, catalog, 0).overall for results in ([scored], [scored, blank]))
    assert both == means


def test_seeds_give_mean_deviation_and_interval(catalog: Catalog, tmp_path: Path, no_tracking: None) -> None:
    recipe = catalog.recipe("whu-aerial")
    results = [
        write_fake_results(tmp_path / "scores" / f"seed{seed}", catalog, recipe, seed=seed)
        for seed in (0, 1, 2)
    ]
    values = [result.scores(result.settings[0]).primary_metric for result in results]
    (line,) = summarise(results, catalog, 1000).lines
    assert line.score == pytest.approx(np.mean(values))
    assert line.deviation == pytest.approx(np.std(values, ddof=1))
    assert line.low is not None and line.high is not None and line.low < line.score < line.high
    assert line.seeds == (0, 1, 2)
    folder = report([tmp_path / "scores"], catalog, tmp_path / "report", CONFIG)
    assert len([row for row in rows(folder) if row["metric"] != "IoU"]) == 3
    assert "seed: 0, 1, 2" in (folder / "scores.md").read_text()
    accuracy = np.mean([result.scores(result.settings[0]).accuracy for result in results])
    assert f'<td class="n wide">{100 * accuracy:.1f}</td>' in (folder / "index.html").read_text()


def test_one_drawn_seed_makes_a_line_synthetic(catalog: Catalog, tmp_path: Path) -> None:
    recipe = catalog.recipe("whu-aerial")
    results = [
        write_fake_results(tmp_path / provenance, catalog, recipe, seed=seed, provenance=provenance)
        for seed, provenance in enumerate(("publisher", "synthetic"))
    ]
    (line,) = summarise(results, catalog, 0).lines
    assert line.provenance == "synthetic" and line.published is None


def test_two_results_for_one_seed_are_refused(catalog: Catalog, tmp_path: Path, no_tracking: None) -> None:
    recipe = catalog.recipe("whu-aerial")
    for name in ("one", "other"):
        write_fake_results(tmp_path / "scores" / name, catalog, recipe)
    with pytest.raises(InputError, match="two results for A2S"):
        report([tmp_path / "scores"], catalog, tmp_path / "report", CONFIG)


def test_seeds_on_different_tiles_are_refused(catalog: Catalog, tmp_path: Path) -> None:
    recipe = catalog.recipe("whu-aerial")
    one = write_fake_results(tmp_path / "one", catalog, recipe)
    other = write_fake_results(tmp_path / "other", catalog, recipe, seed=1)
    other = replace(other, settings=tuple(replace(each, manifest_digest="f" * 64) for each in other.settings))
    with pytest.raises(InputError, match="different tiles"):
        summarise([one, other], catalog, 0)


def test_two_selection_rules_are_two_lines(catalog: Catalog, tmp_path: Path, no_tracking: None) -> None:
    recipe = catalog.recipe("whu-aerial")
    for rule in ("last", "best-source"):
        write_fake_results(tmp_path / "scores" / rule, catalog, recipe, selection=rule)
    folder = report([tmp_path / "scores"], catalog, tmp_path / "report", CONFIG)
    text = (folder / "scores.md").read_text()
    assert (
        "| A2S " in text and re.search(r"\| selection +\|", text) and "held-out scenes of the source" in text
    )


def test_the_publishers_data_stands_beside_published_scores(
    catalog: Catalog, tmp_path: Path, no_tracking: None
) -> None:
    write_fake_results(tmp_path / "scores", catalog, catalog.recipe("potsdam-irrg"), provenance="publisher")
    folder = report([tmp_path / "scores"], catalog, tmp_path / "report", CONFIG)
    table = {(row["setting"], row["class"]): row for row in rows(folder)}
    assert float(table["P(i)2V", "mean"]["published"]) == pytest.approx(0.675)
    assert float(table["P(i)2V", "building"]["published"]) == pytest.approx(0.917)
    assert table["P(i)2P(i)", "mean"]["published"] == ""
    text = (folder / "scores.md").read_text()
    assert "Real imagery" in text and re.search(r"\| 67\.5 +\| table ", text) and "ynthetic" not in text


def test_a_users_setting_comes_last(catalog: Catalog, tmp_path: Path, no_tracking: None) -> None:
    recipe = catalog.recipe("whu-aerial")
    own = replace(recipe.settings[0], abbr="mine", id="mine")
    write_fake_results(tmp_path / "scores", catalog, recipe)
    result = read_results(tmp_path / "scores")
    extra = replace(result.settings[0], setting=own)
    write_results(replace(result, settings=(extra, *result.settings)))
    folder = report([tmp_path / "scores"], catalog, tmp_path / "report", CONFIG)
    assert list(dict.fromkeys(row["setting"] for row in rows(folder))) == ["A2S", "mine"]


def test_names_from_outside_cannot_become_html(catalog: Catalog, tmp_path: Path, no_tracking: None) -> None:
    recipe = catalog.recipe("whu-aerial")
    result = write_fake_results(tmp_path / "scores", catalog, recipe)
    evil = "<script>alert(1)</script>"
    names = replace(result.settings[0].setting, abbr=evil, source=evil)
    hostile = replace(result.settings[0], setting=names)
    write_results(replace(result, settings=(hostile,), lineage={**result.lineage, "x": evil}))
    text = (report([tmp_path / "scores"], catalog, tmp_path / "report", CONFIG) / "index.html").read_text()
    assert evil not in text


def test_the_command_line_refuses_partial_results_on_request(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_tracking: None
) -> None:
    monkeypatch.chdir(tmp_path)
    write_benchmark(tmp_path / "seed0", catalog, 2)
    write_benchmark(tmp_path / "seed1", catalog, 2, seed=1)
    monkeypatch.setattr(sys, "argv", ["crossearth", "report", "seed0", "seed1", "--require-all"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2 and not (tmp_path / "artifacts").exists()
    monkeypatch.setattr(sys, "argv", ["crossearth", "report", "seed0", "seed1", "--against", "seed1"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    text = (tmp_path / "artifacts" / "report" / "index.html").read_text()
    assert "seed: 0, 1." in text and "Compared with other results" in text and "Not scored (" in text


def test_no_results_and_damaged_results_are_named(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results here"):
        report([tmp_path], catalog, tmp_path / "report", CONFIG)
    write_fake_results(tmp_path / "scores" / "a", catalog, catalog.recipe("whu-aerial"))
    details = tmp_path / "scores" / "a" / "details.json"
    details.write_text(details.read_text()[:-40])
    with pytest.raises(InputError, match=r"details\.json: not JSON"):
        report([tmp_path / "scores"], catalog, tmp_path / "report", CONFIG)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("swap", ["another recipe's", "another schema", "gone"])
def test_counts_that_are_not_the_results_own_are_named(swap: str, catalog: Catalog, tmp_path: Path) -> None:
    write_fake_results(tmp_path / "scores", catalog, catalog.recipe("whu-aerial"))
    write_fake_results(tmp_path / "other", catalog, catalog.recipe("whu-aerial"), seed=1)
    (table,) = (tmp_path / "scores" / "tiles").iterdir()
    if swap == "another recipe's":
        shutil.copy(tmp_path / "other" / "tiles" / table.name, table)
    elif swap == "another schema":
        pq.write_table(pa.table({"a": [1]}), table)
    else:
        table.unlink()
    with pytest.raises(InputError, match=rf"{table.name}: .*counts of the tiles.*\n.*evaluate whu-aerial"):
        report([tmp_path / "scores"], catalog, tmp_path / "report", CONFIG)
    assert not (tmp_path / "report").exists()


def test_a_picture_takes_no_more_than_its_share(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 776, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    for most_bytes in (400_000, 24_000, 2_000):
        found = picture(tmp_path / "noise.png", "", most_bytes)
        content = b64decode(found["uri"].partition(",")[2])
        assert len(content) <= most_bytes and Image.open(BytesIO(content)).size == found["size"]
    assert found["size"] == (194, 64)


@pytest.mark.parametrize("spoil", ["gone", "damaged", "no picture", "another checksum"])
def test_a_picture_that_cannot_be_shown_is_named(spoil: str, catalog: Catalog, tmp_path: Path) -> None:
    result = write_fake_results(tmp_path / "scores", catalog, catalog.recipe("whu-aerial"))
    panel = tmp_path / "scores" / result.settings[0].worst[0].file
    content = bytearray(panel.read_bytes())
    panel.unlink()
    if spoil == "damaged":
        panel.write_bytes(content[: len(content) // 2])
    elif spoil == "no picture":
        panel.write_bytes(b"no picture")
    elif spoil == "another checksum":
        content[29] ^= 1  # of the header
        panel.write_bytes(content)
    with pytest.raises(InputError, match=rf"{panel.name}: the picture is .*\n.*evaluate whu-aerial"):
        report([tmp_path / "scores"], catalog, tmp_path / "report", CONFIG)
    assert not (tmp_path / "report").exists()


def test_what_another_program_left_for_the_report_is_named(
    catalog: Catalog, tmp_path: Path, no_tracking: None
) -> None:
    write_fake_results(tmp_path / "scores" / "a", catalog, catalog.recipe("whu-aerial"))
    (tmp_path / "styles").mkdir()
    for content, words in (('{"count": 3}', "it was changed"), ("[]", "JSON of a list"), ("{", "not JSON")):
        (tmp_path / "styles" / "summary.json").write_text(content)
        with pytest.raises(InputError, match=rf"summary\.json: {words}"):
            report([tmp_path / "scores"], catalog, tmp_path / "report", CONFIG)
    assert not (tmp_path / "report").exists()


def test_mlflow_csv_and_page_say_the_same(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    from crossearth.components.runtime.tracking import start_run

    uri = f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    results = write_benchmark(tmp_path / "scores", catalog, 2)
    for result in results:
        with start_run(result.recipe, key=result.recipe_hash):
            pass
    folder = report([tmp_path / "scores"], catalog, tmp_path / "report", CONFIG)
    client = MlflowClient(uri)
    runs = {run.info.run_name: run for run in client.search_runs(["1"])}
    parent = runs.pop("benchmark")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    page = (folder / "index.html").read_text()
    charts = json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', page)[1])
    drawn = {name: x for bars in charts["bars"]["data"] for name, x in zip(bars["y"], bars["x"], strict=True)}
    for row in rows(folder):
        if row["metric"] != "IoU":
            assert parent.data.metrics[metric_name("miou", row["setting"])] == float(row["iou"])
            assert drawn[row["setting"]] == 100 * float(row["iou"])
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id, "report")}
    written = ("index.html", "metrics.json", "plots", "scores.csv", "scores.md", "scores.tex")
    assert artifacts == {f"report/{name}" for name in written}


def printed(view: View, width: int) -> list[str]:
    """The lines of a terminal of `width` columns."""
    console = Console(width=width, record=True, file=StringIO())
    console.print(view.text)
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.parametrize("width", [80, 200])
def test_terminal_tables_cut_no_name_and_no_number(width: int, scores: Path, catalog: Catalog) -> None:
    view = benchmark([scores], catalog, 100)
    lines = printed(view, width)
    assert "Drawn by code: not comparable with published scores." in lines
    for row in view.rows:
        (line,) = (line for line in lines if line.startswith(row["setting"] + " "))
        assert {row["target"], f"{100 * row['score']:.1f}"} <= set(line.split())
        assert ("█" in line, row["gap"] in line) == (width == 200, width == 200)
    result = read_results(scores / "potsdam-irrg")
    classes = [line for line in printed(run(result), width) if "low vegetation" in line]
    assert len(classes) == len(result.settings)
    assert f"{100 * result.scores(result.settings[0]).iou[2]:.1f}" in classes[0].split()
    assert all(len(line) <= width for line in lines + classes)


def test_numbers_are_whole_on_any_terminal() -> None:
    rows = [("a-very-long-name-of-a-setting", "a target", "12.3", "██"), ("b", "another target", "45.6", "█")]
    table = TextTable(("setting", "target", "mIoU %", ""), rows, numbers=("mIoU %",), spare=("", "target"))
    wide, middle, narrow = (printed(View(table, [], []), width) for width in (80, 45, 20))
    assert wide[2].split()[-1] == "██" and middle[2].split() == ["a-very-long-name-of-a-setting", "12.3"]
    assert "".join(line.split()[0] for line in narrow[2:-1]) == "a-very-long-name-of-a-setting"
    assert any(line.endswith(" 12.3") for line in printed(View(table, [], []), 8))
    assert narrow[2].endswith("12.3") and narrow[-1].split() == ["b", "45.6"]
    names = [("artifacts/models/vaihingen-irrg", "impervious surface, low vegetation", "none stated")]
    table = TextTable(("model", "classes", "licence"), names, spare=("licence",))
    for width in (45, 55):  # words stay whole, and a column goes only where they would not
        told = " ".join(printed(View(table, [], []), width)[2:])
        assert set(names[0][0].split()) | {"impervious", "surface,", "low", "vegetation"} <= set(told.split())
        assert ("stated" in told.split()) == (width == 55)
    assert "[default]" in printed(View(TextTable(("a",), [("[default]",)]), [], []), 80)[2], "no markup"


def test_what_is_missing_of_own_data_is_own(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    catalog = load_catalog([tmp_path / "own.yaml"], tmp_path)
    result = write_fake_results(tmp_path / "scores", catalog, catalog.recipe("north"), provenance="own")
    summary = summarise([result], catalog, 0)
    assert summary.own and title(summary) == "north, south"
    assert [setting.abbr for setting in summary.missing] == ["S2N"]
    ours = write_fake_results(tmp_path / "ours", catalog, catalog.recipe("whu-aerial"))
    both = summarise([result, ours], catalog, 0)
    assert (
        len(both.wanted) == 34
        and title(both) == title(summarise([ours], catalog, 0)) == "CrossEarth benchmark"
    )
    assert "S2N" not in [setting.abbr for setting in summarise([ours], catalog, 0).missing]


def test_a_mean_is_called_mean_and_a_foreground_foreground(catalog: Catalog, tmp_path: Path) -> None:
    for name in ("casid-sub", "whu-aerial"):
        write_fake_results(tmp_path / name, catalog, catalog.recipe(name))
    both, mean, binary = (
        benchmark([tmp_path / name], catalog, 100) for name in ("", "casid-sub", "whu-aerial")
    )
    assert {row["metric"] for row in both.rows} == {"mIoU", "IoU of the foreground"}
    assert any("mIoU %" in line for line in printed(mean, 80))
    for view in (binary, run(read_results(tmp_path / "whu-aerial"))):
        text = "\n".join(printed(view, 80))
        assert "mIoU" not in text and "of the foreground" in text
    (line,) = (line for line in printed(both, 80) if line.startswith("A2S"))
    assert line.endswith("foreground")


def test_programs_get_everything(catalog: Catalog, tmp_path: Path) -> None:
    result = write_fake_results(tmp_path, catalog, catalog.recipe("potsdam-irrg"), provenance="publisher")
    view = benchmark([tmp_path], catalog, 100)
    first = json.loads(json.dumps(view.data, allow_nan=False))["settings"][0]
    assert first["iou"]["building"] == result.scores(result.settings[0]).iou[1]
    assert [score["miou"] for score in first["published"] if score["method"] == "Rein"] == [60.3]
    assert view.rows[0]["published Rein"] == pytest.approx(0.603)
    one = run(result)
    assert one.rows == rows_of(result) and one.data["settings"][0]["setting"]["target"] == "vaihingen-irrg"


def test_show_and_report_give_one_interval(
    catalog: Catalog, tmp_path: Path, no_tracking: None, typed: Callable[[str], str]
) -> None:
    (tmp_path / "p.yaml").write_text("preset: a\npresets: {a: {report: {replicates: 123}}}\n")
    write_benchmark(tmp_path / "artifacts/scores", catalog, 1)
    (shown,) = (
        row
        for row in json.loads(typed("crossearth show --json --params p.yaml"))["settings"]
        if row["target"] == "potsdam-rgb"
    )
    typed("crossearth report --params p.yaml")
    page = (tmp_path / "artifacts/report/index.html").read_text()
    assert f"{100 * shown['low']:.1f} – {100 * shown['high']:.1f}" in page
    (line,) = summarise([read_results(tmp_path / "artifacts/scores/potsdam-irrg")], catalog, 123).lines[1:2]
    assert (line.low, line.high) == (shown["low"], shown["high"])


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (
            "https://mlflow.example:5000",
            "runs:   open https://mlflow.example:5000/#/experiments?workflowType=machine_learning\n",
        ),
        ("sqlite:///mlflow.db", "runs:   mlflow ui --backend-store-uri sqlite:///mlflow.db\n"),
    ],
)
def test_a_server_of_runs_is_not_started_twice(
    uri: str, shown: str, scores: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(model_commands, "SCORES", scores)
    monkeypatch.setattr(show, "benchmark", lambda *_: View("", [], []))
    model_commands.show()
    assert shown in capsys.readouterr().out
