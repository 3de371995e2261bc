"""Earth statistics, block masks and injection; the loading of the paper's networks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crossearth.data.common.errors import InputError
from crossearth.data.style.earth import (
    EarthStyles,
    StyleConfig,
    StyleMoments,
    block_mask,
    inject,
    keyed_generator,
    style_engine,
)
from crossearth.data.style.ghiasi import GhiasiEngine, StylePredictor, StyleTransfer
from crossearth.data.style.spectral import SpectralEngine
from crossearth.data.style.weights import PREDICTOR_FILE, TRANSFER_FILE

DIM = SpectralEngine.dim


def moments_of(e_ND: Tensor, batch: int = 7) -> StyleMoments:
    moments = StyleMoments(e_ND.shape[1])
    for start in range(0, len(e_ND), batch):
        part_ND = e_ND[start : start + batch]
        moments.add(part_ND, [f"{start + index:064x}" for index in range(len(part_ND))])
    return moments


def embeddings(num: int, dim: int = DIM, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing_DD = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return offset + torch.randn(num, dim, generator=generator, dtype=torch.float64) @ mixing_DD


@pytest.fixture(scope="module")
def earth() -> EarthStyles:
    e_ND = torch.cat([SpectralEngine().embed(tiles(8, seed)) for seed in range(8)])
    return EarthStyles.from_moments(moments_of(e_ND), "spectral")


def tiles(num: int, seed: int = 0, side: int = 48) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low_B3HW = torch.rand(num, 3, 12, 12, generator=generator) * 200
    return torch.nn.functional.interpolate(low_B3HW, side, mode="bilinear") + 20


class TestConfig:
    def test_defaults_are_those_of_the_method(self) -> None:
        config = StyleConfig()
        assert (config.keep_ratio, config.block_px) == (0.3, 64)
        assert StyleConfig(engine="ghiasi").earth_share == 0.1
        assert StyleConfig(engine="spectral", alpha=0.3).earth_share == 0.3


class TestBlockMask:
    def test_share_and_blocks(self) -> None:
        keep_1HW = block_mask(512, 512, 16, 0.7, keyed_generator(0))
        assert keep_1HW.shape == (1, 512, 512)
        assert keep_1HW.float().mean().item() == pytest.approx(0.3, abs=0.05)
        blocks = keep_1HW.view(32, 16, 32, 16).transpose(1, 2).flatten(2)
        assert torch.equal(blocks.all(dim=2), blocks.any(dim=2))

    def test_sides_that_are_no_multiple_are_cut(self) -> None:
        whole = block_mask(48, 64, 16, 0.5, keyed_generator(1))
        assert torch.equal(block_mask(41, 50, 16, 0.5, keyed_generator(1)), whole[:, :41, :50])

    def test_extremes_keep_all_or_nothing(self) -> None:
        assert block_mask(64, 64, 4, 0.0, keyed_generator(0)).all()
        assert not block_mask(64, 64, 4, 1.0, keyed_generator(0)).any()

    def test_image_smaller_than_a_block_is_refused(self) -> None:
        with pytest.raises(InputError, match="10x64 px is smaller than a mask block"):
            block_mask(10, 64, 16, 0.5, keyed_generator(0))


class TestEarthStyles:
    def test_estimate_is_mean_and_covariance(self) -> None:
        e_ND = embeddings(200)
        styles = EarthStyles.from_moments(moments_of(e_ND), "spectral")
        torch.testing.assert_close(styles.mean, e_ND.mean(dim=0))
        torch.testing.assert_close(styles.covariance, e_ND.T.cov())
        torch.testing.assert_close(styles.factor @ styles.factor.T, styles.covariance)
        assert (styles.count, styles.shrinkage) == (200, 0.0)

    def test_one_pass_is_stable_far_from_the_origin(self) -> None:
        far_ND = embeddings(300, 4, offset=1e6)
        torch.testing.assert_close(moments_of(far_ND).scatter / 299, far_ND.T.cov(), rtol=1e-6, atol=1e-6)

    def test_samples_have_the_estimated_covariance(self) -> None:
        styles = EarthStyles.from_moments(moments_of(embeddings(200, 6)), "spectral")
        sampled_ND = styles.sample(100_000, keyed_generator(0)).double()
        scale = styles.covariance.diagonal().sqrt()
        assert ((sampled_ND.mean(dim=0) - styles.mean) / scale).abs().max() < 0.02
        assert ((sampled_ND.T.cov() - styles.covariance) / torch.outer(scale, scale)).abs().max() < 0.02

    @pytest.mark.parametrize("shards", [2, 5])
    def test_moments_of_shards_add_up_to_the_whole(self, shards: int) -> None:
        e_ND = embeddings(101)
        hashes = [f"{index * 31:064x}" for index in range(len(e_ND))]
        whole, merged = StyleMoments(DIM), StyleMoments(DIM)
        whole.add(e_ND, hashes)
        for shard in range(shards):
            part = StyleMoments(DIM)
            part.add(e_ND[shard::shards], hashes[shard::shards])
            merged.merge(part)
        merged.merge(StyleMoments(DIM))
        assert (merged.count, merged.corpus_digest) == (whole.count, whole.corpus_digest)
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-10, atol=1e-9)

    def test_too_few_images_are_shrunk_to_full_rank(self) -> None:
        styles = EarthStyles.from_moments(moments_of(embeddings(5)), "spectral")
        assert 0 < styles.shrinkage < 1
        assert torch.linalg.matrix_rank(styles.covariance) == DIM
        with pytest.raises(InputError, match="folder: 1 usable style images"):
            EarthStyles.from_moments(moments_of(embeddings(1)), "spectral", "folder")

    def test_saved_styles_come_back_with_equal_samples(self, tmp_path: Path, earth: EarthStyles) -> None:
        path = earth.save(tmp_path / "earth.safetensors")
        loaded = EarthStyles.load(path, "spectral")
        assert loaded.digest == earth.digest
        assert (loaded.count, loaded.corpus_digest) == (earth.count, earth.corpus_digest)
        assert torch.equal(loaded.sample(3, keyed_generator(1)), earth.sample(3, keyed_generator(1)))
        assert earth.save(tmp_path / "again").read_bytes() == path.read_bytes()

    def test_wrong_files_are_refused(self, tmp_path: Path, earth: EarthStyles) -> None:
        path = earth.save(tmp_path / "earth.safetensors")
        with pytest.raises(InputError, match="style engine 'spectral', asked for 'ghiasi'"):
            EarthStyles.load(path, "ghiasi")
        with pytest.raises(InputError, match="crossearth styles fit"):
            EarthStyles.load(tmp_path / "absent", "spectral")
        (tmp_path / "foreign").write_bytes(b"no tensors here")
        with pytest.raises(InputError, match="not a file of Earth statistics"):
            EarthStyles.load(tmp_path / "foreign", "spectral")

    @pytest.mark.parametrize(
        "about",
        [
            *("", "{", "{}", "[]", "5", "[" * 100_000),
            '{"engine": "spectral", "digest": ""}',
            '{"engine": "spectral", "count": 2, "corpus_digest": "", "digest": "", "more": 1}',
            '{"engine": "spectral", "count": 2, "corpus_digest": "", "mean": 0, "digest": ""}',
        ],
    )
    def test_other_words_in_the_file_are_refused(
        self, tmp_path: Path, earth: EarthStyles, about: str
    ) -> None:
        path = earth.save(tmp_path / "earth.safetensors")
        save_file(load_file(path), path, {"earth_styles": about})
        with pytest.raises(InputError, match="not a file of Earth statistics"):
            EarthStyles.load(path, "spectral")


class TestInjection:
    def test_kept_blocks_are_the_original_and_the_rest_is_restyled(self, earth: EarthStyles) -> None:
        x_B3HW = tiles(2)
        x_s, x_t, keep_mask = inject(
            x_B3HW,
            earth,
            SpectralEngine(),
            StyleConfig(block_px=16),
            [keyed_generator(0, n) for n in range(2)],
        )
        assert keep_mask.shape == (2, 1, 48, 48)
        keep_B3HW = keep_mask.expand_as(x_s)
        assert torch.equal(x_s[keep_B3HW], x_B3HW[keep_B3HW])
        assert torch.equal(x_s[~keep_B3HW], x_t[~keep_B3HW])
        assert (x_t - x_B3HW).abs().mean() > 5

    def test_every_image_has_a_style_and_a_mask_of_its_own(self, earth: EarthStyles) -> None:
        x_B3HW = tiles(1).expand(2, -1, -1, -1)
        styled = inject(
            x_B3HW, earth, SpectralEngine(), StyleConfig(block_px=16), [keyed_generator(n) for n in range(2)]
        )
        assert not torch.equal(styled.keep_mask[0], styled.keep_mask[1])
        assert (styled.x_t[0] - styled.x_t[1]).abs().mean() > 2

    def test_an_image_does_not_depend_on_its_batch(self, earth: EarthStyles) -> None:
        x_B3HW, config = tiles(4), StyleConfig(keep_ratio=0.25, block_px=16)
        together = inject(x_B3HW, earth, SpectralEngine(), config, [keyed_generator(n) for n in range(4)])
        for index in range(4):
            alone = inject(
                x_B3HW[index : index + 1], earth, SpectralEngine(), config, [keyed_generator(index)]
            )
            assert torch.equal(alone.keep_mask[0], together.keep_mask[index])
            torch.testing.assert_close(alone.x_s[0], together.x_s[index], atol=0.05, rtol=0)

    def test_alpha_and_ratio_reach_from_nothing_to_everything(self, earth: EarthStyles) -> None:
        x_B3HW, engine = tiles(1), SpectralEngine()

        def styled(**values: float) -> Tensor:
            return inject(x_B3HW, earth, engine, StyleConfig(block_px=16, **values), [keyed_generator(5)]).x_s

        torch.testing.assert_close(styled(alpha=0.0), x_B3HW, atol=1e-3, rtol=0)
        assert torch.equal(styled(keep_ratio=1.0), x_B3HW)
        moved = [(styled(alpha=alpha, keep_ratio=0.0) - x_B3HW).abs().mean() for alpha in (0.2, 0.6, 1.0)]
        assert moved == sorted(moved)

    def test_uint8_and_float_images_are_one(self, earth: EarthStyles) -> None:
        x_B3HW = tiles(1).round()
        results = [
            inject(x, earth, SpectralEngine(), StyleConfig(block_px=16), [keyed_generator(0)]).x_s
            for x in (x_B3HW, x_B3HW.byte())
        ]
        assert torch.equal(*results)

    def test_statistics_of_another_engine_are_refused(self, earth: EarthStyles) -> None:
        engine = GhiasiEngine(StyleTransfer(), StylePredictor())
        with pytest.raises(InputError, match="'spectral' with engine 'ghiasi'"):
            inject(tiles(1), earth, engine, StyleConfig(engine="ghiasi"), [keyed_generator(0)])


class TestGhiasiWeights:
    @pytest.fixture(scope="class")
    def states(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        torch.manual_seed(0)
        return StyleTransfer().state_dict(), StylePredictor().state_dict()

    def test_released_files_are_read_with_odd_sizes_restored(
        self, tmp_path: Path, states: tuple[dict[str, Tensor], dict[str, Tensor]]
    ) -> None:
        transfer, predictor = states
        without_counters = {name: value for name, value in predictor.items() if "num_batches" not in name}
        torch.save({"state_dict_ghiasi": transfer}, tmp_path / TRANSFER_FILE)
        torch.save({"state_dict_stylepredictor": without_counters}, tmp_path / PREDICTOR_FILE)
        engine = style_engine("ghiasi", tmp_path)
        x_B3HW = torch.rand(2, 3, 50, 61) * 255
        styled_B3HW = engine.transfer(x_B3HW, engine.embed(x_B3HW))
        assert styled_B3HW.shape == x_B3HW.shape
        assert styled_B3HW.dtype == torch.float32
        assert styled_B3HW.min() >= 0 and styled_B3HW.max() <= 255
        with pytest.raises(InputError, match="at least 43 px"):
            engine.embed(x_B3HW[..., :40])

    def test_absent_and_broken_files_are_named(
        self, tmp_path: Path, states: tuple[dict[str, Tensor], dict[str, Tensor]]
    ) -> None:
        with pytest.raises(InputError, match=TRANSFER_FILE):
            style_engine("ghiasi", tmp_path)
        (tmp_path / TRANSFER_FILE).write_bytes(b"not a pickle")
        with pytest.raises(InputError, match="not the released weights"):
            style_engine("ghiasi", tmp_path)
        with pytest.raises(InputError, match="needs its weights"):
            style_engine("ghiasi")
        with pytest.raises(InputError, match="unknown style engine 'gatys'"):
            style_engine("gatys")

    @pytest.mark.parametrize(
        "content",
        [
            torch.ones(3),
            [1, 2],
            {"another": {}},
            {"state_dict_ghiasi": torch.ones(3)},
            {"state_dict_ghiasi": [1, 2]},
            {"state_dict_ghiasi": {"a": 1}},
            {"state_dict_ghiasi": {1: torch.ones(3)}},
        ],
        ids=str,
    )
    def test_another_content_is_refused(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / TRANSFER_FILE)
        with pytest.raises(InputError, match="not the released weights"):
            style_engine("ghiasi", tmp_path)

    @pytest.mark.parametrize(
        ("change", "fault"),
        [
            (lambda state: state.pop("layers.0.conv.bias"), r"missing \(1\): layers.0.conv.bias"),
            (lambda state: state.update(extra=torch.zeros(1)), r"not of this network \(1\): extra"),
            (lambda state: state.update({"layers.0.conv.bias": torch.zeros(7)}), "other shape"),
            (lambda state: state["layers.0.conv.bias"].fill_(float("nan")), "not finite: layers.0.conv.bias"),
        ],
    )
    def test_weights_load_strictly(
        self, states: tuple[dict[str, Tensor], dict[str, Tensor]], change: object, fault: str
    ) -> None:
        transfer = {name: tensor.clone() for name, tensor in states[0].items()}
        change(transfer)  # type: ignore[operator]
        with pytest.raises(InputError, match=fault):
            GhiasiEngine.from_state(transfer, states[1])
