"""Checks a folder of recorded tensors of the released model against this project.

    python tests/parity/check.py FOLDER

Prints one row per comparison and exits with 0 only if all hold and nothing in the folder was left unchecked.
Sizes come from the folder's meta.json and from the shapes of its parameters.
"""

import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from inventory_checks import check_names, check_optimiser_groups
from loss_checks import check_losses
from network_checks import (
    check_conversion,
    check_forward,
    check_inventory,
    check_preprocessing,
    check_sliding,
)
from recording import Recording
from rich.console import Console
from rich.table import Table
from sizes import config_from_meta, load_released_state
from style_checks import check_style

EXIT_DIFFERS, EXIT_USAGE = 1, 2


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print(
            "usage: python tests/parity/check.py FOLDER   (a folder with meta.json, state.npz, io.npz, ...)"
        )
        return EXIT_USAGE
    torch.set_num_threads(1)  # as recorded; more would not be faster at these sizes
    started = time.perf_counter()
    recording = Recording(Path(arguments[0]))
    _run(recording, "network", partial(_check_network, recording))
    for name, check in (
        ("conversion", check_conversion),
        ("names", check_names),
        ("optimiser groups", check_optimiser_groups),
        ("style", check_style),
    ):
        _run(recording, name, partial(check, recording))
    return _report(recording, time.perf_counter() - started)


def _run(recording: Recording, name: str, check: Callable[[], None]) -> None:
    """A check that cannot be carried out is a failed row; the others still run."""
    try:
        check()
    except Exception as error:
        traceback.print_exc()
        recording.check(f"{name}: {type(error).__name__}", False, "not carried out", str(error)[:60])


def _check_network(recording: Recording) -> None:
    meta = recording.json("meta.json")
    if meta is None:
        return
    state = {key: recording.take("state", key) for key in recording.keys("state")}
    config = config_from_meta(meta, {name: tuple(tensor.shape) for name, tensor in state.items()})
    model = load_released_state(config, state)
    for name, check in (
        ("inventory", partial(check_inventory, recording, meta)),
        ("preprocessing", partial(check_preprocessing, recording, model, meta)),
        ("forward pass", partial(check_forward, recording, model)),
        ("sliding windows", partial(check_sliding, recording, model, meta)),
        ("losses", partial(check_losses, recording, model, meta)),
    ):
        _run(recording, name, check)


def _report(recording: Recording, seconds: float) -> int:
    table = Table()
    for title in ("array", "max abs difference", "tolerance", "verdict"):
        table.add_column(title, no_wrap=True)
    for row in recording.rows:
        table.add_row(row.name, row.difference, row.tolerance, "holds" if row.holds else "[red]DIFFERS[/red]")
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table)
    failed = [row.name for row in recording.rows if not row.holds]
    unchecked = recording.unchecked()
    for title, names in (("differs", failed), ("unchecked", unchecked)):
        for name in names:
            console.print(f"{title}: {name}", markup=False)
    console.print(
        f"{len(recording.rows)} comparisons, {len(failed)} differ; {len(recording.used)} arrays used, "
        f"{len(unchecked)} unchecked; {seconds:.0f} s"
    )
    return EXIT_DIFFERS if failed or unchecked or not recording.rows else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
