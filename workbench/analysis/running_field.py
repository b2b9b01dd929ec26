"""A receptive field while it is averaged: sums in float64, a result at any time, and a state that survives a kill."""

import hashlib
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from kernels.backends import choose
from workbench.models import list_models
from workbench.models.base import VisionModel
from workbench.models.checkpoint import fingerprint

from .field_gradient import DTYPES, device_of
from .field_images import Pictures
from .field_spec import ReceptiveFieldSpec
from .mass import cell_centre, measures
from .spec import record
from .theoretical import TheoreticalField, theoretical_field

NOT_FINITE = "No image had a finite gradient, so that there are no numbers."
ZERO = (
    "The gradient of a unit is zero everywhere: its value does not depend on the picture, or nothing of it is "
    "positive; it has no numbers."
)
CONSTANT = (
    "The sum over the layer's channels is constant but for rounding, as after a layer norm: its gradient counts as "
    "zero, and there are no numbers; use channels='relu_sum'."
)


class RunningField:
    """The sums that a receptive field is the mean of; `result` may be asked for after any batch.

    Args:
        spec: from `resolve`.
        model: what the gradients are of.

    Attributes: count, images in the mean; nonfinite, images left out because their gradient was not finite; planned,
    how many there will be, files that cannot be read included, or None; complete, whether all have been seen; constant,
    whether the sum over channels does not depend on the picture but for rounding, so that zeros were added.
    """

    def __init__(self, spec: ReceptiveFieldSpec, model: Any) -> None:
        self.spec, self.model = spec, model
        self.count = self.nonfinite = 0
        self.complete = self.constant = False
        self.pictures: Pictures | None = None
        self._sums = np.zeros((len(spec.unit), *spec.size))
        self._chain = b""
        self._info = model_info(model, device_of(model), DTYPES[spec.dtype])
        self._theory: list[TheoreticalField] | None = None

    @property
    def planned(self) -> int | None:
        return None if self.pictures is None else self.pictures.planned

    @property
    def read(self) -> int:
        """Images seen so far."""
        return self.count + self.nonfinite

    def add(self, gradients: np.ndarray, images: Sequence[str] = ()) -> None:
        """Add the reduced gradients of some images, (B, U, H, W), NaN where not finite; images: their SHA-256."""
        for maps in gradients:
            if np.isfinite(maps).all():
                self._sums += maps
                self.count += 1
            else:
                self.nonfinite += 1
        for digest in images:
            self._chain = chained(self._chain, digest)

    def result(self) -> xr.Dataset:
        """The receptive field of the images so far; `receptive_field` says what is in it."""
        several = len(self.spec.unit) > 1
        mean = self._sums / max(self.count, 1)
        totals = mean.sum((1, 2))
        share = mean / np.where(totals > 0, totals, 1.0)[:, None, None]
        parts = [self._of_unit(n, each) for n, each in enumerate(share)]
        data = parts[0]
        if several:
            labels = ["unit_row", "unit_col"]
            data = xr.concat(parts, dim="unit", data_vars="all", coords=labels, compat="equals", join="outer")
        data = data.assign(count=self.count, nonfinite=self.nonfinite)
        data.attrs = record("receptive field", self.spec, self._info | self._images())
        data.attrs |= {
            "gradient_mass": totals.tolist() if several else float(totals[0]),
            "complete": self.complete,
            "bad": [] if self.pictures is None else self.pictures.bad,
            "global_by": tuple(dict.fromkeys(name for field in self._fields() for name in field.global_by)),
            "note": self._note(totals),
        }
        return data

    def _of_unit(self, number: int, share: np.ndarray) -> xr.Dataset:
        cell = self.spec.unit[number]
        centre = cell_centre(cell, self.spec.grid, self.spec.size)
        numbers = measures(share, centre, self.spec.thresholds)
        variables: dict[Hashable, Any] = {
            "map": (("row", "col"), share),
            **dict(numbers.data_vars),
            "unit_centre": ("axis", [*centre]),
        }
        if fields := self._fields():
            theory = fields[number]
            variables["theoretical"] = (("row", "col"), theory.field.copy())
            variables["theoretical_mixing"] = (("row", "col"), theory.mixing.copy())
            variables["mass_outside"] = share[~theory.field].sum() if share.any() else np.nan
        return xr.Dataset(variables, {**numbers.coords, "unit_row": cell[0], "unit_col": cell[1]})

    def _fields(self) -> list[TheoreticalField]:
        """The theoretical field of each unit, found once; none for a model that is not as the registry builds it."""
        if self._theory is None:
            known = isinstance(self.model, VisionModel) and self.model.name in list_models()
            units = self.spec.unit if known else ()
            try:
                self._theory = [theoretical_field(self.model, self.spec.layer, unit, self.spec.size) for unit in units]
            except TypeError:  # somebody has put a module into it of which nothing is known
                self._theory = []
        return self._theory

    def _images(self) -> dict[str, Any]:
        return {"images": self.read, "images_sha256": self._chain.hex()}

    def _note(self, totals: np.ndarray) -> str:
        """One sentence about a map without mass, or nothing."""
        if self.constant:
            return CONSTANT
        if self.read and not self.count:
            return NOT_FINITE
        return ZERO if self.count and not totals.all() else ""

    def state(self) -> dict[str, np.ndarray]:
        """Everything that a run needs to go on after a kill; call it between batches."""
        return {
            "sums": self._sums.copy(),
            "counts": np.array([self.count, self.nonfinite, self.constant, self.complete]),
            "images": np.frombuffer(self._chain, np.uint8),
            "run": np.frombuffer(self._run(), np.uint8),
        }

    @classmethod
    def restore(cls, state: Mapping[str, np.ndarray], spec: ReceptiveFieldSpec, model: Any) -> "RunningField":
        """The field as it was; give it to `stream` as `start` with the same images, and it goes on bit for bit.

        Raises:
            ValueError: the state is of another spec, model or weights.
        """
        field = cls(spec, model)
        if np.asarray(state["run"]).tobytes() != field._run():
            raise ValueError("The saved state is of another run: its spec, model, weights, device or backend differ.")
        field._sums = np.array(state["sums"], np.float64)
        field.count, field.nonfinite = (int(number) for number in state["counts"][:2])
        field.constant, field.complete = (bool(flag) for flag in state["counts"][2:])
        field._chain = np.asarray(state["images"], np.uint8).tobytes()
        return field

    def check_images(self, digests: Sequence[str]) -> None:
        """Raise ValueError unless these are the SHA-256 of the images seen so far, in order."""
        chain = b""
        for digest in digests:
            chain = chained(chain, digest)
        if chain != self._chain:
            raise ValueError(
                f"The first {self.read} images are not those that the saved state was computed from: give the same "
                "images in the same order, or start anew."
            )

    def _run(self) -> bytes:
        """The SHA-256 of what must be equal for two runs to have the same bits."""
        return hashlib.sha256(
            json.dumps([asdict(self.spec), self._info], sort_keys=True, default=str).encode()
        ).digest()


def chained(chain: bytes, digest: str) -> bytes:
    """The next link of a chain of SHA-256: of the chain so far and an image's digest."""
    return hashlib.sha256(chain + bytes.fromhex(digest)).digest()


def model_info(model: Any, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The model and what computes it, for the attrs of a result: which one, its weights, backend, device and dtype."""
    given = _of_registry(model, device, dtype) if isinstance(model, VisionModel) else _of_module(model)
    return given | {"device": str(device), "dtype": str(dtype).removeprefix("torch.")}


def _of_registry(model: VisionModel, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "model": model.name,
        "config": model.config,
        "weights": model.weights,
        "weights_sha256": model.weights_sha256,
        "layout": model.layout,
        "seed": model.seed,
        "backend": choose(model.backend, torch.empty(0, dtype=dtype, device=device)),
    }


def _of_module(model: Any) -> dict[str, Any]:
    """Of any other model: its parts in words, without addresses in memory, and its weights, each as a SHA-256."""
    config, weights = {}, ""
    if isinstance(model, nn.Module):
        parts = re.sub(r" at 0x[0-9a-f]+", "", repr(model))
        config = {"parts_sha256": hashlib.sha256(parts.encode()).hexdigest()}
        # A module may put other things into its state.
        weights = fingerprint({name: t for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)})
    return {
        "model": type(model).__name__,
        "config": config,
        "weights": "as given",
        "weights_sha256": weights,
        "layout": "",
        "seed": None,
        "backend": "torch",
    }
