"""The documents as web pages: `python docs/site.py FOLDER` writes index.html and all that it links to.

README.md becomes index.html, other Markdown a page of its name, any other file of the repository a copy of
itself. `make docs` puts the API's pages beside them, into `api/`.
"""

import html
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Literal

import mistune
from mistune.plugins.table import render_table_cell

ROOT = Path(__file__).resolve().parents[1]
START = ROOT / "README.md"
MENU = {
    "Journeys": "README.md",
    "Own data": "docs/own-data.md",
    "Labels": "data/README.md",
    "Maps": "docs/mapping.md",
    "Models": "docs/models.md",
    "Kubeflow": "infra/README.md",
    "Results": "docs/results.md",
    "Speed": "docs/speed.md",
    "Method": "docs/method.md",
    "Contributing": "CONTRIBUTING.md",
}
API = Path("api/index.html")
LINK = re.compile(r'(href|src)="(?!https?:|#|mailto:)([^"#]+)(#[^"]*)?"')
STYLE = """
body { max-width: 60rem; margin: 1rem auto 4rem; padding: 0 1rem; font: 1rem/1.55 system-ui, sans-serif;
       color: #1f2328; background: #fff }
nav { border-bottom: 1px solid #d1d9e0; padding-bottom: .5rem } nav a { margin-right: .8rem }
a { color: #0550ae } img { max-width: 100%; height: auto }
pre { overflow-x: auto; padding: .8rem; background: #f6f8fa } code { font-size: .9em }
table { border-collapse: collapse } .scroll { overflow-x: auto }
th, td { border: 1px solid #d1d9e0; padding: .3rem .6rem; text-align: left }
@media (prefers-color-scheme: dark) {
  body { color: #f0f6fc; background: #0d1117 } pre { background: #151b23 } a { color: #79c0ff }
  th, td, nav { border-color: #3d444d }
}
"""


def anchor(heading: str) -> str:
    """What a link names after "#", as the repository's own pages do."""
    plain = html.unescape(re.sub(r"<[^>]+>", "", heading))
    return re.sub(r"[^\w -]", "", plain.lower()).replace(" ", "-")


class Pages(mistune.HTMLRenderer):
    """Headings that links find, code and tables that keys can scroll.

    A diagram needs a script from a network, so it is left out.
    """

    def heading(self, text: str, level: int, **attrs: object) -> str:
        return f'<h{level} id="{anchor(text)}">{text}</h{level}>\n'

    def block_code(self, code: str, info: str | None = None) -> str:
        block = super().block_code(code, info).replace("<pre>", '<pre tabindex="0">', 1)
        return "" if info == "mermaid" else block

    def table(self, text: str) -> str:
        return f'<div class="scroll" tabindex="0"><table>\n{text}</table></div>\n'

    def table_cell(self, text: str, align: Literal["left", "right", "center"] | None, head: bool) -> str:
        return render_table_cell(self, text, align, head and bool(text))  # an empty corner heads nothing


def place(source: Path) -> Path:
    """Where a file of the repository lies in the site."""
    path = source.relative_to(ROOT)
    if source == START:
        return Path("index.html")
    return path.with_suffix(".html") if path.suffix == ".md" else path


def relative(target: Path, page: Path) -> str:
    """A link from one place of the site to another."""
    return Path(os.path.relpath(target, page.parent)).as_posix()


def render(source: Path, linked: list[Path]) -> str:
    """The page of a document; what it links to is added to `linked`.

    Raises:
        FileNotFoundError: a link leads nowhere.
    """
    here = place(source)
    text = source.read_text(encoding="utf-8")
    body = str(mistune.create_markdown(escape=False, renderer=Pages(escape=False), plugins=["table"])(text))

    def follow(found: re.Match[str]) -> str:
        target = (source.parent / html.unescape(found[2])).resolve(strict=True)
        if target.is_dir():
            target = (target / "README.md").resolve(strict=True)
        linked.append(target)
        return f'{found[1]}="{relative(place(target), here)}{found[3] or ""}"'

    body = LINK.sub(follow, body)
    pages = {name: place(ROOT / path) for name, path in MENU.items()} | {"API": API}
    menu = " ".join(f'<a href="{relative(page, here)}">{name}</a>' for name, page in pages.items())
    title = re.search(r"^# (.+)$", text, re.M)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title[1] if title else source.name)}</title><style>{STYLE}</style></head>\n"
        f'<body><nav aria-label="Pages">{menu}</nav>\n<main>\n{body}</main></body></html>\n'
    )


def write_site(out: Path) -> None:
    """Writes the pages of the menu and everything that they link to below `out`."""
    waiting, done = [START, *(ROOT / path for path in MENU.values())], set()
    while waiting:
        source = waiting.pop()
        if source in done:
            continue
        done.add(source)
        target = out / place(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            target.write_text(render(source, waiting), encoding="utf-8")
        else:
            shutil.copyfile(source, target)


if __name__ == "__main__":
    write_site(Path(sys.argv[1]))
