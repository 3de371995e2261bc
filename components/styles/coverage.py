"""Whether the Earth's styles do what they are for: do they reach the domains that training never sees?

Everything is measured in the leading principal components of the Earth's styles that hold 95 % of their
variance, each scaled to unit variance. With G(s, a) the Gaussian of the injected embeddings a e_earth + (1 -
a) e of the tiles of domain s, a tile is covered by s if it lies where G has 99 % of its mass (Mahalanobis
distance against the chi-squared quantile).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from scipy.spatial import KDTree
from scipy.stats import chi2

from crossearth.components.runtime.device import choose_device
from crossearth.components.runtime.params import Params
from crossearth.components.runtime.places import COVERAGE, DOMAINS, EARTH_STYLES
from crossearth.components.steps import STEPS, load
from crossearth.data.catalog.domains import Catalog
from crossearth.data.common.files import write_checksummed
from crossearth.data.common.progress import progress_bar
from crossearth.data.common.spaced import evenly
from crossearth.data.style.earth import (
    EarthStyles,
    StyleConfig,
    StyleEngine,
    inject,
    keyed_generator,
    squared_distances,
    style_engine,
)
from crossearth.data.tiles.manifest import Manifest, is_ingested, read_image, read_manifest

COVERAGE_FILE = "coverage.json"
VARIANCE = 0.95
MASS = 0.99
SAMPLES = 300
TILES = 64  # at most so many evenly spaced ones of a split are embedded


def run(params: Params, catalog: Catalog) -> Path:
    """Measures in the working folder, with the styles that each recipe's training injects."""
    config = load(STEPS["train"].config)
    styles = {name: params.config(config, "train", name).style for name in catalog.recipes()}
    return style_coverage(catalog, DOMAINS, EARTH_STYLES, COVERAGE, styles)


def style_coverage(
    catalog: Catalog,
    domains_dir: Path,
    styles_path: Path,
    out_dir: Path,
    styles: Mapping[str, StyleConfig],
) -> Path:
    """Writes `out_dir/coverage.json` over all settings whose two domains are ingested.

    Its `settings` hold, per setting: `alpha`, the share of the Earth's styles; `covered_before` and
    `covered_after`, the share of the target's test tiles covered by the source's training tiles alone and
    with injection; `distance_before` and `distance_after`, the Frechet distance between the Gaussians of
    source and target, before and after the source is restyled; `nearest_before` and `nearest_after`, the mean
    distance from a target tile to the nearest source tile. Its `scatter` holds points (x, y) of the first two
    components by group: samples of the Earth, domains.

    Args:
        styles: parameters of the injection by recipe, all of one engine.

    Raises:
        InputError: statistics absent or of another engine; a damaged manifest or tile.
    """
    (earth,) = [EarthStyles.load(styles_path, name) for name in {each.engine for each in styles.values()}]
    engine = style_engine(earth.engine).to(choose_device("auto"))
    space = Space.of(earth.mean.numpy(), earth.covariance.numpy())
    probe = _Probe(space, earth, engine)
    sources: dict[str, NDArray[np.float64]] = {}
    restyled: dict[tuple[str, StyleConfig], NDArray[np.float64]] = {}
    targets: dict[str, NDArray[np.float64]] = {}
    recipes = {
        setting.abbr: recipe.name for recipe in catalog.recipes().values() for setting in recipe.settings
    }
    settings: dict[str, dict[str, float]] = {}
    missing: list[str] = []
    for setting in catalog.settings.values():
        source_dir = catalog.domain_dir(domains_dir, setting.source)
        target_dir = catalog.domain_dir(domains_dir, setting.target)
        if not (is_ingested(source_dir, "train") and is_ingested(target_dir, "test")):
            missing.append(setting.abbr)
            continue
        source, target = read_manifest(source_dir, "train"), read_manifest(target_dir, "test")
        style = styles[recipes[setting.abbr]]
        if setting.source not in sources:
            sources[setting.source] = probe.points(source)
        if (setting.source, style) not in restyled:
            restyled[setting.source, style] = probe.restyled_points(source, style)
        if setting.target not in targets:
            targets[setting.target] = probe.points(target)
        settings[setting.abbr] = {"alpha": style.earth_share} | space.compare(
            sources[setting.source],
            restyled[setting.source, style],
            targets[setting.target],
            style.earth_share,
        )
    drawn = earth.sample(SAMPLES, keyed_generator("coverage")).double().numpy()
    groups = {
        "Earth samples": space.project(drawn),
        **{f"{name} (source)": points for name, points in sources.items()},
        **{f"{name} (target)": points for name, points in targets.items()},
    }
    path = out_dir / COVERAGE_FILE
    write_checksummed(
        path,
        {
            "engine": earth.engine,
            "styles_digest": earth.digest,
            "components": len(space.scale),
            "tiles": TILES,
            "settings": settings,
            "missing": missing,
            "scatter": {name: points[:, :2].round(3).tolist() for name, points in groups.items()},
        },
    )
    return path


@dataclass(frozen=True)
class Space:
    """Leading principal components of Earth's styles at unit variance: z = (e - mean) axes / scale."""

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> "Space":
        """Of the mean (D) and the covariance (D, D) of Earth's styles."""
        variances, axes = np.linalg.eigh(covariance)
        order = np.argsort(variances)[::-1]
        share = np.cumsum(variances[order]) / variances.sum()
        leading = order[: max(2, int(np.searchsorted(share, VARIANCE)) + 1)]
        return cls(mean, axes[:, leading], np.sqrt(variances[leading]))

    def project(self, e_ND: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (N, components) of embeddings (N, D)."""
        return (e_ND - self.mean) @ self.axes / self.scale

    def share_within_earth(self, points: NDArray[np.float64]) -> float:
        """Share of points (N, components), 0..1, that lie where the Earth's styles have `MASS`."""
        return _share_within(points, np.zeros(len(self.scale)), np.eye(len(self.scale)))

    def compare(
        self,
        source: NDArray[np.float64],
        restyled: NDArray[np.float64],
        target: NDArray[np.float64],
        alpha: float,
    ) -> dict[str, float]:
        """The numbers of one setting; all points (N, components)."""
        return {
            "covered_before": self._covered(source, target, 0.0),
            "covered_after": self._covered(source, target, alpha),
            "distance_before": _frechet(source, target),
            "distance_after": _frechet(restyled, target),
            "nearest_before": float(KDTree(source).query(target)[0].mean()),
            "nearest_after": float(KDTree(restyled).query(target)[0].mean()),
        }

    def _covered(self, source: NDArray[np.float64], target: NDArray[np.float64], alpha: float) -> float:
        # in this space the Earth's styles are N(0, I)
        size = len(self.scale)
        mean, covariance = _gaussian(source)
        mixed = (1 - alpha) ** 2 * covariance + alpha**2 * np.eye(size)
        return _share_within(target, (1 - alpha) * mean, mixed)


@dataclass(frozen=True)
class _Probe:
    """Embeds tiles of a domain, as they are and restyled."""

    space: Space
    earth: EarthStyles
    engine: StyleEngine

    def points(self, manifest: Manifest) -> NDArray[np.float64]:
        return np.concatenate([self._point(self._tile(manifest, index)) for index in self._chosen(manifest)])

    def restyled_points(self, manifest: Manifest, style: StyleConfig) -> NDArray[np.float64]:
        points = []
        for index in self._chosen(manifest):
            generator = keyed_generator("coverage", manifest.domain, manifest.rows[index]["tile_id"])
            tile_13HW = self._tile(manifest, index)
            fitting = replace(style, block_px=min(style.block_px, *tile_13HW.shape[2:]))
            injected = inject(tile_13HW, self.earth, self.engine, fitting, [generator])
            points.append(self._point(injected.x_t))
        return np.concatenate(points)

    def _point(self, image_13HW: torch.Tensor) -> NDArray[np.float64]:
        return self.space.project(self.engine.embed(image_13HW).cpu().double().numpy())

    def _chosen(self, manifest: Manifest) -> Iterable[int]:
        chosen = evenly(range(len(manifest)), TILES)
        return progress_bar(chosen, manifest.domain, len(chosen))

    def _tile(self, manifest: Manifest, index: int) -> torch.Tensor:
        return torch.from_numpy(read_image(manifest, index))[None].to(self.engine.device)


def _share_within(
    points: NDArray[np.float64], mean: NDArray[np.float64], covariance: NDArray[np.float64]
) -> float:
    """Share of points (N, components) that lie where a Gaussian has `MASS`."""
    return float((squared_distances(points, mean, covariance) <= chi2.ppf(MASS, points.shape[1])).mean())


def _gaussian(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and covariance; a little is added to its diagonal, since few tiles may span few dimensions."""
    size = points.shape[1]
    covariance = np.cov(points, rowvar=False) if len(points) > 1 else np.zeros((size, size))
    return points.mean(axis=0), covariance + 1e-3 * np.eye(size)


def _frechet(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Root of |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2), of Gaussians fitted to points (N,D)."""
    (mean_a, cov_a), (mean_b, cov_b) = _gaussian(a), _gaussian(b)
    squared = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    return float(np.sqrt(max(squared, 0.0)))
