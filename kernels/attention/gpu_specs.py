"""Representative configurations of the attention kernels, for ahead-of-time compilation (kernels/inspect.py)."""

from typing import Any, NamedTuple

from .family import disc, full, neighborhood, power, swin
from .gpu_backward import bias_kernel, delta_kernel, key_value_kernel, query_kernel
from .gpu_forward import forward_kernel
from .gpu_launch import options
from .gpu_plans import arrange
from .gpu_window import window_kernel
from .pattern import Pattern

GENERAL = (forward_kernel, query_kernel, key_value_kernel, bias_kernel)
NO_BIAS = GENERAL[:-1]
MAP = (56, 56)
#: Targets that do not multiply in groups of warps (gpu_launch.multiplies_in_groups).
UNGROUPED = ("sm_80", "sm_100", "sm_120")


class Case(NamedTuple):
    """A pattern as a kernel may meet it: name, channels of a head, storage, and what is compiled for it."""

    name: str
    pattern: Pattern
    channels: int
    storage: tuple[str, ...]
    kernels: tuple[Any, ...]


CASES = (
    Case("window", swin(7, 3), 32, ("bf16",), (*GENERAL, delta_kernel, window_kernel)),
    Case("window", swin(7, 3), 32, ("fp32",), (*GENERAL, delta_kernel)),
    Case("window", swin(7, 3), 32, ("fp16",), (forward_kernel, window_kernel)),
    Case("window", swin(7, 3), 64, ("fp32", "bf16"), GENERAL),
    Case("window", swin(7, 3), 16, ("bf16",), (forward_kernel,)),
    Case("window", swin(7, 3), 128, ("fp32", "bf16"), (forward_kernel,)),
    Case("small window", swin(5), 32, ("fp32",), (window_kernel,)),
    Case("neighborhood", neighborhood(7), 32, ("fp32", "bf16"), GENERAL),
    Case("neighborhood", neighborhood(7), 64, ("bf16",), GENERAL),
    Case("disc", disc(8), 64, ("fp32", "bf16"), NO_BIAS),
    Case("power", power(), 64, ("bf16",), NO_BIAS),
    Case("full", full(), 32, ("bf16",), NO_BIAS),
)


def compile_specs() -> list[dict[str, Any]]:
    """Every case with every storage: what `kernels.inspect` compiles."""
    return [_spec(case, kernel, storage) for case in CASES for storage in case.storage for kernel in case.kernels]


def _spec(case: Case, kernel: Any, storage: str) -> dict[str, Any]:
    """Pointers are assumed to be 16-byte aligned, as torch's are, and strides to be multiples of 16."""
    pattern, single = case.pattern, storage == "fp32"
    grid = pattern.on(MAP)
    side = "key" if kernel is key_value_kernel else "query"
    constants: dict[str, Any] = arrange(pattern, grid, grid, side, case.channels, single).constants | {
        "HAS_BIAS": case.kernels != NO_BIAS,
        "WANT_K": True, "WANT_V": True, "WANT_BIAS": True,
    }  # fmt: skip
    (fixed, warps), (other, other_warps) = (options(kernel, constants, single, grouped) for grouped in (True, False))
    constants = {name: value for name, value in (constants | fixed).items() if name in kernel.arg_names}
    ungrouped = {"num_warps": other_warps, "constexprs": constants | {n: other[n] for n in other if n in constants}}
    signature = {name: "constexpr" if name in constants else _type(name, storage) for name in kernel.arg_names}
    strides = ("sb", "sr", "sc", "sh", "kb", "kr", "kc", "kh", "so")
    aligned = [i for i, (name, type_) in enumerate(signature.items()) if type_[0] == "*" or name in strides]
    return {
        "op": "attention",
        "name": f"{kernel.__name__} {storage} {case.name} {case.channels}",
        "fn": kernel,
        "signature": signature,
        "constexprs": constants,
        "attrs": {(i,): [["tt.divisibility", 16]] for i in aligned},
        "num_warps": warps,
        "targets": dict.fromkeys(UNGROUPED, ungrouped),
    }


def _type(argument: str, storage: str) -> str:
    """The type of a kernel's argument in Triton's notation."""
    if argument in ("q", "k", "v", "bias", "out", "grad", "dq", "dk", "dv"):
        return f"*{storage}"
    if argument in ("rows", "cols", "row_spans", "col_spans", "groups"):
        return "*i32"
    return {"lse": "*fp32", "delta": "*fp32", "partial": "*fp32", "scale": "fp32"}.get(argument, "i32")
