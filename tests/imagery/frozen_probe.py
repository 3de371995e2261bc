"""Do styles help a head on a frozen network? A linear probe, trained until it has converged.

    python tests/imagery/frozen_probe.py FOLDER [--source road-vegas] [--seeds 3]

FOLDER as in feature_shift.py. Per patch of 16 px a logistic regression (L-BFGS until its gradient vanishes,
so convergence is no question) says road or not from the features of the last block: trained on the source's
tiles alone, or on them and as many copies restyled as a whole. This is `adapter: none, head: linear` without
its schedule. Prints patch IoU of road in per cent on the source's test block and the unseen domains.
"""

import argparse
import statistics
from pathlib import Path

import torch
from feature_shift import DOMAINS, SHARED, SIDE_PX, TILES, features, frozen, tiles
from torch import Tensor
from torch.nn import functional as F

from crossearth.data.style.earth import EarthStyles, StyleConfig, inject, keyed_generator, style_engine
from crossearth.data.tiles.manifest import read_label, read_manifest

ALPHAS = (None, 0.4, 0.7, 1.0)
DECAY = 1e-3


def roads(folder: Path, domain: str, split: str, patch_px: int) -> Tensor:
    """bool (B * N,): patches of which more than a quarter is road; in the order of `features`."""
    manifest = read_manifest(folder / "artifacts/domains" / domain / domain, split)
    rows = range(0, len(manifest), max(1, len(manifest) // TILES))
    masks = [torch.as_tensor(read_label(manifest, row))[:SIDE_PX, :SIDE_PX] == 1 for row in rows]
    share_B1hw = F.avg_pool2d(torch.stack(masks)[:, None].float(), patch_px)
    return share_B1hw.flatten() > 0.25


def fit(feat_NC: Tensor, road_N: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and bias of the regression on standardised features."""
    weight_C, bias = torch.zeros(feat_NC.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight_C, bias], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(feat_NC @ weight_C + bias, road_N.float())
        loss = loss + DECAY * weight_C.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weight_C.detach(), bias.detach()


def iou(predicted_N: Tensor, road_N: Tensor) -> float:
    return float(100 * (predicted_N & road_N).sum() / (predicted_N | road_N).sum().clamp(min=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", choices=DOMAINS, default="road-vegas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--backbone", type=Path, default=SHARED / "weights/vit_tiny_patch16_aid.safetensors")
    given = parser.parse_args()
    model, config = frozen(given.backbone), StyleConfig(keep_ratio=0.0)
    patch_px = model.config.patch_px
    earth = EarthStyles.load(given.folder / "artifacts/styles/earth.safetensors", config.engine)
    images = tiles(given.folder, given.source, "train")
    plain_NC = features(model, images)[-1].flatten(0, 1)
    mean_C, deviation_C = plain_NC.mean(0), plain_NC.std(0)
    road_N = roads(given.folder, given.source, "train", patch_px)
    domains = [given.source, *(name for name in DOMAINS if name != given.source)]
    scored = {
        name: (
            (features(model, tiles(given.folder, name, "test"))[-1].flatten(0, 1) - mean_C) / deviation_C,
            roads(given.folder, name, "test", patch_px),
        )
        for name in domains
    }
    print(f"| trained on {given.source} | {' | '.join(domains)} |\n{'|---' * (1 + len(domains))}|")
    for alpha in ALPHAS:
        found: dict[str, list[float]] = {name: [] for name in domains}
        for seed in range(given.seeds if alpha is not None else 1):
            feat_NC, truth_N = (plain_NC - mean_C) / deviation_C, road_N
            if alpha is not None:
                generators = [keyed_generator("probe", seed, number) for number in range(len(images))]
                style = StyleConfig(alpha=alpha, keep_ratio=0.0)
                x_s = inject(images, earth, style_engine(config.engine), style, generators).x_s
                styled_NC = (features(model, x_s)[-1].flatten(0, 1) - mean_C) / deviation_C
                feat_NC, truth_N = torch.cat([feat_NC, styled_NC]), truth_N.repeat(2)
            weight_C, bias = fit(feat_NC, truth_N)
            for name, (target_NC, target_N) in scored.items():
                found[name].append(iou(target_NC @ weight_C + bias > 0, target_N))
        label = "without styles" if alpha is None else f"and styles, alpha {alpha}"
        cells = [
            f"{statistics.mean(values):.1f}"
            + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")
            for values in found.values()
        ]
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
