"""The definition of isotropic diffusion, in plain PyTorch: any float dtype, any device, gradients by autograd."""

import torch
import torch.nn.functional as F

#: Keeps the sum of eight vanishing magnitudes from dividing by zero.
SMALLEST_SUM = 1e-7


def shifted(maps: torch.Tensor) -> torch.Tensor:
    """The eight neighbours of every position, in the order of `NEIGHBOURS`, 0 outside: (B, C, H, W) -> (B, 8, C, H, W).

    The offsets are written out by slices of the padded map, row by row and without the position itself.
    """
    height, width = maps.shape[-2:]
    padded = F.pad(maps, (1, 1, 1, 1))
    places = [(r, c) for r in range(3) for c in range(3) if (r, c) != (1, 1)]
    return torch.stack([padded[..., r : r + height, c : c + width] for r, c in places], 1)


def normalise_affinity(logits: torch.Tensor) -> torch.Tensor:
    """(B, 8, C, H, W) logits -> kappa of the same shape; a missing neighbour's is exactly 0."""
    exists = shifted(torch.ones_like(logits[:1, 0, :1]))
    logits = logits.masked_fill(exists == 0, 0)
    return logits / logits.abs().sum(1, keepdim=True).clamp(min=SMALLEST_SUM)


def diffuse(x: torch.Tensor, kappa: torch.Tensor, steps: int) -> torch.Tensor:
    """x (B, C, H, W), kappa (B, 8, C or 1, H, W) -> (B, C, H, W)."""
    kept = (1 - kappa.sum(1)) * x
    h = x
    for _ in range(steps):
        h = kept + (kappa * shifted(h)).sum(1)
    return h
