"""The parity check itself: on the recordings of the released model, on other sizes, and that it can fail."""

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent


class Outcome(NamedTuple):
    """Of a check: exit status, and what it printed."""

    status: int
    table: str
    messages: str


Check = Callable[[Path], Outcome]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Check]:
    """The check in this process: a new one takes seconds to import torch."""
    monkeypatch.syspath_prepend(str(HERE))
    main = importlib.import_module("check").main
    threads = torch.get_num_threads()
    yield lambda folder: Outcome(main([str(folder)]), *capsys.readouterr())
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording")
    assert run("record.py", folder, 5).returncode == 0
    return folder


@pytest.fixture
def recorded(recording: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(recording, tmp_path / "recorded")


def arrays(folder: Path, file: str = "io.npz") -> dict[str, np.ndarray]:
    with np.load(folder / file) as held:
        return dict(held)


def change(folder: Path, file: str = "io.npz", **changed: np.ndarray) -> None:
    np.savez(folder / file, **(arrays(folder, file) | changed))


def test_released_model(parity_dir: Path) -> None:
    result = run("check.py", parity_dir)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert "0 differ" in result.stdout
    assert "0 unchecked" in result.stdout


@pytest.mark.parametrize("seed", [2, 7, 33])
def test_other_sizes(tmp_path: Path, check: Check, seed: int) -> None:
    """Non-square inputs, odd grids, other depth, heads, taps, classes, tokens and windows.

    In the last, a ReLU's input is so near to 0 that rounding decides about its gradient.
    """
    assert run("record.py", tmp_path / "recorded", seed).returncode == 0
    result = check(tmp_path / "recorded")
    assert result.status == 0, result.table[-4000:] + result.messages[-2000:]


@pytest.mark.parametrize(
    "name",
    [
        "memory1",
        "attn_mask1",
        "slide1_ori_pred",
        "loss_assign/layer1_img0_pos_inds",
        "loss_assign/layer1_img0_labels",
        "loss_points/layer1",
        "loss_rand/layer1_random",
        "loss_term/decode.d0.loss_dice",
        "grad/backbone.reins.scale",
    ],
)
def test_a_changed_number_fails(recorded: Path, check: Check, name: str) -> None:
    changed = arrays(recorded)[name].copy()
    middle = changed.size // 2
    if changed.dtype == bool:
        changed.flat[middle] ^= True
    else:
        changed.flat[middle] += 1
    change(recorded, **{name: changed})
    result = check(recorded)
    assert result.status == 1
    assert "differs: " in result.table


def test_classes_of_equal_scores_may_change_places(recorded: Path, check: Check) -> None:
    held = arrays(recorded)
    scores, label = held["slide1_ori_logits"], held["slide1_ori_pred"]
    second, first = np.sort(scores, axis=1)[:, -2:].swapaxes(0, 1)
    place = np.unravel_index((first - second).argmin(), first.shape)
    batch, row, column = place
    assert (first - second)[place] < 1e-4, "the recording has no near tie"
    label[batch, 0, row, column] = scores[batch, :, row, column].argsort()[-2]
    change(recorded, slide1_ori_pred=label)
    result = check(recorded)
    assert result.status == 0, result.table[-4000:] + result.messages[-2000:]
    assert "scores of 1 ties" in result.table


def test_an_array_that_nothing_reads_fails(recorded: Path, check: Check) -> None:
    change(recorded, "state.npz", surplus=np.zeros(3, np.float32))
    result = check(recorded)
    assert result.status == 1
    assert "surplus" in result.table + result.messages


def test_a_file_that_nothing_reads_fails(recorded: Path, check: Check) -> None:
    (recorded / "more.json").write_text("{}")
    np.savez(recorded / "more.npz", something=np.zeros(2))
    (recorded / "below").mkdir()
    np.savez(recorded / "below" / "io.npz", something=np.zeros(2))
    result = check(recorded)
    assert result.status == 1
    assert "unchecked: more.json" in result.table
    assert "unchecked: more:something" in result.table
    assert "unchecked: below/io.npz" in result.table


def test_a_missing_array_is_named_and_the_rest_still_checked(recorded: Path, check: Check) -> None:
    missing = ("queries", "loss_total", "slide0_inputs")
    kept = {name: array for name, array in arrays(recorded).items() if name not in missing}
    np.savez(recorded / "io.npz", **kept)
    result = check(recorded)
    assert result.status == 1
    assert "differs: queries" in result.table
    assert "differs: loss_total" in result.table
    assert "slide0_inputs" in result.table + result.messages
    assert "differs: memory" not in result.table
    assert "grad/decode_head.cls_embed.bias" in result.table


def test_a_damaged_file_is_named(recorded: Path, check: Check) -> None:
    (recorded / "io.npz").write_bytes((recorded / "io.npz").read_bytes()[:5000])
    result = check(recorded)
    assert result.status == 1
    assert "differs: io.npz" in result.table


def test_an_empty_folder_fails(tmp_path: Path, check: Check) -> None:
    assert check(tmp_path).status == 1


def test_sizes_that_contradict_each_other_fail(recorded: Path, check: Check) -> None:
    meta = json.loads((recorded / "meta.json").read_text())
    meta["model_cfg"]["decode_head"]["num_classes"] += 1
    (recorded / "meta.json").write_text(json.dumps(meta))
    result = check(recorded)
    assert result.status == 1
    assert "num_classes" in result.table + result.messages


@pytest.mark.parametrize("arguments", [[], ["nowhere"]])
def test_usage(arguments: list[str]) -> None:
    assert run("check.py", *arguments).returncode == 2
