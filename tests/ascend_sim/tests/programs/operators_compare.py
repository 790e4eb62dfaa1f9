"""Runs every case (or those named) on the CPU and on the simulated npu; the last line is a JSON document.

A kernel that fails leaves its stream in error, as on the hardware: the cases that were not run then are in "left".
"""

# mypy: disable-error-code="attr-defined"
# (torch.npu exists once torch_npu is loaded; some functions of torch and Megatron have no types)

from __future__ import annotations

import json
import sys

import operators_elementwise  # noqa: F401
import operators_foreach  # noqa: F401
import operators_fused  # noqa: F401
import operators_indexing  # noqa: F401
import operators_matmul  # noqa: F401
import operators_reduction  # noqa: F401
import torch
from operators_inputs import CASES

from tests.ascend_sim import ledger


def main() -> None:
    """Prints {"results": {case: what differs}, "launched": {case: [operators]}, "left": [cases]}."""
    torch.set_num_threads(1)
    torch.npu.set_device(0)
    chosen = sys.argv[1:] or list(CASES)
    results: dict[str, str] = {}
    launched: dict[str, list[str]] = {}
    for name in chosen:
        with ledger.record() as counts:
            results[name] = CASES[name].check()
        launched[name] = sorted(counts.kernels)
        if results[name].startswith("simulated npu raised"):
            break
    print(json.dumps({"results": results, "launched": launched, "left": chosen[len(results) :]}))


if __name__ == "__main__":
    main()
