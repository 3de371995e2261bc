"""`make docs`: a page of every module, with what its docstrings say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAYERS = ("data", "model", "components", "pipelines")


def test_every_module_has_its_page(tmp_path: Path) -> None:
    checkout = tmp_path / "crossearth"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
    # this interpreter's environment stands for the one that `make install` makes
    make = ["make", "docs", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/installed"]
    done = subprocess.run(make, cwd=checkout, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Warn" not in done.stderr, done.stderr

    pages = checkout / "artifacts/docs"
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
