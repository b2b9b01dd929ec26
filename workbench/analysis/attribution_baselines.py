"""What a picture is compared with by the methods that explain a difference."""

import torch
from torch import nn

from workbench.images import MEAN, STD

#: What a picture is compared with where a method needs that: name -> words.
BASELINES = {
    "zero": "the mean colour of the training pictures, 0 in normalised values",
    "black": "black",
    "white": "white",
    "blurred": "the picture itself under a Gaussian blur of `blur` pixels",
}


def baseline_of(x: torch.Tensor, name: str, blur: float | None = None) -> torch.Tensor:
    """A baseline for the picture x (1, 3, H, W), in normalised values like x; blur: for "blurred", in pixels."""
    if blur is not None:
        return blurred(x, blur)
    if name == "zero":
        return torch.zeros_like(x)
    mean, std = (torch.tensor(values, dtype=x.dtype, device=x.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((float(name == "white") - mean) / std).expand_as(x).contiguous()


def blurred(x: torch.Tensor, deviation: float) -> torch.Tensor:
    """x (1, 3, H, W) under a Gaussian cut at 3 deviations; beyond the border the nearest pixel goes on."""
    reach = max(1, round(3 * deviation))
    places = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    weights = torch.exp(-0.5 * (places / deviation) ** 2)
    kernel = (weights / weights.sum()).view(1, 1, -1, 1).expand(x.shape[1], -1, -1, -1)
    padded = nn.functional.pad(x, (reach,) * 4, mode="replicate")
    down = nn.functional.conv2d(padded, kernel, groups=x.shape[1])
    return nn.functional.conv2d(down, kernel.transpose(2, 3), groups=x.shape[1])
