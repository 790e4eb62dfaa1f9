"""What a process may do with a live plugin: none of it is a fault, and training goes on to the last bit."""

from __future__ import annotations

import gc
import os
from typing import Any

import torch
import torch.distributed as dist

import mindspeed_moe
from faults.training import AFTER, BEFORE, Training, join


def nothing(training: Training) -> None:
    """Train on."""


class _Numbers(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if mindspeed_moe.status() is None:
            raise AssertionError("a worker does not see the plugin that its parent has enabled")
        return index + os.getpid() * 0


def forks(training: Training) -> None:
    """Two workers of a data loader: they inherit the plugin, and must neither use it nor be disturbed by it."""
    loader = torch.utils.data.DataLoader(_Numbers(), num_workers=2, multiprocessing_context="fork")
    found = sorted(int(number) for batch in loader for number in batch)
    if found != list(range(8)):
        raise AssertionError(f"the workers gave {found}")


def new_groups(training: Training) -> None:
    """A launch that goes on after an error does this: everything anew but the process and the plugin."""
    weights = training.model.state_dict()
    del training.model, training.optimizer
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
    join(training.device, training.rank, training.folder.parent / f"{training.folder.name}.again", 60)
    training.model, training.optimizer = training.build()
    training.model.load_state_dict(weights)


def second_model(training: Training) -> None:
    """Trained in turn with the first, which must not notice; the second goes the same way from the start."""
    before = list(training.losses)
    other, optimizer = training.build()
    training.losses = []
    for _ in range(BEFORE):
        training.steps(1, other, optimizer)
    if training.losses != before:
        raise AssertionError("the second model did not go the way of the first")


def checkpoint(training: Training) -> None:
    """Saved with the plugin, trained on without it, saved, and trained on with it: nothing of ours is in the files."""
    for plugin in ("stock", "packed"):
        file = training.folder / f"rank{training.rank}.before-{plugin}.checkpoint"
        torch.save({"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}, file)
        sharded = _shown(training.model.sharded_state_dict())
        dist.barrier()
        mindspeed_moe.disable()
        fresh = Training(training.device, training.rank, training.folder, plugin=plugin)
        fresh.begin()
        saved = torch.load(file, weights_only=True)  # tensors and plain values: nothing else can be read so
        if _shown(saved["model"]) != _shown(fresh.model.state_dict()):
            raise AssertionError(f"a state dict is another one under {plugin}: {_shown(saved['model'])}")
        if sharded != _shown(fresh.model.sharded_state_dict()):
            raise AssertionError(f"a sharded state dict is another one under {plugin}: {sharded}")
        fresh.model.load_state_dict(saved["model"])
        fresh.optimizer.load_state_dict(saved["optimizer"])
        if plugin == "stock":
            _one_step_more(training, fresh)
        training.model, training.optimizer = fresh.model, fresh.optimizer


def _shown(state: Any) -> list[tuple[str, str, Any]]:
    return [(key, type(value).__name__, getattr(value, "shape", None)) for key, value in state.items()]


def _one_step_more(training: Training, fresh: Training) -> None:
    """Under stock; its loss stands in the list like the others'."""
    fresh.losses = training.losses
    fresh.steps(1)


STEPS_WITH_STOCK = 1
assert AFTER > STEPS_WITH_STOCK
