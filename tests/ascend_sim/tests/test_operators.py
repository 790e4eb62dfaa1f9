"""Every operator of the simulated libopapi, through the real torch_npu, against CPU torch or plain loops."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")  # this process needs the names of the cases, not the device

import pytest

from tests.ascend_sim.build import libraries
from tests.ascend_sim.operators.table import README as README_PART
from tests.ascend_sim.operators.table import operators, readme_with_table
from tests.ascend_sim.tests.running import PROGRAMS, results, run

sys.path.insert(0, str(PROGRAMS))
import operators_compare  # noqa: F401
from operators_inputs import CASES
from operators_random import CHECKS

# torch_npu looks whether these exist and then launches another: they must be there, and no case can launch them.
ONLY_LOOKED_UP = {
    "aclnnGroupedMatmulV4": "that the group list may lie on the device; V5 is launched",
    "aclnnLogSigmoid": "that aclnnLogSigmoidForward may be launched",
}
# Operators that torch_npu names, and those that it calls in a case, from a release on.
NAMED_SINCE = {"aclnnInplaceCeil": (2, 13), "aclnnRepeatInterleaveTensor": (2, 13)}
CALLED_SINCE = {**NAMED_SINCE, "aclnnLeftShift": (2, 13)}


def not_yet(operators_since: dict[str, tuple[int, int]]) -> set[str]:
    """The operators for which the torch_npu that is here is too old."""
    release = tuple(map(int, importlib.metadata.version("torch-npu").split(".")[:2]))
    return {name for name, since in operators_since.items() if release < since}


@functools.lru_cache(maxsize=1)
def compared() -> tuple[dict[str, str], set[str]]:
    """What differs in each case, and which operators were launched; after a failed kernel in a new process."""
    found: dict[str, str] = {}
    launched: set[str] = set()
    left: list[str] = list(CASES)
    while left:
        document = results("operators_compare.py", *left, delay_us=5, hold_us=0)
        found |= document["results"]
        launched |= {name for names in document["launched"].values() for name in names}
        left = document["left"]
    return found, launched


@functools.lru_cache(maxsize=1)
def random_checks() -> dict[str, Any]:
    return results("operators_random.py", delay_us=5, hold_us=0)


@functools.lru_cache(maxsize=1)
def exported() -> set[str]:
    """The operators in the built library: names of which both functions exist."""
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(libraries() / "libopapi.so")], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1] for line in listing.splitlines()}
    return {name for name in names if name.startswith("aclnn") and f"{name}GetWorkspaceSize" in names}


@pytest.mark.parametrize("name", CASES)
def test_equals_cpu(name: str) -> None:
    assert compared()[0][name] == ""


@pytest.mark.parametrize("name", CHECKS)
def test_random(name: str) -> None:
    assert random_checks()["results"][name] == ""


def test_every_operator_is_launched_by_a_case() -> None:
    launched = compared()[1] | set(random_checks()["launched"])
    assert exported() - launched == set(ONLY_LOOKED_UP) | not_yet(CALLED_SINCE)


def test_every_operator_is_one_that_torch_npu_names() -> None:
    package = importlib.util.find_spec("torch_npu")  # found, not imported: it may lie in a folder of its own
    assert package is not None
    assert package.origin is not None
    library = Path(package.origin).parent / "lib" / "libtorch_npu.so"
    known = {name.decode() for name in re.findall(rb"aclnn\w+", library.read_bytes())}
    assert exported() - known == not_yet(NAMED_SINCE)


def test_table_of_operators_is_current() -> None:
    """Otherwise: python -m tests.ascend_sim.operators.table --write."""
    assert {name for names in operators().values() for name in names} == exported()
    assert README_PART.read_text() == readme_with_table()


MISSING = """
import torch, torch_npu
torch.npu.set_device(0)
values = torch.randn(4, 6).npu()
try:
    CALL
    torch.npu.synchronize()
except RuntimeError as error:
    print("raised", error)
"""


@pytest.mark.parametrize(
    ("call", "named"),
    [
        # torch_npu falls back to compile-and-execute, or has nothing to fall back to.
        ("torch.nn.functional.hardshrink(values)", "operator name is HardShrink"),
        ("torch_npu.npu_moe_gating_top_k_softmax(values, k=2)", "aclnnMoeGatingTopKSoftmax"),
    ],
)
def test_missing_operator_is_an_error_that_names_it(call: str, named: str) -> None:
    """The exception comes at once or at the next synchronisation."""
    ended = run(MISSING.replace("CALL", call))
    assert "raised" in ended.stdout, ended.stdout + ended.stderr
    assert named in ended.stdout


WRONG_KIND = """
import ctypes, torch
torch.npu.set_device(0)
operators = ctypes.CDLL("libopapi.so")
operators.aclCreateIntArray.restype = ctypes.c_void_p
array = ctypes.c_void_p(operators.aclCreateIntArray((ctypes.c_int64 * 1)(3), ctypes.c_uint64(1)))
size, executor = ctypes.c_uint64(), ctypes.c_void_p()
code = operators.aclnnExpGetWorkspaceSize(array, array, ctypes.byref(size), ctypes.byref(executor))
runtime = ctypes.CDLL("libascendcl.so")
runtime.aclGetRecentErrMsg.restype = ctypes.c_char_p
print(code, runtime.aclGetRecentErrMsg().decode())
"""


def test_argument_of_the_wrong_kind_is_refused() -> None:
    ended = run(WRONG_KIND)
    assert "161002 " in ended.stdout, ended.stdout + ended.stderr
    assert "aclnnExp: an argument is a int array where the simulated operator takes a tensor" in ended.stdout


FAILING_KERNEL = """
import torch
torch.npu.set_device(0)
table, indices = torch.randn(4, 2).npu(), torch.tensor([9]).npu()
try:
    torch.index_select(table, 0, indices)
    torch.npu.synchronize()
except RuntimeError as error:
    print("raised", error)
"""


def test_kernel_that_fails_is_an_error_that_names_it() -> None:
    ended = run(FAILING_KERNEL)
    assert "raised" in ended.stdout, ended.stdout + ended.stderr
    assert "507015" in ended.stdout
    assert "simulated aclnnIndexSelect failed on the device" in ended.stdout + ended.stderr


THREADS = """
import torch
torch.set_num_threads(2)
torch.npu.set_device(0)
large = torch.randn(400, 400)
for _ in range(3):
    (large.npu() @ large.npu()).sum().item()
print("threads", torch.get_num_threads())
"""


def test_the_host_keeps_its_threads() -> None:
    """Kernels run on one thread each; the thread count of the code under test stays what it was."""
    ended = run(THREADS)
    assert "threads 2" in ended.stdout, ended.stdout + ended.stderr
