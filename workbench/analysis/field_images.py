"""The images of a receptive field, whatever they are given as, one by one at the size that the model sees."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from workbench.images import Image, list_images, load_image

#: What is accepted, for messages.
KINDS = (
    "an Image, a name, a path, bytes, an (H, W, 3) array, a (N, 3, H, W) float tensor, a list or iterator of those, or "
    "a folder"
)


class Picture(NamedTuple):
    """One image as a model reads it: tensor (1, colours, H, W), and the SHA-256 of its pixels."""

    name: str
    tensor: torch.Tensor
    sha256: str


class Pictures:
    """Images, read lazily: iterate over it once.

    Args:
        images: an `Image`, the name of a shipped one, a path, bytes, an (H, W, 3) array, a (N, colours, H, W) float
            tensor that is normalised already, a list or iterator of those; or the path of a folder, or an
            `ImageFolder`.
        size: (rows, cols) in pixels; a file or an array is brought to it by `load_image`, all else must have it.
        colours: that every image must have; all but tensors have 3.

    Raises:
        ValueError, TypeError: while iterating, for what is no image or has another size.
    """

    def __init__(self, images: Any, size: tuple[int, int], colours: int = 3) -> None:
        self.size, self.colours = size, colours
        if _is_folder(images):
            from .image_folder import ImageFolder

            images = ImageFolder(images, size)
        self._given = [images] if _is_one(images) else images
        if not isinstance(self._given, Iterable):
            raise TypeError(f"Images are given as {KINDS}; got {type(images).__name__}.")

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(name, sentence) of every image of a folder that could not be read so far."""
        return list(getattr(self._given, "bad", ()))

    @property
    def planned(self) -> int | None:
        """How many images there are, those of a folder that cannot be read included; None if that is not known."""
        if not hasattr(self._given, "__len__"):
            return None
        if isinstance(self._given, list | tuple):
            return sum(len(each) if _is_batch(each) else 1 for each in self._given)
        return len(self._given)

    def __iter__(self) -> Iterator[Picture]:
        for given in self._given:
            if isinstance(given, torch.Tensor):
                yield from self._of_tensor(given)
            else:
                yield self._of_image(given if isinstance(given, Image) else load_image(given, self.size))

    def _of_image(self, image: Image) -> Picture:
        if self.colours != 3:
            raise ValueError(
                f"Image {image.name!r} has 3 colours, and the receptive field is of images of {self.colours}: give "
                f"a float tensor (N, {self.colours}, H, W)."
            )
        self._check(f"Image {image.name!r}", image.tensor)
        return Picture(image.name, image.tensor, image.sha256)

    def _of_tensor(self, batch: torch.Tensor) -> Iterator[Picture]:
        if not _is_batch(batch) or batch.shape[1] != self.colours or not batch.is_floating_point():
            raise ValueError(
                f"A tensor of images is (N, {self.colours}, H, W) and of floats; got {tuple(batch.shape)} of "
                f"{batch.dtype}."
            )
        for n, each in enumerate(batch):
            self._check(f"Image {n} of the tensor", each)
            values = each.detach().cpu().float().contiguous().numpy()
            yield Picture(f"tensor {n}", each.detach().unsqueeze(0), hashlib.sha256(values.tobytes()).hexdigest())

    def _check(self, what: str, tensor: torch.Tensor) -> None:
        rows, cols = tensor.shape[-2:]
        if (rows, cols) != self.size:
            raise ValueError(
                f"{what} has {rows} x {cols} pixels, and the receptive field is of images of {self.size[0]} x "
                f"{self.size[1]}: load it at that size, or give that size."
            )


def colours_of(images: Any) -> int:
    """The number of colours of images, which only tensors may have other than 3; 3 for iterators."""
    first = _first(images)
    return first.shape[1] if _is_batch(first) else 3


def size_of(images: Any) -> tuple[int, int] | None:
    """The (rows, cols) of images that have a size already; None for files, arrays and iterators."""
    first = _first(images)
    if isinstance(first, Image):
        first = first.tensor
    if isinstance(first, torch.Tensor):
        return (first.shape[-2], first.shape[-1]) if first.ndim == 4 else None
    size = None if isinstance(first, np.ndarray) else getattr(first, "size", None)
    if isinstance(size, int):
        return size, size
    return (size[0], size[1]) if isinstance(size, tuple) and len(size) == 2 else None


def _first(images: Any) -> Any:
    """The first of a list, or what was given."""
    return images[0] if isinstance(images, list | tuple) and images else images


def _is_one(images: Any) -> bool:
    return isinstance(images, Image | str | Path | bytes | np.ndarray | torch.Tensor)


def _is_batch(images: Any) -> bool:
    return isinstance(images, torch.Tensor) and images.ndim == 4


def _is_folder(images: Any) -> bool:
    """Whether it is the path of a directory; the name of a shipped image is not."""
    if isinstance(images, str) and (not images or images in list_images()):
        return False  # an empty text would be the current directory
    try:
        return isinstance(images, str | Path) and Path(images).is_dir()
    except OSError:  # longer than a name may be
        return False
