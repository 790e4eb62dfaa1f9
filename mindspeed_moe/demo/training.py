"""The training loop of one rank, the same for every implementation."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_moe.demo.data import Bytes, batch
from mindspeed_moe.demo.model import build_model
from mindspeed_moe.demo.settings import Settings
from mindspeed_moe.demo.timing import PreprocessTimer


@dataclass(frozen=True)
class Run:
    """What training with one implementation gave.

    losses: mean cross-entropy of a byte in nats, over all data-parallel ranks, before each step's update; float32
    values. seconds: of all steps. preprocess: see PreprocessTimer.summary.
    """

    losses: tuple[float, ...]
    seconds: float
    preprocess: dict[str, Any]


def train(settings: Settings, text: Bytes, on_step: Callable[[int, float, float], None]) -> Run:
    """Build the model, from the same weights every time, and train it; Megatron's groups must be initialised.

    on_step is called with the number of steps done, the loss and the seconds that the step took.
    Raises FloatingPointError when the loss is not finite.
    """
    finalize = importlib.import_module("megatron.core.distributed").finalize_model_grads
    groups = importlib.import_module("megatron.core.parallel_state")
    group, rank = groups.get_data_parallel_group(), groups.get_data_parallel_rank()

    torch.manual_seed(settings.model.seed)
    size = settings.model
    model: Any = build_model(settings)
    optimizer = torch.optim.AdamW(model.parameters(), size.learning_rate, foreach=True)
    device = settings.device
    positions = torch.arange(size.sequence).expand(size.batch, size.sequence).to(device)
    future = torch.ones(1, 1, size.sequence, size.sequence, dtype=torch.bool).triu(1).to(device)

    losses = []
    started = time.perf_counter()
    with PreprocessTimer(settings.dispatcher) as timer:
        for step in range(settings.steps):
            began = time.perf_counter()
            tokens = torch.from_numpy(batch(text, size, step, rank, settings.data_parallel)).to(device)
            model.zero_grad_buffer()
            loss = model(tokens[:, :-1], positions, future, labels=tokens[:, 1:].contiguous()).mean()
            loss.backward()
            finalize([model])
            for parameter in model.parameters():
                parameter.grad = parameter.main_grad
            optimizer.step()
            losses.append(_mean_over(group, loss))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"the loss of step {step + 1} is {losses[-1]}")
            on_step(step + 1, losses[-1], time.perf_counter() - began)
    return Run(tuple(losses), time.perf_counter() - started, timer.summary())


def _mean_over(group: Any, loss: torch.Tensor) -> float:
    mean = loss.detach().clone()
    dist.all_reduce(mean, group=group)
    return (mean / dist.get_world_size(group)).item()
