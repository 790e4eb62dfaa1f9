"""The training that a fault strikes: one MoE layer, two ranks, everything of the plugin switched on."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import mindspeed_moe
from distributed.layers import HIDDEN, Layer, build_layer

RANKS = 2
BEFORE, AFTER = 3, 3  # steps before the fault, and after it
EXPERTS = 4
STEP_S = 0.05  # more of a step, which takes longer in a real training than a line of telemetry


class Training:
    """One rank. losses: hexadecimal, to the last bit. verify, telemetry, dumps: of the plugin's configuration."""

    def __init__(self, device: str, rank: int, folder: Path, *, plugin: str = "packed") -> None:
        self.device, self.rank, self.folder = device, rank, folder
        self.losses: list[str] = []
        self.telemetry, self.dumps = folder / "telemetry", folder / "dumps"
        self.plugin = plugin
        self.tokens = 6 + rank

    def enable(self) -> None:
        if self.plugin == "stock":
            mindspeed_moe.enable({"device": self.device, "dispatchers": {"alltoall": "stock"}})
            return
        mindspeed_moe.enable(
            {
                "device": self.device,
                "dispatchers": {"alltoall": "packed"},
                "verify": "always",
                "dumps": str(self.dumps),
                "telemetry": {"enabled": True, "folder": str(self.telemetry)},
            }
        )

    def build(self, experts: int = EXPERTS) -> tuple[Any, Any]:
        """Return a model and its optimizer; the same weights every time."""
        model = build_layer(Layer(ep=RANKS, tp=1, experts=experts, topk=2)).to(self.device)
        return model, torch.optim.SGD(model.parameters(), lr=0.05)

    def begin(self) -> None:
        self.enable()
        self.model, self.optimizer = self.build()

    def steps(self, count: int, model: Any = None, optimizer: Any = None) -> None:
        model, optimizer = model or self.model, optimizer or self.optimizer
        for _ in range(count):
            number = len(self.losses)
            generator = torch.Generator().manual_seed(2 * number + self.rank)
            hidden = torch.randn(self.tokens, 1, HIDDEN, generator=generator).to(self.device).requires_grad_()
            optimizer.zero_grad(set_to_none=True)
            loss = (model(hidden)[0] ** 2).mean()
            loss.backward()
            optimizer.step()
            self.losses.append(loss.item().hex())
            time.sleep(STEP_S)
            self._write("steps", str(len(self.losses)))

    def mark(self) -> None:
        """The fault happens now."""
        self._write("fault", repr(time.time()))

    def _write(self, name: str, text: str) -> None:
        (self.folder / f"rank{self.rank}.{name}").write_text(text)


def join(device: str, rank: int, rendezvous: Path, timeout_s: float, *, store_on: int | None = None) -> None:
    """Make the process groups, torch's and Megatron's. store_on: the rank that hosts their store; None: a file."""
    from megatron.core import parallel_state

    backend = {"cpu": "gloo", "npu": "hccl"}[device]
    dist.init_process_group(
        backend,
        store=dist.FileStore(str(rendezvous), RANKS) if store_on is None else _served(rank == store_on, rendezvous),
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=timeout_s),
    )
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        expert_model_parallel_size=RANKS, distributed_timeout_minutes=timeout_s / 60
    )


def _served(here: bool, rendezvous: Path) -> Any:
    """A store in one rank's process, as in a launch without an agent that hosts it; the file names its port."""
    if here:
        store = dist.TCPStore("127.0.0.1", 0, RANKS, is_master=True, wait_for_workers=False)
        rendezvous.with_suffix(".part").write_text(str(store.port))
        rendezvous.with_suffix(".part").rename(rendezvous)
        return store
    until = time.monotonic() + 900
    while not rendezvous.exists() and time.monotonic() < until:
        time.sleep(0.02)
    return dist.TCPStore("127.0.0.1", int(rendezvous.read_text()), RANKS, is_master=False, wait_for_workers=False)
