"""The pipelines by name: built, compiled, and the values of their parameters."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kfp import compiler
from kfp.dsl.graph_component import GraphComponent
from kfp.dsl.types.type_utils import get_canonical_type_name_for_type

from crossearth.data.common.config import nearest, parse_yaml
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_path
from crossearth.pipelines.benchmark import Inputs, benchmark
from crossearth.pipelines.inference import inference
from crossearth.pipelines.resources import Values

PIPELINES: dict[str, Callable[[Inputs, Values], GraphComponent]] = {
    "benchmark": benchmark,
    "training": partial(benchmark, one=True),
    "inference": inference,
    "monitoring": partial(inference, watches=True),
}


class PipelineError(RuntimeError):
    """A pipeline ended in another state than success; the message names the steps that failed and why."""


def build(name: str, inputs: Inputs, values: Values, cache: bool = True) -> GraphComponent:
    """The pipeline of that name, with its defaults.

    Args:
        cache: whether a step whose inputs are those of an earlier run may be skipped. kfp's client can forbid
            it for the root's tasks alone, and all of ours lie inside the exit handler.

    Raises:
        InputError: an unknown name, or shards to stylize where only scenes are mapped.
    """
    if name not in PIPELINES:
        raise InputError(f"unknown pipeline {name!r}", expected=nearest(name, PIPELINES))
    if inputs.stylize_shards and name in ("inference", "monitoring"):
        raise InputError(
            f"{name} stylizes nothing", where="--stylize-shards", next_step="--set shards=N deals scenes out"
        )
    pipeline = PIPELINES[name](inputs, values)
    if not cache:
        spec = pipeline.pipeline_spec
        for part in (spec.root, *spec.components.values()):
            for task in part.dag.tasks.values():
                task.caching_options.enable_cache = False
    return pipeline


def compile_pipeline(name: str, inputs: Inputs, values: Values, out: Path) -> Path:
    """Writes the pipeline's YAML, the same bytes for the same inputs; InputError: an unknown name."""
    pipeline = build(name, inputs, values)
    with atomic_path(out) as partial:
        # the compiler looks at the suffix
        compiled = partial.with_name(partial.name + ".yaml")
        compiler.Compiler().compile(pipeline, str(compiled))
        compiled.replace(partial)
    return out


def arguments(pipeline: GraphComponent, given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a pipeline's parameters; InputError: unknown, of another type, or not given."""
    known = pipeline.component_spec.inputs or {}
    for name, value in given.items():
        if name not in known:
            raise InputError(f"unknown parameter {name!r}", expected=nearest(name, known))
        wanted = known[name].type
        if get_canonical_type_name_for_type(type(value)) != wanted:
            raise InputError(
                f"{value!r} is no {wanted}", where=f"--set {name}", expected=f"a {wanted}, in YAML"
            )
    absent = [name for name, spec in known.items() if not spec.optional and name not in given]
    if absent:
        raise InputError(f"no value for {', '.join(absent)}", next_step=f"--set {absent[0]}=...")
    return dict(given)


def parameter(text: str) -> tuple[str, Any]:
    """Reads `name=value`, the value in YAML; InputError where it has no "=" or is not YAML."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"{text!r} gives no value", where="--set", expected="name=value")
    return name, parse_yaml(value, f"--set {name}")
