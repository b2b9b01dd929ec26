"""What the figures of a receptive field say: short names that tell results apart, titles, captions and numbers."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from workbench.analysis.receptive_field import CHANNELS, GRADIENTS

from .receptive_field_parts import HELD, block_side, contour_side, one_unit, picture_size, unit_cell

#: Names of layers and of files that a caption lists before it counts.
LISTED = 3


def facts(result: xr.Dataset) -> dict[str, str]:
    """What has to be known about a result to compare it with another one, in words."""
    result = one_unit(result)
    a, spec = result.attrs, result.attrs["spec"]
    rows, cols = picture_size(result)
    return {
        "model": str(a["model"]),
        "layer": str(spec["layer"] or "output"),
        "weights": weights_in_words(result),
        "unit": "unit ({}, {}) of {} x {} cells".format(*unit_cell(result), *spec["grid"]),
        "size": f"{rows} x {cols} pixels",
        "images": images_in_words(result),
        "channels": f"value of the unit: {channels_in_words(spec['channels'])}",
        "gradient": GRADIENTS[spec["gradient"]],
        "computed": ", ".join(str(part) for part in (f"{a['backend']} backend", a["dtype"], a["device"])),
    }


def weights_in_words(result: xr.Dataset) -> str:
    a = result.attrs
    if a["weights"] == "random":
        return f"random weights, seed {a['seed']}"
    return f"weights {a['weights']}"


def channels_in_words(name: str) -> str:
    """The words of a reduction, or of the one channel that it names."""
    return CHANNELS.get(name, f"{name} alone")


def images_in_words(result: xr.Dataset) -> str:
    """The images of the mean, and what is missing in it."""
    a, left_out, bad = result.attrs, int(result["nonfinite"]), len(result.attrs.get("bad", ()))
    words = f"mean over {_counted(int(result['count']), 'image')}"
    if left_out:
        words += f" without {left_out} whose gradient was not finite"
    if bad:
        words += f", {_counted(bad, 'file')} could not be read"
    return words if a["complete"] else f"partial: {words} so far"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def names(results: Sequence[xr.Dataset]) -> list[str]:
    """A short name for each result: the model, and what differs among them; `shared_facts` says the rest."""
    known = _compared(results)
    differing = [key for key in known[0] if len({fact[key] for fact in known}) > 1]
    found = [", ".join(fact[key] for key in dict.fromkeys(["model", *differing])) for fact in known]
    return [name if found.count(name) == 1 else f"{name} [{n}]" for n, name in enumerate(found, 1)]


def shared_facts(results: Sequence[xr.Dataset]) -> list[str]:
    """What is true of all results; `names` says the rest."""
    known = _compared(results)
    return [words for key, words in known[0].items() if all(fact[key] == words for fact in known)]


def _compared(results: Sequence[xr.Dataset]) -> list[dict[str, str]]:
    """The facts of results beside each other: a model with the settings in which it differs from itself, and one
    wording for the centres of different grids."""
    known = [facts(result) | {"model": _with_settings(result, results)} for result in results]
    if all(result.attrs["spec"]["unit_name"] == "centre" for result in results):
        for fact in known:
            fact["unit"] = known[0]["unit"] if len({fact["unit"] for fact in known}) == 1 else "unit: the centre cell"
    return known


def _with_settings(result: xr.Dataset, results: Sequence[xr.Dataset]) -> str:
    """The model as `name(setting=value)`, with the settings that results of the same model differ in."""
    name, config = str(result.attrs["model"]), result.attrs["config"]
    alike = [other.attrs["config"] for other in results if other.attrs["model"] == result.attrs["model"]]
    differing = [key for key in config if any(other.get(key) != config[key] for other in alike)]
    return f"{name}({', '.join(f'{key}={config[key]}' for key in differing)})" if differing else name


def title(result: xr.Dataset) -> str:
    """Model, layer, weights, unit and size, on two lines."""
    fact = facts(result)
    return f"{fact['model']}  {fact['layer']}  ({fact['weights']})\n{fact['unit']}, {fact['size']}"


def caption(result: xr.Dataset, limits: tuple[float, float]) -> str:
    """What the map shows, how it was made and reduced, its colours, its lines, and where it was computed.

    limits: of the colours, from `colour_range`.
    """
    fact, size = facts(result), picture_size(result)
    parts = [
        f"Effective receptive field, {fact['images']}",
        fact["channels"],
        fact["gradient"],
        f"share of the map's sum per pixel{blocks_in_words(block_side(size))}, non-negative",
        colours_in_words(limits),
        lines_in_words(size),
        *_fields(result),
        f"picture of {fact['size']}: {result.attrs['spec']['resize']}",
        *_weights_hash(result),
        fact["computed"],
    ]
    note = result.attrs.get("note")
    return "; ".join(parts) + "." + (f" {note}" if note else "")


def paper_caption(results: Sequence[xr.Dataset], limits: tuple[float, float]) -> str:
    """What a figure of several maps and their curves shows; the names of its maps say what differs among them."""
    sides = sorted({contour_side(picture_size(result)) for result in results})
    blocks = " or ".join(f"{side} x {side}" for side in sides)
    parts = [
        "Effective receptive fields: share of each map's sum per pixel",
        colours_in_words(limits),
        "lines around the highest-density regions that hold 50 % (solid) and 95 % (dashed) of the mass, as means of "
        f"{blocks} pixels; violet: theoretical field; blue: the unit's cell",
        "r: area of the smallest centred square with that share of the mass, as a share of the picture; σ: standard "
        "deviations along the principal axes",
        *shared_facts(results),
    ]
    return "; ".join(parts) + "."


def colours_in_words(limits: tuple[float, float]) -> str:
    low, top = limits
    return (
        f"log colours from {low:.2g} to {top:.2g} over {np.log10(top / low):.2g} decades, one range for all maps "
        "compared; less has the darkest colour, exactly 0 is not drawn"
    )


def lines_in_words(size: tuple[int, int]) -> str:
    """What the lines of a map stand for."""
    half, most = (f"{100 * held:g} %" for held in HELD)
    blocks = blocks_in_words(contour_side(size))
    return (
        f"lines around the highest-density regions that hold {half} (solid) and {most} (dashed) of the mass{blocks}; "
        "diamond: centre of mass, with the principal axes, one standard deviation to each side"
    )


def blocks_in_words(side: int) -> str:
    return "" if side == 1 else f", as means of {side} x {side} pixels"


def _fields(result: xr.Dataset) -> list[str]:
    """The theoretical field: what its outlines are, what makes it global, and whether mass lies outside it."""
    result = one_unit(result)
    if "theoretical" not in result:
        return []
    by = list(result.attrs["global_by"])
    more = f" and {len(by) - LISTED} more" if len(by) > LISTED else ""
    statistics = f" without (solid) and with (dashed) global statistics ({', '.join(by[:LISTED])}{more})" if by else ""
    outside = float(result["mass_outside"])
    return [
        f"theoretical field (theory) outlined{statistics}",
        *([f"{outside:.2g} of the mass lies outside it"] if outside > 0 else []),
    ]


def _weights_hash(result: xr.Dataset) -> list[str]:
    digest = result.attrs.get("weights_sha256")
    return [f"weights SHA-256 {digest[:12]}"] if digest else []


def numbers(result: xr.Dataset) -> list[tuple[str, str]]:
    """The scale-free numbers of a map as (what, value with unit), for a table."""
    result = one_unit(result)
    found = []
    for threshold in result["threshold"].values:
        within = f"{100 * threshold:g} % of the mass"
        found.append((f"smallest centred square with {within}", area_in_words(result["r"], threshold)))
        found.append((f"smallest share of the pixels with {within}", area_in_words(result["r_ranked"], threshold)))
    row, col = result["centre_of_mass"].values - result["unit_centre"].values
    found += [
        ("standard deviation along the principal axes", spread_in_words(result)),
        ("direction of the major axis", _known("{:.0f} degrees", float(result["orientation"]))),
        ("anisotropy", _known("{:.2f}", float(result["anisotropy"]))),
        ("centre of mass from the unit's centre", _known("{:+.1f} rows, {:+.1f} columns", row, col)),
    ]
    if "mass_outside" in result:
        found.append(("mass outside the theoretical field", _known("{:.2g}", float(result["mass_outside"]))))
    return [*found, ("images", images_in_words(result))]


def area_in_words(shares: xr.DataArray, threshold: float) -> str:
    """One of the areas `r` or `r_ranked` of one unit."""
    share = float(shares.sel(threshold=threshold))
    return f"{100 * share:.3g} % of the picture" if np.isfinite(share) else "not reached inside the picture"


def spread_in_words(result: xr.Dataset) -> str:
    return _known("{:.1f} x {:.1f} pixels", float(result["sigma_major"]), float(result["sigma_minor"]))


def _known(form: str, *values: float) -> str:
    return form.format(*values) if np.isfinite(values).all() else "not defined"
