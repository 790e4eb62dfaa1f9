"""A long training of a small model, 8 micro-batches in flight, everything recomputed: losses, and memory as it goes."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from array import array
from pathlib import Path
from typing import Any

import torch

import mindspeed_moe
from distributed.layers import HIDDEN, Layer, build_layer
from mindspeed_moe.preprocess.ring import Ring

EP = 2
MOE_LAYERS = 1
IN_FLIGHT = 8  # micro-batches whose forward is done before the first backward begins
SAMPLES = 40  # of memory, in a run

RESIDENT = "resident"
WATCHED = "packed, watched"
PAGE = os.sysconf("SC_PAGE_SIZE")


def soak(rank: int, device: str, steps: int, implementations: list[str]) -> dict[str, dict[str, Any]]:
    """For each implementation: losses (as hexadecimal numbers, to the last bit), and samples of memory in bytes."""
    from npu import layer

    layer.groups(ep=EP, tp=1)
    gc.freeze()  # what was imported: collections before samples of memory then take no time
    with tempfile.TemporaryDirectory() as folder:
        return {name: _train(rank, device, steps, name, Path(folder)) for name in implementations}


def _configuration(device: str, implementation: str, folder: Path) -> dict[str, Any]:
    """An implementation's; WATCHED is packed with everything switched on that looks at it."""
    if implementation != WATCHED:
        return {"device": device, "dispatchers": {"alltoall": implementation}}
    telemetry = {"enabled": True, "folder": str(folder / "telemetry"), "max_megabytes": 1}
    return {
        "device": device,
        "dispatchers": {"alltoall": "packed"},
        "verify": "always",
        "dumps": str(folder / "dumps"),
        "telemetry": telemetry,
    }


def _train(rank: int, device: str, steps: int, implementation: str, folder: Path) -> dict[str, Any]:
    mindspeed_moe.enable(_configuration(device, implementation, folder))
    experts = Layer(ep=EP, tp=1, experts=4, topk=2, recompute=True)
    model = torch.nn.ModuleList([build_layer(experts) for _ in range(MOE_LAYERS)]).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = array("d")  # numbers of float32, so exact; a list of objects would grow like a leak
    samples: list[dict[str, int]] = []
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        flying = [_forward(model, rank, device, step * IN_FLIGHT + at) for at in range(IN_FLIGHT)]
        for loss in flying:
            loss.backward()
        optimizer.step()
        losses.extend(loss.item() for loss in flying)
        del flying, loss
        if (step + 1) % max(steps // SAMPLES, 1) == 0:
            samples.append(_memory(device))
    found = {
        "losses": [loss.hex() for loss in losses],
        "samples": samples,
        "slots": _slots(),
        "records": sum(len(path.read_text().splitlines()) for path in folder.glob("telemetry/*.jsonl")),
        "dumps": len(list(folder.glob("dumps/*"))),
        "recomputed": all(module.moe_layer_recompute for module in model),
    }
    mindspeed_moe.disable()
    found["threads afterwards"] = _threads_left()
    return found


def _threads_left(patience_s: float = 2.0) -> list[str]:
    """Names of the plugin's threads that are still there when they should have ended."""
    until = time.monotonic() + patience_s
    while True:
        left = [one.name for one in threading.enumerate() if one.name.startswith("mindspeed_moe")]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.02)


def _forward(model: Any, rank: int, device: str, number: int) -> torch.Tensor:
    """The loss of one micro-batch; another length and other data each time and on each rank."""
    generator = torch.Generator().manual_seed(2 * number + rank)
    tokens = 2 + number % 5 + rank
    hidden = torch.randn(tokens, 1, HIDDEN, generator=generator).to(device).requires_grad_()
    wanted = torch.randn(tokens, 1, HIDDEN, generator=generator).to(device)
    for module in model:
        hidden = hidden + module(hidden)[0]
    return ((hidden - wanted) ** 2).mean()


def _slots() -> list[int]:
    """How many slots each ring has made; empty where no ring is used."""
    return [one._made for one in gc.get_objects() if isinstance(one, Ring) and one._made]


def _memory(device: str) -> dict[str, int]:
    gc.collect()
    held = {"threads": threading.active_count(), "open files": len(os.listdir("/proc/self/fd"))}
    if device == "cpu":
        return {RESIDENT: int(Path("/proc/self/statm").read_text().split()[1]) * PAGE, **held}
    from tests.ascend_sim import ledger

    # Resident memory says nothing here: the simulation keeps 64 bytes of every task, for its timeline.
    counts = ledger.read()  # since the process began: nobody marks in this job
    return {
        **held,
        "device in use": torch.npu.memory_allocated(),
        "device reserved": torch.npu.memory_reserved(),
        "device allocations": sum(one.count for one in counts.device_allocations) - counts.device_frees,
        "pinned allocations": counts.host_allocations - counts.host_frees,
    }
