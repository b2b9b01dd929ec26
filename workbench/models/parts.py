"""Pieces that the model families are put together from."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a (B, C, H, W) map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Linear2d(nn.Linear):
    """A 1 x 1 convolution of a (B, C, H, W) map; its weight is stored as (out, in)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    """gamma (x N) + beta + x, where N = ||x|| / (mean over channels of ||x|| + 1e-6), norms over the positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        relative = norm / (norm.mean(1, keepdim=True) + 1e-6)
        return torch.addcmul(self.beta, x, self.gamma * relative + 1)


class Mlp(nn.Module):
    """Two linear layers around an exact GELU, `ratio` times as wide inside; `linear` decides if x is map or tokens."""

    def __init__(self, channels: int, linear: type[nn.Linear] = nn.Linear, ratio: int = 4) -> None:
        super().__init__()
        self.fc1 = linear(channels, ratio * channels)
        self.fc2 = linear(ratio * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Stage(nn.Module):
    """Blocks on one grid, then the step to the next grid."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.downsample(x)


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), on tokens (B, H, W, C)."""

    def __init__(self, channels: int, attn: nn.Module, ratio: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = attn
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, ratio=ratio)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Concatenate each 2 x 2 of tokens and project: (B, H, W, channels) -> (B, H / 2, W / 2, following)."""

    def __init__(self, channels: int, following: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, following, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Order of the four: down the first column, then down the second.
        quads = [x[:, row::2, col::2] for col in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(quads, -1)))


class PatchEmbed(nn.Module):
    """One token per patch: (B, 3, H, W) -> (B, H / patch, W / patch, C)."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch, patch)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))
