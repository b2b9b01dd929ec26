"""Small versions of the registered models, and weights that leave no parameter out of a comparison."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from workbench.models import load_model
from workbench.models.base import VisionModel
from workbench.models.registry import variant


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are compared on the CPU, on a machine with a GPU as well."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def randomise() -> Callable[[nn.Module, int], None]:
    """Give every parameter random values: biases, norms and bias tables, too."""

    def fill(module: nn.Module, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                fan_in = parameter[0].numel() if parameter.ndim > 1 and parameter.shape[0] > 1 else 4
                parameter.normal_(std=fan_in**-0.5, generator=generator)
                if parameter.ndim == 1 and name.endswith("weight"):
                    parameter.add_(1)

    return fill


@pytest.fixture
def small() -> Callable[..., VisionModel]:
    """A registered model with all its blocks but few channels, heads and classes."""

    def load(name: str, **config: Any) -> VisionModel:
        usual = variant(name).defaults()
        stages = range(len(usual["dims"]))
        if "heads" in usual:
            # An even number in every stage: some families split the heads in halves.
            config = {"heads": [2 * 2**i for i in stages], **config}
        return load_model(name, **{"dims": [8 * 2**i for i in stages], "num_classes": 5, "device": "cpu", **config})

    return load


@pytest.fixture
def oblong() -> Callable[[VisionModel], tuple[int, int]]:
    """The pixels, (rows, cols), of an image that a model takes: little larger than the smallest, and not square."""

    def size(model: VisionModel) -> tuple[int, int]:
        step = model.size_multiple
        rows = -(-max(64, model.least_size) // step) * step
        return rows, rows + max(step, 32 // step * step)

    return size
