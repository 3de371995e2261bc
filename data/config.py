"""YAML becomes a frozen dataclass here and nowhere else."""

import difflib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from crossearth.data.errors import InputError

Config = TypeVar("Config")

MAX_BYTES = 2**20
MAX_DEPTH = 50
NAMES_SHOWN = 25
VALUE_SHOWN = 300


class _UniqueKeyLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader; a key that stands twice in a map is an error instead of a silent loss."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} stands twice", problem_mark=node.start_mark
                )
            seen.add(key.value)
        return cast("dict[Any, Any]", super().construct_mapping(node, deep))


def read_yaml(path: Path) -> Any:
    """Parses a YAML file with the safe loader.

    Raises:
        InputError: the file is missing, unreadable, too large or no file, or `parse_yaml` refuses its text.
    """
    try:
        text = _read_text(Path(path))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read: {error}", where=path, expected="a file of YAML") from error
    return parse_yaml(text, path)


def _read_text(path: Path) -> str:
    # a pipe or a device may have no end
    if path.exists() and not path.is_file():
        raise OSError("not a file")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(f"more than {MAX_BYTES // 2**20} MiB")
    return content.decode()


def parse_yaml(text: str, where: object) -> Any:
    """Parses YAML with the safe loader.

    Raises:
        InputError: it is not YAML, a map has a key twice, it is nested too deeply, or its aliases stand for
            more than a file may hold.
    """
    try:
        _refuse_depth(text)
        value = yaml.load(text, _UniqueKeyLoader)  # noqa: S506 a safe loader
        _refuse_aliases(value)
    except Exception as error:  # a date or a number that is none fails in any way it likes
        raise InputError(f"not valid YAML: {error}", where=where) from error
    return value


def _refuse_depth(text: str) -> None:
    # asked of the events, because libyaml's composer overflows the stack
    depth = 0
    for event in yaml.parse(text, _UniqueKeyLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")


def _refuse_aliases(value: Any) -> None:
    """Ten lines of aliases to each other can stand for more than any message could show."""
    parts, room = [value], MAX_BYTES
    while parts:
        part = parts.pop()
        inner = [*part, *part.values()] if isinstance(part, dict) else part
        inner = inner if isinstance(inner, list | tuple | set) else []
        room -= len(inner) or len(repr(part))
        if room < 0:
            raise ValueError(f"more than {MAX_BYTES // 2**20} MiB with its aliases written out")
        parts += inner


def nearest(word: str, choices: Iterable[str]) -> str:
    """'did you mean' text for a wrong word, or the list of choices."""
    known = sorted(map(str, choices))
    close = difflib.get_close_matches(str(word), known, n=1)
    listing = listed(known)
    return f"{close[0]!r}? (choices: {listing})" if close else f"one of {listing}"


def listed(names: Iterable[object]) -> str:
    """Names in a row; of many, the first ones and how many more there are."""
    every = [str(name) for name in names]
    more = len(every) - NAMES_SHOWN
    return ", ".join(every[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def shown(value: object) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= VALUE_SHOWN else f"{text[:VALUE_SHOWN]}..."


def load_config(kind: type[Config], values: Any, where: object) -> Config:
    """Validates plain values (as YAML gives them) into the frozen dataclass `kind`.

    Raises:
        InputError: an unknown key (with the nearest known one), a missing key or a value of the wrong type;
            the message names `where` and the key.
    """
    _refuse_unknown_keys(kind, values, where)
    # python mode with strict=False: YAML lists become tuples, ints become floats
    try:
        return cast(Config, _adapter(cast(Hashable, kind)).validate_python(values))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            raise InputError(str(cause), where=where) from error
        raise InputError(
            f"{problem['msg']}, found {shown(problem['input'])}", where=f"{where}: {key}" if key else where
        ) from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Kept: building one costs a hundred times what using it does."""
    return TypeAdapter(kind, config=None if is_dataclass(kind) else ConfigDict())


def _refuse_unknown_keys(kind: Any, values: Any, where: object) -> None:
    if is_dataclass(kind):
        if not isinstance(values, Mapping):
            return
        hints = get_type_hints(kind)
        for key, value in values.items():
            if key not in hints:
                raise InputError(f"unknown key {key!r}", where=where, expected=nearest(str(key), hints))
            _refuse_unknown_keys(hints[key], value, f"{where}: {key}")
        return
    container = get_origin(kind)
    for inner in get_args(kind):
        if isinstance(container, type) and issubclass(container, Mapping) and isinstance(values, Mapping):
            for key, value in values.items():
                _refuse_unknown_keys(inner, value, f"{where}: {key}")
        elif container in (list, tuple) and isinstance(values, list | tuple):
            for number, value in enumerate(values):
                _refuse_unknown_keys(inner, value, f"{where}[{number}]")
        else:
            _refuse_unknown_keys(inner, values, where)
