"""One rank of a training run in which another one makes a mistake: `python -m distributed.one_wrong_rank TASK`."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as dist

WRONG = {"rank": 1, "layer": 2, "step": 1, "micro_batch": 1}
CALL = 3  # of layer 2: two micro-batches a step
GRACE_S = 2.0
STAYS_S = 4.0  # that the rank at fault lives on, as one does whose device hangs
EP, TP, EXPERTS = 2, 1, 8


def main() -> None:
    from megatron.core import parallel_state

    import mindspeed_moe
    from distributed.layers import HIDDEN, Layer, build_layer, settings
    from distributed.verified import wrong_peer
    from mindspeed_moe.errors import VerificationError
    from mindspeed_moe.verify import alarm, verification

    task = json.loads(sys.argv[1])
    rank, folder = task["rank"], Path(task["folder"])
    logging.basicConfig(format="%(message)s")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=task["rendezvous"], rank=rank, world_size=task["world_size"])
    parallel_state.initialize_model_parallel(expert_model_parallel_size=EP)
    verification.Alarm = functools.partial(alarm.Alarm, grace_s=GRACE_S)  # type: ignore[misc,assignment]
    layer = Layer(EP, TP, EXPERTS, 2)
    dumps = folder / "dumps"
    mindspeed_moe.enable(
        {**settings("packed, all_to_all, byte_lanes", "alltoall"), "verify": "always", "dumps": str(dumps)}
    )
    modules = [build_layer(layer) for _ in range(2)]
    for number, module in enumerate(modules, 1):
        module.config.num_layers = len(modules)  # which the router's loss is written down for
        module.set_layer_number(number)
    calls = itertools.count()

    def note(router: Any, given: Any, routed: Any) -> None:
        if next(calls) == CALL:
            numpy.save(folder / f"map-{rank}.npy", routed[1].numpy())

    modules[1].router.register_forward_hook(note)
    optimizer = torch.optim.SGD([one for module in modules for one in module.parameters()], lr=0.1)
    generator = torch.Generator().manual_seed(rank)
    try:
        for step in range(10_000):
            losses = []
            for micro_batch in range(2):
                hidden = torch.randn((8, 5)[rank % 2], layer.batch, HIDDEN, generator=generator)
                for number, module in enumerate(modules, 1):
                    if {"rank": rank, "layer": number, "step": step, "micro_batch": micro_batch} == WRONG:
                        with wrong_peer():
                            hidden = module(hidden)[0]
                    else:
                        hidden = module(hidden)[0]
                losses.append(hidden.square().mean())
            for loss in losses:
                loss.backward()
            optimizer.step()
            time.sleep(0.05)  # so that the other ranks are not far ahead
    except VerificationError:
        (folder / f"raised-{rank}").write_text(str(time.time()))
        if rank == WRONG["rank"]:
            time.sleep(STAYS_S)
        raise


if __name__ == "__main__":
    main()
