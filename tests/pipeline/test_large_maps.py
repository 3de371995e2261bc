"""Large maps: processes that share a scene, and memory that a scene's width leaves alone."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import rasterio
import torch
from random_scene import files, random_model, write
from rasterio.transform import Affine
from torch import Tensor, nn

from crossearth.components.predict.compute import Task, run
from crossearth.components.predict.config import PredictConfig
from crossearth.components.predict.parts import Parts
from crossearth.components.predict.sliding import Loaded, plan
from crossearth.components.predict.step import predict
from crossearth.components.predict.strips import open_scene, open_view
from crossearth.data.common.errors import InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("model"))


def test_processes_share_a_scene(tmp_path: Path, model: Path) -> None:
    scene = write(tmp_path / "scene.tif", 900, 90)
    alone = PredictConfig(precision="float32", device="cpu", batch_size=1)
    predict([scene], model, tmp_path / "one" / "map.tif", alone)
    together = PredictConfig(precision="float32", device="cpu", batch_size=1, jobs=2)
    predict([scene], model, tmp_path / "two" / "map.tif", together)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    damaged = write(tmp_path / "damaged.tif", 900, 90, compress="deflate")
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size * 2 // 3])
    with pytest.raises(InputError, match="cannot read its pixels"):
        predict([damaged], model, tmp_path / "damaged_map.tif", together)
    assert not list(tmp_path.glob(".*"))


class Cheap(nn.Module):
    """The cost of nothing: what remains is what the strips take."""

    config = SimpleNamespace(num_classes=6, patch_px=16, crop_px=512, stride_px=341)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, windows_B3HW: Tensor) -> Tensor:
        return torch.ones(len(windows_B3HW), 6, 512, 512)


MEMORY = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
import rasterio, torch
from test_large_maps import Cheap, mapped
before = int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
mapped(Path(sys.argv[2]), int(sys.argv[3]))
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
print((peak - before) / 1024)
"""


def mapped(folder: Path, width: int) -> None:
    """Computes two strips of a scene whose file holds no block, so wide that it is cut into panels."""
    path = folder / f"{width}.tif"
    size = {"height": 100_000, "width": width, "count": 3, "dtype": "uint8"}
    place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 4e5, 0, -0.5, 5e6)}
    tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "sparse_ok": True, "bigtiff": "yes"}
    with rasterio.open(path, "w", driver="GTiff", **size, **place, **tiles):
        pass
    loaded = Loaded(Cheap(), torch.float32, list("abcdef"), ["#000000"] * 6, {})  # type: ignore[arg-type]
    scene = open_scene(path)
    how, parts = plan(scene, loaded.network.config, 1), Parts(folder / f"{width}.parts")
    parts.begin({})
    with rasterio.Env(GDAL_CACHEMAX=64 << 20), open_view(scene) as view:
        for panel in range(len(how.panels)):
            task = Task(how, parts, (), panel, range(140, 142))
            run(task, loaded, view, lambda _: None)
    assert len(list(parts.folder.glob("*.zip"))) == 2 * len(how.panels)


def test_memory_does_not_grow_with_the_width(tmp_path: Path) -> None:
    taken = {}
    for width in (4_000, 40_000):
        command = [sys.executable, "-c", MEMORY, str(Path(__file__).parent), str(tmp_path), str(width)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        taken[width] = float(done.stdout)
    assert taken[40_000] < 700 and taken[40_000] < taken[4_000] + 450, taken


def test_a_command_that_is_told_to_stop_ends_its_processes(tmp_path: Path, model: Path) -> None:
    scene = write(tmp_path / "scene.tif", 3000, 1000)
    command = [str(Path(sys.executable).with_name("crossearth")), "predict", str(scene), "--jobs", "2"]
    command += [
        "--model",
        str(model),
        "--out",
        str(tmp_path / "map.tif"),
        "--device",
        "cpu",
        "--batch-size",
        "1",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob(".map.tif.parts/*.zip")):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert process.stderr and "go on with: crossearth predict" in process.stderr.read()
    assert {path.name for path in tmp_path.iterdir()} == {"scene.tif", ".map.tif.parts"}
