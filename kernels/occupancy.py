"""How many warps of a kernel a multiprocessor can hold at once, from what the kernel uses and what the target has.

Sources of the limits:
    sm_*: CUDA Programming Guide, appendix "Compute Capabilities", table of technical specifications (warps, blocks,
        registers and shared memory of a multiprocessor); cuda_occupancy.h of the CUDA toolkit 13 (blocks; registers are
        allocated by 256 for a warp, shared memory by 128 bytes, from four partitions of a multiprocessor); tuning
        guides of Ampere, Hopper and Blackwell (1 KiB of shared memory is reserved for each block); PTX ISA, tcgen05
        (512 columns of tensor memory).
    gfx942: AMD CDNA 3 Instruction Set Architecture guide and LLVM's guide to the AMDGPU backend: a compute unit has
        four SIMDs of 512 vector registers a lane, which are allocated by 8, of at most 8 waves each, 64 KiB of local
        data share, and barriers for 16 workgroups of more than one wave. Scalar registers are not counted: 8 waves
        always find enough of them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor (AMD: a compute unit) has.

    registers: of a partition, in the registers of one lane of a warp. granule: registers of a lane come in multiples.
    shared, reserved: bytes of shared memory, and those of each block that a kernel does not see. tensor: columns of
    tensor memory.
    """

    warps: int
    blocks: int
    registers: int
    granule: int
    shared: int
    reserved: int
    unit: str
    partitions: int = 4
    tensor: int = 0


#: Target -> its limits; where a target is missing, nothing is said about occupancy.
LIMITS = {
    "sm_80": Limits(64, 32, 512, 8, 164 * 1024, 1024, "multiprocessor"),
    "sm_90": Limits(64, 32, 512, 8, 228 * 1024, 1024, "multiprocessor"),
    "sm_100": Limits(64, 32, 512, 8, 228 * 1024, 1024, "multiprocessor", tensor=512),
    "sm_120": Limits(48, 24, 512, 8, 100 * 1024, 1024, "multiprocessor"),
    "gfx942": Limits(32, 16, 512, 8, 64 * 1024, 0, "compute unit"),
}


#: Shared memory is allocated in multiples of so many bytes.
SHARED_GRANULE = 128


@dataclass(frozen=True)
class Occupancy:
    """What a multiprocessor holds at once.

    programs: of Triton, which CUDA calls blocks. warps, most: held, and the most that a multiprocessor holds of any
    kernel. limit: what allows no more, "registers", "shared memory", "tensor memory", "warps" or "programs"; several
    are joined by " and ".
    """

    programs: int
    warps: int
    most: int
    limit: str

    @property
    def share(self) -> float:
        """Warps held over the most that a multiprocessor holds."""
        return self.warps / self.most


def occupancy(target: str, registers: int, shared: int, num_warps: int, tensor: int = 0) -> Occupancy | None:
    """The expected occupancy of a kernel, or None for a target whose limits are not in `LIMITS`.

    Args:
        target: such as "sm_90".
        registers: of a thread.
        shared: bytes of shared memory of a program.
        num_warps: of a program (AMD: waves).
        tensor: columns of tensor memory of a program.
    """
    limits = LIMITS.get(target)
    if limits is None:
        return None
    allocated = _rounded(max(1, registers), limits.granule)
    by_registers = limits.registers // allocated * limits.partitions
    used = _rounded(shared, SHARED_GRANULE) + limits.reserved
    single = target.startswith("gfx") and num_warps == 1  # one wave needs no barrier
    allowed = {
        "registers": by_registers // num_warps,
        "warps": limits.warps // num_warps,
        "programs": limits.warps if single else limits.blocks,
    }
    if shared:
        allowed["shared memory"] = limits.shared // used
    if tensor:
        allowed["tensor memory"] = limits.tensor // tensor
    programs = min(allowed.values())
    limit = " and ".join(name for name, count in allowed.items() if count == programs)
    return Occupancy(programs, programs * num_warps, limits.warps, limit)


def _rounded(count: int, granule: int) -> int:
    return -(-count // granule) * granule
