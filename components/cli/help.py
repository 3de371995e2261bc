"""What `--help` says beside the docstrings: commands in groups, examples, types in words."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from typer import Typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

GROUPS = {
    "Start": ("init", "doctor", "settings", "domains", "plan"),
    "Data": ("fetch", "synthesize", "ingest", "validate", "preview", "push", "pull", "styles", "stylize"),
    "Models": ("train", "evaluate", "ablate", "tune", "convert", "register", "rollback"),
    "Results": ("show", "compare", "report", "models", "predict", "export", "watch"),
    "Clusters": ("pipeline",),
}
EXAMPLES = {  # a line of a terminal has room for 78 letters
    "domains": ("crossearth domains --csv",),
    "settings": ("crossearth settings", "crossearth settings --catalog roads.yaml --json"),
    "plan": ("crossearth plan potsdam-rgb",),
    "fetch": ("crossearth fetch loveda",),
    "ingest": ("crossearth ingest potsdam", "crossearth ingest --catalog roads.yaml road-epfl"),
    "styles fit": ("crossearth styles fit my-imagery",),
    "styles show": ("crossearth styles show tile.tif --out styles.png",),
    "stylize": ("crossearth stylize potsdam-rgb",),
    "preview": ("crossearth preview potsdam-rgb",),
    "push": ("crossearth push potsdam-rgb --store s3://bucket/tiles",),
    "pull": ("crossearth pull potsdam-rgb --store s3://bucket/tiles",),
    "train": ("crossearth train potsdam-rgb", "crossearth train --seeds 0,1,2 potsdam-rgb"),
    "evaluate": (
        "crossearth evaluate --seeds 0,1,2 potsdam-rgb",
        "crossearth evaluate potsdam-rgb --model models/potsdam",
    ),
    "tune": ("crossearth tune potsdam-rgb --grid grid.yaml --jobs 2",),
    "show": ("crossearth show", "crossearth show potsdam-rgb", "crossearth show --csv > settings.csv"),
    "compare": ("crossearth compare results/before artifacts/scores",),
    "report": ("crossearth report", "crossearth report --against results/before"),
    "convert": ("crossearth convert source.pth --backbone dinov2.pth --out models/potsdam",),
    "register": ("crossearth register potsdam-rgb",),
    "rollback": ("crossearth rollback potsdam-rgb",),
    "models show": ("crossearth models show potsdam-rgb",),
    "export": ("crossearth export artifacts/models/potsdam-rgb --format onnx",),
    "predict": (
        "crossearth predict scene.tif --model artifacts/models/road-epfl --out map.tif",
        "crossearth predict scenes --model models:/crossearth-town@champion --out maps",
    ),
    "watch": (
        "crossearth watch artifacts/models/road-epfl scenes",
        "crossearth watch models:/crossearth-town@champion new.tif --no-fail",
    ),
}
WORDS = {"int": "NUMBER", "float": "NUMBER", "str": "TEXT", "list[str]": "TEXT", "list[Path]": "PATH"}


class _Worded:
    """Help that shows brackets as they are, and no types of Python."""

    def get_params(self, context: Any) -> list[Any]:
        """The parameters with the words that their help shows."""
        params: list[Any] = super().get_params(context)  # type: ignore[misc]
        for param in params:
            word = "" if isinstance(param, TyperArgument) else _word(param, context)
            param.display_type_rich = lambda word=word, **_: word or None
        return params


def _word(option: Any, context: Any) -> str:
    said = option.display_type(context).strip("<>")
    if said == "bool" or option.metavar:
        return option.metavar or ""
    return "NUMBER" if said.endswith(" range") else WORDS.get(said, said.upper())


class _Command(_Worded, TyperCommand):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        params: list[Any] = self.params
        for param in params:
            param.help = escape(param.help or "")
            if isinstance(param, TyperArgument):
                param.metavar = param.metavar or param.name.upper()
        self.help = escape(self.help or "")


class _Group(_Worded, TyperGroup):
    def list_commands(self, context: Any) -> list[str]:
        """Names in the order of `GROUPS`: what a new user types first stands first."""
        order = [name for names in GROUPS.values() for name in names]
        return sorted(
            super().list_commands(context), key=lambda name: order.index(name) if name in order else 0
        )


def describe(app: Typer, above: str = "") -> None:
    """Gives every command of `app` its group, its examples and readable types.

    Args:
        above: the commands that lead to this app, e.g. "styles ".
    """
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    app.info.cls = _Group
    for command in app.registered_commands:
        name = f"{above}{command.name or getattr(command.callback, '__name__', '')}"
        command.cls = _Command
        command.rich_help_panel = group_of.get(name)
        if name in EXAMPLES:
            command.epilog = escape("Examples:\n" + "\n".join(EXAMPLES[name]))
    for group in app.registered_groups:
        if group.typer_instance is not None:
            describe(group.typer_instance, f"{above}{group.name} " if group.name else above)
        group.cls = _Group
        group.rich_help_panel = group_of.get(f"{above}{group.name}")
