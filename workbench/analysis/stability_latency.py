"""How long the laboratory's scan takes on this machine, beside the least that its bytes and operations allow."""

from dataclasses import asdict

import numpy as np
import torch
import xarray as xr

from kernels.backends import choose
from kernels.propagation import propagate

from .latency import device_name, machine_rates, time_runs
from .spec import record
from .stability_scan import ALONG_ROWS, synthetic
from .stability_spec import StabilitySpec


def scan_latency(spec: StabilitySpec, seconds: float = 0.3) -> xr.Dataset:
    """Time one scan of a Spec's picture under its gates, forward, on the CPU: the reference, and what "auto" takes.

    Least bytes: x, lambda and three gates read once, h written once. Operations: 7 for each channel and position.

    Returns:
        For each backend (dimension "backend"): median, p20, p80 and floor in seconds, n; bytes and flops; and the
        machine's measured bandwidth and matmul rate that the floor is made of. attrs hold the Spec.
    """
    scan = synthetic(spec)
    x, gates, lam = scan.x[None].contiguous(), scan.gates[None, :, None, None], scan.lam[None, None]
    rates = machine_rates("cpu")
    least = x.element_size() * float(2 * x.numel() + gates.numel() + lam.numel())
    flops = 7.0 * x.numel()
    floor = max(least / rates["bandwidth"], flops / rates["matmul"])
    backends = list(dict.fromkeys(["reference", choose("auto", x)]))
    rows = []
    with torch.no_grad():
        for backend in backends:
            times = time_runs(
                lambda backend=backend: propagate(  # type: ignore[misc]
                    x, gates, lam, directions=ALONG_ROWS, chunk=spec.chunk, backend=backend
                ),
                torch.device("cpu"), seconds,
            )  # fmt: skip
            rows.append((*np.percentile(times, [50, 20, 80]), len(times), floor))
    info = {
        "batch": 1, "channels": x.shape[1], "dtype": spec.dtype, "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(), "direction": "forward", "method": "torch.utils.benchmark",
        "scan": asdict(spec),
    }  # fmt: skip
    names = ("median", "p20", "p80", "n", "floor")
    return xr.Dataset(
        {name: (("backend",), np.array(column)) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
        | {"bytes": least, "flops": flops}
        | {name: ((), rate) for name, rate in rates.items()},
        coords={"backend": backends},
        attrs=record("stability latency", spec, info),
    )
