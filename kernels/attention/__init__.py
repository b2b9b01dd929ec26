"""Two-dimensional neighbourhood attention: every query of a map reads the keys that a pattern names."""

import math

import torch

from kernels.backends import check_tensor, choose, run

from . import reference
from .axis import Axis, PowerAxis
from .family import axial, block, cross, disc, full, grid, halo, heads, neighborhood, power, stripe, swin
from .parts import MOST_CHANNELS, Attention
from .pattern import Pattern

__all__ = [
    "Attention",
    "Axis",
    "Pattern",
    "PowerAxis",
    "attend",
    "axial",
    "block",
    "cross",
    "disc",
    "full",
    "grid",
    "halo",
    "heads",
    "neighborhood",
    "power",
    "stripe",
    "swin",
]

#: How the relative position bias may be read.
RELATIVE = ("query-key", "key-query")


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pattern: Pattern,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    *,
    backend: str = "auto",
    relative: str = "query-key",
    extra: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Let every query read the keys that `pattern` names: softmax attention over a neighbourhood of the map.

    For a query at p, with q ranging over pattern.keys(p) and then over the extra keys,

        logit[p, q] = scale * (query[p] . key[q]) + bias[dr + kh - 1, dc + kw - 1],    (dr, dc) = p - q in steps
        out[p]      = sum over q of softmax(logit[p])[q] value[q]

    where (kh, kw) are the pattern's kernel sizes, a step is its dilation, and every head has its own bias table; extra
    keys have no bias.

    Args:
        q: queries, (B, H, W, heads, d).
        k: keys, the shape of `q`; with `full()`, a pattern that reads all keys, (B, KH, KW, heads, d) on any grid.
        v: values, the shape of `k`.
        pattern: which keys a query reads: `swin(window, shift)`, `neighborhood(kernel)`, ... or a `Pattern`.
        bias: relative position bias, (heads, 2 kh - 1, 2 kw - 1), or None.
        scale: factor of the products; None for d ** -0.5.
        backend: "auto" | "reference" | "cpu" | "triton".
        relative: the bias is read at "query-key", p - q as above (Swin, MaxViT), or at "key-query", q - p (NAT).
        extra: further keys and values, each (B, S, heads, d), that every query reads: registers or pooled keys.

    Returns:
        out: (B, H, W, heads, d), in the dtype of `q`.

    Raises:
        TypeError: not floating-point tensors of one dtype, or `pattern` or `scale` is of another type.
        ValueError: shapes or devices do not fit, or the pattern is not defined on the map.
        BackendUnavailable: the named backend cannot run here.

    Source: Swin (arXiv 2103.14030) section 3.2 for windows and bias; neighbourhood attention (arXiv 2204.07143) and
    generalised neighbourhood attention (arXiv 2504.16922) for the family.
    """
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern must be a Pattern, such as swin(7); got {type(pattern).__name__}.")
    _check_tokens(q, k, v, pattern)
    _check_bias(bias, pattern, q, k)
    if relative not in RELATIVE:
        raise ValueError(f"relative must be 'query-key' or 'key-query'; got {relative!r}.")
    if bias is not None and relative == "key-query":
        bias = bias.flip(-1, -2)
    if extra is not None:
        _check_extra(extra, q)
    settings = Attention(pattern, _check_scale(scale, q.shape[-1]))
    chosen = choose(backend, q)
    if chosen == "triton" and backend == "auto" and q.shape[-1] > MOST_CHANNELS:
        chosen = "reference"  # only a named backend is refused
    shape = q.shape
    if pattern.raster:
        q, k, v = (t.flatten(1, 2).unsqueeze(1) for t in (q, k, v))
    return _run(chosen, settings, q, k, v, bias, extra).view(shape)


def _run(
    chosen: str,
    settings: Attention,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    extra: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """The attention by the chosen backend."""
    if chosen == "reference":
        return reference.attend(q, k, v, settings.pattern, bias, settings.scale, extra)
    if chosen == "cpu":
        from . import cpu

        return run(cpu, settings, q, k, v, bias, *(extra or (None, None)))
    from . import gpu

    return run(gpu, settings, q, k, v, bias, *(extra or (None, None)))


def _check_tokens(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pattern: Pattern) -> None:
    check_tensor("q", q, first=("q", q))
    if q.ndim != 5 or 0 in q.shape:
        raise ValueError(f"q must be (B, H, W, heads, d) with no empty axis; got {tuple(q.shape)}.")
    check_tensor("k", k, first=("q", q))
    check_tensor("v", v, first=("q", q))
    if pattern.whole:
        outer = (q.shape[0], *q.shape[3:])
        if k.ndim != 5 or 0 in k.shape or (k.shape[0], *k.shape[3:]) != outer:
            raise ValueError(
                f"k must be (B, KH, KW, heads, d) with B, heads and d of q, {outer}, and no empty axis; "
                f"got {tuple(k.shape)}."
            )
        if v.shape != k.shape:
            raise ValueError(f"v must have the shape of k, {tuple(k.shape)}; got {tuple(v.shape)}.")
        return
    for name, tensor in (("k", k), ("v", v)):
        if tensor.shape != q.shape:
            raise ValueError(f"{name} must have the shape of q, {tuple(q.shape)}; got {tuple(tensor.shape)}.")
    pattern.check((q.shape[1], q.shape[2]))
    groups = len(pattern.groups)
    if q.shape[3] % groups:
        raise ValueError(f"heads must be a multiple of {groups} for {pattern.name}; got {q.shape[3]}.")


def _check_bias(bias: torch.Tensor | None, pattern: Pattern, q: torch.Tensor, k: torch.Tensor) -> None:
    if bias is None:
        return
    check_tensor("bias", bias, first=("q", q))
    if k.shape[1:3] != q.shape[1:3]:
        raise ValueError(
            f"bias needs keys on the grid of the queries, {tuple(q.shape[1:3])}; got keys on {tuple(k.shape[1:3])}."
        )
    wanted = pattern.bias_shape(q.shape[3], (q.shape[1], q.shape[2]))
    if tuple(bias.shape) != wanted:
        raise ValueError(
            f"bias must be (heads, 2 kh - 1, 2 kw - 1) = {wanted} for {pattern.name}; got {tuple(bias.shape)}."
        )


def _check_extra(extra: tuple[torch.Tensor, torch.Tensor], q: torch.Tensor) -> None:
    if not isinstance(extra, tuple | list) or len(extra) != 2:
        raise TypeError("extra must be a pair of tensors: further keys and values.")
    wanted = (q.shape[0], "S", *q.shape[3:])
    for name, tensor in zip(("extra keys", "extra values"), extra, strict=True):
        check_tensor(name, tensor, first=("q", q))
        if tensor.ndim != 4 or 0 in tensor.shape or (tensor.shape[0], "S", *tensor.shape[2:]) != wanted:
            raise ValueError(
                f"{name} must be (B, S, heads, d) with B, heads and d of q, {wanted[0]}, {wanted[2]}, {wanted[3]}; "
                f"got {tuple(tensor.shape)}."
            )
    if extra[0].shape != extra[1].shape:
        raise ValueError(
            f"extra keys and values must have one shape; got {tuple(extra[0].shape)} and {tuple(extra[1].shape)}."
        )


def _check_scale(scale: float | None, channels: int) -> float:
    if scale is None:
        return channels**-0.5
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"scale must be a number, or None for d ** -0.5; got {type(scale).__name__}.")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite; got {scale}.")
    return float(scale)
