"""A byte flipped or the end cut off, in every file that one step or run writes and another reads."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from own_domain import NAME
from steps import STEPS, Undisturbed, run_here, written

from crossearth.components.ingest import step as ingest
from crossearth.components.train.state import Checkpoints

Damage = Callable[[bytes], bytes]


def flipped(share: float) -> Damage:
    def damage(content: bytes) -> bytes:
        place = int(len(content) * share)
        return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]

    return damage


DAMAGES: dict[str, Damage] = {
    **{f"byte at {share:.0%}": flipped(share) for share in (0.2, 0.5, 0.8)},
    "cut in half": lambda content: content[: len(content) // 2],
}
DOMAIN, MODEL, SCORES = (
    f"artifacts/domains/{NAME}/{NAME}",
    f"artifacts/models/{NAME}",
    f"artifacts/scores/{NAME}",
)
# a file (the first that fits), and the step that reads it
READ = {
    "manifest": (f"{DOMAIN}/train.parquet", "train"),
    "tile": (f"{DOMAIN}/train/images/*.tif", "train"),
    "label": (f"{DOMAIN}/train/labels/*.tif", "train"),
    "target's tile": (f"{DOMAIN}/test/images/*.tif", "evaluate"),
    "tile to restyle": (f"{DOMAIN}/train/images/*.tif", "stylize"),
    "styles": ("artifacts/styles/earth.safetensors", "stylize"),
    "weights": (f"{MODEL}/model.safetensors", "evaluate"),
    "description": (f"{MODEL}/model.json", "predict"),
    "results": (f"{SCORES}/details.json", "report"),
    "counts of tiles": (f"{SCORES}/tiles/{NAME}.parquet", "report"),
}


def assert_refused(path: Path, code: int, said: str) -> None:
    """The command ended for the sake of this file, which it named."""
    assert code == 2 and "Traceback" not in said, said
    assert path.name in "".join(said.split()), said  # a long path is broken over lines


@pytest.mark.parametrize("kind", READ)
def test_damage_is_found_by_the_step_that_reads_it(
    kind: str,
    undisturbed: dict[str, Undisturbed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pattern, step = READ[kind]
    refused = 0
    for number, (how, damage) in enumerate(DAMAGES.items()):
        folder = Path(shutil.copytree(undisturbed[step].before, tmp_path / str(number)))
        path = min(folder.glob(pattern))
        path.write_bytes(damage(path.read_bytes()))
        code, said = run_here(STEPS[step][0], folder, monkeypatch, capsys)
        if code == 0:  # a byte that says nothing
            assert written(folder, step) == undisturbed[step].files, how
            continue
        refused += 1
        assert_refused(path, code, said)
        assert not written(folder, step), how
    assert refused >= 2


def test_a_damaged_journal_costs_scenes_and_no_more(
    undisturbed: dict[str, Undisturbed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    folder = Path(shutil.copytree(undisturbed["ingest"].before, tmp_path / "user"))
    command = STEPS["ingest"][0]
    with monkeypatch.context() as patch:
        patch.setattr(ingest, "_tidy", killed)
        assert run_here(command, folder, monkeypatch, capsys)[0] == 130
    (journal,) = folder.glob(f"artifacts/domains/.ingest/{NAME}/journal.jsonl")
    for damage in DAMAGES.values():
        journal.write_bytes(damage(journal.read_bytes()))
    code, said = run_here(command, folder, monkeypatch, capsys)
    assert code == 0, said
    assert written(folder, "ingest") == undisturbed["ingest"].files


@pytest.mark.parametrize("step", ["styles fit", "stylize"])
def test_a_damaged_part_is_found_by_the_last_shard(
    step: str,
    undisturbed: dict[str, Undisturbed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = STEPS[step][0]
    folder = Path(shutil.copytree(undisturbed[step].before, tmp_path / "user"))
    assert run_here(f"{command} --shard 0/2", folder, monkeypatch, capsys)[0] == 0
    (part,) = folder.glob("artifacts/**/part-0-of-2")
    whole = part.read_bytes()
    for how, damage in DAMAGES.items():
        part.write_bytes(damage(whole))
        code, said = run_here(f"{command} --shard 1/2", folder, monkeypatch, capsys)
        assert_refused(part, code, said)
        assert "this part of the work is damaged" in said
        assert not written(folder, step), how


def test_counts_of_another_run_are_found(
    undisturbed: dict[str, Undisturbed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(undisturbed["report"].before, tmp_path / "user"))
    path = folder / SCORES / "tiles" / f"{NAME}.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(list(reversed(range(len(table))))), path)
    code, said = run_here(STEPS["report"][0], folder, monkeypatch, capsys)
    assert_refused(path, code, said)
    assert not written(folder, "report")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    undisturbed: dict[str, Undisturbed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept: list[tuple[str, bytes]] = []
    monkeypatch.setattr(
        Checkpoints,
        "clear",
        lambda self: kept.extend((path.name, path.read_bytes()) for path in self.folder.glob("step_*")),
    )
    folder = Path(shutil.copytree(undisturbed["train"].before, tmp_path / "user"))
    assert run_here(STEPS["train"][0], folder, monkeypatch, capsys)[0] == 0
    assert kept
    for how, damage in DAMAGES.items():
        shutil.rmtree(folder / MODEL)
        for name, content in kept:
            (folder / f"{MODEL}.checkpoints" / name).write_bytes(damage(content))
        caplog.clear()
        code, said = run_here(STEPS["train"][0], folder, monkeypatch, capsys)
        assert code == 0, (how, said)
        assert "not a readable checkpoint, skipped" in caplog.text, how
        assert written(folder, "train") == undisturbed["train"].files, how
