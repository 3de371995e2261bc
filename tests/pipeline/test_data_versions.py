"""The walk of docs/data-versions.md, line by line, with a real S3 server and two people."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
from own_domain import own_domain, tree
from services import KEYS, object_store

TEXT = (Path(__file__).parents[2] / "docs/data-versions.md").read_text()


def test_a_collaborator_has_the_same_manifests(tmp_path: Path) -> None:
    _, mine, theirs = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.M | re.S)
    own_domain(tmp_path / "mine")
    (tmp_path / "mine/datasets").mkdir()
    (tmp_path / "mine/masks").rename(tmp_path / "mine/datasets/masks")
    with object_store(tmp_path, "team") as address:
        environment = {
            **os.environ,
            **KEYS,
            "AWS_ENDPOINT_URL": address,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(tmp_path / "home"),
            **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        environment.pop("CROSSEARTH_DATA", None)
        store = boto3.client(
            "s3",
            endpoint_url=address,
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name=KEYS["AWS_DEFAULT_REGION"],
        )
        for path in (tmp_path / "mine/images").iterdir():
            store.upload_file(str(path), "team", f"raw/images/{path.name}")
        shutil.rmtree(tmp_path / "mine/images")
        for folder, lines in (("mine", mine), ("elsewhere", theirs)):
            (tmp_path / folder).mkdir(exist_ok=True)
            done = subprocess.run(
                ["bash", "-euc", lines],
                cwd=tmp_path / folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert done.returncode == 0, done.stdout + done.stderr
    first, second = (
        tree(tmp_path / folder / "artifacts/domains/town/town") for folder in ("mine", "elsewhere/theirs")
    )
    assert {"train.parquet", "test.parquet"} & first.keys()
    assert second == first
    assert ".parquet" in done.stdout
    kept = subprocess.run(
        ["git", "ls-files"], cwd=tmp_path / "elsewhere/theirs", capture_output=True, text=True, check=True
    ).stdout
    assert "datasets/images.dvc" in kept
    assert ".tif" not in kept, "git has none of the bytes"
