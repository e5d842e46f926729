"""The Triton kernels compile for a GPU, on a machine that need not have one."""

import os
import subprocess
import sys

import pytest

# In a process of its own: under the interpreter nothing is compiled.
SCRIPT = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from sliceserve.kernels.slicer import triton as kernels

POINTERS = {"p_hidden": "*bf16", "p_words": "*i32", "p_data": "*u8", "p_starts": "*i64",
            "p_out": "*bf16", "asymmetry": "fp32", "BLOCK": "constexpr"}
for kernel in (kernels._encode_kernel, kernels._decode_kernel):
    signature = {name: POINTERS.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {"BLOCK": 128})
    compiled = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    assert "fma." not in compiled.asm["ptx"], "a product and a sum were fused"
"""


def test_compiles_for_a_gpu_without_fused_multiply_add(tmp_path):
    pytest.importorskip("triton.backends.nvidia")
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
