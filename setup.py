"""What pyproject.toml cannot say: what README.md is on a package index, where no file lies beside it."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
LINK = re.compile(r"\[([^]]+)\]\((?!https?:)([^)]+)\)")
PICTURE = re.compile(r'<img src="(?!https?:)([^"]+)"([^>]*)>')
DIAGRAM = re.compile(r"```mermaid\n.*?```\n\n", re.DOTALL)


def on_an_index(text: str, repository: str | None) -> str:
    """A README whose links and pictures lead to the repository; without an address of one it has none.

    Args:
        repository: its address at a forge; pyproject.toml names it as the URL `Repository`.
    """
    text = DIAGRAM.sub("", text)  # no index draws it
    if repository is None:
        return PICTURE.sub("", LINK.sub(r"\1", text))
    text = LINK.sub(lambda link: f"[{link[1]}]({repository}{_page(link[2])})", text)
    return PICTURE.sub(rf'<img src="{repository}/raw/HEAD/\1"\2>', text)


def _page(target: str) -> str:
    return target if target.startswith("#") else f"/blob/HEAD/{target}"


if __name__ == "__main__":
    urls = tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    readme = on_an_index((HERE / "README.md").read_text("utf-8"), urls.get("Repository"))
    # a package lies in this folder: by its name setuptools knows that this file is none of its modules
    setup(script_name="setup.py", long_description=readme, long_description_content_type="text/markdown")
