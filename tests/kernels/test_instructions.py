"""Instructions by kind: mnemonics of NVIDIA and AMD, and counts that are told apart by kernel."""

import pytest

from kernels.instructions import KINDS, count_amd, sass_kind, wide_share

SASS = {
    "LDG.E.128": "load_16", "LDG.E.128.CONSTANT": "load_16", "LDG.E.U16": "load_less", "LDG.E": "load_less",
    "LDG.E.64": "load_less", "LDGSTS.E.BYPASS.128": "load_16", "STG.E.128": "store_16", "STG.E.U16": "store_less",
    "LDS.U8": "shared", "STS.128": "shared", "LDSM.16.M88.4": "shared", "LDTM.16": "shared", "SHFL.BFLY": "shuffle",
    "VOTEU.ANY": "shuffle", "CREDUX.MAX.F32": "shuffle", "BAR.SYNC.DEFER_BLOCKING": "barrier",
    "WARPGROUP.ARRIVE": "barrier", "HMMA.16816.F32.BF16": "tensor", "HGMMA.64": "tensor", "UTCHMMA": "tensor",
    "FFMA.FTZ": "float", "FMUL2": "float", "FADD": "float", "MUFU.EX2": "special", "F2FP.BF16.F32.PACK_AB": "convert",
    "I2F.RP": "convert", "UI2F.RP": "convert", "IMAD.WIDE.U32": "integer", "UIMAD": "integer", "LOP3.LUT": "integer",
    "PRMT": "integer", "ISETP.GE.U32.AND": "integer", "LDC.64": "constant", "ULDC.64": "constant",
    "LDCU.128": "constant", "BRA.U": "control", "EXIT": "control", "LDL.LU": "spill", "STL": "spill", "XYZZY": "other",
}  # fmt: skip

AMD = """
\t.text
kernel:
\ts_load_dwordx8 s[4:11], s[0:1], 0x8
\ts_waitcnt lgkmcnt(0)
\tglobal_load_dwordx4 v[0:3], v[4:5], off
\tglobal_load_ushort v1, v[4:5], off
\tbuffer_load_dword v1, v2, s[0:3], 0 offen
\tglobal_store_dwordx4 v[0:1], v[2:5], off
\tglobal_store_short v[0:1], v2, off
\tds_read_u16 v1, v2
\tds_write_b128 v1, v[2:5]
\tds_bpermute_b32 v1, v2, v3
\tv_mov_b32_dpp v1, v2 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf
\ts_barrier
\tv_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
\tv_pk_fma_f32 v[0:1], v[2:3], v[4:5], v[6:7]
\tv_cmp_gt_f32_e32 vcc, v0, v1
\tv_fma_mixlo_f16 v0, v1, v2, v3
\tv_exp_f32_e32 v0, v1
\tv_cvt_f32_u32_e32 v1, s1
\tv_add_u32_e32 v0, v1, v2
\tv_cmp_gt_i32_e64 s[0:1], v0, v1
\tv_max_i32_e32 v0, v1, v2
\tv_accvgpr_read_b32 v0, a0
\ts_and_saveexec_b64 s[12:13], vcc
\ts_cbranch_execz .LBB0_2
\tscratch_store_dword off, v0, s32
\ts_nop 0
\ts_endpgm
.Lfunc_end0:
\t.amdgpu_metadata
\ts_not_an_instruction
"""


@pytest.mark.parametrize(("mnemonic", "kind"), SASS.items())
def test_a_mnemonic_of_nvidia_has_its_kind(mnemonic, kind):
    assert sass_kind(mnemonic) == kind


def test_amds_assembly_is_counted_by_the_same_kinds_without_what_fills():
    expected = {
        "load_16": 1, "load_less": 2, "store_16": 1, "store_less": 1, "shared": 2, "shuffle": 2, "barrier": 1,
        "tensor": 1, "float": 3, "special": 1, "convert": 1, "integer": 4, "constant": 1, "control": 4, "spill": 1,
        "other": 0,
    }  # fmt: skip
    assert count_amd(AMD) == expected


def test_the_share_of_wide_loads_leaves_out_kernels_that_load_nothing():
    nothing = dict.fromkeys(KINDS, 0)
    assert wide_share(nothing) is None
    assert wide_share(nothing | {"load_16": 1, "load_less": 3}) == 0.25
