"""What each Triton kernel must do at the least: operations, bytes and their ratio, at a representative shape.

The formulas are those of README.md, taken apart by kernel. Every value that a kernel needs is read once from memory and
every result is written once; a cache that is too small moves more. One addition, product, division, exponential or
comparison of floating-point numbers is one operation; attention counts its products only, which are nearly all. Nothing
here needs Triton.

Shapes: `propagation` runs on one image of 96 channels with gates and lambda for every channel, and on a square map: as
wide as the kernel's line for scans, otherwise 64 x 64. `attention` runs on one image of 56 x 56 positions with three
heads, the first stage of swin_tiny.
"""

from dataclasses import dataclass
from functools import lru_cache

from kernels.attention.family import disc, full, neighborhood, power, swin
from kernels.attention.pattern import Pattern

#: Bytes of a stored value, by the name that kernels' variants have.
STORAGE = {"fp32": 4, "bf16": 2, "fp16": 2}
#: Bytes of states that are kept in float32 whatever the storage.
SINGLE = 4

CHANNELS, SIDE, DIRECTIONS = 96, 64, 4
#: A launch of a scan takes the two directions along one axis.
ALONG = 2

MAP, HEADS = (56, 56), 3
#: The patterns by the names in gpu_specs.CASES.
PATTERNS: dict[str, Pattern] = {
    "window": swin(7, 3),
    "small window": swin(5),
    "neighborhood": neighborhood(7),
    "disc": disc(8),
    "power": power(),
    "full": full(),
}
#: Patterns that are compiled with a table of biases.
BIASED = ("window", "small window", "neighborhood")


@dataclass(frozen=True)
class Cost:
    """Operations and least bytes of one launch at a shape, in words."""

    shape: str
    flops: int
    bytes: int

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.bytes


#: Rule -> operations at a position: to make three gates from logits, and their logits' gradients from the gates'.
RULES = {"sigmoid": (14, 33), "softmax": (13, 26), "absolute": (6, 16), "tanh": (15, 24), "none": (0, 0)}

#: Kernel -> operations at a position of a channel and direction, values of x that directions share, values of each
#: direction as they are stored, and values in float32. Scans: a product with lambda and three of gates, three sums.
_LINES = {
    "scan_rows": (7, 1, 5, 0),  # x; three gates, lambda, h
    "scan_columns": (7, 1, 5, 0),
    "adjoint_rows": (6, 0, 4, 1),  # dh, three gates; E
    "adjoint_columns": (6, 0, 4, 1),
    "gate_gradient": (3, 0, 4, 1),  # h, three gates' gradients; E
}
_FLAT = {
    "input_gradient": (2, 1, 1, 1),  # dx; lambda; E
    "weight_gradient": (1, 1, 1, 1),  # x; lambda's gradient; E
}

#: Kernel -> operations as above, values of v's shape that are stored once, logits and other values of each direction as
#: they are stored, and values of each direction in float32. Forward: three sigmoids of three operations, three
#: divisions, 12 of the scan, the sums and the merge. Backward: that again, 14 of the adjoint scan and its products, 21
#: of the rule, 6 of the merge. `add_parts` adds one float32 map for each direction.
_MIX = {
    "mix_forward": (24, 2, 3, 3, 0),  # v, y; logits; lambda, u, skip
    "mix_backward": (65, 3, 6, 6, 0),  # dy, v, dv; logits and their gradients; lambda, u, skip and their gradients
    "add_parts": (1, 1, 0, 0, 1),
}

#: Kernel -> what multiplies 2 pairs D in its products, tensors like q as they are stored, and values in float32 of each
#: query and head (logsumexp and delta).
_ATTENTION = {
    "forward_kernel": (2, 4, 1),  # q k, w v; q, k, v, out; lse
    "query_kernel": (3, 5, 2),  # q k, dout v, dl k; q, k, v, dout, dq; lse, delta
    "key_value_kernel": (4, 6, 2),  # q k, dout v, dl q, w dout; q, k, v, dout, dk, dv; lse, delta
    "bias_kernel": (2, 4, 2),  # q k, dout v; q, k, v, dout; lse, delta
    "window_kernel": (5, 8, 1),  # all products of the others; q, k, v, out, dout, dq, dk, dv; lse
    "delta_kernel": (0, 2, 1),  # out dout; delta
}


#: Target -> the GPU whose published peaks these are, operations a second by storage, and bytes a second. fp32 products
#: are made without tensor cores. Source: NVIDIA H200 datasheet (SXM, dense).
PEAKS = {"sm_90": ("H200 SXM", {"fp32": 67e12, "bf16": 989e12, "fp16": 989e12}, 4.8e12)}


def ridge(target: str, name: str) -> float | None:
    """Operations per byte above which the arithmetic, and below which memory, bounds a kernel on the target's GPU.

    It is the ratio of the published peaks; None where they are not in `PEAKS`, or the kernel's name says no storage.
    """
    storage = next((word for word in name.split() if word in STORAGE), None)
    if target not in PEAKS or storage is None:
        return None
    _, operations, bytes_ = PEAKS[target]
    return operations[storage] / bytes_


def cost(op: str, name: str) -> Cost | None:
    """The cost of a kernel by its name among `compile_specs`, such as "scan_rows fp32 256 wide"; None: no formula."""
    kernel, *variant = name.split()
    if op == "propagation" and kernel in _LINES | _FLAT:
        return _propagation(kernel, variant)
    if op == "propagation" and kernel in ("normalise", "normalise_gradient"):
        return _normalisation(kernel, variant)
    if op == "propagation" and kernel in _MIX:
        return _mix(kernel, variant)
    if op == "attention" and kernel in _ATTENTION:
        return _attention(kernel, variant)
    return None


def _propagation(kernel: str, variant: list[str]) -> Cost:
    """`variant`: the storage, and the width of a line for scans."""
    along = kernel in _LINES
    operations, shared, stored, single = (_LINES | _FLAT)[kernel]
    side = int(variant[1]) if len(variant) > 1 else SIDE
    directions = ALONG if along else DIRECTIONS
    values, size = CHANNELS * side * side, STORAGE[variant[0]]
    moved = values * (size * (shared + directions * stored) + SINGLE * directions * single)
    return Cost(_map(directions, side), values * directions * operations, moved)


def _normalisation(kernel: str, variant: list[str]) -> Cost:
    """`variant`: the rule and the storage. Three logits and gates, for the gradient also the gates' gradients."""
    backward = kernel == "normalise_gradient"
    values, size = DIRECTIONS * CHANNELS * SIDE * SIDE, STORAGE[variant[1]]
    return Cost(_map(DIRECTIONS, SIDE), values * RULES[variant[0]][backward], values * size * (9 if backward else 6))


def _mix(kernel: str, variant: list[str]) -> Cost:
    """`variant`: the storage, the side of the map, and "shared" where channels share their logits."""
    operations, once, logits, each, single = _MIX[kernel]
    size, side = STORAGE[variant[0]], int(variant[1]) if len(variant) > 1 else SIDE
    shared = "shared" in variant
    values = CHANNELS * side * side
    stored = values * (once + DIRECTIONS * each) + DIRECTIONS * logits * (side * side if shared else values)
    shape = _map(DIRECTIONS, side) + (", shared logits" if shared else "")
    return Cost(shape, values * DIRECTIONS * operations, size * stored + SINGLE * values * DIRECTIONS * single)


def _map(directions: int, side: int) -> str:
    return f"{directions} directions, {CHANNELS} channels, {side} x {side}"


def _attention(kernel: str, variant: list[str]) -> Cost:
    """`variant`: the storage, the pattern in one or more words, and channels of a head."""
    storage, *words, channels = variant
    pattern = " ".join(words)
    d, positions, size = int(channels), MAP[0] * MAP[1], STORAGE[storage]
    products, tensors, single = _ATTENTION[kernel]
    flops = 2 * products * pairs(pattern) * d * HEADS
    if kernel in ("delta_kernel", "window_kernel"):
        flops += 2 * positions * d * HEADS
    entries = bias_entries(pattern)
    tables = {"bias_kernel": 2, "window_kernel": 2, "delta_kernel": 0}.get(kernel, 1)  # read, and written as a gradient
    moved = HEADS * (positions * (tensors * d * size + single * SINGLE) + tables * entries * size)
    return Cost(f"{pattern}, {MAP[0]} x {MAP[1]}, {HEADS} heads of {d}", flops, moved)


@lru_cache(maxsize=16)
def pairs(pattern: str) -> int:
    """Queries times the keys that they read on the map."""
    return int(PATTERNS[pattern].count(MAP).sum())


def bias_entries(pattern: str) -> int:
    """Entries of a head's table of biases; 0 where the pattern is compiled without one."""
    if pattern not in BIASED:
        return 0
    _, rows, cols = PATTERNS[pattern].bias_shape(1, MAP)
    return rows * cols


def examples() -> list[tuple[str, str]]:
    """(op, name) of a configuration of every kernel with a formula, for where Triton is not there to list them all."""
    found = [("propagation", f"{name} bf16 {SIDE} wide") for name in list(_LINES)[:-1]]
    found += [("propagation", f"{name} bf16") for name in ("gate_gradient", *_FLAT)]
    found += [("propagation", f"{name} bf16 56 wide") for name in ("mix_forward", "mix_backward")]
    found += [("propagation", "add_parts bf16")]
    found += [("propagation", f"{name} sigmoid bf16") for name in ("normalise", "normalise_gradient")]
    return found + [("attention", f"{name} bf16 window 32") for name in _ATTENTION]
