"""The domains, class sets and settings of the benchmark, as frozen dataclasses."""

from dataclasses import dataclass, field
from typing import Literal

Gap = Literal["region", "band", "region+band", "region+platform", "region+climate", "in-domain"]
Split = Literal["train", "test"]


@dataclass(frozen=True)
class ClassSet:
    """The classes that a network predicts.

    Attributes:
        classes: names in id order, ids 0..K-1.
        palette: one "#rrggbb" per class.
        headline: "mean" = mIoU over the classes present; "foreground" = IoU of class 1 (binary sets).
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[str, ...]
    headline: Literal["mean", "foreground"] = "mean"


@dataclass(frozen=True)
class Setting:
    """One row of the benchmark: trained on `source`, scored on the test split of `target`."""

    id: str
    abbr: str
    source: str
    target: str
    gap: Gap
    class_set: str
    evidence: str = ""


@dataclass(frozen=True)
class Recipe:
    """One model to train: a source domain and a class set. Derived from the settings, never listed.

    `name` is the source's name where the class set is the source's own, else "<source>-<class_set>".
    """

    name: str
    source: str
    class_set: str
    settings: tuple[Setting, ...] = field(default=())
