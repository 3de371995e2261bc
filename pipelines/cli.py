"""`crossearth pipeline ...`: the graphs on this machine and on a cluster; kfp is imported late."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crossearth.components.cli.app import app, main
from crossearth.components.cli.terminal import Catalogs, Grid, Recipe, err, given, out, print_table

if TYPE_CHECKING:
    from crossearth.pipelines.benchmark import Inputs

__all__ = ["main"]

pipeline_app = typer.Typer(
    no_args_is_help=True,
    help="The same steps as Kubeflow pipelines: benchmark, training, inference, monitoring.",
)
app.add_typer(pipeline_app, name="pipeline")

# where a cluster has a kind, and nobody who works on its objects
STALLED = {
    "OptimizationJob": "Trainer had the kind before its controller; delete it and try --kind Experiment",
    "Experiment": "is Katib running? kubectl get pods -A -l katib.kubeflow.org/component=controller",
}
Name = Annotated[str, typer.Argument(help="benchmark, training, inference or monitoring")]
ValuesFile = Annotated[
    Path | None, typer.Option("--values", help="What the steps ask of the cluster, see infra/values.yaml.")
]
ParamsFile = Annotated[Path, typer.Option("--params", help="Parameters of the steps.")]
Preset = Annotated[
    str | None, typer.Option("--preset", help="Preset of the params file [default: the file's].")
]
Recipes = Annotated[
    list[str] | None, typer.Option("--recipe", help="Train this recipe (repeatable) [default: all].")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Parameter of the pipeline as name=value, in YAML (repeatable)."),
]
StylizeShards = Annotated[
    int, typer.Option("--stylize-shards", min=0, help="Write each source's stylized tiles in so many shards.")
]
Host = Annotated[
    str, typer.Option("--host", envvar="CROSSEARTH_KFP_HOST", help="Address of Kubeflow Pipelines' API.")
]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", help="Profile whose runs these are; a server without users has none."),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", help="File with the login token [default: $CROSSEARTH_KFP_TOKEN or _COOKIE]."
    ),
]


def _inputs(params: Path, catalog: list[Path] | None, preset: str | None, stylize_shards: int) -> Inputs:
    from crossearth.pipelines.benchmark import read_inputs

    return read_inputs(params, catalog or [], preset, stylize_shards)


def _given(
    name: str, inputs: Inputs, settings: list[str] | None, recipes: list[str] | None
) -> dict[str, Any]:
    from crossearth.data.common.config import nearest
    from crossearth.data.common.errors import InputError
    from crossearth.pipelines.graphs import parameter

    for recipe in recipes or []:
        if recipe not in inputs.recipes:
            raise InputError(
                f"unknown recipe {recipe!r}", where="--recipe", expected=nearest(recipe, inputs.recipes)
            )
    chosen = dict(parameter(text) for text in settings or [])
    if recipes and name == "benchmark":
        chosen["recipes"] = recipes
    elif recipes and name == "training" and len(recipes) == 1:
        chosen["recipe"] = recipes[0]
    elif recipes:
        raise InputError(
            f"{len(recipes)} recipes for pipeline {name}", where="--recipe", expected="benchmark"
        )
    return chosen


def _fail(message: str) -> None:
    err.print(message, style="red")
    raise typer.Exit(1)


@pipeline_app.command("compile")
def compile_(
    name: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="YAML file to write.")],
    values: ValuesFile = None,
    params: ParamsFile = Path("params.yaml"),
    catalog: Catalogs = None,
    preset: Preset = None,
    stylize_shards: StylizeShards = 0,
) -> None:
    """Write a pipeline's YAML: the same inputs give the same bytes, without secrets and without paths."""
    from crossearth.pipelines.graphs import compile_pipeline
    from crossearth.pipelines.resources import LOCAL, load_values

    written = compile_pipeline(
        name,
        _inputs(params, catalog, preset, stylize_shards),
        load_values(values) if values else LOCAL,
        output,
    )
    out.print(f"wrote {written}")
    words = ["--values", str(values or "VALUES.yaml")]
    words += ["--preset", preset] if preset else []
    words += ["--stylize-shards", str(stylize_shards)] if stylize_shards else []
    options = shlex.join(words) + given(catalog, params if params != Path("params.yaml") else None)
    out.print(f"next: crossearth pipeline submit {name} --host HOST {options}")


@pipeline_app.command()
def run(
    name: Name,
    workspace: Annotated[
        Path | None, typer.Option(help="Shared folder of the steps [default: artifacts/pipeline/NAME].")
    ] = None,
    docker: Annotated[bool, typer.Option("--docker", help="Each step in a container.")] = False,
    image: Annotated[str, typer.Option(help="Image of the containers.")] = "crossearth",
    params: ParamsFile = Path("params.yaml"),
    catalog: Catalogs = None,
    preset: Preset = None,
    stylize_shards: StylizeShards = 0,
    recipe: Recipes = None,
    settings: Set = None,
) -> None:
    """Run a pipeline on this machine: each step in a process, or in a container, of its own."""
    from crossearth.pipelines.graphs import PipelineError
    from crossearth.pipelines.local_run import run_local

    folder = workspace or Path("artifacts/pipeline") / name
    inputs = _inputs(params, catalog, preset, stylize_shards)
    try:
        run_local(name, inputs, _given(name, inputs, settings, recipe), folder, image if docker else None)
    except PipelineError as error:
        _fail(f"pipeline {name}: {error}")
    out.print(f"finished; results are below {folder / 'artifacts'}")


@pipeline_app.command()
def submit(
    name: Name,
    values: Annotated[Path, typer.Option("--values", help="What the steps ask of the cluster.")],
    host: Host,
    experiment: Annotated[str, typer.Option(help="Experiment of the run.")] = "crossearth",
    namespace: Namespace = None,
    service_account: Annotated[str, typer.Option(help="Account of the pods.")] = "crossearth",
    watch: Annotated[bool, typer.Option("--watch", help="Say what runs, wait for the end.")] = False,
    cache: Annotated[bool, typer.Option(help="Skip steps whose inputs are those of an earlier run.")] = True,
    cron: Annotated[
        str | None,
        typer.Option(help="Again and again: second, minute, hour, day, month, weekday, as '0 0 3 * * *'."),
    ] = None,
    token_file: TokenFile = None,
    params: ParamsFile = Path("params.yaml"),
    catalog: Catalogs = None,
    preset: Preset = None,
    stylize_shards: StylizeShards = 0,
    recipe: Recipes = None,
    settings: Set = None,
) -> None:
    """Start a run on a cluster with Kubeflow, or schedule it."""
    from crossearth.data.common.errors import InputError
    from crossearth.pipelines import submit as kubeflow
    from crossearth.pipelines.resources import load_values

    if cron is not None and (watch or len(cron.split()) != 6):
        what = "a schedule has no end to wait for" if watch else f"{cron!r} is no schedule"
        raise InputError(what, where="--cron", expected="six fields, such as '0 0 3 * * *', without --watch")
    inputs, wanted = _inputs(params, catalog, preset, stylize_shards), load_values(values)
    chosen = _given(name, inputs, settings, recipe)
    client = kubeflow.connect(host, namespace, token_file)
    with kubeflow.asking(host):
        run_id = kubeflow.submit(
            client, name, inputs, wanted, chosen, experiment, service_account, cache, cron
        )
    out.print(f"{'recurring run' if cron else 'run'} {run_id}")
    if watch:
        _watch(host, run_id, token_file)


@pipeline_app.command()
def tune(
    recipe: Recipe,
    grid: Grid,
    values: Annotated[Path, typer.Option("--values", help="What the steps ask of the cluster.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the manifest, and create nothing.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="OptimizationJob or Experiment [default: what the cluster has, in this order]."),
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", help="Of the workspace [default: kubectl's].")
    ] = None,
    params: ParamsFile = Path("params.yaml"),
    catalog: Catalogs = None,
    preset: Preset = None,
) -> None:
    """Train a recipe with every combination of a grid, on the cluster of kubectl's current context."""
    from dataclasses import replace

    from crossearth.components.pods.train_job import TrainJobConfig
    from crossearth.components.runtime.params import load_params
    from crossearth.components.tune.cluster import GROUPS, Cluster, manifest
    from crossearth.components.tune.step import read_trials
    from crossearth.data.catalog.loader import load_catalog
    from crossearth.data.common.config import load_config, nearest
    from crossearth.data.common.errors import InputError
    from crossearth.data.common.files import write_text
    from crossearth.pipelines.resources import load_values

    found = load_params(params)
    found = replace(found, preset=preset or found.preset)
    trials = read_trials(grid, recipe, found, load_catalog([*found.catalogs, *(catalog or [])]))
    asked = load_values(values)
    job = load_config(TrainJobConfig, asked.trial_job(), values)
    namespace = namespace or job.namespace
    job = replace(job, namespace=namespace)
    if kind is not None and kind not in GROUPS:
        raise InputError(f"--kind: {kind!r}", expected=nearest(kind, GROUPS))
    # a manifest of a given kind needs no cluster; its runtime is then the one of infra/kustomize/trainer
    cluster: Cluster | None = None
    if output and kind:
        chosen, runtime_kind = kind, "TrainingRuntime"
    else:
        cluster = Cluster(namespace)
        chosen, runtime_kind = kind or cluster.kind(), cluster.runtime_kind(job.runtime)
    made = manifest(chosen, recipe, trials, job, asked.workspace.mount, runtime_kind, asked.parallel.recipes)
    if output:
        write_text(output, json.dumps(made, indent=2) + "\n")
        out.print(f"wrote {output}: {made['kind']} {made['metadata']['name']}, {len(trials)} trials")
        out.print(
            f"next: kubectl{f' -n {namespace}' if namespace else ''} apply -f {shlex.quote(str(output))}"
        )
    elif cluster:
        cluster.create(made)
        out.print(
            f"created {made['kind']} {cluster.namespace}/{made['metadata']['name']}, {len(trials)} trials"
        )
        if not cluster.is_taken_up(made):
            _fail(f"no controller has taken it up yet: {STALLED[made['kind']]}")
        group, _, plural = GROUPS[made["kind"]]
        out.print(
            f"next: kubectl -n {cluster.namespace} get {plural}.{group} {made['metadata']['name']} -o yaml"
        )


def _watch(host: str, run_id: str, token_file: Path | None) -> None:
    from crossearth.components.pods.state import FINISHED
    from crossearth.pipelines.api import Api
    from crossearth.pipelines.watch import story, watch

    run, reasons = watch(Api(host, token_file), run_id, err)
    if run.state != FINISHED:
        _fail(f"run {run_id}: {story(run, reasons)}")
    out.print(story(run, reasons))


@pipeline_app.command("list")
def list_(host: Host, namespace: Namespace = None, token_file: TokenFile = None, number: int = 20) -> None:
    """List the latest runs on a cluster, those that failed with the reason."""
    from crossearth.components.pods.state import FAILED, KILLED, read_run
    from crossearth.pipelines.api import Api
    from crossearth.pipelines.watch import SHOWN, read

    api = Api(host, token_file)
    api.expect_namespace(namespace)
    rows = []
    for each in api.runs(namespace, number):
        run, why = read_run(each, None), ""
        if run.state in (FAILED, KILLED):
            run, reasons = read(api, each["run_id"], most=2)
            why = str(reasons[0]).partition("\n")[0] if reasons else ""
        state = SHOWN.get(run.state, each.get("state") or run.state)
        rows.append([each.get("run_id"), run.name, state, each.get("created_at"), why])
    print_table(f"{len(rows)} runs", ["run", "name", "state", "started", "why"], rows)


RunId = Annotated[str, typer.Argument(help="As `pipeline list` prints it.")]


@pipeline_app.command()
def why(run_id: RunId, host: Host, token_file: TokenFile = None) -> None:
    """Say how a run stands or ended: what runs, which steps failed and why, with the end of their logs."""
    from crossearth.pipelines.api import Api
    from crossearth.pipelines.watch import read, story

    out.print(story(*read(Api(host, token_file), run_id)))


@pipeline_app.command()
def stop(run_id: RunId, host: Host, token_file: TokenFile = None) -> None:
    """Stop a run: its pods end, and with them a TrainJob that one of them follows."""
    from crossearth.pipelines.api import Api

    Api(host, token_file).stop(run_id)
    out.print(f"stopping {run_id}: Kubeflow calls it FAILED in the end, `crossearth pipeline list` CANCELED")
