"""The definition of neighbourhood attention, in plain PyTorch.

Any float dtype, any device, gradients by autograd. It is written to be read: for every query the keys it reads are
gathered from the map, by the row rule and then by the column rule, and an ordinary softmax mixes their values.
"""

import torch

from .axis import Axis, Rule
from .pattern import Pattern

Extra = tuple[torch.Tensor, torch.Tensor]


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pattern: Pattern,
    bias: torch.Tensor | None,
    scale: float,
    extra: Extra | None = None,
) -> torch.Tensor:
    """q (B, H, W, heads, d), k, v the same (or another grid, if all of it is read) -> (B, H, W, heads, d).

    bias (heads, 2 kh - 1, 2 kw - 1) or None, read at query minus key; extra: keys and values (B, S, heads, d) that
    every query reads besides.
    """
    count = q.shape[3] // len(pattern.groups)
    groups = []
    for n, group in enumerate(pattern.groups):
        own = slice(n * count, (n + 1) * count)
        more = None if extra is None else (extra[0][:, :, own], extra[1][:, :, own])
        table = None if bias is None else bias[own]
        groups.append(_attend(q[..., own, :], k[..., own, :], v[..., own, :], group, table, scale, more))
    return torch.cat(groups, 3)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pattern: Pattern,
    bias: torch.Tensor | None,
    scale: float,
    extra: Extra | None,
) -> torch.Tensor:
    """One group of heads. Letters of the einsum: b image; r, c the query's row and column; i, j number the rows and
    columns of its keys; s numbers extra keys; h head; d channel.
    """
    rows, row_exists = _key_table(pattern.rows, q.shape[1], k.shape[1], q.device)
    cols, col_exists = _key_table(pattern.cols, q.shape[2], k.shape[2], q.device)
    logits = torch.einsum("brchd,bricjhd->brchij", q * scale, _gather(k, rows, cols))
    if bias is not None:
        logits = logits + _bias_of_keys(bias, pattern, rows, cols)
    exists = row_exists[:, None, None, :, None] & col_exists[None, :, None, None, :]
    if pattern.radius is not None:
        down, right = (torch.arange(len(keys), device=q.device)[:, None] - keys for keys in (rows, cols))
        near = down[:, None, :, None] ** 2 + right[None, :, None, :] ** 2 < pattern.radius**2
        exists = exists & near[:, :, None]
    logits = logits.masked_fill(~exists, -torch.inf)
    flat = logits.flatten(-2)
    if extra is not None:
        flat = torch.cat([flat, torch.einsum("brchd,bshd->brchs", q * scale, extra[0])], -1)
    weights = flat.softmax(-1)
    local = weights[..., : logits.shape[-2] * logits.shape[-1]].view_as(logits)
    out = torch.einsum("brchij,bricjhd->brchd", local, _gather(v, rows, cols))
    if extra is not None:
        out = out + torch.einsum("brchs,bshd->brchd", weights[..., -extra[0].shape[1] :], extra[1])
    return out


def _key_table(rule: Rule, size: int, keys: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(size, n): the positions each query reads along an axis, and whether an entry exists (queries may read fewer).

    An axis that is read as a whole may have another number of keys than queries.
    """
    read = [list(rule.keys(i, keys)) for i in range(size)]
    n = max(map(len, read))
    table = torch.tensor([row + [0] * (n - len(row)) for row in read], device=device)
    lengths = torch.tensor([len(row) for row in read], device=device)
    return table, torch.arange(n, device=device) < lengths[:, None]


def _gather(tokens: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
    """Tokens (B, H, W, heads, d) -> what each query reads, (B, H, rows, W, cols, heads, d)."""
    tokens = tokens.index_select(1, rows.flatten()).unflatten(1, rows.shape)
    return tokens.index_select(3, cols.flatten()).unflatten(3, cols.shape)


def _bias_of_keys(bias: torch.Tensor, pattern: Pattern, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
    """The bias of each query's keys, read at query minus key: (H, W, heads, rows, cols)."""
    down = _query_minus_key(rows, pattern.rows)
    right = _query_minus_key(cols, pattern.cols)
    return bias[:, down[:, None, :, None], right[None, :, None, :]].permute(1, 2, 0, 3, 4)


def _query_minus_key(table: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Index into the bias table along one axis, in steps; an entry that does not exist is sent anywhere inside it."""
    assert isinstance(rule, Axis)  # a PowerAxis has no bias
    extent = rule.extent(len(table))
    queries = torch.arange(len(table), device=table.device)[:, None]
    steps = torch.div(queries - table, rule.step, rounding_mode="floor")
    return (steps + extent - 1).clamp(0, 2 * extent - 2)
