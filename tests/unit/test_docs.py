"""What the documents tell people to type and to open is there."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from crossearth.pipelines.cli import app

ROOT = Path(__file__).parents[2]
NAMES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "data/README.md", "infra/README.md")
DOCUMENTS = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").glob("*.md"))]


def commands(document: Path) -> list[str]:
    """Every `crossearth ...` of the shell blocks, fenced or indented, and of the running text."""
    text = document.read_text().replace("\\\n", " ")
    blocks = [*re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S), *re.findall(r"^ {4,}(.+)$", text, re.M)]
    inline = [found.replace("\n", " ") for found in re.findall(r"(?<!`)`(crossearth [^`]+)`(?!`)", text)]
    found = [line.split("#")[0].split("|")[0].strip() for line in "\n".join(blocks).splitlines()] + inline
    return [line for line in found if line.startswith("crossearth ")]


def anchors(document: Path) -> set[str]:
    """What a link may name after "#": the headings as web pages of the repository give them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_documents_hold_commands() -> None:
    assert len(commands(ROOT / "README.md")) > 10
    assert len(commands(ROOT / "infra/README.md")) > 4


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_and_option_exists(document: Path) -> None:
    for line in commands(document):
        command, words = get_command(app), shlex.split(line)[1:]
        while words and hasattr(command, "commands") and not words[0].startswith("-"):
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        known = {option for each in command.params for option in each.opts} | {"--help"}
        given = {word.split("=")[0] for word in words if word.startswith("-") and len(word) > 1}
        assert given <= known, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        name, _, anchor = target.partition("#")
        if not name.startswith("https://"):
            place = document.parent / name if name else document
            assert place.exists(), target
            assert not anchor or anchor in anchors(place), target


README = """
see [the page](docs/a.md#b), [below](#c), [a paper](https://example.org)
<img src="tests/x.png" width="9">
"""


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        (None, "\nsee the page, below, [a paper](https://example.org)\n\n"),
        (
            "https://forge.org/we/it",
            "\nsee [the page](https://forge.org/we/it/blob/HEAD/docs/a.md#b), "
            "[below](https://forge.org/we/it#c), [a paper](https://example.org)\n"
            '<img src="https://forge.org/we/it/raw/HEAD/tests/x.png" width="9">\n',
        ),
    ],
)
def test_an_indexs_readme_leads_to_the_repository_or_nowhere(repository: str | None, expected: str) -> None:
    on_an_index = runpy.run_path(str(ROOT / "setup.py"))["on_an_index"]
    assert on_an_index(README, repository) == expected
