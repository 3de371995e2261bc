"""YAML becomes a frozen dataclass here and nowhere else."""

import difflib
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from functools import cache
from itertools import repeat
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml
from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from crossearth.data.common.errors import InputError

Config = TypeVar("Config")


def home_path(path: Path) -> Path:
    """The path with the user's home for ~; as it stands where ~NAME is nobody's home."""
    with suppress(RuntimeError):
        return path.expanduser()
    return path


# a path in a file, where no shell has made the user's home of ~
HomePath = Annotated[Path, AfterValidator(home_path)]

MAX_BYTES = 2**20
MAX_DEPTH = 50
NAMES_SHOWN = 25
VALUE_SHOWN = 300


# what of YAML and of JSON is one of these: Kubeflow sends every number as a float
SCALARS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("boolean", lambda value: isinstance(value, bool)),
    int: ("integer", lambda value: _is_number(value) and value % 1 == 0),
    float: ("number", lambda value: _is_number(value)),
    str: ("string", lambda value: isinstance(value, str)),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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


# YAML 1.1 takes 1e-4 for text
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


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
        InputError: an unknown key (with the nearest known one), a missing key or a value of the wrong type,
            such as "1" or True for a number; the message names `where` and the key.
    """
    _refuse_mistakes(kind, values, where)
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


def merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `over` on top: maps are merged at every level, anything else is replaced."""
    both = dict(values)
    for key, value in over.items():
        below = both.get(key)
        both[key] = (
            merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
        )
    return both


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Kept: building one costs a hundred times what using it does."""
    return TypeAdapter(kind, config=None if is_dataclass(kind) else ConfigDict())


def _refuse_mistakes(kind: Any, values: Any, where: object, path: tuple[str, ...] = ()) -> None:
    """What pydantic would let pass: unknown keys, and True or "1" where a number is wanted."""
    container, inner = get_origin(kind), get_args(kind)
    if container in (Union, UnionType):
        _refuse_all(inner, values, where, path)
    elif is_dataclass(kind) and isinstance(values, Mapping):
        hints = get_type_hints(kind)
        for key, value in values.items():
            if key not in hints:
                place = ": ".join((str(where), *path))
                raise InputError(f"unknown key {key!r}", where=place, expected=nearest(str(key), hints))
            _refuse_mistakes(hints[key], value, where, (*path, key))
    elif isinstance(container, type) and issubclass(container, Mapping) and isinstance(values, Mapping):
        for key, value in values.items():
            _refuse_mistakes(inner[1], value, where, (*path, str(key)))
    elif container in (list, tuple) and isinstance(values, list | tuple):
        each = repeat(inner[0]) if container is list or inner[-1] is Ellipsis else inner
        for number, (one, value) in enumerate(zip(each, values, strict=False)):
            _refuse_mistakes(one, value, where, (*path, str(number)))
    elif kind in SCALARS and not SCALARS[kind][1](values):
        place = ": ".join((str(where), *([".".join(path)] if path else [])))
        raise InputError(f"Input should be a valid {SCALARS[kind][0]}, found {values!r}", where=place)


def _refuse_all(kinds: Iterable[Any], values: Any, where: object, path: tuple[str, ...]) -> None:
    """Refuses what none of these kinds takes."""
    problems = []
    for kind in kinds:
        if not _may_be(kind, values):
            continue
        try:
            return _refuse_mistakes(kind, values, where, path)
        except InputError as error:
            problems.append(error)
    if problems:
        raise problems[0]


def _may_be(kind: Any, values: Any) -> bool:
    container = get_origin(kind)
    if kind is NoneType:
        return values is None
    if container in (list, tuple):
        return isinstance(values, list | tuple)
    is_map = is_dataclass(kind) or (isinstance(container, type) and issubclass(container, Mapping))
    return isinstance(values, Mapping) or not is_map
