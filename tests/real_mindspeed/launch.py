"""`python -m real_mindspeed.launch FOLDER [--triton] [--ep-buffer]`: the ranks under a real MindSpeed, what they found.

The path must hold torch_npu, MindSpeed and Megatron; `ci/mindspeed.sh` sees to it. Exit code 0: all is as expected.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

RANKS = 2
TIMEOUT_S = 1800
FLAGS = [
    "--num-experts", "8", "--moe-token-dispatcher-type", "alltoall", "--moe-grouped-gemm", "--moe-permute-fusion",
    "--expert-model-parallel-size", str(RANKS), "--seq-length", "12", "--micro-batch-size", "1", "--hidden-size", "16",
    "--num-attention-heads", "4", "--num-layers", "1", "--moe-router-topk", "2",
    "--disable-gloo-group", "--hccl-group-buffer-adaptive",
]  # fmt: skip
EP_BUFFER = ["--hccl-group-buffer", "ep:100"]
# What `doctor` says of these flags, each buffer twice: ep:100 holds, with both of MindSpeed's flags; TPxEP, on which
# Megatron exchanges its counts, has HCCL's default; a group of ours has 1 MB.
ALONE_MB, DEDICATED_MB = {True: [200, 400], False: [400, 400]}, [2]
WITH, WITHOUT = "mindspeed_moe", "megatron"

# (step, whose preprocess runs)
EXPECTED = (
    ("MindSpeed alone", WITHOUT),
    ("import mindspeed_moe.adaptor", WITH),
    ("repatch({})", WITH),
    ("repatch({})", WITH),
    ("repatch, moe_npu_preprocess: False", WITHOUT),
    ("repatch, moe_npu_preprocess: True", WITH),
    ("disable()", WITHOUT),
    ("exchange_group: dedicated", WITH),
)


def main() -> int:
    folder, options = Path(sys.argv[1]), sys.argv[2:]
    triton, ep_buffer = "--triton" in options, "--ep-buffer" in options
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*"):
        old.unlink()
    task = {"world_size": RANKS, "folder": str(folder), "flags": FLAGS + EP_BUFFER * ep_buffer, "triton": triton}
    processes = []
    for rank in range(RANKS):
        command = [sys.executable, "-m", "real_mindspeed.run", json.dumps({**task, "rank": rank})]
        with (folder / f"rank{rank}.log").open("w") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ))
    codes = []
    for process in processes:
        try:
            codes.append(process.wait(TIMEOUT_S))
        except subprocess.TimeoutExpired:
            process.kill()
            codes.append(process.wait())
    for rank, code in enumerate(codes):
        if code:
            print(f"rank {rank} ended with {code}:")
            print("\n".join((folder / f"rank{rank}.log").read_text().splitlines()[-30:]))
            return 1
    found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]
    wrong = [text for one in found for text in check(one, ALONE_MB[ep_buffer])]
    show(found[0])
    made = [(step["step"], step["communicators"]) for step in found[0]["steps"] if step["communicators"]]
    print("communicators made on rank 0, MB:", ", ".join(f"{name}: {sizes}" for name, sizes in made))
    print("\n".join(wrong) if wrong else f"all as expected on {RANKS} ranks, {found[0]['compared']} tensors each")
    return 1 if wrong else 0


def check(found: dict[str, Any], alone_mb: list[int]) -> list[str]:
    """Return what is not as it should be on a rank; alone_mb: sizes of the communicators that MindSpeed alone makes."""
    wrong, rank = [], found["rank"]
    steps = found["steps"]
    if [step["step"] for step in steps] != [name for name, _ in EXPECTED]:
        return [f"rank {rank}: other steps than expected"]
    alone, packed = steps[0]["ledger"], steps[1]["ledger"]
    for step, (name, owner) in zip(steps, EXPECTED, strict=True):
        if step["preprocess"][-1] != owner:
            wrong.append(f"rank {rank}: {name}: preprocess is {step['preprocess']}, expected {owner}")
        if step["different"]:
            wrong.append(f"rank {rank}: {name}: not equal to MindSpeed alone: {', '.join(step['different'])}")
        if step["ledger"] != (packed if owner == WITH else alone):
            wrong.append(f"rank {rank}: {name}: the ledger is {step['ledger']}")
    for step, sizes in ((steps[0], alone_mb), (steps[-1], DEDICATED_MB)):
        if step["communicators"] != sizes:
            wrong.append(f"rank {rank}: {step['step']}: groups of {step['communicators']} MB, doctor says {sizes}")
    if not (packed["kernels"] < alone["kernels"] and packed["copies to host"] < alone["copies to host"]):
        wrong.append(f"rank {rank}: with the plugin no less is done: it has no effect")
    return wrong


def show(found: dict[str, Any]) -> None:
    """Print a row a step."""
    keys = list(found["steps"][0]["ledger"])
    print(f"{'step':36} {'preprocess':24} {'hook':14} {'experts':20} " + " ".join(f"{key:>16}" for key in keys))
    for step in found["steps"]:
        owners, hook = " < ".join(step["preprocess"]), " < ".join(step["hook"])
        counts = " ".join(f"{step['ledger'][key]:>16}" for key in keys)
        print(f"{step['step']:36} {owners:24} {hook:14} {step['experts']:20} {counts}")


if __name__ == "__main__":
    sys.exit(main())
