"""One MoE layer on the cpu under the double: `python -m under_mindspeed.layer -- ARGS...`, one process of a gloo group.

Runs forward and backward under MindSpeed alone, with the plugin, after a `repatch`, and disabled; prints a JSON object
with what is not equal to MindSpeed alone, to the last bit, and how often MindSpeed's functions ran.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist

from distributed.layers import HIDDEN, Layer, build_layer
from under_mindspeed.owners import owners

EXPERTS, TOKENS = 4, 10
STOCK = {"device": "cpu", "dispatchers": {"alltoall": "stock", "alltoall_seq": "stock"}}


def main() -> None:
    rank, world, rendezvous = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    sys.argv[1:] = sys.argv[5:]
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    import mindspeed.megatron_adaptor
    from mindspeed.core import fusions

    import mindspeed_moe

    mindspeed_moe.enable(STOCK)  # what Megatron needs on a cpu, and nothing else
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(expert_model_parallel_size=world)
    alone = _run()
    mindspeed_moe.disable()
    mindspeed_moe.enable({"device": "cpu"})
    plugin = _run()
    mindspeed.megatron_adaptor.repatch({})
    repatched = _run()
    mindspeed_moe.disable()
    mindspeed_moe.enable(STOCK)
    again = _run()
    mindspeed_moe.disable()
    runs = {"plugin": plugin, "repatched": repatched, "disabled": again}
    different = {
        name: [key for key, one in alone["tensors"].items() if not torch.equal(one, run["tensors"][key])]
        for name, run in runs.items()
    }
    owners = {name: run["owner"] for name, run in {"alone": alone, **runs}.items()}
    print(
        json.dumps(
            {"different": different, "owners": owners, "layers": fusions.layers_seen, "count": len(alone["tensors"])}
        )
    )


def _run() -> dict[str, Any]:
    from megatron.core.transformer.moe import token_dispatcher

    module = _build()
    generator = torch.Generator().manual_seed(dist.get_rank())
    inputs = [torch.randn(TOKENS + at, 1, HIDDEN, generator=generator).requires_grad_() for at in range(2)]
    outputs = [module(one)[0] for one in inputs]
    for output in outputs:
        (output * torch.randn(output.shape, generator=generator)).sum().backward()
    tensors = {f"output {at}": one.detach() for at, one in enumerate(outputs)}
    tensors |= {f"gradient of input {at}": one.grad for at, one in enumerate(inputs) if one.grad is not None}
    tensors |= {f"gradient of {name}": one.grad for name, one in module.named_parameters() if one.grad is not None}
    return {"tensors": tensors, "owner": owners(vars(token_dispatcher.MoEAlltoAllTokenDispatcher)["preprocess"])[-1]}


def _build() -> Any:
    layer = build_layer(Layer(ep=dist.get_world_size(), tp=1, experts=EXPERTS, topk=2))
    layer.config.moe_permute_fusion = True  # behind the checks of the configuration, which ask for Transformer Engine
    return layer


if __name__ == "__main__":
    main()
