"""The definition of slice-by-slice convolution, in plain PyTorch: any float dtype, any device, autograd."""

import torch
import torch.nn.functional as F

from kernels.propagation.reference import to_image_frame, to_scan_frame


def slice_convolve(
    x: torch.Tensor, weight: torch.Tensor, active: torch.Tensor | None, directions: tuple[str, ...]
) -> torch.Tensor:
    """x (B, C, H, W), weight (K, C, C, k), active (K, B or 1, C, H, W) bool or None -> (B, C, H, W)."""
    for k, direction in enumerate(directions):
        passed = None if active is None else to_scan_frame(active[k], direction)
        lines, _ = _pass(to_scan_frame(x, direction), weight[k], passed)
        x = to_image_frame(lines, direction)
    return x


def activity(x: torch.Tensor, weight: torch.Tensor, directions: tuple[str, ...]) -> torch.Tensor:
    """Where the ReLU of every pass lets its argument through: (K, B, C, H, W) bool."""
    found = []
    for k, direction in enumerate(directions):
        lines, passed = _pass(to_scan_frame(x, direction), weight[k], None)
        x = to_image_frame(lines, direction)
        found.append(to_image_frame(passed, direction))
    return torch.stack(found)


def _pass(x: torch.Tensor, weight: torch.Tensor, active: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """One pass over (B, C, lines, cross): what it makes of the map, and where its ReLU is active."""
    lines = [x[..., 0, :]]
    passed = [torch.zeros_like(x[..., 0, :], dtype=torch.bool)]
    for t in range(1, x.shape[-2]):
        convolved = F.conv1d(lines[-1], weight, padding=weight.shape[-1] // 2)
        passed.append(convolved > 0 if active is None else active[..., t, :].expand_as(convolved))
        lines.append(x[..., t, :] + torch.where(passed[-1], convolved, 0))
    return torch.stack(lines, -2), torch.stack(passed, -2)
