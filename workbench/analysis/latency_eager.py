"""What our kernels are compared with: the same mathematics written in plain PyTorch as well as one would write it.

The reference backends are written to be read. Here all directions of a scan share one loop over lines, chunks are
walked side by side, and windows are a batch of small attentions. Everything runs on any device, forward and backward.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from workbench.models.gspn import Gspn, Propagation, by_direction

#: Keeps the row sum of three vanishing sigmoids from dividing by zero.
SMALLEST_SUM = 1e-7


def to_frames(maps: torch.Tensor) -> torch.Tensor:
    """(4, ..., H, W) square, one for each direction -> (4, ..., lines, cross): its frame, line 0 where it starts."""
    left_right, top_bottom, right_left, bottom_top = maps
    return torch.stack(
        [left_right.transpose(-1, -2), top_bottom, right_left.transpose(-1, -2).flip(-2), bottom_top.flip(-2)]
    )


def to_image(frames: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_frames`."""
    left_right, top_bottom, right_left, bottom_top = frames
    return torch.stack(
        [left_right.transpose(-1, -2), top_bottom, right_left.flip(-2).transpose(-1, -2), bottom_top.flip(-2)]
    )


def merge_frames(frames: torch.Tensor) -> torch.Tensor:
    """The sum of `to_image`, with fewer steps: (4, B, C, lines, cross) -> (B, C, H, W)."""
    across, down = frames[0] + frames[2].flip(-2), frames[1] + frames[3].flip(-2)
    return across.transpose(-1, -2) + down


def gates_in_frames(logits: torch.Tensor) -> torch.Tensor:
    """Row-stochastic gates from logits (4, 3, B, C, lines, cross) in the frames of the scans."""
    weights = logits.sigmoid()
    inside = torch.ones(3, 1, 1, 1, weights.shape[-1], dtype=weights.dtype, device=weights.device)
    inside[0, ..., 0] = inside[2, ..., -1] = 0
    weights = weights * inside
    return weights / weights.sum(1, keepdim=True).clamp(min=SMALLEST_SUM)


def eager_gates(logits: torch.Tensor) -> torch.Tensor:
    """The same in image coordinates, where nothing has to be moved: (4, 3, B, C, H, W)."""
    weights = logits.sigmoid()
    height, width = weights.shape[-2:]
    inside = torch.ones(4, 3, 1, 1, height, width, dtype=weights.dtype, device=weights.device)
    inside[::2, 0, ..., 0, :] = inside[::2, 2, ..., -1, :] = 0
    inside[1::2, 0, ..., 0] = inside[1::2, 2, ..., -1] = 0
    weights = weights * inside
    return weights / weights.sum(1, keepdim=True).clamp(min=SMALLEST_SUM)


def scan_in_frames(x: torch.Tensor, gates: torch.Tensor, chunk: int | None) -> torch.Tensor:
    """The scan of x (4, B, C, lines, cross) with gates (4, 3, B, C, lines, cross), all chunks and directions at once.

    Raises:
        ValueError: the lines are no multiple of the chunk.
    """
    lines = x.shape[-2]
    chunk = min(chunk or lines, lines)
    if lines % chunk:
        raise ValueError(f"The eager scan takes chunks that divide the lines; got {lines} lines in chunks of {chunk}.")
    xs = x.unflatten(-2, (-1, chunk)).unbind(-2)
    lefts, sames, rights = (gates[:, j].unflatten(-2, (-1, chunk)).unbind(-2) for j in range(3))
    out = [xs[0]]
    for t in range(1, chunk):
        padded = F.pad(out[-1], (1, 1))
        h = torch.addcmul(xs[t], lefts[t], padded[..., :-2])
        h = torch.addcmul(h, sames[t], out[-1])
        out.append(torch.addcmul(h, rights[t], padded[..., 2:]))
    return torch.stack(out, -2).flatten(-3, -2)


def eager_propagate(x: torch.Tensor, gates: torch.Tensor, lam: torch.Tensor, chunk: int | None) -> torch.Tensor:
    """`kernels.propagation.propagate` with maps for every channel: x (B, C, H, W) -> (4, B, C, H, W)."""
    gates = to_frames(gates)
    return to_image(scan_in_frames(to_frames(lam * x), gates, chunk))


def eager_mix(
    v: torch.Tensor,
    logits: torch.Tensor,
    lam: torch.Tensor,
    u: torch.Tensor,
    skip: torch.Tensor,
    weight: torch.Tensor,
    chunk: int | None,
) -> torch.Tensor:
    """`kernels.propagation.mix` with maps for every channel: v (B, C, H, W) -> (B, C, H, W)."""
    h = eager_propagate(v, eager_gates(logits), lam, chunk)
    return torch.tensordot(weight, torch.addcmul(skip * v, u, h), dims=1)


class EagerPropagation(nn.Module):
    """A GSPN mixing layer whose mixing step is plain PyTorch, with the parameters of ours.

    The maps are predicted in the frames of the scans, from p, which has few channels; so only v, and in the end the two
    sums of opposite directions, are carried from one frame to another.
    """

    def __init__(self, ours: Propagation) -> None:
        super().__init__()
        self.ours, self.chunk = ours, ours.chunk

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ours = self.ours
        v = ours.conv2d(ours.in_proj(x))
        frames, p = (to_frames(t.expand(4, *t.shape)) for t in (v, ours.x_conv_down(v)))
        gate_weight = ours.w_conv_up.weight.flatten(1).unflatten(0, (3, 4, -1)).transpose(0, 1)
        gates = gates_in_frames(_predict(gate_weight, p.unsqueeze(1)))
        lam, u, skip = (_predict(by_direction(conv), p) for conv in (ours.l_conv_up, ours.u_conv_up, ours.d_conv))
        h = scan_in_frames(lam * frames, gates, self.chunk)
        y = merge_frames(ours.m_conv.weight.view(-1, 1, 1, 1, 1) * (u * h + skip * frames))
        return ours.out_proj(ours.grn(ours.out_norm(y)))


def _predict(weight: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """1 x 1 convolutions of maps in frames: (4, ..., D, r) and (4, ..., B, r, lines, cross) -> (4, ..., B, D, ...)."""
    return (weight.unsqueeze(-3) @ p.flatten(-2)).unflatten(-1, p.shape[-2:])


def eager_gspn(model: Gspn) -> Gspn:
    """A copy of a GSPN whose mixing layers are `EagerPropagation`, with the same weights.

    Raises:
        ValueError: the merge is not "aligned".
    """
    if model.merge != "aligned":
        raise ValueError(f"The eager GSPN has the merge 'aligned'; got {model.merge!r}.")
    eager = copy.deepcopy(model)
    for _, block in eager.named_blocks():
        block.op = EagerPropagation(block.op)
    return eager


def eager_windows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, window: int, shift: int
) -> torch.Tensor:
    """Swin's window attention as a batch of windows: roll, partition, PyTorch's attention with bias and mask, back.

    Args:
        q, k, v: (B, H, W, heads, d), sides multiples of the window.
        bias: (heads, 2 window - 1, 2 window - 1), read at query minus key.
        window, shift: positions.

    Source: Swin (arXiv 2103.14030), section 3.2, the cyclic shift.
    """
    batch, height, width, heads, channels = q.shape
    rows, cols = height // window, width // window

    def parted(t: torch.Tensor) -> torch.Tensor:  # (B windows, heads, window ** 2, d)
        t = t.roll((-shift, -shift), (1, 2)) if shift else t
        t = t.view(batch, rows, window, cols, window, heads, channels).permute(0, 1, 3, 5, 2, 4, 6)
        return t.reshape(batch * rows * cols, heads, window * window, channels)

    added = _window_bias(bias, window)
    if shift:
        added = added + _shift_mask((height, width), window, shift, q.device).to(q.dtype).repeat(batch, 1, 1, 1)
    out = F.scaled_dot_product_attention(parted(q), parted(k), parted(v), attn_mask=added)
    out = out.view(batch, rows, cols, heads, window, window, channels).permute(0, 1, 4, 2, 5, 3, 6)
    out = out.reshape(batch, height, width, heads, channels)
    return out.roll((shift, shift), (1, 2)) if shift else out


def _window_bias(bias: torch.Tensor, window: int) -> torch.Tensor:
    """The bias of every pair in a window: (heads, 2 window - 1, 2 window - 1) -> (heads, window ** 2, window ** 2)."""
    at = torch.arange(window, device=bias.device)
    offset = at[:, None] - at[None, :] + window - 1
    table = bias[:, offset[:, None, :, None], offset[None, :, None, :]]
    return table.reshape(bias.shape[0], window**2, window**2)


def _shift_mask(grid: tuple[int, int], window: int, shift: int, device: torch.device) -> torch.Tensor:
    """0 for pairs of a rolled window that were neighbours before, -inf for others.

    (windows, 1, window ** 2, window ** 2).
    """
    parts = []
    for size in grid:
        part = torch.zeros(size, device=device)
        part[-window:], part[-shift:] = 1, 2
        parts.append(part)
    region = 3 * parts[0][:, None] + parts[1][None, :]
    region = region.view(grid[0] // window, window, grid[1] // window, window).transpose(1, 2)
    region = region.reshape(-1, 1, window * window)
    return torch.where(region.unsqueeze(-1) == region.unsqueeze(-2), 0.0, -torch.inf)
