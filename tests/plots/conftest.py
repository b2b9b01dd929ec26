"""Receptive fields of maps that a test gives, with everything that a real result has."""

from types import SimpleNamespace

import numpy as np
import pytest

from workbench.analysis.receptive_field import ReceptiveFieldSpec, RunningField


def field_of(mass, unit=(1, 2), grid=(4, 4), theory=None, complete=True, left_out=0, spec=None, **attrs):
    """The receptive field of a toy model whose mean gradient is `mass`, (H, W) for one unit, (U, H, W) for several.

    unit: a cell, or a list of cells. theory: (without statistics, with them) as bool maps. left_out: images whose
    gradient was not finite. spec: other fields of the Spec. attrs: of the result, such as the model's name.
    """
    maps = np.asarray(mass, float)
    maps, units = (maps[None], (unit,)) if maps.ndim == 2 else (maps, tuple(unit))
    one = "centre" if units[0] == (grid[0] // 2, grid[1] // 2) else str(units[0])
    name = one if len(units) == 1 else f"{len(units)}x1"
    given = {"layer": "stage1.block2", "unit": units, "unit_name": name, "size": maps.shape[1:], "grid": grid}
    running = RunningField(ReceptiveFieldSpec(**given | (spec or {})), SimpleNamespace())
    running.add(np.concatenate([maps[None], np.full((left_out, *maps.shape), np.nan)]))
    running.complete = complete
    result = running.result()
    if theory is not None:
        mixing, whole = (np.broadcast_to(mask, maps.shape[1:]) for mask in theory)
        result["theoretical_mixing"], result["theoretical"] = (("row", "col"), mixing), (("row", "col"), whole)
        result["mass_outside"] = float(result["map"].values[~whole].sum())
    known = {"model": "toy", "weights": "random", "weights_sha256": "0f" * 32, "seed": 3, "backend": "cpu"}
    result.attrs |= known | attrs
    return result


def blob(size, centre, sigmas, degrees=0.0):
    """A Gaussian on `size` pixels; degrees: of the axis of the first sigma, counter-clockwise on the screen."""
    rows, cols = np.indices(size)
    up, right = centre[0] - rows, cols - centre[1]
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    along, across = cos * right + sin * up, cos * up - sin * right
    return np.exp(-(along**2) / 2 / sigmas[0] ** 2 - across**2 / 2 / sigmas[1] ** 2)


@pytest.fixture(name="field_of")
def _field_of():
    return field_of


@pytest.fixture(name="blob")
def _blob():
    return blob


@pytest.fixture
def speckled():
    """A map with zeros and repeated values, in any size, of its own for each seed."""

    def make(size, seed=0):
        rng = np.random.default_rng(seed)
        return rng.integers(0, 6, size) * 2.0 ** rng.integers(-4, 4, size)

    return make
