"""Which extra of the package brings a library that is not installed."""

from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# libraries under another name than their distribution's, or that come with another one
DISTRIBUTIONS = {"botocore": "boto3", "kubernetes": "kfp", "psycopg2": "psycopg2-binary"}


def extra_of(module: str) -> str | None:
    """The extra that brings the top-level package of `module`; None if it is no library of ours."""
    name = module.split(".")[0]
    wanted = canonicalize_name(DISTRIBUTIONS.get(name, name))
    try:
        listed = [Requirement(line) for line in requires("crossearth") or []]
    except PackageNotFoundError:  # run from a folder that was never installed
        return None
    for requirement in listed:
        if canonicalize_name(requirement.name) == wanted and requirement.marker:
            return str(requirement.marker).partition('extra == "')[2].rstrip('"') or None
    return None
