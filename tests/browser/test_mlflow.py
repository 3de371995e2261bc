"""MLflow's own pages in a real Chromium, of a folder that was moved: what `show` links to shows the runs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from services import free_port, wait_for

from crossearth.components.runtime.tracking import VIEW, runs_told, start_run

expect = pytest.importorskip("playwright.sync_api").expect
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
def page(browser: Any, moved: tuple[Path, str]) -> Iterator[Any]:
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
            # its job runner, which no page here needs, is eight more processes
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,
        )
    try:
        health = f"http://127.0.0.1:{port}/health"
        wait_for(lambda: urlopen(health, timeout=5).close(), (folder / "ui.log").read_text, 180)
        opened = browser.new_page(viewport={"width": 1600, "height": 900})
        opened.set_default_timeout(120_000)
        opened.goto(address.replace("127.0.0.1:5000", f"127.0.0.1:{port}"))
        yield opened
        opened.close()
    finally:
        os.killpg(server.pid, 15)
        server.wait(60)


def test_the_link_opens_the_runs_in_their_view(page: Any) -> None:
    expect(page.get_by_role("link", name="potsdam-rgb").first).to_be_visible()
    for told in (VIEW_NAME, "1 matching run", "all/unseen-mean"):
        expect(page.locator("body")).to_contain_text(told, use_inner_text=True)


def test_pictures_are_found_where_the_folder_is_now(page: Any) -> None:
    page.get_by_role("link", name="potsdam-rgb").first.click()
    page.wait_for_url("**/runs/**")
    address, _, rest = page.url.partition("/#/")
    run_id = rest.split("/runs/")[1].split("?")[0].split("/")[0]
    page.goto(f"{address}/#/experiments/{rest.split('/')[1]}/runs/{run_id}/artifacts/panels/000010.png")
    page.wait_for_function("[...document.images].some((each) => each.naturalWidth === 80)")
