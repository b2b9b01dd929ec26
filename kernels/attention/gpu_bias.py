"""The gradient of the relative position bias from sums over pairs of slots, on the host's side of the launches."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def add_pairs(
    table: torch.Tensor, pairs: torch.Tensor, slots: tuple[int, int, int, int], offsets: Sequence[tuple[int, int]]
) -> None:
    """Add each pair of slots to the entry of the bias that it is.

    Args:
        table: (heads, 2 kh - 1, 2 kw - 1), added to.
        pairs: (n, heads, queries, keys), a sum for each pair of a query slot and a key slot in n groups of tiles.
        slots: rows and columns of the queries, then rows and columns of the keys.
        offsets: of each group, rows and columns from key slot 0 to query slot 0, in steps.
    """
    q_rows, q_cols, k_rows, k_cols = slots
    by_axis = pairs.unflatten(3, (k_rows, k_cols)).unflatten(2, (q_rows, q_cols)).transpose(3, 4)
    by_col = _sum_by_distance(by_axis).movedim(-1, 2)  # n, heads, column distance, rows of the query, rows of the key
    sums = _sum_by_distance(by_col).transpose(2, 3)
    for group, (down, right) in zip(sums, offsets, strict=True):
        rows, own_rows = _overlap(down - (k_rows - 1), group.shape[1], table.shape[1])
        cols, own_cols = _overlap(right - (k_cols - 1), group.shape[2], table.shape[2])
        table[:, rows, cols] += group[:, own_rows, own_cols]


def _sum_by_distance(pairs: torch.Tensor) -> torch.Tensor:
    """(..., n, m) of (query slot, key slot) -> (..., n + m - 1), entry e the sum where query - key = e - (m - 1).

    With the keys reversed these are sums along antidiagonals. Rows padded to n + m and read back as rows of n + m - 1
    are shifted by one more for each row, which turns antidiagonals into columns.
    """
    n, m = pairs.shape[-2:]
    shifted = F.pad(pairs.flip(-1), (0, n)).flatten(-2)[..., :-n]
    return shifted.unflatten(-1, (n, n + m - 1)).sum(-2)


def _overlap(first: int, count: int, entries: int) -> tuple[slice, slice]:
    """Which entries of a table, whose middle is distance 0, `count` distances from `first` on are, and which of these.

    Distances outside the table belong to pairs that the pattern forbids, whose sums are 0.
    """
    start = first + entries // 2
    begin, end = max(start, 0), min(start + count, entries)
    return slice(begin, max(begin, end)), slice(begin - start, max(begin, end) - start)
