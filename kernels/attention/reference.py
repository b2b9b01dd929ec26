"""The definition of neighbourhood attention, in plain PyTorch.

Any float dtype, any device, gradients by autograd. It is written to be read: for every query the keys it reads are
gathered from the map, by the row rule and then by the column rule, and an ordinary softmax mixes their values.
"""

import torch

from .pattern import Axis, Pattern


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pattern: Pattern, bias: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """q, k, v (B, H, W, heads, d), bias (heads, 2 kh - 1, 2 kw - 1) or None -> (B, H, W, heads, d).

    Letters of the einsum: b image; r, c the query's row and column; i, j number the rows and columns of its keys;
    h head; d channel.
    """
    rows, row_exists = _key_table(pattern.rows, q.shape[1], q.device)
    cols, col_exists = _key_table(pattern.cols, q.shape[2], q.device)
    logits = torch.einsum("brchd,bricjhd->brchij", q * scale, _gather(k, rows, cols))
    if bias is not None:
        logits = logits + _bias_of_keys(bias, pattern, rows, cols)
    exists = row_exists[:, None, None, :, None] & col_exists[None, :, None, None, :]
    logits = logits.masked_fill(~exists, -torch.inf)
    weights = logits.flatten(-2).softmax(-1).view_as(logits)
    return torch.einsum("brchij,bricjhd->brchd", weights, _gather(v, rows, cols))


def _key_table(axis: Axis, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(size, n): the positions each query reads along an axis, and whether an entry exists (queries may read fewer)."""
    keys = [list(axis.keys(i, size)) for i in range(size)]
    n = max(map(len, keys))
    table = torch.tensor([row + [0] * (n - len(row)) for row in keys], device=device)
    lengths = torch.tensor([len(row) for row in keys], device=device)
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


def _query_minus_key(table: torch.Tensor, axis: Axis) -> torch.Tensor:
    """Index into the bias table along one axis; an entry that does not exist is sent anywhere inside the table."""
    queries = torch.arange(len(table), device=table.device)[:, None]
    return (queries - table + axis.kernel - 1).clamp(0, 2 * axis.kernel - 2)
