"""Images: what is shipped, what every kind of picture becomes, and every refusal."""

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from workbench import images
from workbench.images import Image, list_images, load_image

PHOTOGRAPHS = ["astronaut", "brick", "coffee", "retina", "rocket", "text"]
DRAWINGS = ["checkerboard", "curve", "dot"]
ORIENTATION = 0x0112


def encoded(picture: PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of a file that holds `picture`."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def noise(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, cols, 3), dtype=np.uint8)


def png(rows: int, cols: int, data: bytes) -> bytes:
    """A grey 8-bit PNG written by hand, whose header may claim what its data does not hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", cols, rows, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture
def nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make any decoding of pixels fail the test."""

    def load(self: PIL.Image.Image) -> None:
        pytest.fail("the picture was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)


# What is shipped


def test_six_photographs_and_three_drawings_are_shipped() -> None:
    assert list_images() == sorted(PHOTOGRAPHS + DRAWINGS)


@pytest.mark.parametrize("name", PHOTOGRAPHS + DRAWINGS)
def test_every_shipped_image_is_small_loads_and_has_its_provenance_stated(name: str) -> None:
    (path,) = images.FOLDER.glob(f"{name}.*")
    assert path.stat().st_size < 200_000
    image = load_image(name, size=None)
    assert image.name == name
    assert max(image.rgb.shape) <= 768
    assert f"\n| {name} |" in (images.FOLDER.parent / "README.md").read_text(encoding="utf-8")


def test_the_dot_is_off_the_centre_and_the_curve_touches_every_quarter() -> None:
    bright = load_image("dot", size=None).rgb[..., 0] > 128
    assert np.argwhere(bright).mean(0).round().tolist() == [160, 352]
    line = load_image("curve", size=None).rgb[..., 0] > 128
    quarters = line.reshape(2, 256, 2, 256).sum((1, 3))
    assert (quarters > 500).all()
    assert line.mean() < 0.05


def test_a_missing_data_folder_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(images, "FOLDER", tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"gone, is missing: install .*`pip install -e"):
        list_images()


# What an image is


def test_rgb_and_tensor_show_the_same_pixels() -> None:
    image = load_image("coffee")
    assert image.rgb.shape == (224, 224, 3)
    assert image.rgb.dtype == np.uint8
    assert image.tensor.shape == (1, 3, 224, 224)
    assert image.tensor.dtype == torch.float32
    assert image.tensor.is_contiguous()
    mean, std = torch.tensor(images.MEAN), torch.tensor(images.STD)
    pixels = (image.tensor[0].permute(1, 2, 0) * std + mean) * 255
    assert np.abs(pixels.numpy() - image.rgb).max() < 1e-3


def test_the_hash_is_that_of_the_rgb_bytes_and_tells_pictures_apart() -> None:
    image = load_image("coffee", size=32)
    assert image.sha256 == hashlib.sha256(image.rgb.tobytes()).hexdigest()
    assert load_image("coffee", size=32).sha256 == image.sha256
    assert load_image("dot", size=32).sha256 != image.sha256


def test_name_path_bytes_and_array_of_one_picture_agree() -> None:
    path = images.FOLDER / "coffee.jpg"
    whole = load_image("coffee", size=None).rgb
    sources: list[images.Source] = ["coffee", path, str(path), path.read_bytes(), whole]
    loaded = [load_image(source, size=(50, 70)) for source in sources]
    assert len({image.sha256 for image in loaded}) == 1
    assert [image.name for image in loaded] == ["coffee", "coffee.jpg", "coffee.jpg", "upload", "array"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_float_array_in_0_to_1_equals_its_bytes(dtype: type) -> None:
    pixels = noise(5, 7)
    assert (load_image((pixels / 255).astype(dtype), size=None).rgb == pixels).all()


# Sizes


@pytest.mark.parametrize(("rows", "cols"), [(64, 96), (128, 64), (96, 96), (160, 320), (16, 24)])
def test_a_square_is_the_resized_picture_cropped_at_its_centre(rows: int, cols: int) -> None:
    picture, side = PIL.Image.fromarray(noise(rows, cols)), 32
    height, width = rows * side // min(rows, cols), cols * side // min(rows, cols)
    resized = np.asarray(picture.resize((width, height), PIL.Image.Resampling.BICUBIC)).astype(int)
    top, left = (height - side) // 2, (width - side) // 2
    found = load_image(np.asarray(picture), size=side).rgb
    # The border may differ, since interpolation no longer sees what was cut off; inside, each of the two passes rounds.
    difference = np.abs(found - resized[top : top + side, left : left + side])[4:-4, 4:-4]
    assert difference.max() <= 2


def test_a_pair_is_rows_and_columns_and_none_keeps_the_size() -> None:
    pixels = noise(31, 17)
    assert load_image(pixels, size=(8, 20)).rgb.shape == (8, 20, 3)
    assert (load_image(pixels, size=None).rgb == pixels).all()
    assert load_image(pixels, size=None).tensor.shape == (1, 3, 31, 17)


def test_fine_stripes_are_averaged_and_not_aliased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(load_image(stripes, size=8).rgb.astype(int) - 127.5).max() < 16


def test_a_strip_one_pixel_wide_and_very_long_is_cropped_before_it_is_enlarged() -> None:
    assert load_image(np.zeros((1, 2_000_000, 3), np.uint8), size=224).rgb.shape == (224, 224, 3)


@pytest.mark.parametrize("size", [0, -1, (0, 5), (10_000, 10_000), 100_000])
def test_a_size_without_pixels_or_with_too_many_is_refused(size: images.Size) -> None:
    with pytest.raises(ValueError, match=r"at least 1 pixel on each side and at most 50 megapixels; got "):
        load_image("dot", size=size)


@pytest.mark.parametrize("size", [2.5, "224", True, (1, 2, 3), (4.0, 4)])
def test_a_size_of_the_wrong_type_is_refused(size: object) -> None:
    with pytest.raises(TypeError, match=r"size is a whole number of pixels, a \(rows, cols\) pair or None; got "):
        load_image("dot", size=size)  # type: ignore[arg-type]


# Kinds of pictures


@pytest.mark.parametrize(("kind", "loss"), [("PNG", 0), ("BMP", 0), ("TIFF", 0), ("WEBP", 12), ("JPEG", 12)])
def test_each_format_is_read(kind: str, loss: int) -> None:
    smooth = PIL.Image.fromarray(noise(3, 4)).resize((40, 30), PIL.Image.Resampling.BICUBIC)
    found = load_image(encoded(smooth, kind), size=None).rgb
    assert found.shape == (30, 40, 3)
    assert np.abs(found.astype(int) - np.asarray(smooth)).mean() <= loss


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation: int) -> None:
    upright = np.zeros((24, 40, 3), np.uint8)
    upright[:8, :16] = 255  # a bright corner at the top left
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    stored = PIL.Image.fromarray(np.ascontiguousarray(undo(upright)))
    found = load_image(encoded(stored, "JPEG", exif=exif, quality=95, subsampling=0), size=None).rgb
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).max() < 16


def test_transparency_is_laid_on_white() -> None:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:, 3:, 3] = 255
    pixels[:, 2, 3] = 128
    found = load_image(encoded(PIL.Image.fromarray(pixels)), size=None).rgb
    assert (found[:, :2] == 255).all()
    assert np.abs(found[:, 2].astype(int) - [227, 127, 127]).max() <= 1
    assert (found[:, 3:] == [200, 0, 0]).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGB"])
def test_a_transparent_colour_becomes_white_and_the_rest_keeps_its_colour(mode: str) -> None:
    grey = np.zeros((4, 6), np.uint8)
    grey[:, 3:] = 255
    if mode == "LA":
        picture = PIL.Image.merge("LA", (PIL.Image.fromarray(grey), PIL.Image.fromarray(grey)))
        file = encoded(picture)
    else:
        picture = PIL.Image.fromarray(255 - grey).convert(mode)
        first = picture.getpixel((5, 0))
        file = encoded(picture, transparency=first)
    assert (load_image(file, size=None).rgb == 255).all()


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_grey_palette_and_one_bit_pictures_become_rgb(mode: str) -> None:
    board = np.kron(np.indices((4, 6)).sum(0) % 2, np.ones((5, 5))).astype(np.uint8) * 255
    picture = PIL.Image.fromarray(board).convert(mode)
    found = load_image(encoded(picture), size=None).rgb
    assert (found == board[..., None]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_eight(kind: str) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    found = load_image(encoded(PIL.Image.fromarray(ramp), kind), size=None).rgb
    assert (found[..., 1] == np.arange(256).reshape(16, 16)).all()


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    colours = np.zeros((16, 32, 3), np.uint8)
    colours[:, :16] = [200, 40, 40]
    colours[:, 16:] = [240, 240, 240]
    file = encoded(PIL.Image.fromarray(colours).convert("CMYK"), "JPEG", quality=95)
    assert PIL.Image.open(io.BytesIO(file)).mode == "CMYK"
    assert np.abs(load_image(file, size=None).rgb.astype(int) - colours).mean() < 6


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    file = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    red, _, blue = load_image(file, size=None).rgb.reshape(-1, 3).mean(0)
    assert red > 240
    assert blue < 15


# Refusals


def test_an_unknown_name_lists_the_near_matches() -> None:
    with pytest.raises(ValueError, match=r"no image named 'cofee'; did you mean coffee\? Known: astronaut, brick"):
        load_image("cofee")


@pytest.mark.parametrize(
    "source", ["no/such.png", "missing.jpg", Path("nowhere"), Path("."), "a\0b.png", "x" * 5000 + "/"]
)
def test_a_path_without_a_file_is_refused(source: images.Source) -> None:
    with pytest.raises(ValueError, match="There is no image file '"):
        load_image(source)


def test_a_device_is_not_read_as_a_file() -> None:
    with pytest.raises(ValueError, match="There is no image file '/dev/zero'"):
        load_image("/dev/zero")


def test_a_file_over_20_mb_is_refused_before_it_is_decoded(tmp_path: Path, nothing_is_decoded: None) -> None:
    large = encoded(PIL.Image.new("RGB", (8, 8))) + bytes(21_000_000)
    (tmp_path / "large.png").write_bytes(large)
    with pytest.raises(ValueError, match=r"The file 'large.png' is larger than 20 MB; give a smaller one\."):
        load_image(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"The upload is larger than 20 MB; give a smaller one\."):
        load_image(large)


def test_a_header_that_claims_a_huge_picture_is_refused_before_it_is_decoded(nothing_is_decoded: None) -> None:
    bomb = png(60_000, 60_000, zlib.compress(bytes(100)))
    assert len(bomb) < 200
    with pytest.raises(ValueError, match="The upload declares far more than the 50 megapixels that are read"):
        load_image(bomb)


def test_a_small_file_that_unpacks_to_over_50_megapixels_is_refused_before_it_is_decoded(
    nothing_is_decoded: None,
) -> None:
    bomb = png(7_200, 7_000, zlib.compress(bytes(7_200 * 7_001), 1))
    assert len(bomb) < 1_000_000
    with pytest.raises(ValueError, match=r"declares 7200 x 7000 pixels; give one of at most 50 megapixels\."):
        load_image(bomb)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP", "TIFF"])
def test_no_format_is_a_way_around_the_limit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = encoded(PIL.Image.new("RGB", (30, 40)), kind)
    monkeypatch.setattr(images, "MAX_PIXELS", 1_000)
    with pytest.raises(ValueError, match="declares 40 x 30 pixels"):
        load_image(file, size=8)


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg xmlns='x'/>", b"%PDF-1.7", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 "])
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="The upload is not an image that can be read; give a JPEG, PNG, WebP, BMP"):
        load_image(data)


def test_a_text_file_named_png_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"The file 'notes.png' is not an image that can be read"):
        load_image(tmp_path / "notes.png")


@pytest.mark.parametrize("kind", ["PPM", "TGA", "PCX", "ICO"])
def test_a_format_outside_the_six_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="is not an image that can be read"):
        load_image(encoded(PIL.Image.new("RGB", (16, 16)), kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    file = encoded(PIL.Image.fromarray(noise(64, 64)), kind)
    with pytest.raises(ValueError, match=f"The upload is damaged or cut short: it starts as {kind}"):
        load_image(file[: len(file) // 2])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_a_scrambled_file_loads_or_is_refused_in_one_sentence(kind: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    file = np.frombuffer(encoded(PIL.Image.fromarray(noise(20, 20, seed)), kind), np.uint8).copy()
    for _ in range(30):
        broken = file.copy()
        broken[generator.integers(0, len(file), 8)] = generator.integers(0, 256, 8)
        try:
            assert isinstance(load_image(broken.tobytes(), size=8), Image)
        except ValueError as error:
            assert str(error).startswith("The upload ")  # noqa: PT017 (either outcome is right)


def test_a_picture_of_32_bit_floats_is_refused() -> None:
    with pytest.raises(ValueError, match="holds 32-bit floats; give a picture of 8 or 16 bits, or an array"):
        load_image(encoded(PIL.Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (4, 4, 4), (1, 4, 4, 3), (0, 4, 3)])
def test_an_array_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"An image array has shape \(H, W, 3\); got \("):
        load_image(np.zeros(shape, np.uint8))


def test_an_array_over_50_megapixels_is_refused() -> None:
    large = np.broadcast_to(np.uint8(0), (7_200, 7_000, 3))
    with pytest.raises(ValueError, match=r"at most 50 megapixels; got shape \(7200, 7000, 3\)"):
        load_image(large)


@pytest.mark.parametrize("value", [-0.1, 1.5, 255.0, float("nan"), float("inf")])
def test_a_float_array_outside_0_to_1_is_refused(value: float) -> None:
    pixels = np.full((4, 4, 3), 0.5)
    pixels[2, 1, 0] = value
    with pytest.raises(ValueError, match=r"A float image array has values in 0\.\.1; got "):
        load_image(pixels)


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, bool, complex])
def test_an_array_of_another_dtype_is_refused(dtype: type) -> None:
    with pytest.raises(TypeError, match=r"An image array is uint8, or float in 0\.\.1; got "):
        load_image(np.zeros((4, 4, 3), dtype))


@pytest.mark.parametrize("source", [None, 3, ["coffee"], torch.zeros(3, 4, 4)])
def test_a_source_of_another_type_is_refused(source: object) -> None:
    with pytest.raises(TypeError, match=r"a name, a path, bytes or an \(H, W, 3\) array; got "):
        load_image(source)  # type: ignore[arg-type]
