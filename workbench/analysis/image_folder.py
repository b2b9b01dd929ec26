"""Many images for one result: a folder of files that is read one file at a time, and seeded crops of our photographs.

A long run must not end because one file of thousands is broken: what cannot be read is kept by name, with the sentence
that says why. A folder may hold more images than fit into memory, so an image exists only while it is looked at.
"""

import copy
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from workbench.images import MAX_BYTES, READABLE, Image, Size, load_image

#: File names that are taken for images; what is in them is decided by their bytes.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

#: The shipped images that are photographs; the others are drawings.
PHOTOGRAPHS = ("astronaut", "brick", "coffee", "retina", "rocket", "text")

#: Sides of a crop as a share of the largest region of its shape that the photograph holds.
SCALES = (0.5, 1.0)


class ImageFolder:
    """The image files of a folder and its subfolders, sorted by name, read one at a time while they are iterated.

    A file counts if its name ends in one of `SUFFIXES`; hidden files and folders are passed over and links to folders
    are not followed. Everything that `load_image` refuses is left out and noted in `bad`.

    Args:
        path: the folder.
        size: pixels of every image, as in `load_image`; None keeps each file's own.
        limit: take so many files at most, evenly spread over the sorted names: a folder sorted by class would begin
            with images of one class only. None takes all.

    Raises:
        ValueError: there is no such folder, it cannot be listed, it holds no image files, or the limit is below 1.
    """

    def __init__(self, path: str | os.PathLike[str], size: Size = 224, limit: int | None = None) -> None:
        self.path, self.size, self.limit = Path(path), size, limit
        self._files = _spread(_entries(self.path), limit)
        #: The files' names, relative to the folder, in the order in which they are read.
        self.names = tuple(_name(file, self.path) for file in self._files)
        #: (name, sentence) of every file that the latest iteration could not read.
        self.bad: list[tuple[str, str]] = []
        self._fingerprints: dict[int, tuple[tuple[int, ...], str]] = {}

    def __len__(self) -> int:
        """The number of files, readable or not."""
        return len(self._files)

    def __iter__(self) -> Iterator[Image]:
        self.bad = bad = []
        for index, name in enumerate(self.names):
            try:
                yield self.read(index)
            except ValueError as error:
                bad.append((name, str(error)))

    def at(self, size: Size) -> "ImageFolder":
        """The same files at another size."""
        other = copy.copy(self)  # fingerprints, which do not depend on the size, stay shared
        other.size, other.bad = size, []
        return other

    def read(self, index: int) -> Image:
        """The image of one file, named by its path inside the folder; ValueError with the reason if it has none."""
        file, name = self._files[index], self.names[index]
        try:
            if file.is_dir():
                kind = "is a folder, not an image file" if _is_image(name) else "is a folder that cannot be listed"
                raise ValueError(f"{name!r} {kind}.")
            if not file.is_file():
                raise ValueError(f"{name!r} is not an ordinary file: a broken link, a pipe or a device.")
            return replace(load_image(file, self.size), name=name)
        except OSError as error:
            raise ValueError(f"The image file {name!r} cannot be read: {error.strerror}.") from error
        except ValueError as error:  # the sentence names the file by its whole path where it cannot be opened
            raise ValueError(str(error).replace(repr(str(file)), repr(name))) from error

    def fingerprint(self, index: int) -> str:
        """What tells whether a file has changed: its size and the SHA-256 of all that `read` would look at.

        The file is hashed again only where its size, time or identity differs from the last time.
        """
        try:
            state = self._files[index].stat()
            if not stat.S_ISREG(state.st_mode):
                return "not a file"
            key = (state.st_size, state.st_mtime_ns, state.st_ino)
            known = self._fingerprints.get(index)
            if known is None or known[0] != key:
                with self._files[index].open("rb") as opened:
                    digest = hashlib.sha256(opened.read(MAX_BYTES + 1)).hexdigest()
                known = self._fingerprints[index] = key, f"{state.st_size} bytes {digest}"
            return known[1]
        except OSError:
            return "unreadable"


def _entries(root: Path) -> list[Path]:
    """All that goes by an image's name below a folder, sorted, and the subfolders that cannot be listed."""
    if not root.is_dir():
        raise ValueError(f"There is no folder {str(root)!r}; give one that holds {READABLE} files.")
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        if Path(error.filename) == root:
            raise ValueError(f"The folder {str(root)!r} cannot be listed: {error.strerror}.") from error
        found.append(Path(error.filename))

    for place, folders, files in os.walk(root, onerror=refuse):
        images = [name for name in (*folders, *files) if not name.startswith(".") and _is_image(name)]
        found += [Path(place, name) for name in images]
        folders[:] = [name for name in folders if not name.startswith(".") and not _is_image(name)]
    if not found:
        raise ValueError(
            f"The folder {str(root)!r} holds no {READABLE} files, in its subfolders neither; links to folders are not "
            "followed."
        )
    return sorted(found, key=lambda file: file.relative_to(root).as_posix())


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _name(file: Path, root: Path) -> str:
    """The path inside the folder as text that can be printed and stored, whatever bytes the file system allowed."""
    text = os.fsencode(file.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _spread(files: list[Path], limit: int | None) -> list[Path]:
    if limit is None:
        return files
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit is a number of files, at least 1; got {limit!r}.")
    return files if limit >= len(files) else [files[i * len(files) // limit] for i in range(limit)]


@dataclass(frozen=True)
class SampleCrops:
    """`count` crops of the shipped photographs; made when they are asked for. See `sample_crops`."""

    count: int
    size: tuple[int, int]
    seed: int = 0
    _photographs: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Image]:
        return (self[index] for index in range(self.count))

    def __getitem__(self, index: int) -> Image:
        if not 0 <= index < self.count:
            raise IndexError(f"There are {self.count} crops, counted from 0; got {index}.")
        photograph = PHOTOGRAPHS[index % len(PHOTOGRAPHS)]
        if photograph not in self._photographs:
            self._photographs[photograph] = load_image(photograph, None).rgb
        rgb = self._photographs[photograph]
        # A generator of its own for every crop: crop 7 is the same among 10 and among 1000.
        random = np.random.default_rng((self.seed, index))
        factor = min(whole / side for whole, side in zip(rgb.shape, self.size, strict=False)) * random.uniform(*SCALES)
        rows, cols = (max(1, min(round(s * factor), w)) for s, w in zip(self.size, rgb.shape, strict=False))
        top, left = (int(random.integers(0, w - n + 1)) for n, w in zip((rows, cols), rgb.shape, strict=False))
        flipped = bool(random.random() < 0.5)
        crop = rgb[top : top + rows, left : left + cols]
        image = load_image(np.ascontiguousarray(crop[:, ::-1] if flipped else crop), self.size)
        place = f"rows {top} to {top + rows - 1}, columns {left} to {left + cols - 1}"
        return replace(image, name=f"{photograph}, crop {index} ({place}{', flipped' if flipped else ''})")


def sample_crops(count: int, size: int | tuple[int, int] = 224, seed: int = 0) -> SampleCrops:
    """Return crops of the shipped photographs, for a result over more images than are shipped.

    Crop i shows photograph i modulo 6, a region of `size`'s shape whose sides are 0.5 to 1 times those of the largest
    that the photograph holds, anywhere inside, mirrored left to right half the time; it depends on the seed and i only.
    The region is resized as `load_image` does it; where it has fewer pixels than `size` it is enlarged, which adds
    pixels and no detail. The photographs have 172 x 448 to 768 x 768 pixels, and their crops are no independent images:
    an average over many of them still shows six scenes.

    Args:
        count: how many.
        size: pixels of each: a side for a square, or (rows, cols).
        seed: of regions and flips.

    Returns:
        A lazy sequence of `Image`s, each named after what it shows.

    Raises:
        ValueError: a count below 1, a negative seed, or a size that `load_image` refuses.
        TypeError: a count, seed or size of the wrong type.
    """
    for name, value, least in (("count", count, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is a whole number; got {value!r}.")
        if value < least:
            raise ValueError(f"{name} is at least {least}; got {value}.")
    if size is None:
        raise TypeError("size is a whole number of pixels or a (rows, cols) pair; got None.")
    rows, cols, _ = load_image(np.zeros((1, 1, 3), np.uint8), size).rgb.shape  # refuses a size before the first crop
    return SampleCrops(count, (rows, cols), seed)
