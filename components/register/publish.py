"""Tells Kubeflow Hub of the versions of MLflow's registry.

A version there is what its client's `register_model(name, uri, model_format_name=...)` writes: a registered
model, its version, the version's artifact. Here each of the three is looked for first: a second time adds
nothing and one that was cut short is completed, where `register_model` refuses both.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from crossearth.components.evaluate.results import nan_to_none
from crossearth.components.register.listing import About
from crossearth.components.register.registry import ABOUT_TAG, CHAMPION, MODELS, Registry
from crossearth.components.runtime.hub import address, ask, look, refuse_own
from crossearth.components.runtime.tracking import user_name
from crossearth.data.common.errors import InputError, PartlyDoneError

if TYPE_CHECKING:
    from model_registry.core import ModelRegistryAPIClient
    from model_registry.types import ModelArtifact, ModelVersion

FORMAT = "mlflow"  # what stands at the address; KServe chooses a runtime by it
DIGEST = "digest"


def publish(versions: Mapping[str, str], again: str, pauses: Sequence[float] = ()) -> str:
    """Tells Kubeflow Hub of versions, and of their models' champions.

    Args:
        versions: name of a registered model -> version.
        again: what to do once more where it cannot be told.
        pauses: seconds between tries while the server is away.

    Returns:
        Its address; "" without $CROSSEARTH_HUB_URL, and then nobody is told.

    Raises:
        InputError: $CROSSEARTH_HUB_URL is no address.
        PartlyDoneError: it was not told of all of them; MLflow's registry has them.
    """
    url = address()
    if not url:
        return ""
    errors: dict[str, InputError] = {}
    try:
        ask(look, pauses)  # where it is away, it is waited for once
        registry = Registry()
        for name, version in versions.items():
            try:
                _publish(registry, name, version, pauses)
            except InputError as error:
                errors[name] = error
    except InputError as error:
        errors = dict.fromkeys(versions, error)
    if errors:
        left = ", ".join(f"{name} version {versions[name]}" for name in errors)
        told = f"MLflow's registry has {left}; Kubeflow Hub was not told of it, then again: {again}"
        raise PartlyDoneError(told, list({str(each): each for each in errors.values()}.values()), [url])
    return url


def _publish(registry: Registry, name: str, version: str, pauses: Sequence[float]) -> None:
    made = registry.aliased(name, CHAMPION)
    champion = str(made.version) if made else ""
    entries = [_entry(registry, name, number, champion) for number in {version: 0, champion: 0} if number]
    ask(partial(_write, entries=entries, champion=champion), pauses)


def _entry(
    registry: Registry, name: str, version: str, champion: str
) -> "tuple[ModelVersion, ModelArtifact]":
    """What Kubeflow Hub is told of a version, and of its files; scores are fractions 0..1.

    Raises:
        InputError: its files lie where nobody else finds them; the registry does not answer.
    """
    from model_registry.types import ModelArtifact, ModelVersion

    made = registry.version(name, version)
    uri = registry.location(made)
    refuse_own(uri)
    mine = f"{MODELS}{name}/{version}"
    about = About.from_json(made.tags.get(ABOUT_TAG, ""), mine)
    of_targets: dict[str, float | None] = {}
    if result := registry.scores(made):
        for each in result.settings:
            score = nan_to_none(result.scores(each).primary_metric)
            of_targets[f"{result.metric} {each.setting.target}"] = score
    properties: dict[str, Any] = {
        "recipe": made.tags["recipe"],
        "classes": ", ".join(about.classes),
        "bands": ", ".join(about.bands),
        "gsd_m": about.gsd_m,
        "licence": about.licence,
        "provenance": about.provenance,
        "selection": made.tags["selection"],
        "mlflow_run_id": made.run_id,
        "mlflow_model": mine,
        "weights_sha256": made.tags["weights"],
        DIGEST: made.tags["identity"],
        **about.scores,
        **of_targets,
        CHAMPION: version == champion,
    }
    told = {key: value for key, value in properties.items() if value not in (None, "")}
    described = ModelVersion(
        name=version, author=user_name(), description=made.description or "", custom_properties=told
    )
    files = ModelArtifact(
        name=name, uri=uri, model_format_name=FORMAT, model_format_version=registry.written_by(made)
    )
    return described, files


async def _write(
    hub: "ModelRegistryAPIClient", entries: "Sequence[tuple[ModelVersion, ModelArtifact]]", champion: str
) -> None:
    """Adds what is missing of versions of one model, and marks which version is champion."""
    from model_registry.types import Pager, RegisteredModel

    first, its_files = entries[0]
    name = its_files.name
    model = await hub.get_registered_model_by_params(name)
    if model is None:
        about = f"Maps of overhead imagery, recipe {first.custom_properties['recipe']}"
        new = RegisteredModel(name=name, owner=first.author, description=about)
        model = await hub.upsert_registered_model(new)
    for told, files in entries:
        version = await hub.get_model_version_by_params(model.id, told.name)
        if version is None:
            version = await hub.upsert_model_version(told, model.id)
        elif (version.custom_properties or {}).get(DIGEST) != told.custom_properties[DIGEST]:
            raise InputError(
                f"version {told.name} of {name} is another model there",
                where=address(),
                expected=f"one whose {DIGEST} is {told.custom_properties[DIGEST]}",
                next_step="give `prefix` another value in the section `register` of params.yaml",
            )
        if await hub.get_model_artifact_by_params(name, version.id) is None:
            await hub.upsert_model_version_artifact(files, version.id)
    for version in [each async for each in Pager(partial(hub.get_model_versions, model.id))]:
        known = dict(version.custom_properties or {})
        if known.get(CHAMPION, False) is not (version.name == champion):
            version.custom_properties = {**known, CHAMPION: version.name == champion}
            await hub.upsert_model_version(version)
