"""The registered model as MLflow runs it: a column `scene` of paths or arrays in, class maps out.

MLflow copies this file into the model and executes it; all it does stands in the installed package.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import rasterio
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray

from crossearth.components.predict.sliding import load_network
from crossearth.components.predict.step import PredictConfig, map_array, predict
from crossearth.data.raster.reading import BYTES
from crossearth.model.weights import checkpoint


class SceneMapper(PythonModel):
    """Maps scenes with one trained network."""

    def load_context(self, context: Any) -> None:
        """Finds the weights among the model's files; the network is built when the first array comes."""
        self.folder = Path(context.artifacts["model"])
        shared = context.artifacts.get("backbone")
        self.backbone = Path(shared) if shared else None
        self.loaded: Any = None

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> list[NDArray[np.uint8]]:
        """Class maps of scenes.

        Args:
            model_input: column `scene`: paths of rasters (any size, mapped as `crossearth predict` does), or
                arrays (H, W, 3), bands in the order of the training, values as `Reading.of_array` takes them.

        Returns:
            One (H, W) uint8 array of class ids per row; 255 where a scene has no data.

        Raises:
            ValueError: an array of another shape.
            InputError: an array of values that the training's files do not have.
        """
        return [
            self._map_file(Path(scene)) if isinstance(scene, str) else self._map_array(scene)
            for scene in model_input["scene"]
        ]

    def _map_file(self, scene: Path) -> NDArray[np.uint8]:
        with TemporaryDirectory() as folder:
            (written,) = predict(
                [scene], self.folder, Path(folder) / "map.tif", PredictConfig(backbone=self.backbone)
            )
            with rasterio.open(written) as file:
                ids_HW: NDArray[np.uint8] = file.read(1)
        return ids_HW

    def _map_array(self, scene: Any) -> NDArray[np.uint8]:
        raw_HW3 = np.asarray(scene)
        if raw_HW3.ndim != 3 or raw_HW3.shape[2] != 3 or not raw_HW3.size:
            raise ValueError(f"a scene must be an array (H, W, 3) or a path, found shape {raw_HW3.shape}")
        if self.loaded is None:
            self.loaded = load_network(self.folder, backbone=self.backbone)
            trained = checkpoint.trained_reading(checkpoint.read_meta(self.folder))
            self.reading = trained or BYTES
        image_3HW, valid_HW = self.reading.of_array(raw_HW3.transpose(2, 0, 1))
        return map_array(self.loaded, image_3HW, valid_HW)


mlflow.models.set_model(SceneMapper())
