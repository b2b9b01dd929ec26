"""What a compiled kernel does, counted by kind of instruction: from NVIDIA's SASS and from AMD's assembly.

Counts are static: an instruction of a loop counts once, however often it runs. NOP, which only fills, is left out.
"""

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

#: Kind of instruction -> what it is, in the order of a figure's bars.
KINDS = {
    "load_16": "global loads of 16 bytes",
    "load_less": "narrower global loads",
    "store_16": "global stores of 16 bytes",
    "store_less": "narrower global stores",
    "shared": "shared memory (on sm_100 also tensor memory)",
    "shuffle": "exchange between lanes",
    "barrier": "barriers and fences",
    "tensor": "matrix products",
    "float": "floating-point arithmetic",
    "special": "exponentials, reciprocals and the like",
    "convert": "conversions",
    "integer": "integers, moves, predicates",
    "constant": "arguments and constants",
    "control": "branches and waiting",
    "spill": "spilled registers",
    "other": "other",
}

#: Kind -> first words of SASS mnemonics, without the leading U of those on the uniform path.
_SASS = {
    "shared": "LDS STS LDSM STSM ATOMS LDTM STTM TCCP",
    "shuffle": "SHFL VOTE VOTEU REDUX CREDUX MATCH",
    "barrier": "BAR MEMBAR FENCE WARPSYNC WARPGROUP DEPBAR LDGDEPBAR ERRBAR CCTL SYNCS TCBAR",
    "tensor": "HMMA HGMMA QGMMA IGMMA BGMMA IMMA BMMA DMMA QMMA OMMA TCHMMA TCQMMA TCIMMA TCOMMA TCMXQMMA",
    "float": "FADD FMUL FFMA FADD2 FMUL2 FFMA2 FSEL FSET FSETP FMNMX FMNMX3 FCHK FSWZADD "
    "HADD2 FHADD FHFMA HMUL2 HFMA2 HMNMX2 HSET2 HSETP2 DADD DMUL DFMA DSETP",
    "special": "MUFU",
    "convert": "F2F F2FP F2I I2F I2FP I2I F2IP FRND I2IP",
    "integer": "IADD IADD3 IMAD IMUL IABS IDP IMNMX ISETP ISCADD LOP LOP3 LEA SHF SHL SHR PRMT SEL SGXT MOV "
    "VIADD VIADDMNMX VIMNMX VIMNMX3 POPC FLO BREV BMSK P2R R2P PLOP3 PSETP CS2R S2R S2UR R2UR P2UR MOVM",
    "constant": "LDC LDCU",
    "control": "BRA BRX EXIT BSSY BSYNC BREAK BMOV CALL RET JMP BPT NANOSLEEP YIELD ELECT KILL RPCMOV ACQBULK "
    "PREEXIT TCATOMSWS VIRTCOUNT",
    "spill": "LDL STL",
}
_SASS_KIND = {name: kind for kind, names in _SASS.items() for name in names.split()}

#: What a line of AMD assembly begins with -> its kind; the first that fits counts. Only `global_` and the like remain.
_AMD = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"(global|flat|buffer)_load_(dwordx4|b128)", "load_16"),
        (r"(global|flat|buffer)_load", "load_less"),
        (r"(global|flat|buffer)_store_(dwordx4|b128)", "store_16"),
        (r"(global|flat|buffer)_store", "store_less"),
        (r"scratch_", "spill"),
        (r"ds_(bpermute|permute|swizzle)|v_permlane|v_\w+_dpp", "shuffle"),
        (r"ds_", "shared"),
        (r"s_barrier", "barrier"),
        (r"v_mfma|v_smfmac", "tensor"),
        (r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_", "special"),
        (r"v_cvt_", "convert"),
        (
            r"v_(pk_)?(add|sub|subrev|mul|fma|fmac|mac|mad|max|max3|min|min3|div_\w+|ldexp|cmp_\w+|cmpx_\w+|trunc|floor|"
            r"rndne|frexp_\w+|med3|fmaak|fmamk|fma_mix\w*|dot\w*)_(legacy_)?(f16|f32|f64|bf16)",
            "float",
        ),
        (r"s_(load|buffer_load|dcache)", "constant"),
        (
            r"s_(cbranch|branch|endpgm|setpc|swappc|getpc|call|waitcnt|sleep|trap|sethalt|setprio|\w+_saveexec)",
            "control",
        ),
        (r"[vs]_", "integer"),
    )
)


def count_amd(assembly: str) -> dict[str, int]:
    """Kind -> instructions of the functions in AMD's assembly; every kind is there."""
    found: Counter[str] = Counter()
    for word in re.findall(r"^\t([a-z]+_\w+)", assembly.split(".amdgpu_metadata")[0], re.MULTILINE):
        if word != "s_nop":
            found[next((kind for pattern, kind in _AMD if pattern.match(word)), "other")] += 1
    return {kind: found[kind] for kind in KINDS}


def count_cuda(cubins: Iterable[bytes], target: str, nvdisasm: Path) -> list[dict[str, int]]:
    """Kind -> instructions of each compiled kernel for one target, such as "sm_90"; every kind is there.

    All kernels are disassembled at once: to start the disassembler takes longer than what it does for a kernel.
    """
    codes = [b"".join(_code(cubin)) for cubin in cubins]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        number = target.removeprefix("sm_")
        variant = f"SM{number}{'a' if int(number) >= 90 else ''}"
        command = [str(nvdisasm), "--no-dataflow", "--binary", variant, file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [Counter[str]() for _ in codes]
    ends = [sum(map(len, codes[: n + 1])) for n in range(len(codes))]
    kernel = 0
    for at, line in re.findall(r"/\*([0-9a-f]+)\*/ +(?:@!?U?P\w+ +)?([A-Z][A-Z0-9_.]*)", text):
        while int(at, 16) >= ends[kernel]:
            kernel += 1
        if line != "NOP":
            found[kernel][sass_kind(line)] += 1
    return [{kind: each[kind] for kind in KINDS} for each in found]


def sass_kind(mnemonic: str) -> str:
    """The kind of an instruction by its mnemonic with its modifiers, such as "LDG.E.128"."""
    name, *modifiers = mnemonic.split(".")
    if name in ("LDG", "LD", "LDGSTS", "STG", "ST"):
        return f"{'store' if name in ('STG', 'ST') else 'load'}_{'16' if '128' in modifiers else 'less'}"
    if name in ("ATOM", "ATOMG", "RED", "REDG"):
        return "store_less"
    return _SASS_KIND.get(name) or _SASS_KIND.get(name.removeprefix("U"), "other")


def _code(cubin: bytes) -> Iterator[bytes]:
    """The sections of instructions of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    count, names = struct.unpack_from("<HH", cubin, 0x3C)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + 64 * n) for n in range(count)]
    for name, _, _, _, offset, size in sections:
        if cubin.startswith(b".text", sections[names][4] + name):
            yield cubin[offset : offset + size]


def wide_share(mix: dict[str, int]) -> float | None:
    """The share of global load instructions that load 16 bytes; None where nothing is loaded."""
    loads = mix["load_16"] + mix["load_less"]
    return mix["load_16"] / loads if loads else None
