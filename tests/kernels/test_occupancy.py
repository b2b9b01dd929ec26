"""Expected occupancy against numbers worked out on paper from the published limits."""

import pytest

from kernels.compiled import TARGETS
from kernels.occupancy import LIMITS, occupancy


def test_every_target_has_limits_and_an_unknown_one_has_no_guess():
    assert set(LIMITS) == set(TARGETS)
    assert occupancy("sm_75", 32, 0, 4) is None


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "held", "limit"),
    [
        ("sm_90", 80, 20480, 4, 24, "registers"),  # 512 // 80 = 6 warps in each of four partitions
        ("sm_90", 81, 0, 4, 20, "registers"),  # 88 are allocated: 5
        ("sm_80", 32, 0, 4, 64, "registers and warps"),
        ("sm_80", 24, 0, 1, 32, "programs"),  # of one warp each
        ("sm_80", 24, 40 * 1024, 4, 16, "shared memory"),  # 164 // 41 = 4 programs
        ("sm_90", 24, 113 * 1024, 4, 8, "shared memory"),  # 228 // 114 = 2
        ("sm_120", 32, 0, 4, 48, "warps"),
        ("sm_120", 255, 0, 8, 8, "registers"),  # 2 warps in each partition
        ("sm_120", 16, 0, 1, 24, "programs"),
        ("gfx942", 113, 0, 4, 16, "registers"),  # 512 // 120 = 4 waves in each of four SIMDs
        ("gfx942", 52, 0, 1, 32, "warps and programs"),  # single waves need no barrier
        ("gfx942", 52, 16384, 1, 4, "shared memory"),
        ("gfx942", 346, 16384, 4, 4, "registers"),
        ("gfx942", 24, 0, 2, 32, "warps and programs"),
    ],
)
def test_the_scarcest_resource_decides(target, registers, shared, warps, held, limit):
    found = occupancy(target, registers, shared, warps)
    assert (found.warps, found.limit) == (held, limit)
    assert found.programs * warps == found.warps <= found.most == LIMITS[target].warps
    assert found.share == found.warps / found.most


def test_tensor_memory_is_a_resource_of_sm_100():
    assert occupancy("sm_100", 32, 0, 4, tensor=256).warps == 8
    assert occupancy("sm_100", 32, 0, 4, tensor=256).limit == "tensor memory"


def test_a_kernel_that_needs_more_than_there_is_holds_none():
    assert occupancy("sm_90", 255, 0, 32).warps == 0
