"""Images in: a shipped photograph, a file, uploaded bytes or an array becomes pixels and a normalised tensor.

Files are hostile: their bytes and the pixels their header declares are checked before anything is decoded, only six
formats are read, and every refusal is one sentence that says what was given and what is wanted.
"""

import hashlib
import io
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from .names import unknown

#: The shipped images; they lie beside the packages in the checkout.
FOLDER = Path(__file__).parent.parent / "data" / "images"
SUFFIXES = (".jpg", ".png")

#: What is read: formats by Pillow's names, and the largest file and picture.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
READABLE = "JPEG, PNG, WebP, BMP, GIF or TIFF"
MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000

#: ImageNet's mean and standard deviation of R, G, B in 0..1: what the models were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Source = str | Path | bytes | np.ndarray
Size = int | tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Image:
    """A picture as a person sees it and as a model reads it; both show the same pixels.

    rgb (H, W, 3) uint8; tensor (1, 3, H, W) float32 = (rgb / 255 - MEAN) / STD.
    """

    name: str
    rgb: np.ndarray
    tensor: torch.Tensor

    @property
    def sha256(self) -> str:
        """SHA-256 of the rgb bytes, row by row: what results quote as the image they were computed on."""
        return hashlib.sha256(self.rgb.tobytes()).hexdigest()


def list_images() -> list[str]:
    """Return the names of the shipped images, sorted.

    Raises:
        FileNotFoundError: the data folder is missing.
    """
    return sorted(_shipped())


def load_image(source: Source, size: Size = 224) -> Image:
    """Return an image as uint8 pixels and as the tensor that a model takes.

    EXIF orientation is honoured, transparency is laid on white, grey, palette, CMYK and 16-bit pictures become 8-bit
    RGB, and an animation gives its first frame.

    Args:
        source: the name of a shipped image, a path, the bytes of a file, or an (H, W, 3) array, uint8 or float in 0..1.
        size: pixels of the result: a side for a square, (rows, cols), or None to keep the picture's own. The largest
            centred region of that shape is resized with antialiased bicubic interpolation, which is to resize the
            shorter side and crop the centre.

    Returns:
        The image, named after the shipped image or the file; "upload" for bytes and "array" for an array.

    Raises:
        ValueError: an unknown name, a file that is not a readable image, over 20 MB or over 50 megapixels, or an array
            of the wrong shape or range.
        TypeError: a source, an array's dtype or a size of the wrong type.
        FileNotFoundError: the data folder is missing.
    """
    shape = _checked_size(size)
    name, picture = _picture(source)
    if shape is not None:
        rows, cols = shape
        picture = PIL.ImageOps.fit(picture, (cols, rows), PIL.Image.Resampling.BICUBIC)
    rgb = np.array(picture)
    return Image(name, rgb, _normalised(rgb))


def _normalised(rgb: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32."""
    x = torch.from_numpy(rgb).permute(2, 0, 1).unsqueeze(0).to(torch.float32) / 255
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (MEAN, STD))
    return ((x - mean) / std).contiguous()


def _checked_size(size: Size) -> tuple[int, int] | None:
    """The (rows, cols) that `size` asks for, or None to keep the picture's own."""
    if size is None:
        return None
    sides = size if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, Integral) and not isinstance(side, bool) for side in sides):
        raise TypeError(f"size is a whole number of pixels, a (rows, cols) pair or None; got {size!r}.")
    rows, cols = (int(side) for side in sides)
    if rows < 1 or cols < 1 or rows * cols > MAX_PIXELS:
        raise ValueError(
            f"size needs at least 1 pixel on each side and at most {_mega(MAX_PIXELS)} megapixels; got {size!r}."
        )
    return rows, cols


def _picture(source: Source) -> tuple[str, PIL.Image.Image]:
    """The name and the whole picture, in mode RGB and upright, of whatever was given."""
    if isinstance(source, bytes):
        return "upload", _decoded(source, "The upload")
    if isinstance(source, np.ndarray):
        return "array", PIL.Image.fromarray(_checked_array(source))
    if isinstance(source, Path):
        return source.name, _from_file(source)
    if isinstance(source, str):
        shipped = _shipped()
        if source in shipped:
            return source, _from_file(shipped[source])
        if "/" in source or "\\" in source or Path(source).suffix or _is_file(Path(source)):
            return Path(source).name, _from_file(Path(source))
        raise ValueError(unknown("image", source, sorted(shipped)))
    raise TypeError(f"An image is given as a name, a path, bytes or an (H, W, 3) array; got {type(source).__name__}.")


def _shipped() -> dict[str, Path]:
    """Name -> file of every shipped image."""
    if not FOLDER.is_dir():
        raise FileNotFoundError(
            f"The folder of sample images, {FOLDER}, is missing: install the workbench from its checkout with "
            "`pip install -e .`, or give load_image a path, bytes or an array."
        )
    return {path.stem: path for path in FOLDER.iterdir() if path.suffix in SUFFIXES}


def _is_file(path: Path) -> bool:
    """Whether the path is an ordinary file; False as well for what no file system accepts as a name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _from_file(path: Path) -> PIL.Image.Image:
    if not _is_file(path):
        raise ValueError(f"There is no image file {str(path)!r}.")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"The image file {str(path)!r} cannot be read: {error.strerror}.") from error
    return _decoded(data, f"The file {path.name!r}")


def _decoded(data: bytes, what: str) -> PIL.Image.Image:
    """An encoded picture, upright and in mode RGB; `what` starts the sentence of a refusal."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"{what} is larger than {_mega(MAX_BYTES)} MB; give a smaller one.")
    with _opened(data, what) as picture:
        cols, rows = picture.size
        if rows * cols > MAX_PIXELS:
            raise ValueError(
                f"{what} declares {rows} x {cols} pixels; give one of at most {_mega(MAX_PIXELS)} megapixels."
            )
        if picture.mode == "F":
            raise ValueError(f"{what} holds 32-bit floats; give a picture of 8 or 16 bits, or an array.")
        # A decoder raises whatever it likes on a broken file: all of it means the same here.
        try:
            picture.load()
            PIL.ImageOps.exif_transpose(picture, in_place=True)
            return _flattened(picture)
        except Exception as error:
            raise ValueError(f"{what} is damaged or cut short: it starts as {picture.format}.") from error


def _opened(data: bytes, what: str) -> PIL.Image.Image:
    """The picture with only its header read."""
    try:
        return PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ValueError(f"{what} declares far more than the {_mega(MAX_PIXELS)} megapixels that are read.") from error
    except Exception as error:
        raise ValueError(f"{what} is not an image that can be read; give a {READABLE} file.") from error


def _flattened(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Any of Pillow's modes as RGB: 16 bits scaled to 8, transparency laid on white."""
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture
    if picture.mode.startswith("I"):
        values = np.asarray(picture).clip(0, 65535).astype(np.uint32)
        return PIL.Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    front = picture.convert("RGBA")
    white = PIL.Image.new("RGB", front.size, "white")
    white.paste(front, (0, 0), front)
    return white


def _checked_array(array: np.ndarray) -> np.ndarray:
    """An (H, W, 3) array as uint8."""
    if array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ValueError(f"An image array has shape (H, W, 3); got {array.shape}.")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ValueError(f"An image array has at most {_mega(MAX_PIXELS)} megapixels; got shape {array.shape}.")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"An image array is uint8, or float in 0..1; got {array.dtype}.")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"A float image array has values in 0..1; got {low:g} to {high:g}.")
    return np.rint(array * 255).astype(np.uint8)


def _mega(count: int) -> int:
    return count // 1_000_000
