"""The definition of gate normalisation, line propagation and the mixer made of them, in plain PyTorch.

Any float dtype, any device, gradients by autograd. It is written to be read: each direction is carried into the scan
frame (lines, cross), walked line by line with all cross positions at once, and carried back.
"""

import torch
import torch.nn.functional as F

#: Keeps the row sum of three vanishing sigmoids from dividing by zero.
SMALLEST_SUM = 1e-7


def to_scan_frame(maps: torch.Tensor, direction: str) -> torch.Tensor:
    """(..., H, W) in image coordinates -> (..., lines, cross), line 0 where the direction starts."""
    if direction in ("left_right", "right_left"):
        maps = maps.transpose(-1, -2)
    if direction in ("right_left", "bottom_top"):
        maps = maps.flip(-2)
    return maps


def to_image_frame(lines: torch.Tensor, direction: str) -> torch.Tensor:
    """The inverse of `to_scan_frame`."""
    if direction in ("right_left", "bottom_top"):
        lines = lines.flip(-2)
    if direction in ("left_right", "right_left"):
        lines = lines.transpose(-1, -2)
    return lines


def normalise_gates(logits: torch.Tensor, directions: tuple[str, ...], rule: str) -> torch.Tensor:
    """(K, 3, B, G, H, W) logits -> gates of the same shape; a missing neighbour's gate is exactly 0."""
    gates = []
    for logit, direction in zip(logits, directions, strict=True):
        logit = to_scan_frame(logit, direction)
        gates.append(to_image_frame(_normalise(logit, existing(logit), rule), direction))
    return torch.stack(gates)


def existing(gates: torch.Tensor) -> torch.Tensor:
    """1 where gate (3, ..., lines, cross) has its neighbour on the map, 0 where it has not."""
    exists = torch.ones_like(gates)
    exists[0, ..., 0] = 0
    exists[2, ..., -1] = 0
    return exists


def _normalise(logit: torch.Tensor, exists: torch.Tensor, rule: str) -> torch.Tensor:
    """The rules of `NORMALISATIONS`, on (3, ..., lines, cross)."""
    missing = exists == 0
    if rule == "softmax":
        return logit.masked_fill(missing, -torch.inf).softmax(0)
    # Filled, and not multiplied by 0: a logit of a missing neighbour may be anything, infinite as well.
    logit = logit.masked_fill(missing, 0)
    if rule == "absolute":
        return logit / logit.abs().sum(0, keepdim=True).clamp(min=1)
    if rule == "tanh":
        return logit.tanh()
    if rule == "none":
        return logit
    weight = torch.sigmoid(logit).masked_fill(missing, 0)
    return weight / weight.sum(0, keepdim=True).clamp(min=SMALLEST_SUM)


def complement(gates: torch.Tensor, directions: tuple[str, ...], chunk: int | None) -> torch.Tensor:
    """(K, 3, B, G, H, W) gates -> 1 minus the sum of those that are read, (K, B, G, H, W)."""
    weights = []
    for gate, direction in zip(gates, directions, strict=True):
        gate = to_scan_frame(gate, direction)
        read = existing(gate)
        read[..., :: chunk or gate.shape[-2], :] = 0
        weights.append(to_image_frame(1 - (gate * read).sum(0), direction))
    return torch.stack(weights)


def propagate(
    x: torch.Tensor, gates: torch.Tensor, lam: torch.Tensor | None, directions: tuple[str, ...], chunk: int | None
) -> torch.Tensor:
    """x (K or 1, B, C, H, W), gates (K, 3, B, C or 1, H, W), lam (K, B, C or 1, H, W) or None -> (K, B, C, H, W)."""
    outputs = []
    for k, direction in enumerate(directions):
        source = x[k if x.shape[0] > 1 else 0]
        if lam is not None:
            source = lam[k] * source
        h = _scan(to_scan_frame(source, direction), to_scan_frame(gates[k], direction), chunk)
        outputs.append(to_image_frame(h, direction))
    return torch.stack(outputs)


def mix(
    v: torch.Tensor,
    logits: torch.Tensor,
    lam: torch.Tensor | None,
    u: torch.Tensor | None,
    skip: torch.Tensor | None,
    weight: torch.Tensor,
    directions: tuple[str, ...],
    chunk: int | None,
    rule: str,
) -> torch.Tensor:
    """v (B, C, H, W), logits (K, 3, B, C or 1, H, W), lam, u, skip (K, B, C or 1, H, W) or None, weight (K,) -> y."""
    h = propagate(v.unsqueeze(0), normalise_gates(logits, directions, rule), lam, directions, chunk)
    return merge(v, h, u, skip, weight)


def merge(
    v: torch.Tensor, h: torch.Tensor, u: torch.Tensor | None, skip: torch.Tensor | None, weight: torch.Tensor
) -> torch.Tensor:
    """sum over k of weight[k] (u[k] h[k] + skip[k] v) for h (K, B, C, H, W); None is 1 for u and 0 for skip."""
    mixed = h if u is None else u * h
    if skip is not None:
        mixed = mixed + skip * v
    return torch.tensordot(weight, mixed, dims=1)


def _scan(source: torch.Tensor, gates: torch.Tensor, chunk: int | None) -> torch.Tensor:
    """source (B, C, lines, cross), gates (3, B, C or 1, lines, cross) -> h, shaped as source."""
    lines = []
    for t, line in enumerate(source.unbind(-2)):
        if t % (chunk or source.shape[-2]) == 0:
            lines.append(line)
            continue
        before, at, after = gates[..., t, :]
        previous = lines[-1]
        from_before = F.pad(before[..., 1:] * previous[..., :-1], (1, 0))
        from_after = F.pad(after[..., :-1] * previous[..., 1:], (0, 1))
        lines.append(line + from_before + at * previous + from_after)
    return torch.stack(lines, dim=-2)
