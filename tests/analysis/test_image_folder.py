"""A folder is read one file at a time and names what it cannot read; a crop depends on its seed and number only."""

import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from workbench.analysis.image_folder import PHOTOGRAPHS, ImageFolder, sample_crops
from workbench.images import FOLDER, load_image


def noise(rows: int, cols: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(torch.randint(0, 256, (rows, cols, 3), dtype=torch.uint8).numpy())


def encoded(picture: PIL.Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return buffer.getvalue()


def huge_png() -> bytes:
    """A PNG of 57 bytes whose header declares 60000 x 60000 pixels."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def break_files(folder: Path) -> dict[str, str]:
    """Eight files that no reader can read, and what the sentence about each must say."""
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "nothing.png").write_bytes(b"")
    (folder / "cut.jpg").write_bytes(encoded(noise(60, 80), "JPEG")[:900])
    (folder / "text.jpg").write_text("I am no photograph.\n" * 40)
    (folder / "magic.png").write_bytes(b"\x00" + encoded(noise(9, 9), "PNG")[1:])
    (folder / "huge.png").write_bytes(huge_png())
    (folder / "folder.png").mkdir()
    (folder / "link.gif").symlink_to(folder / "gone.gif")
    no_image = "is not an image that can be read; give a JPEG, PNG, WebP, BMP, GIF or TIFF file."
    return {
        "cut.jpg": "is damaged or cut short: it starts as JPEG.",
        "empty.jpg": no_image,
        "folder.png": "is a folder, not an image file.",
        "huge.png": "declares far more than the 50 megapixels that are read.",
        "link.gif": "is not an ordinary file: a broken link, a pipe or a device.",
        "magic.png": no_image,
        "nothing.png": no_image,
        "text.jpg": no_image,
    }


def test_images_come_in_the_order_of_their_names_and_as_load_image_reads_them(tmp_path: Path) -> None:
    for place in ("b.png", "a/z.jpg", "a/c/d.WEBP", "c.bmp", "B.tif"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        noise(7, 13).save(tmp_path / place)
    (tmp_path / "notes.txt").write_text("not an image")
    folder = ImageFolder(tmp_path, (6, 5))
    images = list(folder)
    assert [image.name for image in images] == ["B.tif", "a/c/d.WEBP", "a/z.jpg", "b.png", "c.bmp"]
    assert len(folder) == 5
    assert folder.bad == []
    for image in images:
        expected = load_image(tmp_path / image.name, (6, 5))
        assert np.array_equal(image.rgb, expected.rgb)
        assert torch.equal(image.tensor, expected.tensor)


def test_what_cannot_be_read_is_kept_by_name_with_its_sentence(tmp_path: Path) -> None:
    expected = break_files(tmp_path)
    noise(8, 8).save(tmp_path / "good.png")
    folder = ImageFolder(tmp_path, 4)
    for _ in range(2):  # the second iteration counts afresh
        assert [image.name for image in folder] == ["good.png"]
        assert [name for name, _ in folder.bad] == sorted(expected)
    for name, sentence in folder.bad:
        assert sentence.endswith(expected[name])
        assert name in sentence
        assert str(tmp_path) not in sentence


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for a writer for ever
    folder = ImageFolder(tmp_path)
    assert list(folder) == []
    assert "not an ordinary file" in folder.bad[0][1]
    assert folder.fingerprint(0) == "not a file"


def test_a_file_that_may_not_be_opened_is_named_without_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise(4, 4).save(tmp_path / "secret.png")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may open everything, so the mode of the file does not help here
    folder = ImageFolder(tmp_path)
    assert list(folder) == []
    assert folder.bad == [("secret.png", "The image file 'secret.png' cannot be read: Permission denied.")]
    assert folder.fingerprint(0) == "unreadable"


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    for place in ("a.png", "._a.png", ".cache/b.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        noise(2, 2).save(tmp_path / place)
    assert ImageFolder(tmp_path).names == ("a.png",)


def test_a_name_that_is_no_text_can_still_be_printed_and_stored(tmp_path: Path) -> None:
    place = os.fsencode(tmp_path) + b"/caf\xe9.png"  # Latin-1 where the file system means UTF-8
    Path(os.fsdecode(place)).write_bytes(encoded(noise(3, 3), "PNG"))
    (tmp_path / "two\nlines\x1b[31m \u202e.png").write_bytes(encoded(noise(3, 3), "PNG"))
    folder = ImageFolder(tmp_path, 2)
    assert [image.name.encode() for image in folder] == [b"caf\\xe9.png", b"two\\nlines\\x1b[31m \\u202e.png"]


def test_only_one_image_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        noise(3, 3).save(tmp_path / f"{i}.png")
    read: list[str] = []

    def counted(path: Path, size: object) -> object:
        read.append(path.name)
        return load_image(path, 2)

    monkeypatch.setattr("workbench.analysis.image_folder.load_image", counted)
    images = iter(ImageFolder(tmp_path))
    assert read == []
    for i in range(5):
        next(images)
        assert len(read) == i + 1


def test_a_limit_takes_files_from_the_whole_range_of_names(tmp_path: Path) -> None:
    for group in "abcde":
        for i in range(4):
            (tmp_path / f"{group}{i}.png").write_bytes(b"x")
    assert ImageFolder(tmp_path, limit=5).names == ("a0.png", "b0.png", "c0.png", "d0.png", "e0.png")
    assert len(ImageFolder(tmp_path, limit=7)) == len(set(ImageFolder(tmp_path, limit=7).names)) == 7
    assert ImageFolder(tmp_path, limit=99).names == ImageFolder(tmp_path).names
    for wrong in (0, -1, True, 2.5):
        with pytest.raises(ValueError, match="limit is a number of files, at least 1; got"):
            ImageFolder(tmp_path, limit=wrong)  # type: ignore[arg-type]


def test_a_folder_that_is_missing_or_without_images_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no folder '.*gone'"):
        ImageFolder(tmp_path / "gone")
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(ValueError, match="There is no folder"):
        ImageFolder(tmp_path / "file.png")
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match=r"holds no JPEG, PNG, .* files"):
        ImageFolder(tmp_path / "sub")


def test_a_fingerprint_changes_with_the_content_and_with_the_size(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"abc")
    folder = ImageFolder(tmp_path)
    seen = [folder.fingerprint(0)]
    assert folder.fingerprint(0) == seen[0]
    state = file.stat()
    file.write_bytes(b"abd")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    seen.append(folder.fingerprint(0))
    file.write_bytes(b"abcd")
    seen.append(folder.fingerprint(0))
    file.unlink()
    seen.append(folder.fingerprint(0))
    assert len(set(seen)) == 4
    assert seen[0].startswith("3 bytes ")


def test_a_crop_depends_on_the_seed_and_its_number_only() -> None:
    few, many = list(sample_crops(7, (20, 30), seed=3)), sample_crops(40, (20, 30), seed=3)
    assert len(many) == 40
    for image, again in zip(few, many, strict=False):
        assert image.name == again.name
        assert image.sha256 == again.sha256
    assert many[5].sha256 == few[5].sha256
    assert sample_crops(1, (20, 30), seed=4)[0].sha256 != few[0].sha256
    assert len({image.sha256 for image in many}) == 40


def test_crops_are_regions_of_the_photographs_and_of_no_drawing() -> None:
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    exported = re.findall(r"^\| (\w+) \|.*`skimage\.data\.\w+\(\)`", readme, re.MULTILINE)
    assert sorted(exported) == sorted(PHOTOGRAPHS)
    flips = 0
    for i, image in enumerate(sample_crops(30, (33, 21), seed=9)):
        name, rows, cols = re.fullmatch(
            rf"(\w+), crop {i} \(rows (\d+ to \d+), columns (\d+ to \d+)(?:, flipped)?\)", image.name
        ).groups()  # type: ignore[union-attr]
        (top, bottom), (left, right) = (map(int, place.split(" to ")) for place in (rows, cols))
        whole = load_image(name, None).rgb
        region = whole[top : bottom + 1, left : right + 1]
        flips += (flipped := image.name.endswith("flipped)"))
        assert np.array_equal(
            image.rgb, load_image(np.ascontiguousarray(region[:, :: -1 if flipped else 1]), (33, 21)).rgb
        )
        largest = min(whole.shape[0] / 33, whole.shape[1] / 21)
        assert 0.49 < region.shape[0] / (33 * largest) < 1.01
        assert abs(region.shape[0] / region.shape[1] - 33 / 21) < 0.02
    assert 5 <= flips <= 25


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        ((0,), ValueError, "count is at least 1; got 0"),
        ((2, 224, -1), ValueError, "seed is at least 0"),
        ((2.0,), TypeError, "count is a whole number"),
        ((2, None), TypeError, "size is a whole number of pixels"),
        ((2, 0), ValueError, "size needs at least 1 pixel"),
        ((2, "224"), TypeError, "size is a whole number of pixels"),
    ],
)
def test_a_wrong_argument_of_the_crops_is_one_sentence(
    arguments: tuple[object, ...], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind, match=re.escape(sentence)):
        sample_crops(*arguments)  # type: ignore[arg-type]
