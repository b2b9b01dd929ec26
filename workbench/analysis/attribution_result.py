"""What an attribution returns: its variables and the warning that goes with them, and how it is brought to -1..1."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from workbench.models.checks import check_choice

from .attribution_spec import METHODS

#: What is shown of signed attributions: Captum's names -> words.
SIGNS = {
    "absolute_value": "magnitude",
    "positive": "positive parts",
    "negative": "negative parts, as magnitudes",
    "all": "with sign",
}

#: A completeness gap above this is pointed out.
GAP = 0.01

#: The error of float32 scores, relative to them: no sum of differences needs to be closer.
ROUNDING = 1e-5

COLOURS = ["red", "green", "blue"]


def variables(
    method: str, found: torch.Tensor, size: tuple[int, int], score: float, baseline_score: float | None
) -> dict[str, Any]:
    data: dict[str, Any] = {"score": ((), score)}
    if method == "layer_grad_cam":
        large = nn.functional.interpolate(found.unsqueeze(0), size, mode="bilinear", align_corners=False)
        data["attribution"] = (("row", "col"), _array(large[0, 0]))
        data["layer_attribution"] = (("layer_row", "layer_col"), _array(found[0]))
    else:
        data["attribution"] = (("colour", "row", "col"), _array(found))
    if baseline_score is not None:
        data["baseline_score"] = ((), baseline_score)
        if METHODS[method].complete:
            change = score - baseline_score
            delta = float(found.sum()) - change
            gap = abs(delta / change) if change else (math.inf if delta else 0.0)
            data |= {"convergence_delta": ((), delta), "completeness_gap": ((), gap)}
    return data


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.to("cpu", torch.float32).numpy()


def warning(method: str, data: dict[str, Any]) -> str:
    """What a reader must know about the result, or ""."""
    if not np.isfinite(data["attribution"][1]).all():
        return "Some attributions are not finite: the model's score or its gradient is not."
    gap = data.get("completeness_gap", ((), 0.0))[1]
    if gap <= GAP:
        return ""
    scores = [data[name][1] for name in ("score", "baseline_score")]
    if abs(scores[0] - scores[1]) <= ROUNDING * max(map(abs, scores)):
        return "The baseline has the score of the picture but for rounding: there is no change to attribute."
    missed = f"The attributions miss the change of the score from the baseline to the picture by {gap:.1%}"
    if method == "deep_lift":
        return f"{missed}: the model has non-linearities for which DeepLIFT has no rule and takes the plain gradient."
    return f"{missed}: the score changes abruptly on the path; raise limit or take another baseline."


def displayed(attribution: xr.DataArray, sign: str = "absolute_value", outlier_perc: float = 2.0) -> xr.DataArray:
    """Attributions as they are shown, in -1..1: Captum's `visualize_image_attr`, with its names.

    Colours are summed, the sign is applied, and all is divided by a threshold and cut at 1: the value up to which the
    magnitudes, sorted and added up, make 100 - outlier_perc per cent of their sum. An attribution that is zero
    everywhere stays so, where Captum fails.

    Args:
        attribution: (colour, row, col) or (row, col), of a result of `attribute`.
        sign: a name of `SIGNS`.
        outlier_perc: per cent of the sum of the magnitudes that the largest ones hold and that is cut.

    Raises:
        ValueError: an unknown sign, or a share that is not from 0 to 100.
    """
    check_choice("sign", sign, SIGNS)
    if isinstance(outlier_perc, bool) or not isinstance(outlier_perc, int | float) or not 0 <= outlier_perc <= 100:
        raise ValueError(f"outlier_perc must be a number from 0 to 100; got {outlier_perc!r}.")
    summed = attribution.sum("colour", skipna=False) if "colour" in attribution.dims else attribution
    values = _SIGNED[sign](summed.values)
    magnitudes = np.sort(np.abs(values), axis=None)
    sums = np.cumsum(magnitudes)
    reached = np.flatnonzero(sums >= sums[-1] * 0.01 * (100 - outlier_perc))
    threshold = float(magnitudes[reached[0]]) if len(reached) else math.nan
    if sign == "negative":
        values = -values
    with np.errstate(divide="ignore", invalid="ignore"):
        shown = np.where(values == 0, 0, np.clip(values / threshold, -1, 1))
    return summed.copy(data=shown.astype(values.dtype))


_SIGNED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "absolute_value": np.abs,
    "positive": lambda values: np.maximum(values, 0),
    "negative": lambda values: np.minimum(values, 0),
    "all": lambda values: values,
}
