"""`make docs`: the documents, and a page of every module with what its docstrings say; no link is broken."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("data", "model", "components", "pipelines")


pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which `make docs` ran."""
    checkout = tmp_path_factory.mktemp("docs") / "crossearth"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
    # this interpreter's environment stands for the one that `make install` makes
    make = ["make", "docs", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/installed"]
    done = subprocess.run(make, cwd=checkout, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Warn" not in done.stderr, done.stderr
    return checkout


def test_every_module_has_its_page(checkout: Path) -> None:
    pages = checkout / "artifacts/docs/api"
    modules = {
        path.relative_to(checkout) for layer in LAYERS for path in (checkout / layer).rglob("[!_]*.py")
    }
    written = {path.relative_to(pages / "crossearth") for path in pages.glob("crossearth/*/**/*.html")}
    # of every folder, too; components/api is `import crossearth`, whose names have pages where they live
    folders = {module.parent for module in modules}
    assert written == {
        page.with_suffix(".html") for page in modules | folders - {Path(layer) for layer in LAYERS}
    }
    losses = (pages / "crossearth/model/training/losses.html").read_text()
    assert "<strong>weight_no_object:</strong>" in losses


def test_the_documents_are_pages_whose_links_lead_somewhere(checkout: Path) -> None:
    site = checkout / "artifacts/docs"
    pages = {
        page: page.read_text() for page in site.rglob("*.html") if "api" not in page.relative_to(site).parts
    }
    wanted = {path.with_suffix(".html").name for path in (checkout / "docs").glob("*.md")}
    assert {"index.html", *wanted} <= {page.name for page in pages}
    followed = 0
    for page, text in pages.items():
        assert "<h1" in text and "```" not in text
        for target in re.findall(r'(?:href|src)="(?!https?:)([^"]*)"', text):
            name, _, anchor = target.partition("#")
            place = (page.parent / name).resolve() if name else page
            assert place.is_file() and place.is_relative_to(site.resolve()), (page, target)
            assert not anchor or f'id="{anchor}"' in place.read_text(), (page, target)
            followed += 1
    assert followed > 100
