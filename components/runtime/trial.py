"""The values that a tuning on a cluster gives to one training: Kubeflow Trainer's OptimizationJob, or Katib.

They arrive as variables, KUBEFLOW_TRAINER_OPT_<NAME>, as Trainer's controller sets them. NAME is that of the
parameter in `train`, in capitals; two underlines stand for the dot of a nested one: LR, STYLE__ALPHA.
"""

import json
import os
from typing import Any

from crossearth.data.common.config import parse_yaml
from crossearth.data.common.errors import InputError

PREFIX = "KUBEFLOW_TRAINER_OPT_"
METRIC = "held_out_score"  # what a trial reports: its score on held-out tiles of the source, 0..1


def variable(name: str) -> str:
    """The variable that Trainer makes of a parameter's name; InputError: another name would have it, too."""
    found = PREFIX + parameter(name).upper()
    if _name(found) != name:
        raise InputError(f"{name}: cannot be tuned on a cluster", expected="a name in small letters")
    return found


def parameter(name: str) -> str:
    """A parameter's name in an OptimizationJob or Experiment: without dots, which no variable may have."""
    return name.replace(".", "__")


def written(value: Any) -> str:
    """A value as text that `trial_values` reads as the same value."""
    if isinstance(value, str) and parse_yaml(value, "") == value:
        return value
    return json.dumps(value)


def trial_values() -> dict[str, Any]:
    """(Dotted) name -> value of this process's trial; {} outside of any. InputError: a value is not YAML."""
    variables = sorted(name for name in os.environ if name.startswith(PREFIX))
    return {_name(each): parse_yaml(os.environ[each], f"${each}") for each in variables}


def _name(variable_name: str) -> str:
    return variable_name.removeprefix(PREFIX).lower().replace("__", ".")
