"""The registered model as MLflow runs and serves it: scenes in, class maps or polygons out.

MLflow copies this file into the model and executes it; all it does stands in the installed package.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import rasterio
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray

from crossearth.components.predict.config import PredictConfig
from crossearth.components.predict.sliding import Loaded, load_network
from crossearth.components.predict.step import map_array, predict
from crossearth.data.common.config import load_config
from crossearth.data.common.errors import InputError
from crossearth.data.raster.reading import BYTES
from crossearth.model.weights import checkpoint

MAP, POLYGONS = "map", "polygons"


class SceneMapper(PythonModel):
    """Maps scenes with one trained network, one after the other."""

    def load_context(self, context: Any) -> None:
        """Finds the weights among the model's files; the network is built when the first scene comes."""
        self.folder = Path(context.artifacts["model"])
        shared = context.artifacts.get("backbone")
        self.backbone = Path(shared) if shared else None
        self.loaded: Loaded | None = None
        self.one_at_a_time = Lock()  # a server answers in several threads

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Maps of scenes.

        Args:
            model_input: column `scene`: addresses of rasters (paths, https://, s3://; any size, mapped as
                `crossearth predict` does, but that a file must stand for itself: no VRT), or arrays
                (H, W, 3), bands in the order of the training, values as `Reading.of_array` takes them.
            params: `output`: "map" or "polygons"; of polygons `min_area_m2` and `simplify_px`, as
                `PredictConfig` has them.

        Returns:
            Per row a (H, W) uint8 array of class ids, 255 where a scene has no data; or a GeoJSON
            FeatureCollection, whose features have class, class_id, area_m2 and confidence.

        Raises:
            MlflowException: a scene that cannot be mapped, and why; a server answers 400.
        """
        try:
            with self.one_at_a_time:
                return [self._map(scene, dict(params or {})) for scene in model_input["scene"]]
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error

    def _map(self, scene: Any, params: dict[str, Any]) -> Any:
        output = params.pop("output", MAP)
        if output not in (MAP, POLYGONS):
            raise InputError(f"output: {output!r}", expected=f"{MAP}, {POLYGONS}")
        if isinstance(scene, str):
            return self._map_file(scene, params if output == POLYGONS else None)
        if output == POLYGONS:
            raise InputError("polygons of an array", expected="the address of a scene that has a place")
        return self._map_array(scene)

    def _network(self) -> Loaded:
        if self.loaded is None:
            self.loaded = load_network(self.folder, backbone=self.backbone)
        return self.loaded

    def _map_file(self, scene: str, polygons: Mapping[str, float] | None) -> Any:
        with TemporaryDirectory() as folder:
            target = Path(folder) / "map.tif"
            config = PredictConfig()
            if polygons is not None:
                given = {"vector": target.with_suffix(".geojson"), **polygons}
                config = load_config(PredictConfig, given, "params")
            source = scene if "://" in scene else Path(scene)
            # who calls is a stranger: their files may not point to others
            predict([source], self.folder, target, config, own=False, loaded=self._network())
            if config.vector:
                return json.loads(config.vector.read_text(encoding="utf-8"))
            with rasterio.open(target) as file:
                ids_HW: NDArray[np.uint8] = file.read(1)
        return ids_HW

    def _map_array(self, scene: Any) -> NDArray[np.uint8]:
        raw_HW3 = np.asarray(scene)
        if raw_HW3.ndim != 3 or raw_HW3.shape[2] != 3 or not raw_HW3.size:
            raise InputError(
                f"an array of the shape {raw_HW3.shape}", expected="an address, or an array (H, W, 3)"
            )
        reading = checkpoint.trained_reading(checkpoint.read_meta(self.folder)) or BYTES
        image_3HW, valid_HW = reading.of_array(raw_HW3.transpose(2, 0, 1))
        return map_array(self._network(), image_3HW, valid_HW)


mlflow.models.set_model(SceneMapper())
