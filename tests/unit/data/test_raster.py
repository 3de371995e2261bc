"""Rasters as every step opens them: their place, their damage, and no overviews."""

import logging
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from own_domain import save
from PIL import Image
from rasterio.enums import Resampling
from rasterio.transform import from_origin

from crossearth.data.common.errors import InputError
from crossearth.data.raster.archives import index
from crossearth.data.raster.reader import open_raster

HEIGHT, WIDTH = 120, 160
PLACE = from_origin(300_000, 5_000_000, 0.5, 0.5)


def smooth() -> NDArray[np.uint8]:
    ground = np.random.default_rng(0).normal(size=(3, HEIGHT, WIDTH)).cumsum(1).cumsum(2)
    return np.rint(255 * (ground - ground.min()) / np.ptp(ground)).astype(np.uint8)


def read(path: Path) -> NDArray[Any]:
    with open_raster(path) as raster:
        return raster.read((1, 2, 3))


# --- damage


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def end_missing(content: bytes) -> bytes:
    return content[:-20]


def bad_bytes(content: bytes) -> bytes:
    middle = len(content) // 2
    bad = np.random.default_rng(1).integers(0, 256, 300, np.uint8).tobytes()
    return content[:middle] + bad + content[middle + 300 :]


DAMAGED: dict[str, tuple[str, str, dict[str, Any], Callable[[bytes], bytes], str]] = {
    "half an ENVI file": ("a.dat", "ENVI", {}, half, "truncated: 28800 bytes, .* promises 57600"),
    "an ENVI file by lines": ("a.dat", "ENVI", {"interleave": "bil"}, end_missing, "truncated: 57580 bytes"),
    "half a PCIDSK file": ("a.pix", "PCIDSK", {}, half, "truncated"),
    "half an EHdr file": ("a.bil", "EHdr", {}, half, "truncated: 28800 bytes, .* promises 57600"),
    "an EHdr file without its end": ("a.bil", "EHdr", {}, end_missing, "truncated: 57580 bytes"),
    "half a PNM": ("a.ppm", "PNM", {}, half, "truncated"),
    "a PNM without its end": ("a.ppm", "PNM", {}, end_missing, "truncated"),
    "half a PNG": ("a.png", "PNG", {}, half, "libpng: Read Error"),
    "a PNG without its end": ("a.png", "PNG", {}, end_missing, "libpng: Read Error"),
    "a PNG with bad bytes": ("a.png", "PNG", {}, bad_bytes, "libpng: "),
    "half a JPEG": ("a.jpg", "JPEG", {}, half, "libjpeg: Premature end of JPEG file"),
    "a JPEG with bad bytes": ("a.jpg", "JPEG", {}, bad_bytes, "libjpeg: Corrupt JPEG data"),
    "half a JPEG 2000": ("a.jp2", "JP2OpenJPEG", {}, half, "cannot read its pixels"),
    "half a TIFF": ("a.tif", "GTiff", {"compress": "lzw"}, half, "TIFF"),
    "packbits with bad bytes": ("a.tif", "GTiff", {"compress": "packbits"}, bad_bytes, "PackBitsDecode"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_gdal_fills_up_or_warns_about_is_refused_in_its_words(case: str, tmp_path: Path) -> None:
    name, driver, options, spoil, words = DAMAGED[case]
    path = save(tmp_path / name, smooth(), driver=driver, **options)
    read(path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=rf"{name}: .*{words}"):
        read(path)


def test_half_an_envi_file_behind_a_vrt(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dat", smooth(), driver="ENVI")
    rasterio.shutil.copy(path, tmp_path / "a.vrt", driver="VRT")
    read(tmp_path / "a.vrt")
    path.write_bytes(half(path.read_bytes()))
    with pytest.raises(InputError, match=r"a\.dat: truncated"):
        read(tmp_path / "a.vrt")


def ordinary() -> dict[str, bytes]:
    """Files with oddities about which GDAL may say something, but whose pixels are whole."""
    image = Image.fromarray(smooth().transpose(1, 2, 0))
    exif = Image.Exif()
    exif[0x9999] = "unknown tag"
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "profile.png": (image, {"icc_profile": b"not a profile" * 20}),
        "palette.png": (image.quantize(16), {}),
        "grey_alpha.png": (image.convert("LA"), {}),
        "palette.gif": (image.quantize(16), {}),
        "progressive.jpg": (image, {"progressive": True, "exif": exif}),
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "tags.tif": (image, {"exif": exif}),
        "jpeg.tif": (image, {"compression": "jpeg"}),
        "plain.webp": (image, {}),
        "plain.bmp": (image, {}),
    }
    found = {}
    for name, (picture, options) in kinds.items():
        buffer = BytesIO()
        picture.save(
            buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name.split(".")[1].upper()), **options
        )
        found[name] = buffer.getvalue()
    return {
        **found,
        "trailing.png": found["profile.png"] + bytes(99),
        "trailing.jpg": found["cmyk.jpg"] + bytes(99),
    }


@pytest.mark.parametrize("name", ordinary())
def test_ordinary_files_are_whole(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(ordinary()[name])
    with open_raster(tmp_path / name) as raster:
        bands = raster.dataset.indexes
        for window in (((60, 120), (0, 99)), ((0, 30), (0, 160)), None):
            raster.read(bands, window)
            raster.read_masks(bands, window)
        raster.read(bands, out_shape=(30, 40))
        raster.read_masks(bands, out_shape=(30, 40))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_reading_leaves_other_peoples_logs_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "a.jpg", smooth(), driver="JPEG")
    path.write_bytes(bad_bytes(path.read_bytes()))
    with caplog.at_level(logging.DEBUG), pytest.raises(InputError):
        read(path)
    assert "libjpeg" not in caplog.text
    with rasterio.open(path) as file:
        file.read()
    assert "libjpeg" in caplog.text


# --- no overviews


@pytest.fixture
def noise(tmp_path: Path) -> tuple[NDArray[np.uint8], dict[str, Path]]:
    """Noise, of which overviews keep a part alone, in every kind of file that has some."""
    values = np.random.default_rng(0).integers(0, 256, (1, 1024, 1024), np.uint8)
    plain = save(tmp_path / "plain.tif", values)
    rasterio.shutil.copy(plain, tmp_path / "cog.tif", driver="COG", overview_resampling="NEAREST")
    shutil.copy(plain, tmp_path / "external.tif")
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(tmp_path / "external.tif", "r+") as file:
        file.build_overviews([2, 4], Resampling.nearest)
    rasterio.shutil.copy(tmp_path / "cog.tif", tmp_path / "pointer.vrt", driver="VRT")
    save(tmp_path / "wavelets.jp2", values, driver="JP2OpenJPEG", reversible=True, quality=100)
    names = ("plain.tif", "cog.tif", "external.tif", "pointer.vrt", "wavelets.jp2")
    return values, {name: tmp_path / name for name in names}


@pytest.mark.parametrize("name", ["cog.tif", "external.tif", "pointer.vrt", "wavelets.jp2"])
def test_nothing_is_read_from_overviews(name: str, noise: tuple[NDArray[np.uint8], dict[str, Path]]) -> None:
    values, files = noise
    middles = np.floor((np.arange(150) + 0.5) * 1024 / 150).astype(int)
    with open_raster(files[name]) as raster:
        thinned = raster.read((1,), out_shape=(1, 150, 150))
    np.testing.assert_array_equal(thinned, values[:, middles][:, :, middles])


def test_thinning_holds_a_strip_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.tif", smooth(), nodata=int(smooth()[0, 0, 0]))
    with open_raster(path) as raster:
        where = (3, 1), ((20, 120), (10, 160)), (2, 33, 47)
        whole, masks = raster.read(*where), raster.read_masks(*where)
        monkeypatch.setattr("crossearth.data.raster.reader.THINNING_BYTES", 1)
        strips, masks_of_strips = raster.read(*where), raster.read_masks(*where)
    np.testing.assert_array_equal(whole, strips)
    np.testing.assert_array_equal(masks, masks_of_strips)


# --- what stands beside a file


PAM = """<PAMDataset><SRS>EPSG:32633</SRS><GeoTransform>300000,0.5,0,5000000,0,-0.5</GeoTransform>
<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{secret}</MDI></Metadata>
<PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand></PAMDataset>"""


@pytest.mark.parametrize("packed", [False, True])
def test_a_place_beside_the_file_is_read_packed_or_not(packed: bool, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    save(folder / "a.TIF", smooth())
    secret = save(tmp_path / "secret.tif", smooth()[:, ::2, ::2])
    (folder / "a.TIF.aux.xml").write_text(PAM.format(secret=secret))
    save(folder / "b.png", smooth(), driver="PNG")
    (folder / "b.pgw").write_text("0.5\n0\n0\n-0.5\n300000.25\n4999999.75\n")
    if packed:
        shutil.make_archive(str(tmp_path / "pack"), "zip", folder)
        shutil.rmtree(folder)
        folder.mkdir()
        shutil.move(tmp_path / "pack.zip", folder)
    before = sorted(tmp_path.rglob("*"))
    members = {member.stem: member for member in index(folder, tmp_path / "scratch") if member.sidecars}
    with open_raster(members["a"]) as raster:
        assert (raster.dataset.crs, raster.dataset.nodata) == ("EPSG:32633", 7)
        assert raster.dataset.transform == PLACE
        assert packed == (raster.dataset.overviews(1) == [])
    with open_raster(members["b"]) as raster:
        assert (raster.dataset.crs, raster.dataset.transform) == (None, PLACE)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_place_in_an_archive_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", smooth())
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as archive:
        archive.write(tmp_path / "a.tif", "a.tif")
        archive.writestr("a.tif.aux.xml", "<PAMDataset><SRS>")
    member = next(each for each in index(tmp_path, tmp_path / "scratch") if each.packed and each.sidecars)
    with pytest.raises(InputError, match=r"a\.tif\.aux\.xml: not XML"), open_raster(member):
        pass


# --- kinds that are refused


@pytest.mark.parametrize("dtype", ["complex64", "complex_int16"])
def test_complex_numbers_are_refused_with_the_way_to_their_amplitude(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "it's slc.tif"
    with rasterio.open(path, "w", driver="GTiff", width=8, height=8, count=3, dtype=dtype) as file:
        file.write(np.full((3, 8, 8), 3 + 4j, np.complex64))
    with pytest.raises(InputError, match="complex numbers") as caught, open_raster(path):
        pass
    program, *words = shlex.split(str(caught.value).rpartition("next: ")[2])
    assert program == "python"
    subprocess.run([sys.executable, *words], check=True)  # the environment need not be activated
    with open_raster(tmp_path / "it's slc_amplitude.tif") as raster:
        assert raster.read((1,)).max() == 5


def test_a_pointer_is_read_from_folders_of_the_users_own_only(tmp_path: Path) -> None:
    own = save(tmp_path / "own.tif", smooth())
    rasterio.shutil.copy(own, tmp_path / "scene.vrt", driver="VRT")
    (tmp_path / "scene.vrt").rename(tmp_path / "scene.tif")
    np.testing.assert_array_equal(read(tmp_path / "scene.tif"), smooth())
    with (
        pytest.raises(InputError, match=r"scene\.tif: not an image.*\n  expected: GeoTIFF, PNG"),
        open_raster(tmp_path / "scene.tif", own=False),
    ):
        pass
