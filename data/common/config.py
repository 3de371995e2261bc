"""YAML becomes a frozen dataclass here and nowhere else."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import field, fields, is_dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import PydanticCustomError

from crossearth.data.common.errors import InputError

Config = TypeVar("Config")


MAX_BYTES = 2**20
NAMES_SHOWN, FILES_SHOWN = 25, 5
VALUE_SHOWN = 300
UNKNOWN_KEY = "unexpected_keyword_argument"  # as pydantic calls it


def home_path(path: Path) -> Path:
    """The path with the user's home for ~; as it stands where ~NAME is nobody's home."""
    with suppress(RuntimeError):
        return path.expanduser()
    return path


# a path in a file, where no shell has made the user's home of ~
HomePath = Annotated[Path, AfterValidator(home_path)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if not -math.inf < ends[0] < ends[1] < math.inf:
        raise PydanticCustomError("rising", "Input should be two rising finite numbers")
    return ends


Rising = Annotated[tuple[float, float], AfterValidator(_rising)]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# True and "1" are no numbers; 1.0 is an integer, for Kubeflow sends every number as a float
STRICT: dict[Any, Any] = {
    bool: Annotated[bool, Strict()],
    int: Annotated[int, BeforeValidator(_whole), Strict()],
    float: Annotated[float, Strict()],
}


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
        InputError: the file is missing, unreadable or too large, or `parse_yaml` refuses its text.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES // 2**20} MiB")
        text = content.decode()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read: {error}", where=path, expected="a file of YAML") from error
    return parse_yaml(text, path)


def parse_yaml(text: str, where: object) -> Any:
    """Parses YAML with the safe loader; InputError where it is none, or a map has a key twice."""
    try:
        return yaml.load(text, _UniqueKeyLoader)  # noqa: S506 a safe loader
    except Exception as error:  # a date or a number that is none fails in any way it likes
        raise InputError(f"not valid YAML: {error}", where=where) from error


def nearest(word: str, choices: Iterable[str]) -> str:
    """'did you mean' text for a wrong word, or the list of choices."""
    known = sorted(map(str, choices))
    close = difflib.get_close_matches(str(word), known, n=1)
    listing = listed(known)
    return f"{close[0]!r}? (choices: {listing})" if close else f"one of {listing}"


def listed(names: Iterable[object], most: int = NAMES_SHOWN) -> str:
    """Names in a row; of many, the first ones and how many more there are."""
    every = [str(name) for name in names]
    more = len(every) - most
    return ", ".join(every[:most]) + (f" and {more} more" if more > 0 else "")


def some(names: Iterable[str]) -> str:
    """Names of files in a row; of many, a few and how many more there are."""
    return listed(names, FILES_SHOWN)


def shown(value: object) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= VALUE_SHOWN else f"{text[:VALUE_SHOWN]}..."


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def checked(kind: type[Config]) -> type[Config]:
    """Makes a frozen dataclass of a class: what constructs one, in a file or in Python, is checked.

    The fields' types and bounds (`Annotated[int, Field(ge=1)]`) are pydantic's. Numbers and booleans are not
    made of other things. `__post_init__` checks fields against each other. What is wrong is an `InputError`.
    """
    hints = get_type_hints(kind, include_extras=True)
    kind.__annotations__ = {name: _strict(hints[name]) for name in kind.__annotations__}
    made: Any = pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid"))(kind)
    construct, described = made.__init__, signature(made)

    def init(self: Any, *args: Any, **named: Any) -> None:
        values = described.bind(*args, **named).arguments
        try:
            construct(self, **values)
        except ValidationError as error:
            raise _refusal(error, made, values, "") from error

    # for help() and the API's pages: pydantic's own constructor names no field
    plain = get_type_hints(kind)
    fields = [each.replace(annotation=plain[name]) for name, each in described.parameters.items()]
    this = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
    init.__signature__ = Signature([this, *fields], return_annotation=None)  # type: ignore[attr-defined]
    made.__init__ = init
    return cast("type[Config]", made)


def _strict(hint: Any) -> Any:
    """The hint, with the strict numbers wherever it has numbers."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return Annotated[(_strict(inner[0]), *inner[1:])]
    if kind is Literal or not inner:
        return STRICT.get(hint, hint)
    every = tuple(_strict(each) for each in inner)
    return Union[every] if kind in (Union, UnionType) else kind[every]  # noqa: UP007


def load_config(kind: type[Config], values: Any, where: object) -> Config:
    """Validates plain values (as YAML gives them) into the `checked` dataclass `kind`.

    Raises:
        InputError: an unknown key (with the nearest known one), a missing key or a value of the wrong type
            or out of bounds; the message names `where` and the key.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise _refusal(error, kind, values, where) from error


def _refusal(error: ValidationError, kind: Any, values: Any, where: object) -> InputError:
    # of a union's members, the one whose problem lies deepest came nearest to taking the values
    problems = sorted(
        ((_path(each, values), each["type"] == UNKNOWN_KEY, each) for each in error.errors()),
        key=lambda each: (-len(each[0]), not each[1]),
    )
    path, unknown, problem = problems[0]
    cause = problem.get("ctx", {}).get("error")
    key = path.pop() if unknown else ""
    place = ": ".join(filter(None, [str(where), ".".join(path)]))
    if isinstance(cause, InputError):
        return InputError(str(cause), where=place)
    if unknown:
        return InputError(f"unknown key {key!r}", where=place, expected=nearest(key, _known(kind, path)))
    return InputError(f"{problem['msg']}, found {shown(problem['input'])}", where=place)


def _path(problem: Any, values: Any) -> list[str]:
    """The keys down to a problem, without the names of types that pydantic puts between them."""
    path = []
    for part in problem["loc"]:
        with suppress(KeyError, IndexError, TypeError):
            values = values[part]
            path.append(str(part))
    return [*path, str(problem["loc"][-1])] if problem["type"] == "missing" else path


def _known(kind: Any, path: Iterable[str]) -> set[str]:
    """Names of the fields that may stand at a path below `kind`."""
    kinds = [kind]
    for part in path:
        hints = [get_type_hints(each).get(part) for each in kinds]
        kinds = [inner for hint in hints for inner in _dataclasses(hint)] or kinds
    return {each.name for kind in kinds for each in fields(kind)}


def _dataclasses(hint: Any) -> list[Any]:
    if is_dataclass(hint):
        return [hint]
    return [found for inner in get_args(hint) for found in _dataclasses(inner)]


def merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `over` on top: maps are merged at every level, anything else is replaced."""
    both = dict(values)
    for key, value in over.items():
        below = both.get(key)
        both[key] = (
            merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
        )
    return both
