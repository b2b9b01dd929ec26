"""Regenerate data/images: six photographs exported from scikit-image, and three pictures made here.

Run `.venv/bin/python tools/make_images.py` after `make test` has made the environment. The photographs come with the
scikit-image wheel, so nothing is downloaded; data/README.md quotes the source and licence of each. Colour photographs
are stored as JPEG, grey ones and drawings as PNG.
"""

from pathlib import Path

import numpy as np
import PIL.Image
from skimage import data

FOLDER = Path(__file__).parent.parent / "data" / "images"
PHOTOGRAPHS = ("astronaut", "brick", "coffee", "retina", "rocket", "text")
LONGEST = 768  # pixels of the longest side of a photograph
SIDE = 512  # pixels of the side of a drawing


def main() -> None:
    """Write all nine files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        save_photograph(name, getattr(data, name)())
    for name, drawing in (("dot", dot()), ("curve", curve()), ("checkerboard", checkerboard())):
        PIL.Image.fromarray(drawing).save(FOLDER / f"{name}.png", optimize=True)


def save_photograph(name: str, pixels: np.ndarray) -> None:
    """Store (H, W) grey as PNG and (H, W, 3) colour as JPEG, no side longer than LONGEST."""
    picture = PIL.Image.fromarray(pixels)
    picture.thumbnail((LONGEST, LONGEST), PIL.Image.Resampling.LANCZOS)
    if picture.mode == "L":
        picture.save(FOLDER / f"{name}.png", optimize=True)
    else:
        picture.save(FOLDER / f"{name}.jpg", quality=90, subsampling=0, optimize=True)


def dot(row: int = 160, col: int = 352, radius: float = 8.0) -> np.ndarray:
    """One bright disc on black, away from the centre, so that a flip or a transpose shows. (SIDE, SIDE) uint8."""
    rows, cols = np.mgrid[:SIDE, :SIDE]
    return ink(np.hypot(rows - row, cols - col) - radius)


def curve(turns: int = 5, width: float = 2.4) -> np.ndarray:
    """A spiral from the centre to the border, `width` pixels wide: one pixel at 224. (SIDE, SIDE) uint8."""
    rows, cols = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    radius, turn = np.hypot(rows, cols), np.arctan2(rows, cols) / (2 * np.pi) % 1
    pitch = SIDE / 2 / turns
    # The spiral passes this direction at the radii (turn + n) * pitch; take the nearest one.
    passed = np.clip(np.rint(radius / pitch - turn), 0, turns - 1)
    return ink(np.abs(radius - (turn + passed) * pitch) - width / 2)


def checkerboard(square: int = 64) -> np.ndarray:
    """Black and white squares; at 224 each is 28 pixels, one 7 x 7 window of Swin's first stage. (SIDE, SIDE) uint8."""
    rows, cols = np.mgrid[:SIDE, :SIDE] // square
    return ((rows + cols) % 2 * 255).astype(np.uint8)


def ink(distance: np.ndarray) -> np.ndarray:
    """White where the signed distance to a shape's edge, in pixels, is negative; soft over one pixel. uint8."""
    return np.rint(255 * np.clip(0.5 - distance, 0, 1)).astype(np.uint8)


if __name__ == "__main__":
    main()
