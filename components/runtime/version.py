"""Which code is running."""

import subprocess
from importlib.metadata import version
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def git_revision() -> str:
    """Short git revision of the checkout that the package runs from, "-dirty" if changed; "" outside one."""
    if not (CHECKOUT / "pyproject.toml").exists():
        return ""
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def torch_version() -> str:
    """Release of torch, "2.13.0" say, whatever hardware it is built for; as the code, part of an identity."""
    return version("torch").partition("+")[0]


def version_line() -> str:
    """'crossearth <version> (git <revision>) from <checkout>'."""
    return f"crossearth {version('crossearth')} (git {git_revision() or 'unknown'}) from {CHECKOUT}"
