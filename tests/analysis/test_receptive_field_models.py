"""Receptive fields of every registered model: the kernels' backward passes draw what the reference's draw."""

import numpy as np
import pytest

from workbench.analysis.receptive_field import raw_map, receptive_field, resolve
from workbench.images import load_image
from workbench.models import list_models, load_model

#: Largest difference of a map from the reference's, in its maximum. Both round in 32 bits: in GSPN's deepest variant,
#: with random weights, each is 4e-5 away from what 64 bits give, in all other families 2e-6.
CLOSE = 1e-4


def small_size(model):
    """Pixels (rows, cols) that a model takes, few, and not square where two steps more are still few."""
    step = model.size_multiple
    rows = -(-max(min(64, model.input_size // 2), model.least_size) // step) * step
    return rows, rows if rows > 64 else rows + max(step, 16 // step * step)


@pytest.mark.parametrize("name", list_models())
def test_the_kernels_and_the_reference_have_the_same_field(name):
    model = load_model(name, seed=0, device="cpu")
    image = load_image("coffee", small_size(model))
    layers = model.layers(image.tensor.shape[-2:])
    for layer in (layers[0], layers[-1]):
        found = {}
        for backend in ("cpu", "reference"):
            model.set_backend(backend)
            found[backend] = receptive_field(model, image, layer.name)
            assert found[backend].attrs["backend"] == backend
        ours, exact = (raw_map(found[backend]).values for backend in ("cpu", "reference"))
        assert np.abs(ours - exact).max() <= CLOSE * exact.max()
        assert float(found["cpu"]["map"].sum()) == pytest.approx(1)
        assert float(found["cpu"]["mass_outside"]) == 0
        assert found["cpu"].attrs["spec"]["grid"] == layer.grid


@pytest.mark.parametrize(
    ("name", "size", "grid", "config"),
    [
        ("swin_nano", (36, 40), (9, 10), {"padding": "keys"}),
        ("nat_nano", (20, 44), (5, 11), {"padding": "keys"}),
        ("davit_nano", (20, 36), (5, 9), {"padding": "keys"}),
        ("gspn_nano", (33, 33), (9, 9), {"merge": "released", "chunk": 4}),
        ("maxvit_nano", (64, 32), (16, 8), {"weights_family": "torchvision"}),
    ],
)
def test_units_are_on_the_grid_of_the_features_without_padding(name, size, grid, config):
    model = load_model(name, seed=2, device="cpu", **config)
    last = (grid[0] - 1, grid[1] - 1)
    result = receptive_field(model, "rocket", unit=last, size=size)
    assert result.attrs["spec"]["grid"] == grid
    assert float(result["mass_outside"]) == 0
    assert float(result["map"].sum()) == pytest.approx(1)
    with pytest.raises(ValueError, match=f"cell of the layer's {grid[0]} rows and {grid[1]} columns"):
        resolve(model, unit=grid, size=size)


def test_an_early_layer_sees_its_window_and_nothing_else():
    model = load_model("swin_nano", seed=4, device="cpu")  # windows of 8 cells of 2 pixels
    result = receptive_field(model, ["coffee", "brick", "text"], "stage1.block1", (9, 17), size=64)
    rows, cols = np.nonzero(result["map"].values)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (16, 31, 32, 47)
    assert (result["theoretical"].values == (result["map"].values > 0)).mean() > 0.999
    assert result["unit_centre"].values.tolist() == [18.5, 34.5]
