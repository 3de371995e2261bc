"""Does a frozen network see style? How far Earth-Style Injection moves its features, block by block.

    python tests/imagery/feature_shift.py FOLDER [--source road-vegas] [--alpha 0.7]

FOLDER is a working folder with the road domains ingested and the styles fitted (`tests/imagery/ablation.py`
makes one). Prints a table with a row per block of the frozen ViT:

- shift: mean distance of a patch's features from those of the same patch restyled, in units of the mean
  distance of a patch from the domain's mean; 0 = blind to style.
- gap to a target: distance of the two domains' mean features, per channel in units of the source's deviation,
  root mean square over channels; before, and after the source is restyled. Smaller = the styles lead there.
"""

import argparse
import os
from pathlib import Path

import torch
from torch import Tensor

from crossearth.data.style.earth import EarthStyles, StyleConfig, inject, keyed_generator, style_engine
from crossearth.data.tiles.manifest import read_image, read_manifest
from crossearth.model.crossearth import CrossEarth, tiny_config
from crossearth.model.layers.backbone import fit_state
from crossearth.model.weights.pretrained import describe
from crossearth.model.weights.release import read_backbone

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("CROSSEARTH_FIXTURES", ROOT.parent / "shared"))
DOMAINS = ("road-epfl", "road-vegas", "road-shanghai")
SIDE_PX, TILES = 256, 24


def frozen(path: Path) -> CrossEarth:
    """The pretrained ViT alone, every block a tap as far as four maps go."""
    state = read_backbone(path)
    sizes = describe(state, path, str(path)).sizes
    config = tiny_config(1, SIDE_PX, frozen_backbone=True, adapter="none", head="linear", **sizes)
    model = CrossEarth(config).eval()
    model.backbone.load_state_dict(fit_state(state, model.backbone, path))
    return model


def tiles(folder: Path, domain: str, split: str) -> Tensor:
    """uint8 (B, 3, SIDE_PX, SIDE_PX): the upper left corners of some evenly spaced tiles."""
    manifest = read_manifest(folder / "artifacts/domains" / domain / domain, split)
    rows = range(0, len(manifest), max(1, len(manifest) // TILES))
    return torch.stack([torch.as_tensor(read_image(manifest, row))[:, :SIDE_PX, :SIDE_PX] for row in rows])


@torch.no_grad()
def features(model: CrossEarth, images_B3HW: Tensor) -> list[Tensor]:
    """Patches (B, N, C) after every block."""
    backbone, found = model.backbone, []
    tokens_BTC = backbone.embed(model.normalise(images_B3HW))
    side = SIDE_PX // model.config.patch_px
    for layer, rotation in enumerate(backbone.rotations(side, side)):
        tokens_BTC = backbone.run(tokens_BTC, layer, rotation)
        found.append(tokens_BTC[:, backbone.num_prefix :])
    return found


def gap(one_BNC: Tensor, other_BNC: Tensor, deviation_C: Tensor) -> float:
    """Of the mean features, in units of a deviation per channel."""
    difference_C = (one_BNC.mean((0, 1)) - other_BNC.mean((0, 1))) / deviation_C
    return float(difference_C.square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", choices=DOMAINS, default="road-vegas")
    parser.add_argument("--alpha", type=float, default=0.7)
    parser.add_argument("--keep-ratio", type=float, default=0.0)
    parser.add_argument("--backbone", type=Path, default=SHARED / "weights/vit_tiny_patch16_aid.safetensors")
    given = parser.parse_args()
    model = frozen(given.backbone)
    images = tiles(given.folder, given.source, "train")
    config = StyleConfig(alpha=given.alpha, keep_ratio=given.keep_ratio)
    earth = EarthStyles.load(given.folder / "artifacts/styles/earth.safetensors", config.engine)
    generators = [keyed_generator("shift", number) for number in range(len(images))]
    styled = inject(images, earth, style_engine(config.engine), config, generators).x_s
    targets = [name for name in DOMAINS if name != given.source]
    plain_LBNC, styled_LBNC = features(model, images), features(model, styled)
    target_LBNC = {name: features(model, tiles(given.folder, name, "test")) for name in targets}
    print(f"| block | shift | {' | '.join(f'gap to {name}, before | after' for name in targets)} |")
    print("|---" * (2 + 2 * len(targets)) + "|")
    for layer, (plain_BNC, styled_BNC) in enumerate(zip(plain_LBNC, styled_LBNC, strict=True)):
        spread = (plain_BNC - plain_BNC.mean((0, 1))).norm(dim=-1).mean()
        shift = (styled_BNC - plain_BNC).norm(dim=-1).mean() / spread
        deviation_C = plain_BNC.flatten(0, 1).std(0)
        gaps = [
            gap(side_BNC, target_LBNC[name][layer], deviation_C)
            for name in targets
            for side_BNC in (plain_BNC, styled_BNC)
        ]
        print(f"| {layer} | {shift:.2f} | {' | '.join(f'{value:.2f}' for value in gaps)} |")


if __name__ == "__main__":
    main()
