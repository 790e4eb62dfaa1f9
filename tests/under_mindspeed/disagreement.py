"""Two ranks without a common group, under the double: `python -m under_mindspeed.disagreement RANK RANKS FILE -- ARGS`.

Prints, after `enable` and after each `repatch`, how a layer's first call ended: the error's message, or nothing. ARGS:
the configuration's `exchange` of rank 1 in each of these; of rank 0 it stays the first.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch.distributed as dist

from distributed.layers import Layer, build_layer, routing_map_of

LAYER = Layer(ep=1, tp=1, experts=4, topk=2)


def main() -> None:
    rank, world, rendezvous, _, *exchanges = sys.argv[1:]
    del sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=int(world))
    import mindspeed.megatron_adaptor

    import mindspeed_moe
    from mindspeed_moe.errors import GroupError

    file = Path(tempfile.mkdtemp(), "moe.yaml")
    told = []
    for number, exchange in enumerate(exchanges):
        chosen = exchange if rank == "1" else exchanges[0]
        file.write_text(f"device: cpu\npreprocess: {{exchange: {chosen}}}\n")
        if number == 0:
            mindspeed_moe.enable(str(file))
            from megatron.core import parallel_state

            parallel_state.initialize_model_parallel()
        else:
            again = file.with_name(f"moe{number}.yaml")  # a file is read once
            mindspeed.megatron_adaptor.repatch({"mindspeed_moe_config": str(file.rename(again))})
        dispatcher = build_layer(LAYER).token_dispatcher
        dist.barrier()  # as Megatron's training has one between building a model and its first step
        try:
            dispatcher.preprocess(routing_map_of(LAYER))
            told.append("")
        except GroupError as error:
            told.append(str(error))
        dist.barrier()
    mindspeed_moe.disable()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
