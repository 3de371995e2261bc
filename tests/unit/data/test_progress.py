"""What work that goes item by item shows of itself."""

import logging
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from crossearth.components.pods import workspace
from crossearth.data.common import progress
from crossearth.data.common.progress import LogLine, progress_bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod in which ten seconds lie between two looks at the clock."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    ticks = count(0, 10)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))


def test_a_pods_log_has_a_line_every_30_s_and_one_at_the_end(
    clock: None, capsys: pytest.CaptureFixture[str]
) -> None:
    line = LogLine("town: iteration", 25, done=20)
    for iteration in range(21, 26):
        line.update(iteration, "loss 0.412")
    assert capsys.readouterr().err.splitlines() == [
        "town: iteration 23/25, loss 0.412, 0:00:20 left",
        "town: iteration 25/25, loss 0.412, done",
    ]


def test_items_of_a_step_are_counted_in_a_pods_log(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar("abcd", "pull", 4)) == list("abcd")
    assert capsys.readouterr().err.splitlines() == ["pull 3/4, 0:00:10 left", "pull 4/4, done"]


def test_elsewhere_there_is_no_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    LogLine("town", 1).update(1)
    assert list(progress_bar("ab", "pull", 2)) == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_a_step_keeps_the_libraries_quiet_that_kfp_makes_talk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("botocore", "boto3", "s3transfer", "urllib3"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
        logging.getLogger(name).manager._clear_cache()
    caplog.set_level(logging.INFO)  # as kfp's executor does
    with workspace.step(str(tmp_path), "train"):
        logging.getLogger("botocore.credentials").info("Found credentials in environment variables.")
        logging.getLogger("crossearth").info("a word of ours")
    assert [record.message for record in caplog.records] == ["a word of ours"]
