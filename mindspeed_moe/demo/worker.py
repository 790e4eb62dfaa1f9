"""One rank of the demo: joins the group, trains with every implementation in turn, tells the parent."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from mindspeed_moe.demo.messages import Ready, Result, Step
from mindspeed_moe.demo.settings import Settings

_TIMEOUT = timedelta(minutes=10)  # of a collective; the parent ends everything sooner when a process fails


def run_rank(tell: Callable[[Any], None], rank: int, rendezvous: str, settings: Settings) -> None:
    """Train as one rank of `settings.processes`, on one thread; rank 0 tells Ready, Steps and Results.

    rendezvous: the path of a file that does not exist yet, the same for all ranks.
    """
    from mindspeed_moe.demo.places import PLACES

    place = PLACES[settings.device]
    place.enter(rank)
    import torch.distributed as dist

    store = dist.FileStore(rendezvous, settings.processes)  # type: ignore[attr-defined]
    dist.init_process_group(place.backend, store=store, rank=rank, world_size=settings.processes, timeout=_TIMEOUT)
    try:
        _train_in_turn(tell if rank == 0 else _say_nothing, settings)
    finally:
        dist.destroy_process_group()


def _train_in_turn(tell: Callable[[Any], None], settings: Settings) -> None:
    import mindspeed_moe.verify
    from mindspeed_moe.demo.data import load_text
    from mindspeed_moe.demo.training import train

    text = load_text(settings.text, settings.model.sequence)
    for number, implementation in enumerate(settings.implementations):
        plan = mindspeed_moe.enable(settings.configuration(implementation))
        if number == 0:
            _initialize_groups(settings)
            environment = plan.environment
            tell(
                Ready(
                    {
                        "python": environment.python,
                        "torch": str(environment.torch),
                        "megatron-core": str(environment.megatron_core),
                        "contract": plan.generation,
                    }
                )
            )

        def on_step(done: int, loss: float, seconds: float, implementation: str = implementation) -> None:
            tell(Step(implementation, done, loss, seconds))

        run = train(settings, text, on_step)
        compared = mindspeed_moe.verify.compared()
        left_alone = mindspeed_moe.disable()
        if left_alone:
            raise RuntimeError(f"disable() could not put everything back: {'; '.join(left_alone)}")
        tell(
            Result(
                implementation,
                run.losses,
                run.seconds,
                run.preprocess,
                None if compared is None else asdict(compared),
            )
        )


def _initialize_groups(settings: Settings) -> None:
    importlib.import_module("megatron.core.parallel_state").initialize_model_parallel(
        tensor_model_parallel_size=settings.tp,
        expert_model_parallel_size=settings.ep,
        expert_tensor_parallel_size=settings.etp,
    )


def _say_nothing(message: Any) -> None:
    pass
