"""The Triton kernels compile for a GPU, on a machine that need not have one."""

import os
import subprocess
import sys

import pytest

# In a process of its own: under the interpreter nothing is compiled.
SCRIPT = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from sliceserve.kernels.calibrated.triton_decode import decode_kernel
from sliceserve.kernels.calibrated.triton_encode import classify_kernel, encode_kernel

POINTERS = {"p_points": "*u8", "p_base_scales": "*u8", "p_starts": "*i16", "p_thresholds": "*i64",
            "p_decisions": "*u8", "p_words": "*i16", "p_data": "*u8", "p_offsets": "*i64"}

def check(kernel, **constants):
    signature = {}
    for name in kernel.arg_names:
        kind = "constexpr" if name in constants else "*i32" if name.startswith("p_") else "i32"
        signature[name] = POINTERS.get(name, kind)
    source = ASTSource(kernel, signature, constants)
    compiled = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    assert ".f32" not in compiled.asm["ptx"].replace("cvt.rn.f32", ""), "not only integers"

check(classify_kernel, BLOCK=1024)
for lanes in (1, 8):
    shape = {"TOKENS": 32 // lanes, "LANES": lanes}
    check(encode_kernel, **shape)
    check(decode_kernel, PREFIX=2, HAS_PAYLOAD=True, **shape)
"""


def test_compiles_for_a_gpu(tmp_path):
    pytest.importorskip("triton.backends.nvidia")
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
