"""The command line as a user meets it: what it prints, its exit codes, how soon it answers."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from crossearth.components.cli.app import app
from crossearth.components.cli.help import EXAMPLES, describe
from crossearth.components.cli.terminal import recipe_names

ROOT = Path(__file__).parents[3]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, crossearth.components.cli.app as c\n"
        "try: c.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch','mlflow','rasterio','pandas','numpy','pydantic','kfp'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


def test_the_installed_command_names_the_checkout_as_its_version() -> None:
    command = [str(Path(sys.executable).parent / "crossearth"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0
    assert str(ROOT) in done.stdout and "git" in done.stdout


def test_the_32_settings_as_json(typed: Callable[[str], str]) -> None:
    rows = json.loads(typed("crossearth settings --json"))
    assert len(rows) == 32
    assert {"abbr", "source", "target", "gap", "class_set", "evidence", "recipe"} <= set(rows[0])
    assert [score["miou"] for score in rows[0]["published"]] == [54.4, 54.7, 62.6, 60.3, 67.5]


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("train potsdam-rbg", "potsdam-rgb"),
        ("evaluate nowhere", "casid-sub"),
        ("ingest potsdm", "potsdam"),
        ("preview nowhere", "loveda-urban"),
        ("settings --catalog absent.yaml", "absent.yaml"),
        ("train --params absent.yaml potsdam-rgb", "absent.yaml"),
        ("no-such-step", "no-such-step"),
    ],
)
def test_wrong_names_exit_2_with_the_choices_and_no_traceback(
    command: str, named: str, tmp_path: Path, refused: Callable[[str], str]
) -> None:
    said = refused(f"crossearth {command}")
    assert named in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


OWN = """
domains:
  town: {class_set: road, images: images, masks: masks, labels: {0: background, 1: road}}
settings:
  T2T: {source: town, target: town, gap: in-domain}
"""


@pytest.mark.parametrize(("command", "named"), [("settings", "T2T"), ("domains", "town")])
def test_the_catalogs_of_params_are_shown_also_where_they_are_named_twice(
    command: str, named: str, tmp_path: Path, typed: Callable[[str], str]
) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    (tmp_path / "params.yaml").write_text("preset: a\npresets: {a: {}}\ncatalogs: [own.yaml]\n")
    for again in ("", f"--catalog {tmp_path / 'own.yaml'}"):
        assert named in typed(f"crossearth {command} --json {again}")


def test_every_command_has_a_group_and_examples_that_parse() -> None:
    describe(app)
    root = get_command(app)
    assert isinstance(root, TyperGroup)
    commands = {name: command for name, command in root.commands.items() if name != "pipeline"}
    assert all(command.rich_help_panel for command in commands.values())
    for name, examples in EXAMPLES.items():
        command: Any = root
        for word in name.split():
            command = command.commands[word]
        for example in examples:
            assert len(example) <= 78, "a terminal would break it"
            words = example.partition(" > ")[0].split()
            command.make_context(name, words[1 + len(name.split()) :])


def test_help_shows_brackets_and_no_types_of_python(typed: Callable[[str], str]) -> None:
    text = " ".join(typed("crossearth pipeline run -h").replace("│", " ").split())
    assert "Preset of the params file [default: the file's]." in text
    assert not re.search(r"<(bool|str|list|int|path)", text)


@pytest.mark.parametrize("command", ["settings", "domains"])
def test_the_catalog_as_csv(command: str, typed: Callable[[str], str]) -> None:
    rows = list(csv.DictReader(typed(f"crossearth {command} --csv").splitlines()))
    assert len(rows) == {"settings": 32, "domains": 15}[command]
    if command == "settings":
        assert (rows[0]["abbr"], rows[0]["published CrossEarth"]) == ("P(i)2V", "67.5")


def test_one_format_at_a_time(refused: Callable[[str], str]) -> None:
    assert "one of them" in refused("crossearth settings --csv --json")


def test_a_shell_completes_recipes() -> None:
    assert recipe_names("casid-t") == ["casid-tem", "casid-tms", "casid-trf"]
