"""The stability laboratory in words: captions, what the verdicts mean, and what happened to a propagation."""

import numpy as np
import xarray as xr

from workbench.analysis.stability_spec import COMPLEMENT

from .stability import clipped_shares, exposures, is_signed, sums_top

#: A condition -> its name and what it says.
CONDITIONS = {
    "row_stochastic": ("row-stochastic", "no gate below 0, and every row of w sums to 1"),
    "stable": ("stable", "sums of |gates| at most 1 and h finite: enough for stability, not necessary"),
    "dense": ("dense", "after the chunk's last line every position has heard every position of line 0"),
}

#: Number formats by the names that arithmetic knows them by.
FORMATS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def format_name(result: xr.Dataset) -> str:
    """The number format of gates and recurrence."""
    return FORMATS.get(result.attrs["dtype"], result.attrs["dtype"])


def caption(result: xr.Dataset) -> str:
    """What the pictures show, and how gates and norms were computed."""
    a, spec = result.attrs, result.attrs["spec"]
    if a["gates"] == "synthetic":
        gates = f"synthetic gates, {spec['normalisation']}, seed {spec['seed']}"
        lam = "1 - sum of the gates" if spec["lam"] == COMPLEMENT else f"{spec['lam']:g}"
    else:
        which = "the worst one" if spec["chosen"] == "worst" else "as chosen"
        gates = f"gates of {a['model']} {a['layer']}, channel {spec['channel']} ({which}), {a['gates_backend']} backend"
        lam = "the layer's"
    shown = "h as it is" if spec.get("lam") == COMPLEMENT else "h over what white would come to (sum of |lambda|)"
    clipped = clipped_shares(exposures(result)[1])
    marks = ", ".join(
        f"{100 * share:.3g} % {words}"
        for share, words in (
            (clipped["above"], "drawn white as too bright"), (clipped["below"], "drawn black as below 0"),
            (clipped["nonfinite"], "magenta: not finite"),
        ) if share
    )  # fmt: skip
    return (
        f"{gates}; lambda {lam}; {spec['direction'].replace('_', ' ')}, {_chunks(result)}; pictures: {shown}, "
        f"{marks or 'nothing clipped'}; recurrence in {format_name(result)}, {a['backend']} backend, {a['device']}; "
        f"norms in float64 of the rounded gates."
    )


def weight_caption(result: xr.Dataset) -> str:
    """How W is drawn."""
    colours = "linear colours about 0" if is_signed(result) else "log colours over 4 decades"
    return (
        f"W = product of w from line 1 to line {result.attrs['accumulated_steps']}: to (reader) down, from across, "
        f"signed values; {colours}; nothing drawn where exactly 0; row sums on the right, from 0 to "
        f"{sums_top(result):.3g}, dashed: 1."
    )


def curves_caption(result: xr.Dataset) -> str:
    """What the lines are."""
    a = result.attrs
    bound = "holds" if a["bound_holds"] else "is not claimed, sums of |gates| exceed 1"
    radius = result["spectral_radius"].values
    missing = int((~np.isfinite(radius)).sum())
    some = f", computed for {radius.size - missing} of {radius.size} lines" if missing else ""
    return (
        f"Linear bound: sum of max |lambda x| over the lines so far; it {bound}. Bound, any gates: each line's norm "
        f"times the bound before, plus max |lambda x|. Row sums off 1: largest over the line, exact sums on the lower "
        f"edge, tolerance {a['tolerance']:.2g} = 4 roundings. Spectral radius of each w{some}. Gradient dh/dx of line "
        f"0: largest over pairs of pixels, and infinity norm. Dobrushin: half the largest l1 distance of two rows of "
        f"W. Effective width: standard deviation of the middle row of |W|, positions; dotted: three equal gates."
    )


def _chunks(result: xr.Dataset) -> str:
    chunk = result.attrs["chunk"]
    lines = result.sizes["line"]
    return f"{lines} lines, " + ("one chunk" if chunk is None or chunk >= lines else f"chunks of {chunk}")


def verdicts(result: xr.Dataset) -> dict[str, bool]:
    """Condition -> whether it holds."""
    return dict(zip(CONDITIONS, map(bool, result["verdict"].values), strict=True))


def place(result: xr.Dataset, condition: str) -> str:
    """Where a condition is first violated, in words."""
    line, cross = result["first_violation"].values[list(result["condition"].values).index(condition)]
    if line < 0:
        return "nowhere"
    if condition == "dense":
        return f"line {line}, pixel {cross} has not heard all"
    return f"line {line}, pixel {cross}"


def explanation(result: xr.Dataset) -> str:
    """What happened, in sentences: an overflow, growth, decay, or context that fades while nothing explodes."""
    if result.attrs["overflow_line"] >= 0:
        return _overflowed(result)
    rate, largest = float(result["growth_rate"]), result["abs_sum"].values.max()
    if not verdicts(result)["stable"]:
        told = "" if not np.isfinite(rate) else f" W {_changes(rate)} a line in its infinity norm."
        return (
            f"Sums of |gates| reach {largest:.4g}, more than 1, so nothing bounds h by its input alone.{told} "
            f"h stays finite here: max |h| is {result['max_hidden'].values.max():.4g}."
        )
    if np.isfinite(rate) and rate < -1e-3:
        return f"Nothing explodes, but W {_changes(rate)} a line: what a line was given is forgotten."
    left, width = result["dobrushin"].values[-1], result["effective_width"].values[-1]
    steps = result["steps"].values[-1]
    kept = f"Nothing explodes: the infinity norm of W stays {result['norm_inf'].values[-1]:.4g}."
    reads = f"the middle position reads a neighbourhood of effective width {width:.3g} positions"
    if left > 0.99:
        return f"{kept} After {steps} steps some two rows of W still have nothing in common, and {reads}."
    return (
        f"{kept} Context fades all the same: after {steps} steps two rows of W differ by at most {100 * left:.3g} %, "
        f"and {reads}."
    )


def _changes(rate: float) -> str:
    share = 100 * np.expm1(rate)
    return f"grows by {share:.3g} %" if share >= 0 else f"shrinks by {-share:.3g} %"


def _overflowed(result: xr.Dataset) -> str:
    line, count = result.attrs["overflow_line"], result["nonfinite"].values.sum()
    largest = result.attrs["largest_finite"]
    limit = f"{largest:.0f}" if largest < 1e6 else f"{largest:.3g}"
    values = result["propagated"].size
    return (
        f"{format_name(result)} holds at most {limit}; h passed it at line {line}, and {count} of {values} values are "
        f"not finite. Sums of |gates| reach {result['abs_sum'].values.max():.4g}: a line may be that many times the "
        f"one before. Magenta pixels are infinite or not a number, and the curves of h leave those lines out."
    )
