"""Two-dimensional neighbourhood attention: every query of a map reads the keys that a pattern names."""

import math
from typing import NamedTuple

import torch

from kernels.backends import check_tensor, choose, run

from . import reference
from .pattern import Axis, Pattern, block, swin

__all__ = ["Attention", "Axis", "Pattern", "attend", "block", "swin"]


class Attention(NamedTuple):
    """What an engine needs besides the tensors: which keys a query reads, and the factor of its logits."""

    pattern: Pattern
    scale: float


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pattern: Pattern,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """Let every query read the keys that `pattern` names: softmax attention over a neighbourhood of the map.

    For a query at p, with q ranging over pattern.keys(p),

        logit[p, q] = scale * (query[p] . key[q]) + bias[dr + kh - 1, dc + kw - 1],    (dr, dc) = p - q
        out[p]      = sum over q of softmax(logit[p])[q] value[q]

    where (kh, kw) are the pattern's kernel sizes; every head has its own bias table. The bias is read at query minus
    key, as in Swin; for tables that are read at key minus query (NAT) pass table.flip(-1, -2).

    Args:
        q: queries, (B, H, W, heads, d).
        k: keys, the shape of `q`.
        v: values, the shape of `q`.
        pattern: which keys a query reads: `swin(window, shift)`, `block(window)`, or a `Pattern`.
        bias: relative position bias, (heads, 2 kh - 1, 2 kw - 1), or None.
        scale: factor of the products; None for d ** -0.5.
        backend: "auto" | "reference" | "cpu" | "triton".

    Returns:
        out: (B, H, W, heads, d), in the dtype of `q`.

    Raises:
        TypeError: not floating-point tensors of one dtype, or `pattern` or `scale` is of another type.
        ValueError: shapes or devices do not fit.
        BackendUnavailable: the named backend cannot run here.

    Source: Swin (arXiv 2103.14030) section 3.2 for windows and bias; neighbourhood attention (arXiv 2204.07143) and
    generalised neighbourhood attention (arXiv 2504.16922) for the family.
    """
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern must be a Pattern, such as swin(7); got {type(pattern).__name__}.")
    _check_tokens(q, k, v)
    _check_bias(bias, pattern, q)
    settings = Attention(pattern, _check_scale(scale, q.shape[-1]))
    chosen = choose(backend, q)
    if chosen == "reference":
        return reference.attend(q, k, v, pattern, bias, settings.scale)
    if chosen == "cpu":
        from . import cpu

        return run(cpu, settings, q, k, v, bias)
    from . import gpu

    return run(gpu, settings, q, k, v, bias)


def _check_tokens(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    check_tensor("q", q, first=("q", q))
    if q.ndim != 5 or 0 in q.shape:
        raise ValueError(f"q must be (B, H, W, heads, d) with no empty axis; got {tuple(q.shape)}.")
    for name, tensor in (("k", k), ("v", v)):
        check_tensor(name, tensor, first=("q", q))
        if tensor.shape != q.shape:
            raise ValueError(f"{name} must have the shape of q, {tuple(q.shape)}; got {tuple(tensor.shape)}.")


def _check_bias(bias: torch.Tensor | None, pattern: Pattern, q: torch.Tensor) -> None:
    if bias is None:
        return
    check_tensor("bias", bias, first=("q", q))
    wanted = pattern.bias_shape(q.shape[3])
    if tuple(bias.shape) != wanted:
        raise ValueError(
            f"bias must be (heads, 2 kh - 1, 2 kw - 1) = {wanted} for {pattern.name}; got {tuple(bias.shape)}."
        )


def _check_scale(scale: float | None, channels: int) -> float:
    if scale is None:
        return channels**-0.5
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"scale must be a number, or None for d ** -0.5; got {type(scale).__name__}.")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite; got {scale}.")
    return float(scale)
