"""Check and time the Triton propagation kernels on a GPU, and write what was found as JSON.

Run `.venv/bin/python tools/measure_propagation.py propagation.json` on a machine with a GPU. First outputs and all
gradients of the scan, the gates and the fused mixer are compared with the reference in float64. Then, with four
directions:

    propagate   forward and backward, float32 and bfloat16, 1024 x 1024 with 16 images of 8 channels and 64 x 64 with
                one of 1152, against the least bytes over the measured bandwidth of a copy ("floor")
    lines       the same forward pass with a few launches of plain PyTorch for every line
    fused       `mix` in one kernel, forward, and forward with backward, at these shapes and at GSPN-T's stages for 64
                images of 224 pixels
    unfused     the same from the kernels of normalise_gates and propagate, and the merge
    resolution  propagate and mix from 256 x 256 to 8192 x 8192, one image of 8 channels, bfloat16, forward

What cannot run on the machine is reported with its error instead of a time. Every time is the median, 20th and 80th
percentile of triton.testing.do_bench, which overwrites the level 2 cache before each run.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import kernels  # noqa: F401, I001  (first: it sets what OpenMP reads when torch loads it)
import torch

from kernels import propagation as p
from kernels.propagation import reference

DIRECTIONS = len(p.DIRECTIONS)
COPY_BYTES = 2**30
#: What do_bench is given to warm up and to repeat, in milliseconds.
WARM_UP, REPEAT = 100, 500


class Shape(NamedTuple):
    """Maps of images and channels, and how many lines a chunk has."""

    batch: int
    channels: int
    height: int
    width: int
    chunk: int | None = None

    @property
    def maps(self) -> tuple[int, int, int, int]:
        return self[:4]


#: Where the kernels' goals are set.
GOALS = (Shape(16, 8, 1024, 1024), Shape(1, 1152, 64, 64))
#: The stages of GSPN-T at 224 pixels: two are local.
STAGES = (Shape(64, 144, 56, 56, 2), Shape(64, 288, 28, 28, 2), Shape(64, 576, 14, 14), Shape(64, 1152, 7, 7))
SIDES = (256, 512, 1024, 2048, 4096, 8192)
#: Small and odd, several channels a program, several warps a line, and a chunk that does not divide the lines.
CHECKED = (
    Shape(2, 5, 7, 7),
    Shape(2, 3, 14, 14),
    Shape(1, 4, 56, 56, 2),
    Shape(1, 2, 37, 61, 5),
    Shape(1, 2, 130, 260),
)


def allowed(dtype: torch.dtype) -> float:
    """The relative error that a dtype may have: float32 sums many terms, the others lose more where they are stored."""
    return (40 if dtype == torch.float32 else 8) * torch.finfo(dtype).eps


def drawn(shape: Shape, dtype: torch.dtype, device: torch.device, groups: int | None = None) -> list[torch.Tensor]:
    """v, logits, lam, u, skip and weight of the mixer; `groups` channels of gates instead of one for each."""
    batch, channels, height, width = shape.maps
    each = (DIRECTIONS, *shape.maps)
    shapes = [shape.maps, (DIRECTIONS, 3, batch, groups or channels, height, width), each, each, each, (DIRECTIONS,)]
    return [torch.randn(s, device=device, dtype=dtype) for s in shapes]


def unfused(
    v: torch.Tensor, logits: torch.Tensor, lam: torch.Tensor, u: torch.Tensor, skip: torch.Tensor, weight: torch.Tensor,
    chunk: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """The mixer from the kernels of its parts."""
    h = p.propagate(v, p.normalise_gates(logits, backend="triton"), lam, chunk=chunk, backend="triton")
    return reference.merge(v, h, u, skip, weight)


def by_lines(x: torch.Tensor, gates: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
    """`propagate` in plain PyTorch: four launches for each line."""
    h = torch.empty_like(lam)
    for k, direction in enumerate(p.DIRECTIONS):
        source, out = (reference.to_scan_frame(t, direction) for t in (x, h[k]))
        weight, gate = (reference.to_scan_frame(t[k], direction) for t in (lam, gates))
        _lines(source, weight, gate, out)
        h[k].copy_(reference.to_image_frame(out, direction))
    return h


def _lines(source: torch.Tensor, weight: torch.Tensor, gate: torch.Tensor, out: torch.Tensor) -> None:
    for t in range(source.shape[-2]):
        line = torch.mul(weight[..., t, :], source[..., t, :], out=out[..., t, :])
        if t:
            before = out[..., t - 1, :]
            line[..., 1:].addcmul_(gate[0, ..., t, 1:], before[..., :-1])
            line.addcmul_(gate[1, ..., t, :], before)
            line[..., :-1].addcmul_(gate[2, ..., t, :-1], before[..., 1:])


def error_of(function: Callable[..., torch.Tensor], stored: list[torch.Tensor]) -> float:
    """The largest relative error (Frobenius norm) of the output and the gradients against the reference in float64."""
    found: list[list[torch.Tensor]] = []
    for backend, kind in (("triton", stored[0].dtype), ("reference", torch.float64)):
        leaves = [tensor.to(kind).requires_grad_() for tensor in stored]
        out = function(*leaves, backend=backend)
        grad = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=torch.float64).view_as(out)
        found.append([out, *torch.autograd.grad(out, leaves, grad.to(kind))])
    pairs = zip(*found, strict=True)
    return max(((ours.double() - exact).norm() / exact.norm().clamp(min=1e-30)).item() for ours, exact in pairs)


class Case(NamedTuple):
    """What is compared with the reference: the scan, or the mixer with a rule and a gate for `groups` channels."""

    shape: Shape
    dtype: torch.dtype
    rule: str | None = None
    shared: bool = False


def cases() -> list[Case]:
    """All rules, shapes, storage types and shared gates, each somewhere: every one of them compiles its own kernels."""
    kinds, odd = (torch.float32, torch.bfloat16), CHECKED[3]
    return [
        *(Case(shape, dtype, rule) for shape in CHECKED for dtype in kinds for rule in (None, "sigmoid")),
        *(Case(odd, torch.float16, rule) for rule in (None, "sigmoid")),
        *(Case(shape, torch.bfloat16, "sigmoid", shared=True) for shape in CHECKED[1:4]),
        *(Case(odd, torch.float32, rule) for rule in p.NORMALISATIONS if rule != "sigmoid"),
    ]


def check(case: Case, device: torch.device) -> dict[str, Any]:
    """The error of a case, and whether it is allowed."""
    chunk, rule, limit = case.shape.chunk, case.rule, allowed(case.dtype)
    v, logits, lam, *others = drawn(case.shape, case.dtype, device, 1 if case.shared else None)
    if rule is None:
        gates = p.normalise_gates(logits, backend="reference")
        error = error_of(lambda *t, backend: p.propagate(*t, chunk=chunk, backend=backend), [v, gates, lam])
    else:
        # Rules that are not stable grow along the lines.
        logits = logits / 10 if rule in ("tanh", "none") else logits
        given = [v, logits, lam, *others]
        error = error_of(lambda *t, backend: p.mix(*t, chunk=chunk, rule=rule, backend=backend), given)
    return case._asdict() | {"dtype": str(case.dtype), "error": error, "allowed": limit, "passed": error <= limit}


def least_bytes(method: str, shape: Shape, dtype: torch.dtype, way: str) -> int:
    """Bytes that an operator must move: every input and output once, as in kernels/README.md, gates for each channel.

    way: "forward", "backward", or "both", which is the forward pass and then the backward.
    """
    maps = shape.batch * shape.channels * shape.height * shape.width * dtype.itemsize
    if method == "mix":  # v, y, and three logits, lam, u and skip a direction; dy, dv and their gradients
        forward, backward = 2 + 6 * DIRECTIONS, 3 + 12 * DIRECTIONS
    else:  # x, and three gates, lam and h a direction; dh, dx and the gradients of gates and lam
        forward, backward = 1 + 5 * DIRECTIONS, 2 + 10 * DIRECTIONS
    return maps * {"forward": forward, "backward": backward, "both": forward + backward}[way]


def time_of(run: Callable[[], Any]) -> dict[str, float]:
    """Median, 20th and 80th percentile of a run in milliseconds."""
    from triton.testing import do_bench

    median, p20, p80 = do_bench(run, warmup=WARM_UP, rep=REPEAT, quantiles=[0.5, 0.2, 0.8])
    return {"median_ms": median, "p20_ms": p20, "p80_ms": p80}


def bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy within the GPU's memory."""
    source = torch.randint(0, 100, (COPY_BYTES,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / (time_of(lambda: target.copy_(source))["median_ms"] / 1000)


def attempt(row: dict[str, Any], prepare: Callable[[], Callable[[], Any]], floor_ms: float | None) -> dict[str, Any]:
    """`row` with the times of what `prepare` returns and the share of the floor reached, or with the error."""
    try:
        found: dict[str, Any] = time_of(prepare())
    except Exception as error:  # what one method cannot do must not cost the other numbers
        found = {"error": f"{type(error).__name__}: {error}"[:500]}
    finally:
        torch.cuda.empty_cache()
    if floor_ms is not None and "median_ms" in found:
        found |= {"floor_ms": floor_ms, "share_of_floor": floor_ms / found["median_ms"]}
    return row | found


def scans(shape: Shape, dtype: torch.dtype, speed: float, device: torch.device) -> Iterator[dict[str, Any]]:
    """The scan forward and backward, and line by line."""
    from kernels.propagation import gpu

    v, logits, lam = drawn(shape, dtype, device)[:3]
    gates = p.normalise_gates(logits, backend="triton")
    scan = p.Scan(p.DIRECTIONS, shape.chunk)
    del logits

    def backward() -> Callable[[], Any]:
        h, saved = gpu.forward(scan, v.unsqueeze(0), gates, lam)
        grad = torch.randn_like(h)
        return lambda: gpu.backward(scan, (True, True, True), grad, saved)

    ways: list[tuple[str, str, Callable[[], Callable[[], Any]]]] = [
        ("propagate", "forward", lambda: lambda: gpu.forward(scan, v.unsqueeze(0), gates, lam)),
        ("propagate", "backward", backward),
        ("lines", "forward", lambda: lambda: by_lines(v, gates, lam)),
    ]
    for method, way, prepare in ways:
        floor = 1000 * least_bytes("propagate", shape, dtype, way) / speed
        yield attempt({"method": method, "way": way, "shape": shape, "dtype": str(dtype)}, prepare, floor)


def mixers(shape: Shape, dtype: torch.dtype, speed: float, device: torch.device) -> Iterator[dict[str, Any]]:
    """The mixer in one kernel and from its parts."""
    inputs, grad = drawn(shape, dtype, device), torch.randn(shape.maps, device=device, dtype=dtype)

    def fused(*t: torch.Tensor, chunk: int | None) -> torch.Tensor:
        return p.mix(*t, chunk=chunk, backend="triton")

    def both(function: Callable[..., torch.Tensor]) -> Callable[[], Any]:
        leaves = [t.detach().requires_grad_() for t in inputs]
        return lambda: torch.autograd.grad(function(*leaves, chunk=shape.chunk), leaves, grad)

    functions: dict[str, Callable[..., torch.Tensor]] = {"fused": fused, "unfused": unfused}
    for method, function in functions.items():
        row = {"method": method, "shape": shape, "dtype": str(dtype)}

        def forward(function: Callable[..., torch.Tensor] = function) -> Callable[[], Any]:
            return lambda: function(*inputs, chunk=shape.chunk)

        floors = {way: 1000 * least_bytes("mix", shape, dtype, way) / speed for way in ("forward", "both")}
        yield attempt(row | {"way": "forward"}, forward, floors["forward"])
        yield attempt(row | {"way": "both"}, lambda function=function: both(function), floors["both"])  # type: ignore[misc]


def resolutions(speed: float, device: torch.device) -> Iterator[dict[str, Any]]:
    """The scan and the mixer against the side of the map."""
    dtype = torch.bfloat16
    for side in SIDES:
        shape = Shape(1, 8, side, side)

        def propagate(shape: Shape = shape) -> Callable[[], Any]:
            v, gates, lam = drawn(shape, dtype, device)[:3]
            return lambda: p.propagate(v, gates / 3, lam, backend="triton")

        def mix(shape: Shape = shape) -> Callable[[], Any]:
            inputs = drawn(shape, dtype, device)
            return lambda: p.mix(*inputs, backend="triton")

        for method, prepare in (("propagate", propagate), ("mix", mix)):
            row = {"method": f"resolution, {method}", "way": "forward", "shape": shape, "dtype": str(dtype)}
            yield attempt(row, prepare, 1000 * least_bytes(method, shape, dtype, "forward") / speed)


def described(device: torch.device) -> dict[str, Any]:
    """Machine, versions, commit and method."""
    import triton

    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    return {
        "device": torch.cuda.get_device_name(device),
        "versions": {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()},
        "cuda": torch.version.cuda,
        "commit": commit,
        "uncommitted_changes": bool(changed),
        "method": f"triton.testing.do_bench, {WARM_UP} ms to warm up, {REPEAT} ms of runs, level 2 cache overwritten",
    }


def main() -> None:
    """Check, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path, help="the JSON file to write")
    output = parser.parse_args().output
    if not torch.cuda.is_available():
        parser.error("there is no GPU on this machine (torch.cuda.is_available() is False).")
    device = torch.device("cuda")
    torch.manual_seed(0)
    checks = [check(case, device) for case in cases()]
    result = described(device) | {"checks": checks}
    output.write_text(json.dumps(result, indent=1))
    failed = [row for row in checks if not row["passed"]]
    if failed:
        sys.exit("wrong results, nothing was timed:\n" + "\n".join(map(str, failed)))
    speed = bandwidth(device)
    rows: list[dict[str, Any]] = []
    for shape in GOALS:
        for dtype in (torch.float32, torch.bfloat16):
            rows += [*scans(shape, dtype, speed, device), *mixers(shape, dtype, speed, device)]
    for stage in STAGES:
        rows += mixers(stage, torch.bfloat16, speed, device)
    rows += resolutions(speed, device)
    output.write_text(json.dumps(result | {"copy_bytes_per_second": speed, "times": rows}, indent=1))
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
