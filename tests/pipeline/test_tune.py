"""`crossearth tune` with DVC and git as they are: two trainings, the best one, and nothing twice."""

import json
import shutil
from pathlib import Path

import yaml
from earth_styles import write_styles
from graphs import call
from training_folder import RECIPE, write_folder

STAGES = {
    "validate": {
        "cmd": "mkdir -p artifacts/validation/sources && cp -r tiles artifacts/domains"
        f" && echo '{{}}' > artifacts/validation/sources/{RECIPE}.json",
        "deps": ["tiles"],
        "outs": ["artifacts/domains", "artifacts/validation"],
    },
    "styles": {
        "cmd": "mkdir -p artifacts/styles && cp earth.safetensors artifacts/styles/",
        "outs": ["artifacts/styles"],
    },
    "train": {
        "foreach": [RECIPE],
        "do": {
            "cmd": "crossearth train ${item}",
            "deps": ["artifacts/domains", "artifacts/styles"],
            "params": ["presets"],
            "outs": [{"artifacts/models/${item}": {"persist": True}}],
        },
    },
}


def test_a_grid_is_tuned_once_and_the_best_one_is_applied(tmp_path: Path) -> None:
    write_folder(tmp_path, ablation="rein", iterations=2)
    (tmp_path / "artifacts/domains").rename(tmp_path / "tiles")
    shutil.rmtree(tmp_path / "artifacts")
    write_styles(tmp_path / "earth.safetensors")
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**params, "dvc": {"recipes": [RECIPE]}}))
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    (tmp_path / ".gitignore").write_text("/artifacts/\n/grid.yaml\n")
    grid = {"grid": {"lr": [0.001, 0.01]}, "train": {"held_out_share": 0.3}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    who = {"NAME": "a", "EMAIL": "a@example.com"}
    git = {f"GIT_{role}_{key}": each for role in ("AUTHOR", "COMMITTER") for key, each in who.items()}
    for command in (
        ("git", "init", "--quiet"),
        ("dvc", "init", "--quiet"),
        ("git", "add", "-A"),
        ("git", "commit", "--quiet", "-m", "start"),
    ):
        assert call(*command, cwd=tmp_path, **git).returncode == 0, command

    def tune() -> tuple[list[dict[str, object]], str]:
        done = call("crossearth", "tune", RECIPE, "--grid", "grid.yaml", "--json", cwd=tmp_path, **git)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout), done.stderr

    first, log = tune()
    assert log.count("Reproducing experiment") == 2
    assert [each["lr"] for each in first] == [0.001, 0.01]
    assert all(each["state"] == "Success" and 0 <= float(str(each["held_out_score"])) <= 1 for each in first)
    assert not (tmp_path / "artifacts/models").exists(), "the working folder stays as it is"
    again, log = tune()
    assert again == first and "Reproducing" not in log

    best = max(first, key=lambda each: float(str(each["held_out_score"])))
    assert call("dvc", "exp", "apply", str(best["experiment"]), cwd=tmp_path).returncode == 0
    written = yaml.safe_load((tmp_path / "params.yaml").read_text())["presets"]["test"]["recipes"][RECIPE]
    assert written == {"lr": best["lr"], "held_out_share": 0.3}
    model = json.loads((tmp_path / "artifacts/models" / RECIPE / "model.json").read_text())
    assert model["held_out_score"] == best["held_out_score"] and model["train"]["lr"] == best["lr"]
