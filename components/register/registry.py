"""The MLflow model registry: versions, the aliases champion and challenger, and the story of their moves.

Every move of an alias is a tag of the registered model, `move.0001` and so on, as a line that people read:
what moved, when, who moved it, for which run and why.
"""

import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from crossearth.components.evaluate.results import (
    DETAILS,
    RecipeResult,
    SettingResult,
    per_cent,
    read_results,
)
from crossearth.components.register.listing import About, Listed
from crossearth.components.runtime.tracking import (
    KEY_TAG,
    connect,
    find_run,
    tracking_uri,
    transferring,
    user_name,
)
from crossearth.components.runtime.tracking_internals import PROXIED, served_at
from crossearth.components.runtime.tracking_server import refusal
from crossearth.components.runtime.tracking_store import LOST_ARTIFACTS, database_of, lost_root
from crossearth.data.common.config import nearest
from crossearth.data.common.errors import InputError
from crossearth.data.raster.reading import BYTES
from crossearth.model.weights.checkpoint import (
    META_NAME,
    REFERENCE_NAME,
    WEIGHTS_NAME,
    read_meta,
    trained_reading,
)

if TYPE_CHECKING:
    from mlflow.entities import RunInfo
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models.model import ModelInfo
    from mlflow.tracking import MlflowClient

MODELS = "models:/"
CHAMPION, CHALLENGER = "champion", "challenger"
ROLLBACK = "rollback"
MOVE_TAG = "move."
ABOUT_TAG = "about"
EXAMPLE_PX = 32
REQUIREMENTS = ("torch", "numpy", "rasterio", "mlflow")
# of `SceneMapper.predict`: name, type, value where none is given
PARAMS = (("output", "string", "map"), ("min_area_m2", "double", 0.0), ("simplify_px", "double", 0.0))
MOVE = re.compile(
    r"(?P<alias>\S+): (?P<old>\S+) -> (?P<new>\S+), (?P<when>\S+), by (?P<who>.*?), "
    r"run (?P<run>\S+): (?P<why>.*)"
)
NONE = "none"


@dataclass(frozen=True)
class Move:
    """An alias went from one version to another; `old` or `new` is "" where it came from or went to none."""

    alias: str
    old: str
    new: str
    who: str
    when: str
    run: str
    why: str

    def __str__(self) -> str:
        """As its tag has it: champion: 1 -> 3, 2026-11-30T10:00:00+00:00, by anna, run 0f3...: rollback."""
        old, new, run = (part or NONE for part in (self.old, self.new, self.run))
        return f"{self.alias}: {old} -> {new}, {self.when}, by {self.who}, run {run}: {self.why}"

    @staticmethod
    def parse(text: str) -> "Move":
        """A move from its tag.

        Raises:
            InputError: not one of ours.
        """
        found = MOVE.fullmatch(text)
        if found is None:
            raise InputError(f"no move of an alias: {text!r}", expected="what `crossearth register` wrote")
        return Move(**{name: "" if part == NONE else part for name, part in found.groupdict().items()})


@contextmanager
def _reaching() -> Iterator[None]:
    """Turns "the server is away" and "it refuses" into messages for the user."""
    from google.protobuf.json_format import ParseError
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    away = (RequestException, ConnectionError, SQLAlchemyError, ParseError, _mlflow_exception())
    no_address = (ValueError, ImportError)
    try:
        yield
    except InputError:
        raise
    except (*away, *no_address) as error:
        what = f"does not answer: {_first_line(error)}"
        next_step = "start the server, or set MLFLOW_TRACKING_URI to one that runs; then try again"
        if refused := refusal(error, tracking_uri()):
            what, next_step = f"cannot be used: {refused[0]}", refused[1]
        raise InputError(f"the model registry {what}", where=tracking_uri(), next_step=next_step) from error


class Registry:
    """The registry at MLFLOW_TRACKING_URI.

    Raises:
        InputError: it does not answer; so does every method.
    """

    @_reaching()
    def __init__(self) -> None:
        self.client: MlflowClient = connect(tracking_uri())
        self.client.search_registered_models(max_results=1)

    @_reaching()
    def find(self, name: str, identity: str) -> "ModelVersion | None":
        """The version of a model that was made from these weights and scores."""
        found = self.client.search_model_versions(f"name = '{name}' and tags.identity = '{identity}'")
        return max(found, key=lambda each: int(each.version), default=None)

    @_reaching()
    def add(
        self,
        name: str,
        run_id: str,
        model_dir: Path,
        backbone: Path | None,
        result: RecipeResult,
        card: str,
        identity: str,
        about: About,
    ) -> "ModelVersion":
        """Registers a model as the next version of `name`, under the run of its training.

        Args:
            model_dir: folder with the weights and their description.
            backbone: file of the shared backbone, None where the weights hold it.
            result: the model's scores; they go into the version, for later comparisons.
            card: the version's description.
            identity: by which `find` finds it again.
            about: what a list of models says of it.
        """
        run = self.client.get_run(run_id).info
        if lost := lost_root(self.client.get_experiment(run.experiment_id).artifact_location):
            raise InputError(
                f"MLflow keeps its models in {lost}, which is not here",
                where=tracking_uri(),
                next_step=LOST_ARTIFACTS,
            )
        with TemporaryDirectory() as temporary, _ended_as(self.client, run):
            files = _files(Path(temporary), model_dir, backbone, result, card)
            logged = _log_model(run_id, result.recipe, files)
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(
                name, description=f"Maps of overhead imagery, recipe {result.recipe}"
            )
        scores = {f"{result.metric} {each.setting.target}": _told(result, each) for each in result.settings}
        return self.client.create_model_version(
            name,
            logged.model_uri,
            run_id=run_id,
            tags={
                ABOUT_TAG: about.to_json(),
                "recipe": result.recipe,
                "selection": result.selection,
                "provenance": ", ".join(sorted({each.provenance for each in result.settings})),
                **scores,
                "weights": result.model_sha256,
                "identity": identity,
            },
            description=card,
            model_id=logged.model_id,
        )

    @_reaching()
    def version(self, name: str, number: str) -> "ModelVersion":
        return self.client.get_model_version(name, number)

    @_reaching()
    def listed(self) -> list[Listed]:
        """Of each model that crossearth registered the versions with an alias, and the latest."""
        found = []
        for model in _mlflow().search_registered_models():
            named, query = model.name, f"name = '{model.name}'"
            aliases = [(f"{named}@{alias}", self.aliased(named, alias)) for alias in sorted(model.aliases)]
            latest = self.client.search_model_versions(query, 1, order_by=["version_number DESC"])
            numbers = {made.version for _, made in aliases if made}
            others = [(f"{named}/{made.version}", made) for made in latest if made.version not in numbers]
            for name, made in (*aliases, *others):
                if made and ABOUT_TAG in made.tags:
                    uri = f"{MODELS}{name}"
                    try:
                        found.append(Listed(uri, About.from_json(made.tags[ABOUT_TAG], uri)))
                    except InputError as error:
                        found.append(Listed(uri, None, error.what))
        return found

    @_reaching()
    def card(self, uri: str) -> str:
        """The card of the version at models:/NAME@ALIAS or models:/NAME/VERSION.

        Raises:
            InputError: there is none.
        """
        name, at, alias = uri.removeprefix(MODELS).partition("@")
        name, _, number = name.partition("/")
        try:
            made = self.aliased(name, alias) if at else self.client.get_model_version(name, number)
        except _mlflow_exception() as error:
            if not _is_absent(error):
                raise
            made = None
        if made is None:
            raise _no_model(uri, "the registry has none of that name")
        return str(made.description)

    @_reaching()
    def aliased(self, name: str, alias: str) -> "ModelVersion | None":
        """The version that carries an alias, None where none does."""
        try:
            return self.client.get_model_version_by_alias(name, alias)
        except _mlflow_exception() as error:
            if not _is_absent(error):
                raise
            return None

    @_reaching()
    def scores(self, made: "ModelVersion") -> RecipeResult | None:
        """The scores that a version was registered with, None where it has none."""
        from mlflow.artifacts import download_artifacts

        with TemporaryDirectory() as temporary:
            uri = f"models:/{made.name}/{made.version}/artifacts/{DETAILS}"
            try:
                download_artifacts(artifact_uri=uri, dst_path=temporary)
            except (OSError, _mlflow_exception()):
                self.client.search_registered_models(max_results=1)  # raises where the server is away
                return None
            (found,) = Path(temporary).rglob(DETAILS)
            try:
                return read_results(found.parent)
            except InputError:  # of another version of the format: its weights can be scored anew
                return None

    @_reaching()
    def location(self, made: "ModelVersion") -> str:
        """Address of a version's files, with the server's name where that hands them out; no login in it."""
        uri = self.client.get_model_version_download_uri(made.name, str(made.version))
        return served_at(uri, tracking_uri()) if urlsplit(uri).scheme == PROXIED else uri

    @_reaching()
    def written_by(self, made: "ModelVersion") -> str:
        """Version of the MLflow that wrote a version's files."""
        return str(_mlflow().models.get_model_info(f"{MODELS}{made.name}/{made.version}").mlflow_version)

    @_reaching()
    def move(self, name: str, alias: str, new: "ModelVersion | None", why: str) -> None:
        """Points an alias at a version, or takes it away, and tags the model with the move."""
        old = self.aliased(name, alias)
        if (old and old.version) == (new and new.version):
            return
        if new is None:
            self.client.delete_registered_model_alias(name, alias)
        else:
            self.client.set_registered_model_alias(name, alias, new.version)
        before, after = (str(made.version) if made else "" for made in (old, new))
        run, when = (new and new.run_id) or "", datetime.now(UTC).isoformat(timespec="seconds")
        move = Move(alias, before, after, user_name(), when, run, why)
        number = len(self.moves(name)) + 1
        self.client.set_registered_model_tag(name, f"{MOVE_TAG}{number:04d}", str(move))

    @_reaching()
    def moves(self, name: str) -> list[Move]:
        """All moves of a model's aliases, oldest first."""
        tags = self.client.get_registered_model(name).tags
        return [Move.parse(tags[key]) for key in sorted(tags) if key.startswith(MOVE_TAG)]

    @_reaching()
    def run_of(self, key: str) -> str | None:
        """Id of the run whose inputs' hash is `key`, None where there is none."""
        return find_run(self.client, {KEY_TAG: key})


def _files(
    folder: Path, model_dir: Path, backbone: Path | None, result: RecipeResult, card: str
) -> dict[str, Path]:
    """What a version consists of, by name; what is not there yet is made in `folder`."""
    model = folder / "model"
    model.mkdir()
    for file in (WEIGHTS_NAME, META_NAME, REFERENCE_NAME):
        if file != REFERENCE_NAME or (model_dir / file).exists():  # a converted model has none
            shutil.copyfile(model_dir / file, model / file)
    written = folder / "MODEL_CARD.md"
    written.write_text(card, encoding="utf-8")
    shared = {} if backbone is None else {"backbone": backbone}
    return {"model": model, "scores": result.folder / DETAILS, "card": written, **shared}


def _log_model(run_id: str, name: str, files: Mapping[str, Path]) -> "ModelInfo":
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    mlflow = _mlflow()
    example = (trained_reading(read_meta(files["model"])) or BYTES).example(EXAMPLE_PX)
    with transferring(), mlflow.start_run(run_id=run_id):
        return mlflow.pyfunc.log_model(
            name=name,
            python_model=str(Path(__file__).with_name("mapper.py")),
            artifacts={key: str(path) for key, path in files.items()},
            signature=ModelSignature(
                Schema([ColSpec(AnyType(), "scene")]),
                Schema([ColSpec(AnyType(), "class_map")]),
                ParamSchema([ParamSpec(*param) for param in PARAMS]),
            ),
            input_example=pd.DataFrame({"scene": [example]}),
            pip_requirements=[
                f"crossearth=={version('crossearth')}",
                *(f"{package}=={version(package).split('+')[0]}" for package in REQUIREMENTS),
            ],
        )


@contextmanager
def _ended_as(client: "MlflowClient", before: "RunInfo") -> Iterator[None]:
    """MLflow opens the run that a model is added to: afterwards it has the status and end of `before`."""
    try:
        yield
    finally:
        if before.end_time:
            client.set_terminated(before.run_id, before.status, before.end_time)


def _told(result: RecipeResult, setting: SettingResult) -> str:
    """The primary score of a setting, as a tag tells it."""
    primary = result.scores(setting).primary_metric
    return f"{per_cent(primary)} %" + (" (unseen)" if setting.setting.unseen else " (its own domain)")


def champion_before(moves: Sequence[Move]) -> str | None:
    """The version that was champion before the present one, seen through rollbacks; None if none was."""
    line: list[str] = []
    for move in moves:
        if move.alias != CHAMPION:
            continue
        if len(line) > 1 and move.why == ROLLBACK and line[-2] == move.new:
            line.pop()
        else:
            line.append(move.new)
    return line[-2] if len(line) > 1 else None


@contextmanager
def open_model(model: str) -> Iterator[tuple[Path, Path | None]]:
    """A model by what users call it: of an SQLite store's registry it is read in place, else copied.

    The copies are gone when the context ends.

    Args:
        model: a path, models:/NAME@ALIAS, models:/NAME/VERSION, or models:/ID or runs:/... of a logged model.

    Yields:
        The model's folder or file, and the file of its shared backbone: None where the weights hold it, and
        of a path, for that model knows where its backbone lies.

    Raises:
        InputError: no such model in the registry, or the registry does not answer.
    """
    if not model.startswith((MODELS, "runs:/")):
        yield Path(model), None
        return
    with nullcontext() if database_of(tracking_uri()) else TemporaryDirectory() as copies:
        yield _fetch(model, copies)


def registry_exists() -> bool:
    """Whether there is one to look into: a server, or the file of an SQLite one, which MLflow would make."""
    database = database_of(tracking_uri())
    return database is None or database.exists()


def _fetch(uri: str, copies: str | None) -> tuple[Path, Path | None]:
    if not registry_exists():
        raise _no_model(uri, "there is no registry here")
    with _reaching():
        connect(tracking_uri())
        try:
            with transferring():
                folder = Path(_mlflow().artifacts.download_artifacts(artifact_uri=uri, dst_path=copies))
        except (_mlflow_exception(), OSError) as error:
            raise _no_model(uri, _first_line(error), _similar(uri)) from error
    paths = _parts_of(folder)
    if "model" not in paths:
        raise InputError(
            f"{uri} is a model of another kind", where=folder, expected="one that crossearth registered"
        )
    return paths["model"], paths.get("backbone")


def _parts_of(folder: Path) -> dict[str, Path]:
    """What the model in `folder` consists of, by name; nothing where it is a model of another kind."""
    import yaml

    try:
        described = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
        files = described["flavors"]["python_function"]["artifacts"]
        paths = {key: folder / entry["path"] for key, entry in files.items()}
    except (OSError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return {}
    within = folder.resolve()
    return {key: path for key, path in paths.items() if path.resolve().is_relative_to(within)}


def _similar(uri: str) -> str:
    """The registered model whose name is nearest to that of models:/NAME...; empty where there is none."""
    name = re.split("[@/]", uri.removeprefix("models:/"))[0]
    known = [each.name for each in _mlflow().search_registered_models()]
    return nearest(name, known) if known and name not in known else ""


def _no_model(uri: str, why: str, similar: str = "") -> InputError:
    return InputError(
        f"no model at {uri}: {why}",
        where=tracking_uri(),
        expected=similar or "models:/crossearth-RECIPE@champion, or a version: models:/crossearth-RECIPE/1",
        next_step="crossearth register, or set MLFLOW_TRACKING_URI to the store that has it",
    )


def _mlflow() -> Any:
    """MLflow's own functions, which speak to the registry's server from here on."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())
    return mlflow


def _mlflow_exception() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    return MlflowException


def _is_absent(error: Exception) -> bool:
    """Whether the registry says that it has no such model, version or alias."""
    return getattr(error, "error_code", "") in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
