"""One rank of a scenario: `python -m faults.worker TASK`, or `run_rank` in a process that was forked."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from faults.scenarios import named
from faults.training import Training, join


def run_rank(task: dict[str, Any]) -> None:
    """Run a scenario and end the process, as a training script does that knows nothing of it."""
    folder, rank = Path(task["folder"]), int(task["rank"])
    with open(folder / f"rank{rank}.log", "w") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    code = 0
    try:
        _run(task, folder, rank)
    except BaseException:
        traceback.print_exc()
        code = 1
    from mindspeed_moe import lifetime

    lifetime.end()  # what the interpreter's end does, which is skipped here
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(task: dict[str, Any], folder: Path, rank: int) -> None:
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    device, scenario = task["device"], named(task["device"], task["name"])
    if device == "npu":
        import torch_npu
        from torch_npu.contrib import transfer_to_npu  # noqa: F401

        torch_npu.npu.set_device(rank)
    rendezvous = folder.parent / f"{folder.name}.rendezvous"
    join(device, rank, rendezvous, scenario.group_timeout_s, store_on=scenario.store_on)
    training = Training(device, rank, folder)
    scenario.run(training)
    (folder / f"rank{rank}.losses").write_text(json.dumps(training.losses))


if __name__ == "__main__":
    run_rank(json.loads(sys.argv[1]))
