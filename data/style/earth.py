"""Earth-Style Injection: statistics of Earth's styles, block masks, restyled images injected through them.

One piece of code serves the `stylize` step and training: given equal generators, both inject equal pixels.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from crossearth.data.common.config import Share, checked
from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_path, digest
from crossearth.data.style.spectral import SpectralEngine
from crossearth.data.style.weights import style_weights_dir

EngineName = Literal["spectral", "ghiasi"]
DEFAULT_ALPHA: dict[EngineName, float] = {"ghiasi": 0.1, "spectral": 0.7}


class StyleEngine(Protocol):
    """Reads an image's style as a vector and gives an image another style. Frozen, without gradients.

    Images are RGB-as-the-network-sees-them (B,3,H,W), uint8 or float, raw 0..255, on the engine's device.
    """

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def to(self, device: torch.device | str) -> "StyleEngine": ...

    def embed(self, x_B3HW: Tensor) -> Tensor:
        """Style embeddings, float32 (B, dim)."""
        ...

    def transfer(self, x_B3HW: Tensor, e_BD: Tensor) -> Tensor:
        """The images in the styles e_BD, float32 (B,3,H,W) in 0..255."""
        ...


def style_engine(name: str, weights_dir: Path | None = None) -> StyleEngine:
    """The engine of that name; `ghiasi` reads its released weights from `weights_dir`.

    Args:
        weights_dir: None = $CROSSEARTH_STYLE_WEIGHTS.

    Raises:
        InputError: unknown name; a file of weights is absent or wrong (it is named).
    """
    if name == "spectral":
        return SpectralEngine()
    if name != "ghiasi":
        raise InputError(f"unknown style engine {name!r}", expected=", ".join(DEFAULT_ALPHA))
    weights_dir = weights_dir or style_weights_dir()
    if weights_dir is None:
        raise InputError(
            "the ghiasi style engine needs its weights",
            next_step="name their folder ($CROSSEARTH_STYLE_WEIGHTS), or use spectral",
        )
    from crossearth.data.style.ghiasi import GhiasiEngine  # torchvision takes a second to import

    return GhiasiEngine.from_dir(weights_dir)


@checked
class StyleConfig:
    """Parameters of Earth-Style Injection (docs/method.md, section 2).

    Attributes:
        engine: "spectral" needs no weights; "ghiasi" is the paper's, with the weights of Jackson et al.
        alpha: share of the sampled Earth style in the embedding, 0..1; the rest is the image's own. None:
            0.1 for ghiasi (authors' snapshot), whose networks change an image at alpha 0 already; 0.7 for
            spectral (our choice), which returns the image itself at alpha 0.
        keep_ratio: expected share of blocks that keep the original image, 0..1 (authors' snapshot of the
            DINOv2 network; the paper's figure shows about half).
        block_px: side of a mask block, pixels (both snapshots).
    """

    engine: EngineName = "spectral"
    alpha: Share | None = None
    keep_ratio: Share = 0.3
    block_px: PositiveInt = 64

    @property
    def earth_share(self) -> float:
        return DEFAULT_ALPHA[self.engine] if self.alpha is None else self.alpha


class StyleMoments:
    """Count, mean and scatter of embeddings in one pass; the moments of parts merge into those of the whole.

    Chan, Golub and LeVeque (1983): numerically stable, in float64. Also gathers an order-independent digest
    of the images (the sum of their hashes), so that the shards of a corpus add up to the corpus.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)
        self.image_hashes = 0

    def add(self, e_ND: Tensor, image_hashes: Sequence[str]) -> None:
        """Adds embeddings (N,D), N >= 1, of images with these hex SHA-256."""
        part = StyleMoments(e_ND.shape[1])
        e_ND = e_ND.detach().cpu().double()
        part.count = len(e_ND)
        part.mean = e_ND.mean(dim=0)
        centred_ND = e_ND - part.mean
        part.scatter = centred_ND.T @ centred_ND
        part.image_hashes = sum(int(image_hash, 16) for image_hash in image_hashes)
        self.merge(part)

    def merge(self, other: "StyleMoments") -> None:
        """Takes in the moments of a disjoint set of images."""
        count = self.count + other.count
        if not count:
            return
        shift_D = other.mean - self.mean
        self.scatter += other.scatter + torch.outer(shift_D, shift_D) * (self.count * other.count / count)
        self.mean = self.mean + shift_D * (other.count / count)
        self.count = count
        self.image_hashes = (self.image_hashes + other.image_hashes) % 2**256

    @property
    def corpus_digest(self) -> str:
        return f"{self.image_hashes:064x}"


@dataclass(frozen=True, eq=False)
class EarthStyles:
    """A Gaussian over style embeddings of the Earth's imagery.

    Attributes:
        mean: float64 (D).
        covariance: float64 (D,D).
        factor: A, float64 (D,D), A A^T = covariance, by SVD; stored, since the signs in an SVD are LAPACK's.
        engine: the engine whose embeddings these are.
        count: images behind it.
        corpus_digest: identity of these images.
        shrinkage: share of the diagonal in the covariance: 0 where there were images enough for full rank.
    """

    mean: Tensor
    covariance: Tensor
    factor: Tensor
    engine: str
    count: int
    corpus_digest: str
    shrinkage: float = 0.0

    @classmethod
    def from_moments(cls, moments: StyleMoments, engine: str, where: object = "") -> "EarthStyles":
        """The estimate; with too few images for full rank (count <= D) it is shrunk towards its diagonal.

        Args:
            where: what the images are of, for the message.

        Raises:
            InputError: fewer than two images.
        """
        if moments.count < 2:
            raise InputError(
                f"{moments.count} usable style images",
                expected="at least 2, better some thousands",
                where=where,
            )
        covariance_DD = moments.scatter / (moments.count - 1)
        dim = len(moments.mean)
        shrinkage = dim / (dim + moments.count) if moments.count <= dim else 0.0
        covariance_DD = (1 - shrinkage) * covariance_DD + shrinkage * covariance_DD.diagonal().diag()
        u_DD, s_D, _ = torch.linalg.svd(covariance_DD)
        return cls(
            moments.mean,
            covariance_DD,
            u_DD * s_D.sqrt(),
            engine,
            moments.count,
            moments.corpus_digest,
            shrinkage,
        )

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """A z + mean with z ~ N(0, I): float32 (num, D) on the CPU, from a CPU generator."""
        z_ND = torch.randn(num, len(self.mean), generator=generator, dtype=torch.float64)
        return (z_ND @ self.factor.T + self.mean).float()

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the numbers and of what they were estimated from."""
        tensors = b"".join(tensor.numpy().tobytes() for tensor in self._tensors().values())
        return digest([self._origin(), hashlib.sha256(tensors).hexdigest()])

    def save(self, path: Path) -> Path:
        """Writes safetensors, atomically."""
        with atomic_path(path) as partial:
            # one key: safetensors does not promise an order of several, and equal styles shall be equal bytes
            about = {"earth_styles": json.dumps({**self._origin(), "digest": self.digest}, sort_keys=True)}
            partial.write_bytes(save(self._tensors(), metadata=about))
        return path

    @classmethod
    def load(cls, path: Path, engine: str) -> "EarthStyles":
        """Reads what `save` wrote.

        Raises:
            InputError: absent, foreign or changed file, or statistics of another engine than `engine`.
        """
        if not Path(path).is_file():
            raise InputError("no Earth statistics here", where=path, next_step="run `crossearth styles fit`")
        try:
            with safe_open(path, framework="pt") as file:
                origin: dict[str, Any] = json.loads((file.metadata() or {})["earth_styles"])
                tensors = {name: file.get_tensor(name) for name in ("mean", "covariance", "factor")}
            written = origin.pop("digest")
            styles = cls(**tensors, **origin)
            changed = styles.digest != written
        except (SafetensorError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise InputError(
                f"not a file of Earth statistics ({error})",
                where=path,
                next_step="run `crossearth styles fit`",
            ) from error
        if styles.engine != engine:
            raise InputError(
                f"statistics of the style engine {styles.engine!r}, asked for {engine!r}",
                where=path,
                next_step=f"set engine: {styles.engine}, or fit again with {engine}",
            )
        if changed:
            raise InputError(
                "the statistics were changed since they were fitted: their digest is another",
                where=path,
                next_step="run `crossearth styles fit` again",
            )
        return styles

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).contiguous() for name in ("mean", "covariance", "factor")}

    def _origin(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("engine", "count", "corpus_digest", "shrinkage")}


def squared_distances(
    e_ND: NDArray[np.float64], mean_D: NDArray[np.float64], covariance_DD: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Squared Mahalanobis distances (N,) of embeddings from a Gaussian's mean."""
    off_ND = e_ND - mean_D
    squared_N: NDArray[np.float64] = np.einsum("nd,dn->n", off_ND, np.linalg.solve(covariance_DD, off_ND.T))
    return squared_N


def keyed_generator(*key: object) -> torch.Generator:
    """CPU generator seeded by the hash of `key`: a tile draws the same numbers in any order and shard."""
    return torch.Generator().manual_seed(int(digest([str(part) for part in key])[:15], 16))


def block_mask(
    height_px: int, width_px: int, block_px: int, mask_ratio: float, generator: torch.Generator
) -> Tensor:
    """Random blocks: u ~ U[0, 1) on a grid, kept where u >= mask_ratio, enlarged to pixels.

    Returns:
        bool (1, height_px, width_px) on the CPU, True = keep; blocks at the right and bottom may be cut.

    Raises:
        InputError: the image is smaller than a block.
    """
    if min(height_px, width_px) < block_px:
        raise InputError(
            f"an image of {height_px}x{width_px} px is smaller than a mask block",
            expected=f"at least {block_px} px a side",
            next_step=f"set block_px to {min(height_px, width_px)} or less",
        )
    rows, columns = -(-height_px // block_px), -(-width_px // block_px)
    keep_1RC = torch.rand(1, rows, columns, generator=generator) >= mask_ratio
    keep_1HW = keep_1RC.repeat_interleave(block_px, dim=1).repeat_interleave(block_px, dim=2)
    return keep_1HW[:, :height_px, :width_px]


class Injected(NamedTuple):
    """Attributes:
    x_s: the injected images, float32 (B,3,H,W), raw 0..255.
    x_t: the fully restyled images, float32 (B,3,H,W), raw 0..255.
    keep_mask: bool (B,1,H,W), True = the original's pixel.
    """

    x_s: Tensor
    x_t: Tensor
    keep_mask: Tensor


def inject(
    x_B3HW: Tensor,
    earth: EarthStyles,
    engine: StyleEngine,
    config: StyleConfig,
    generators: Sequence[torch.Generator],
) -> Injected:
    """x_s = m_s x + (1 - m_s) x_t with x_t = transfer(x, alpha e_earth + (1 - alpha) embed(x)).

    Every image draws its style and then its mask from its own CPU generator, so the result does not depend on
    the batch or the device.

    Args:
        x_B3HW: uint8 or float, raw 0..255.

    Raises:
        InputError: `earth` belongs to another engine, or an image is smaller than a mask block.
    """
    if earth.engine != engine.name:
        raise InputError(f"Earth statistics of engine {earth.engine!r} with engine {engine.name!r}")
    height, width = x_B3HW.shape[-2:]
    earth_BD = torch.cat([earth.sample(1, generator) for generator in generators]).to(x_B3HW.device)
    keep_B1HW = torch.stack(
        [
            block_mask(height, width, config.block_px, 1 - config.keep_ratio, generator)
            for generator in generators
        ]
    ).to(x_B3HW.device)
    x_B3HW = x_B3HW.float()
    e_BD = torch.lerp(engine.embed(x_B3HW), earth_BD, config.earth_share)
    x_t_B3HW = engine.transfer(x_B3HW, e_BD)
    return Injected(torch.where(keep_B1HW, x_B3HW, x_t_B3HW), x_t_B3HW, keep_B1HW)
