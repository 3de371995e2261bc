"""What a model has seen, in few numbers: written beside it when it is trained, read by `watch`.

Windows of the training's crop are cut from the source's training tiles. A Gaussian is fitted to the style
embeddings of those in the first scenes. The last block of scenes, at least `HELD` of the tiles, has no part
in that fit: `farthest` is the squared Mahalanobis distance within which `WITHIN` of its windows lie. It is a
quantile that was measured, and not one of the chi-squared distribution: embeddings are no exact Gaussian,
and neighbouring scenes differ more than one scene does in itself. `confidence` is the probability of the
best class that all but `LOW` of that block's pixels reach. Where the training held no tiles out, the network
has learnt from these pixels, and a share of low confidence somewhat above `LOW` is no news.

Legend: B windows, N windows of all, K classes, D numbers of an embedding.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt
from torch import Tensor

from crossearth.data.common.config import Share, checked, load_config
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import read_checksummed, write_checksummed
from crossearth.data.common.spaced import evenly
from crossearth.data.style.earth import EarthStyles, EngineName, StyleEngine, StyleMoments, squared_distances
from crossearth.data.tiles.manifest import Manifest, held_out, read_image
from crossearth.model.weights.checkpoint import REFERENCE_NAME

WITHIN = 0.95
LOW = 0.05
HELD = 0.2
FIT_WINDOWS, HELD_WINDOWS = 256, 128  # at most; evenly spaced ones of all
FEWEST = 8  # windows of a model that is not told apart from others by fewer
RIDGE = 1e-4  # variance added to each number of an embedding: grey imagery has none in some
LEVELS = 10_000  # steps in which probabilities are counted

log = logging.getLogger(__name__)


@checked
class Gaussian:
    """Mean (D) and covariance (D, D) of style embeddings."""

    mean: list[float]
    covariance: list[list[float]]

    @classmethod
    def of(cls, styles: EarthStyles) -> "Gaussian":
        """Without what the estimate came from."""
        return cls(styles.mean.tolist(), styles.covariance.tolist())

    def distances(self, e_ND: NDArray[np.float64]) -> NDArray[np.float64]:
        """Squared Mahalanobis distances (N) of embeddings."""
        covariance_DD = np.asarray(self.covariance) + RIDGE * np.eye(len(self.mean))
        return squared_distances(e_ND, np.asarray(self.mean), covariance_DD)


@checked
class Reference:
    """What `watch` holds new scenes against; see this module's words.

    Attributes:
        input_hash: of the training: a file that was left beside another model is refused.
        engine: of style; the one that the training injected styles with, else "spectral".
        window_px: side of the windows.
        windows: in the fit, and in the held-out block.
        training: styles of the training's windows.
        earth: styles that the training injected; None = it injected none.
        farthest: squared Mahalanobis distance from `training`.
        confidence: which the best class has at nearly all held-out pixels, 0..1.
        band_mean, band_std: of the network's three bands over the training's pixels, 0..255.
    """

    input_hash: str
    engine: EngineName
    window_px: PositiveInt
    windows: tuple[PositiveInt, PositiveInt]
    training: Gaussian
    earth: Gaussian | None
    farthest: float
    confidence: Share
    band_mean: tuple[float, float, float]
    band_std: tuple[float, float, float]


@dataclass
class Seen:
    """What is measured of windows, a batch at a time.

    Attributes:
        embeddings: (B, D) of each batch.
        confidence: pixels that hold data by the probability of their best class, in `LEVELS` steps.
        sums: pixels that hold data, and per band the sum and the sum of squares of their values.
    """

    embeddings: list[NDArray[np.float64]] = field(default_factory=list)
    confidence: NDArray[np.int64] = field(default_factory=lambda: np.zeros(LEVELS + 1, np.int64))
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(7))

    def add(
        self, windows_B3HW: Tensor, engine: StyleEngine, scores: Callable[[Tensor], Tensor] | None
    ) -> None:
        """Measures windows (B, 3, H, W), uint8, on the engine's device.

        Args:
            scores: the network: windows -> scores (B, K, H, W), not normalised over classes; None = the
                confidence is not asked for.
        """
        self.embeddings.append(engine.embed(windows_B3HW).cpu().double().numpy())
        seen_BHW = windows_B3HW.amax(dim=1) > 0
        values_3N = windows_B3HW.movedim(1, 0)[:, seen_BHW].double()
        self.sums += np.array(
            [values_3N.shape[1], *values_3N.sum(1).tolist(), *values_3N.square().sum(1).tolist()]
        )
        if scores is not None:
            scores_BKHW = scores(windows_B3HW)
            total_BHW = scores_BKHW.sum(1).clamp(min=torch.finfo(torch.float32).tiny)
            best_BHW = scores_BKHW.amax(1) / total_BHW
            levels = best_BHW[seen_BHW].float().nan_to_num().clamp(0, 1).mul(LEVELS).long()
            self.confidence += torch.bincount(levels, minlength=LEVELS + 1).cpu().numpy()

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(
            self.embeddings + other.embeddings, self.confidence + other.confidence, self.sums + other.sums
        )

    def __len__(self) -> int:
        return sum(map(len, self.embeddings))

    def low_confidence(self, threshold: float) -> float:
        """Share of the pixels whose best class has a probability below `threshold`."""
        return float(self.confidence[: round(threshold * LEVELS)].sum() / max(self.confidence.sum(), 1))

    @property
    def points(self) -> NDArray[np.float64]:
        """Embeddings (N, D)."""
        return np.concatenate(self.embeddings)

    @property
    def bands(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation (3) of the values."""
        mean = self.sums[1:4] / max(self.sums[0], 1)
        return mean, np.sqrt(np.maximum(self.sums[4:] / max(self.sums[0], 1) - mean**2, 0))


def is_telling(window_3HW: NDArray[np.uint8]) -> bool:
    """Whether at least half of a window is not black, and so holds data."""
    return bool((window_3HW.max(axis=0) > 0).mean() >= 0.5)


def grid(height: int, width: int, px: int) -> list[tuple[int, int]]:
    """Upper left corners (top, left) of the windows of `px` that lie beside each other in an image.

    A side that is shorter than a window is taken whole.
    """
    tops, lefts = (range(0, side - min(px, side) + 1, px) for side in (height, width))
    return [(top, left) for top in tops for left in lefts]


def make_reference(
    manifest: Manifest,
    px: int,
    engine: StyleEngine,
    earth: EarthStyles | None,
    scores: Callable[[Tensor], Tensor],
    input_hash: str,
) -> Reference | None:
    """Measures the training tiles of a source.

    Args:
        manifest: the source's training split.
        px: side of the windows: the training's crop.
        engine: of style, on the network's device.
        earth: styles that the training injected.
        scores: the network, see `Seen.add`.

    Returns:
        None where the source has too few windows with data.
    """
    fit_rows, held_rows = _blocks(manifest)
    fit, held = Seen(), Seen()
    for windows_B3HW in _windows(manifest, fit_rows, px, FIT_WINDOWS):
        fit.add(windows_B3HW.to(engine.device), engine, None)
    for windows_B3HW in _windows(manifest, held_rows, px, HELD_WINDOWS):
        held.add(windows_B3HW.to(engine.device), engine, scores)
    if min(len(fit), len(held)) < FEWEST:
        told = f"{manifest.domain} has too few windows of {px} px"
        log.warning("%s for `crossearth watch` to know what this model has seen", told)
        return None
    moments = StyleMoments(engine.dim)
    moments.add(torch.from_numpy(fit.points), [])
    training = Gaussian.of(EarthStyles.from_moments(moments, engine.name, manifest.root))
    mean, std = (fit + held).bands
    # the highest probability below which at most LOW of the counted pixels lie
    level = np.searchsorted(np.cumsum(held.confidence), LOW * held.confidence.sum(), side="right")
    values = {
        "input_hash": input_hash,
        "engine": engine.name,
        "window_px": px,
        "windows": [len(fit), len(held)],
        "training": asdict(training),
        "earth": None if earth is None else asdict(Gaussian.of(earth)),
        "farthest": float(np.quantile(training.distances(held.points), WITHIN)),
        "confidence": float(level / LEVELS),
        "band_mean": mean.tolist(),
        "band_std": std.tolist(),
    }
    return load_config(Reference, values, "reference")


def _blocks(manifest: Manifest) -> tuple[list[int], list[int]]:
    """Rows for the fit, and those of the last scenes; of the last tiles where there is one scene."""
    if len({row["scene"] for row in manifest.rows}) > 1:
        return held_out(manifest, HELD)
    rows = list(range(len(manifest.rows)))
    first = len(rows) - max(1, round(HELD * len(rows)))
    return rows[:first], rows[first:]


def _windows(manifest: Manifest, rows: Sequence[int], px: int, most: int) -> Iterator[Tensor]:
    """Windows (B, 3, px, px) that hold data, of each tile that has some among those chosen."""
    places = [
        (row, top, left)
        for row in rows
        for top, left in grid(manifest.rows[row]["height"], manifest.rows[row]["width"], px)
    ]
    chosen = evenly(places, most)
    for row in sorted({row for row, _, _ in chosen}):
        image_3HW = read_image(manifest, row)
        windows = [image_3HW[:, top : top + px, left : left + px] for at, top, left in chosen if at == row]
        if telling := [window_3HW for window_3HW in windows if is_telling(window_3HW)]:
            yield torch.from_numpy(np.stack(telling))


def write_reference(folder: Path, reference: Reference | None) -> None:
    """Writes it beside a model, in place of an earlier one's."""
    path = folder / REFERENCE_NAME
    if reference is None:
        path.unlink(missing_ok=True)
    else:
        write_checksummed(path, asdict(reference))


def read_reference(folder: Path, input_hash: str) -> Reference:
    """Reads what lies beside a model.

    Args:
        folder: the model's.
        input_hash: of the model's training.

    Raises:
        InputError: there is none, it is another model's, or it was changed.
    """
    path = folder / REFERENCE_NAME
    if not path.is_file():
        raise InputError(
            "the model does not say what it has seen",
            where=path,
            expected="the file that `crossearth train` writes beside a model",
            next_step="train the model again, or copy the file too; a converted model has none",
        )
    found = load_config(Reference, read_checksummed(path), str(path))
    if found.input_hash != input_hash:
        raise InputError(
            "it was written with another model", where=path, next_step="copy the model's whole folder again"
        )
    return found
