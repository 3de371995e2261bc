"""Pages of HTML that need no network: one environment of templates, one style sheet."""

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

STYLE, BASE = "page.css", "base.html"


def render(
    step: str,
    template: str,
    values: Mapping[str, Any],
    filters: Mapping[str, Callable[..., Any]] | None = None,
) -> str:
    """A page as text. Its template extends `base`, which has the style sheet that all pages may share.

    Args:
        step: name of the folder in components/ that holds the template.
        template: the file's name.
        filters: of the template, beside Jinja's own.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= filters or {}
    components = files("crossearth.components")
    base, style = (components.joinpath("runtime", name).read_text("utf-8") for name in (BASE, STYLE))
    page = environment.from_string(components.joinpath(step, template).read_text("utf-8"))
    own = {"base": environment.from_string(base), "style": Markup(style)}  # noqa: S704 our own file
    return page.render(values, **own)
