"""The steps: a step is a row here and a folder of its name.

What a step is called, which function does it and what its pod needs stands here once. From it params.yaml has
its sections, `plan` its files, Kubeflow its pods, and the command line the commands of steps without options
of their own.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal


@dataclass(frozen=True)
class Step:
    """One step, or what a pod does by itself.

    Attributes:
        name: of the folder, of dvc's stage, of the section in params.yaml and of Kubeflow's component.
        function: "module:function" below `components`, which the command line and the pod call: a `run` with
            params and catalog, where it needs any; "" = a part of a pipeline that no step has.
        config: "module:class" below `components`: of its section in params.yaml; "" = it has none.
        planned: what `plan` writes a file for, that dvc's stage and Kubeflow's keys hang on: the step once,
            or each dataset or recipe; "" = none.
        own_pod: whether Kubeflow runs it in a pod of its own, and not within another step's or never.
        network: it talks to a server beyond the workspace, or takes long: another try after a lost pod is
            worth it.
        cached: its result depends on its inputs alone, and not on a server, the cluster or what lies under an
            address.
        command: words of the command line after `crossearth`; "" = the name.
        about: one line of help: `command` is made from this row; "" = it has options of its own and stands in
            `components/cli`.
        next_step: what that command says to do next.
    """

    name: str
    function: str = ""
    config: str = ""
    planned: Literal["", "once", "dataset", "recipe"] = ""
    own_pod: bool = True
    network: bool = False
    cached: bool = True
    command: str = ""
    about: str = ""
    next_step: str = ""

    @property
    def module(self) -> str:
        """Where its function stands, below `components`: what of the code it runs is found from there."""
        return self.function.partition(":")[0]


def load(place: str) -> Any:
    """What stands at "module:name" below `components`; imported now, for steps are heavy."""
    module, name = place.split(":")
    return getattr(import_module(f"crossearth.components.{module}"), name)


STEPS = {
    step.name: step
    for step in (
        Step("plan", "plan.step:run", cached=False),
        Step("archives", network=True, cached=False),
        Step("synthesize", "synthesize.step:run", "synthesize.step:SynthesizeConfig", "once", False),
        Step("ingest", "ingest.step:run", "ingest.step:IngestConfig", "dataset", network=True),
        Step("validate", "validate.step:run", "validate.validation:ValidateConfig", "once"),
        Step("styles", "styles.step:run", "styles.step:StylesConfig", "once", command="styles fit"),
        Step(
            "coverage",
            "styles.coverage:run",
            planned="once",
            own_pod=False,
            command="styles coverage",
            about="Measure, per setting, how far the injected styles cover the unseen domain.",
            next_step="crossearth report",
        ),
        Step("shards"),
        Step("stylize", "stylize.step:run", "stylize.step:StylizeConfig", "once"),
        Step("train", "train.step:run", "train.setup:TrainConfig", "recipe", network=True),
        Step("evaluate", "evaluate.step:run", "evaluate.step:EvaluateConfig", "recipe"),
        Step("report", "report.step:run", "report.step:ReportConfig", "once", network=True, cached=False),
        Step("register", "register.step:run", "register.promotion:RegisterConfig", own_pod=False),
        Step("scenes", network=True, cached=False),
        Step("predict", "predict.step:predict", network=True, cached=False),
        Step("watch", "watch.step:watch", network=True, cached=False),
        Step("convert", "convert.step:convert", own_pod=False),
        Step("init", "init.step:init", own_pod=False),
        Step("export", "export.step:export", own_pod=False),
        Step("ablate", "ablate.step:run", own_pod=False),
        Step("tune", "tune.step:run", own_pod=False),
        Step("finish", network=True, cached=False),
    )
}
SECTIONS = [step.name for step in STEPS.values() if step.config]
PODS = [step.name for step in STEPS.values() if step.own_pod]
