"""Effective receptive fields: which pixels of the picture move a unit of a layer, averaged over images.

For the unit at cell (r, c) of a layer's map f the gradient of a number y of its channels is taken with respect to the
picture x, reduced over the colours to one non-negative number for each pixel, and averaged over the images:

    map = mean over images of reduce(dy / dx) / its sum,    y = sum over channels of relu(f[channel, r, c])

Sources: Luo, Li, Urtasun, Zemel: Understanding the Effective Receptive Field (NeurIPS 2016); the reductions that are
the defaults are those of RepLKNet (arXiv 2203.06717).
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
import xarray as xr

from .field_gradient import (
    CHANNELS,
    DTYPES,
    GRADIENTS,
    Cancel,
    Cancelled,
    device_of,
    in_dtype,
    is_constant,
    unit_gradients,
)
from .field_images import Picture, Pictures, colours_of, size_of
from .field_spec import UNIT, ReceptiveFieldSpec, resolve
from .mass import THRESHOLDS, replknet_ratio
from .running_field import RunningField

__all__ = [
    "CHANNELS",
    "GRADIENTS",
    "THRESHOLDS",
    "UNIT",
    "ReceptiveFieldSpec",
    "RunningField",
    "raw_map",
    "receptive_field",
    "replknet_ratio",
    "resolve",
    "stream",
]


def stream(
    model: Any,
    images: Any,
    spec: ReceptiveFieldSpec,
    *,
    cancelled: Cancel = None,
    start: RunningField | None = None,
) -> Iterator[RunningField]:
    """Average over images batch by batch; the same running field is given after each batch.

    Args:
        model, images: see `receptive_field`.
        spec: from `resolve` for this model.
        cancelled: ends the stream early, without the batch that is under way, once it returns true; it is polled
            between batches and units and, often, inside the passes.
        start: a field from `RunningField.restore`; the images that it has seen are read again to see that they are the
            same, and passed over.

    Raises:
        ValueError, TypeError: there is no image, or one that does not fit.
    """
    pictures = Pictures(images, spec.size, spec.colours)
    field = RunningField(spec, model) if start is None else start
    field.pictures = pictures
    running = in_dtype(model, DTYPES[spec.dtype])
    remaining = _polled(pictures, cancelled)
    try:
        field.check_images([picture.sha256 for picture in islice(remaining, field.read)])
        for batch, last in _batches(remaining, spec.batch):
            field.add(_gradients(running, batch, field, cancelled), [picture.sha256 for picture in batch])
            field.complete = last
            yield field
    except Cancelled:
        return
    if not field.read:
        raise ValueError(_nothing(pictures))
    field.complete = True  # also where nothing was left for a restored field to add


def receptive_field(
    model: Any,
    images: Any,
    layer: str | None = None,
    unit: UNIT = "centre",
    *,
    progress: Callable[[RunningField], None] | None = None,
    cancelled: Cancel = None,
    **spec: Any,
) -> xr.Dataset:
    """The effective receptive field of units of a layer, averaged over images, with its scale-free numbers.

    Args:
        model: from `load_model`; or anything with its methods `features(x, layer)` and `layers(size)`; or any
            torch.nn.Module, whose layers are its submodules by their dotted names and must give a (B, C, h, w) map.
        images: an `Image`, the name of a shipped one, a path, bytes, an (H, W, 3) array, a (N, 3, H, W) float tensor
            that is normalised already, a list or iterator of those; or a folder. They are read one batch at a time.
            Tensors may have other than 3 colours if the model takes them; `colours` says so where they come from an
            iterator.
        layer: None: the model's last.
        unit: "centre", a cell (row, col), or "3x3" for 9 cells evenly spaced.
        progress: called with the `RunningField` after each batch; it has count, planned and `result()`.
        cancelled: polled often; once it returns true, what there is so far is returned, marked as not complete.
        spec: size, channels, gradient, thresholds, batch, dtype and colours, see `resolve`.

    Returns:
        map (row, col): the mean gradient divided by its sum, which is attrs["gradient_mass"].
        share_square (side): mass inside the square of that many pixels a side, centred on the unit's cell, and r
        (threshold): the area of the smallest that holds the threshold, as a share of the picture, NaN if none inside
        the picture does. share_ranked (fraction) and r_ranked (threshold): the same for the heaviest pixels.
        share_radial (radius): mass within radius pixels of the unit's centre, unit_centre (axis).
        centre_of_mass (axis), sigma_major, sigma_minor (pixels), orientation (degrees, 0 along a row of pixels,
        positive counter-clockwise on the screen), anisotropy = 1 - sigma_minor / sigma_major.
        For models of the registry theoretical and theoretical_mixing (row, col), the pixels that the unit can depend on
        with and without statistics over the whole map, and mass_outside, the share of the mass elsewhere.
        count: images in the mean; nonfinite: images left out because their gradient was not finite.
        Several units add a dimension unit to all but the last two, with coordinates unit_row and unit_col.
        attrs hold the Spec, the model and its weights, the hash of the images, `complete`, `bad` (files of a folder
        that could not be read), `global_by` (layers with such a statistic) and `note`, a sentence if there is no mass.

    Raises:
        ValueError, TypeError: see `resolve` and `load_image`; the layer's output is no map; there is no image.
    """
    size = spec.pop("size", None)
    spec.setdefault("colours", colours_of(images))
    resolved = resolve(model, layer, unit, size_of(images) if size is None else size, **spec)
    field = RunningField(resolved, model)
    for _ in stream(model, images, resolved, cancelled=cancelled, start=field):
        if progress is not None:
            progress(field)
    return field.result()


def raw_map(result: xr.Dataset) -> xr.DataArray:
    """The mean gradient before it was divided by its sum: what `replknet_ratio` takes, one unit at a time."""
    mass = result.attrs["gradient_mass"]
    return result["map"] * (xr.DataArray(mass, dims="unit") if isinstance(mass, list) else mass)


def _polled(pictures: Iterable[Picture], cancelled: Cancel) -> Iterator[Picture]:
    """The same pictures, as long as nobody cancels: files may take long to read."""
    for picture in pictures:
        if cancelled is not None and cancelled():
            raise Cancelled
        yield picture


def _batches(pictures: Iterator[Picture], count: int) -> Iterator[tuple[list[Picture], bool]]:
    """Groups of `count` pictures, and whether it is the last: read one ahead, so that the last result can say so."""
    batch = list(islice(pictures, count))
    while batch:
        following = next(pictures, None)
        yield batch, following is None
        batch = [] if following is None else [following, *islice(pictures, count - 1)]


def _gradients(model: Any, batch: list[Picture], field: RunningField, cancelled: Cancel) -> np.ndarray:
    """(B, U, H, W), all zero where the sum over channels is constant."""
    spec = field.spec
    device, dtype = device_of(model), DTYPES[spec.dtype]
    x = torch.cat([picture.tensor.detach().to(device, dtype) for picture in batch])
    if spec.channels in ("sum", "mean") and not field.read:
        field.constant = is_constant(model, x, spec.layer, spec.unit, spec.grid, cancelled)
    if field.constant:
        return np.zeros((len(batch), len(spec.unit), *spec.size))
    return unit_gradients(model, x, spec.layer, spec.unit, spec.grid, spec.channels, spec.gradient, cancelled)


def _nothing(pictures: Pictures) -> str:
    if pictures.bad:
        return f"None of the {len(pictures.bad)} files could be read. The first: {pictures.bad[0][1]}"
    return "There are no images to average over: give at least one."
