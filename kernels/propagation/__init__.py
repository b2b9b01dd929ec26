"""Three-way line propagation in up to four directions: the scan inside GSPN (SPN is a setting of it)."""

from typing import NamedTuple

import torch

from kernels.backends import check_tensor, choose, run

from . import reference

DIRECTIONS = ("left_right", "top_bottom", "right_left", "bottom_top")

#: How gates come from logits, each with its formula over the neighbours j that exist; others get exactly 0.
NORMALISATIONS = {
    "sigmoid": "sigmoid(l_j) / sum of sigmoid(l_j'), row-stochastic (GSPN)",
    "softmax": "exp(l_j) / sum of exp(l_j'), row-stochastic",
    "absolute": "l_j / max(1, sum of |l_j'|), signed, absolute sum at most 1 (SPN)",
    "tanh": "tanh(l_j), signed, every gate by itself",
    "none": "l_j as it is",
}

__all__ = [
    "DIRECTIONS",
    "NORMALISATIONS",
    "Mix",
    "Normalisation",
    "Scan",
    "complement",
    "mix",
    "normalise_gates",
    "propagate",
]


class Scan(NamedTuple):
    """How to walk the map: one direction for each of the K passes, and the lines per chunk (None: one chunk)."""

    directions: tuple[str, ...]
    chunk: int | None


class Normalisation(NamedTuple):
    """How gates come from logits: one direction for each of the K maps, which tells their borders, and the rule."""

    directions: tuple[str, ...]
    rule: str


class Mix(NamedTuple):
    """How to mix: one direction for each of the K passes, the lines per chunk, and how gates come from logits."""

    directions: tuple[str, ...]
    chunk: int | None
    rule: str


def normalise_gates(
    logits: torch.Tensor, directions: tuple[str, ...] = DIRECTIONS, *, rule: str = "sigmoid", backend: str = "auto"
) -> torch.Tensor:
    """Turn gate logits into gates, by default row-stochastic ones: sigmoid, then divide by the sum of those that exist.

    gate_j = sigmoid(logit_j) / max(sum over existing j' of sigmoid(logit_j'), 1e-7), and exactly 0 for a neighbour
    outside the map: gate 0 at cross index 0, gate 2 at the last cross index. `NORMALISATIONS` has the other rules.

    Args:
        logits: (K, 3, B, G, H, W), K = len(directions), G channels (1 when channels share gates).
        directions: K names out of `DIRECTIONS`; the cross axis is rows for the horizontal ones, columns for the others.
        rule: a name out of `NORMALISATIONS`.
        backend: "auto" | "reference" | "cpu" | "triton".

    Returns:
        Gates, same shape and dtype as `logits`.

    Raises:
        TypeError: `logits` is not a floating-point tensor.
        ValueError: its shape or the directions do not fit, or there is no such rule.
        BackendUnavailable: the named backend cannot run here.

    Source: GSPN (arXiv 2501.12381), the stability-context condition; SPN (NeurIPS 2017) for "absolute".
    """
    directions = _check_directions(directions)
    _check_rule(rule)
    check_tensor("logits", logits, first=("logits", logits))
    if logits.ndim != 6 or logits.shape[:2] != (len(directions), 3) or 0 in logits.shape:
        raise ValueError(
            f"logits must be (K, 3, B, G, H, W) with K = {len(directions)} directions and no empty axis; "
            f"got {tuple(logits.shape)}."
        )
    chosen = choose(backend, logits)
    if chosen == "reference":
        return reference.normalise_gates(logits, directions, rule)
    settings = Normalisation(directions, rule)
    if chosen == "cpu":
        import kernels.propagation.normalise_cpu as normalise_cpu

        return run(normalise_cpu, settings, logits)
    import kernels.propagation.normalise_gpu as normalise_gpu

    return run(normalise_gpu, settings, logits)


def complement(
    gates: torch.Tensor, directions: tuple[str, ...] = DIRECTIONS, *, chunk: int | None = None
) -> torch.Tensor:
    """SPN's input weight, the `lam` that makes what a position keeps of itself and what it reads sum to 1.

    lam[t, n] = 1 - (g0 + g1 + g2)[t, n] over the neighbours that exist, and 1 on the first line of every chunk, which
    reads nothing; then every row of the propagation's matrix sums to 1.

    Args:
        gates: (K, 3, B, G, H, W), K = len(directions).
        directions: as in `propagate`.
        chunk: as in `propagate`.

    Returns:
        lam (K, B, G, H, W), in the dtype of `gates`.

    Raises:
        TypeError: `gates` is not a floating-point tensor, or `chunk` is not a whole number.
        ValueError: shapes, directions or `chunk` do not fit.

    Source: SPN (NeurIPS 2017), h_t = (I - d_t) x_t + w_t h_{t-1} with d_t the row sums of w_t.
    """
    directions, chunk = _check_directions(directions), _check_chunk(chunk)
    check_tensor("gates", gates, first=("gates", gates))
    if gates.ndim != 6 or gates.shape[:2] != (len(directions), 3) or 0 in gates.shape:
        raise ValueError(
            f"gates must be (K, 3, B, G, H, W) with K = {len(directions)} directions and no empty axis; "
            f"got {tuple(gates.shape)}."
        )
    return reference.complement(gates, directions, chunk)


def propagate(
    x: torch.Tensor,
    gates: torch.Tensor,
    lam: torch.Tensor | None = None,
    *,
    directions: tuple[str, ...] = DIRECTIONS,
    chunk: int | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Propagate `x` line by line across the map, once for each direction, everything in image coordinates.

    With t counting lines from where the direction starts and n the cross index,

        h[t, n] = lam[t, n] x[t, n] + g0[t, n] h[t-1, n-1] + g1[t, n] h[t-1, n] + g2[t, n] h[t-1, n+1]

    where a term is absent if its neighbour lies outside the map or t is the first line of a chunk. The gates are read
    at the receiving pixel. Lines are columns for left_right and right_left (cross axis: rows), rows for the other two.

    Args:
        x: (B, C, H, W), shared by all directions, or (K, B, C, H, W).
        gates: (K, 3, B, C or 1, H, W); 1 when channels share gates.
        lam: (K, B, C or 1, H, W), or None for 1 everywhere.
        directions: K names out of `DIRECTIONS`, repeats allowed.
        chunk: lines per chunk, counted from where the direction starts; None for one chunk (global).
        backend: "auto" | "reference" | "cpu" | "triton".

    Returns:
        h: (K, B, C, H, W), in the dtype of `x`.

    Raises:
        TypeError: not floating-point tensors of one dtype, or `chunk` is not a whole number.
        ValueError: shapes, devices, directions or `chunk` do not fit.
        BackendUnavailable: the named backend cannot run here.

    Source: GSPN (arXiv 2501.12381) equation 1; the same recurrence as SPN (NeurIPS 2017) with free input weights.
    """
    directions = _check_directions(directions)
    scan = Scan(directions, _check_chunk(chunk))
    _check_propagate(x, gates, lam, len(directions))
    if x.ndim == 4:
        x = x.unsqueeze(0)
    chosen = choose(backend, x)
    if chosen == "reference":
        return reference.propagate(x, gates, lam, scan.directions, scan.chunk)
    if chosen == "cpu":
        import kernels.propagation.cpu as cpu

        return run(cpu, scan, x, gates, lam)
    import kernels.propagation.gpu as gpu

    return run(gpu, scan, x, gates, lam)


def mix(
    v: torch.Tensor,
    logits: torch.Tensor,
    lam: torch.Tensor | None,
    u: torch.Tensor | None,
    skip: torch.Tensor | None,
    weight: torch.Tensor,
    *,
    directions: tuple[str, ...] = DIRECTIONS,
    chunk: int | None = None,
    rule: str = "sigmoid",
    backend: str = "auto",
) -> torch.Tensor:
    """Propagate `v` in every direction and merge the passes: the whole GSPN mixer in one step.

        y = sum over k of weight[k] (u[k] h_k + skip[k] v),    h_k = propagate(v, normalise_gates(logits, rule), lam)[k]

    On the CPU gates and h never leave the cache, on a GPU the registers, and the backward pass makes them again from
    its inputs. The registers hold lines of up to 1024 positions (`mix_gpu.LIMIT`); on a map with longer ones "triton"
    composes the kernels of `normalise_gates` and `propagate` with the merge.

    Args:
        v: (B, C, H, W).
        logits: (K, 3, B, C or 1, H, W), K = len(directions); 1 when channels share gates.
        lam: the input weight, (K, B, C or 1, H, W), or None for 1 everywhere.
        u: what the passes are multiplied with, (K, B, C or 1, H, W), or None for 1 everywhere.
        skip: D of the released tensors, (K, B, C or 1, H, W), or None for no such term.
        weight: (K,), the weight of each direction.
        directions: K names out of `DIRECTIONS`, repeats allowed.
        chunk: as in `propagate`.
        rule: a name out of `NORMALISATIONS`.
        backend: "auto" | "reference" | "cpu" | "triton".

    Returns:
        y: (B, C, H, W), in the dtype of `v`.

    Raises:
        TypeError: not floating-point tensors of one dtype, or `chunk` is not a whole number.
        ValueError: shapes, devices, directions, `rule` or `chunk` do not fit.
        BackendUnavailable: the named backend cannot run here.

    Source: GSPN (arXiv 2501.12381), section 3. The term skip v is in the released tensors, not in its equations.
    """
    settings = Mix(_check_directions(directions), _check_chunk(chunk), rule)
    _check_rule(rule)
    count = len(settings.directions)
    _check_mix(v, logits, {"lam": lam, "u": u, "skip": skip}, weight, count)
    chosen = choose(backend, v)
    if chosen == "reference":
        return reference.mix(v, logits, lam, u, skip, weight, *settings)
    if chosen == "cpu":
        import kernels.propagation.mix_cpu as mix_cpu

        return run(mix_cpu, settings, v, logits, lam, u, skip, weight)
    import kernels.propagation.mix_gpu as mix_gpu

    if mix_gpu.fits(v):
        return run(mix_gpu, settings, v, logits, lam, u, skip, weight)
    gates = normalise_gates(logits, settings.directions, rule=rule, backend=chosen)
    h = propagate(v, gates, lam, directions=settings.directions, chunk=chunk, backend=chosen)
    return reference.merge(v, h, u, skip, weight)


def _check_directions(directions: tuple[str, ...]) -> tuple[str, ...]:
    directions = (directions,) if isinstance(directions, str) else tuple(directions)
    wrong = [d for d in directions if d not in DIRECTIONS]
    if wrong or not directions:
        raise ValueError(f"directions must be one or more of {', '.join(DIRECTIONS)}; got {directions}.")
    return directions


def _check_rule(rule: str) -> None:
    if rule not in NORMALISATIONS:
        raise ValueError(f"rule must be one of {', '.join(NORMALISATIONS)}; got {rule!r}.")


def _check_chunk(chunk: int | None) -> int | None:
    if chunk is None:
        return None
    if isinstance(chunk, bool) or not isinstance(chunk, int):
        raise TypeError(f"chunk must be a whole number of lines or None; got {type(chunk).__name__} {chunk!r}.")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 line, or None for one chunk over the whole map; got {chunk}.")
    return chunk


def _check_propagate(x: torch.Tensor, gates: torch.Tensor, lam: torch.Tensor | None, count: int) -> None:
    check_tensor("x", x, first=("x", x))
    if x.ndim not in (4, 5) or 0 in x.shape or (x.ndim == 5 and x.shape[0] != count):
        raise ValueError(
            f"x must be (B, C, H, W) or (K, B, C, H, W) with K = {count} directions and no empty axis; "
            f"got {tuple(x.shape)}."
        )
    first, (batch, channels, height, width) = ("x", x), x.shape[-4:]
    _check_map("gates", gates, (count, 3, batch, channels, height, width), first)
    if lam is not None:
        _check_map("lam", lam, (count, batch, channels, height, width), first)


def _check_mix(
    v: torch.Tensor, logits: torch.Tensor, maps: dict[str, torch.Tensor | None], weight: torch.Tensor, count: int
) -> None:
    check_tensor("v", v, first=("v", v))
    if v.ndim != 4 or 0 in v.shape:
        raise ValueError(f"v must be (B, C, H, W) with no empty axis; got {tuple(v.shape)}.")
    _check_map("logits", logits, (count, 3, *v.shape), ("v", v))
    for name, tensor in maps.items():
        if tensor is not None:
            _check_map(name, tensor, (count, *v.shape), ("v", v))
    check_tensor("weight", weight, first=("v", v))
    if tuple(weight.shape) != (count,):
        raise ValueError(
            f"weight must be ({count},), one for each of the {count} directions; got {tuple(weight.shape)}."
        )


def _check_map(name: str, tensor: torch.Tensor, shape: tuple[int, ...], first: tuple[str, torch.Tensor]) -> None:
    """Raise unless `tensor` has the shape, (..., C, H, W), or that with one channel."""
    check_tensor(name, tensor, first=first)
    shared = (*shape[:-3], 1, *shape[-2:])
    if tuple(tensor.shape) not in (shape, shared):
        raise ValueError(f"{name} must be {shape}, or {shared} if shared; got {tuple(tensor.shape)}.")
