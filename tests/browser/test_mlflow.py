"""MLflow's own pages in a real Chromium, of a folder that was moved: what `show` links to shows the runs."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
from services import free_port

from crossearth.components.runtime.tracking import VIEW, runs_told, start_run

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
VIEW_NAME = "Recipes by mIoU on unseen domains"


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A working folder with two runs, moved after it was written; and what `show` says of it."""
    home = tmp_path_factory.mktemp("home") / "before"
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(home)
        with start_run("validate", key="v", experiment="crossearth-data"):
            pass
        with start_run("potsdam-rgb", key="k") as run:
            run.log_dataset("potsdam-rgb train", "a" * 64, Path("artifacts/domains"), "training", 3)
            run.log_image(np.full((40, 80, 3), 200, np.uint8), "panels/000010.png")
            run.log_metrics({"all/unseen-mean": 0.4})
            run.save_view(VIEW, VIEW_NAME, ["all/unseen-mean"], "all/unseen-mean")
        there = home.rename(home.with_name("after"))
        patch.chdir(there)
        yield there, runs_told()[1].split()[-1]


@pytest.fixture(scope="module")
def page(moved: tuple[Path, str]) -> Iterator[Any]:
    """What opens at the address that `show` prints, the server started as it says."""
    folder, address = moved
    port = free_port()
    store = "sqlite:///artifacts/mlflow/mlflow.db"
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--port", str(port)]
    with (folder / "ui.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--workers", "1"],
            cwd=folder,
            stdout=log,
            stderr=log,
            env=os.environ,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except URLError:
                assert server.poll() is None, (folder / "ui.log").read_text()
                time.sleep(0.5)
        with playwright.sync_playwright() as session:
            chromium = session.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            opened = chromium.new_page(viewport={"width": 1600, "height": 900})
            opened.set_default_timeout(120_000)
            opened.goto(address.replace("127.0.0.1:5000", f"127.0.0.1:{port}"))
            yield opened
            chromium.close()
    finally:
        os.killpg(server.pid, 15)
        server.wait(60)


def test_the_link_opens_the_runs_in_their_view(page: Any) -> None:
    page.get_by_role("link", name="potsdam-rgb").first.wait_for()
    told = page.inner_text("body")
    assert VIEW_NAME in told and "1 matching run" in told and "all/unseen-mean" in told


def test_pictures_are_found_where_the_folder_is_now(page: Any) -> None:
    page.get_by_role("link", name="potsdam-rgb").first.click()
    page.wait_for_url("**/runs/**")
    address, _, rest = page.url.partition("/#/")
    run_id = rest.split("/runs/")[1].split("?")[0].split("/")[0]
    page.goto(f"{address}/#/experiments/{rest.split('/')[1]}/runs/{run_id}/artifacts/panels/000010.png")
    page.wait_for_function("[...document.images].some((each) => each.naturalWidth === 80)")
