"""Pages of HTML that need no network: one environment of templates, one style sheet."""

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

STYLE = "page.css"


def render(
    step: str,
    template: str,
    values: Mapping[str, Any],
    filters: Mapping[str, Callable[..., Any]] | None = None,
) -> str:
    """A page as text; `style` in its template is the style sheet that all pages may share.

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
    style = Markup(components.joinpath("runtime", STYLE).read_text("utf-8"))  # noqa: S704 our own file
    page = environment.from_string(components.joinpath(step, template).read_text("utf-8"))
    return page.render(values, style=style)
