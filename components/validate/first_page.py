"""The first page of the Data Docs, for theirs is blank without a network."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from crossearth.components.runtime.pages import render

DOCS, INDEX = "docs", "index.html"


def first_page(counts: Mapping[str, int], domains: Mapping[str, Any]) -> str:
    """The page as text, of the summary's counts and domains."""
    pages = {name: quote(found["docs"].removeprefix(f"{DOCS}/")) for name, found in domains.items()}
    return render("validate", INDEX, {"counts": counts, "domains": domains, "pages": pages})
