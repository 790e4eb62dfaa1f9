"""One rank under a real MindSpeed: `python -m real_mindspeed.run TASK`, TASK a JSON object of `real_mindspeed.launch`.

Imports, patches, and runs a MoE layer forward and backward with MindSpeed's own experts and permutation: alone, with
the plugin, after `repatch`, switched off by it, on again, and disabled. Writes what stands, what a forward costs, and
which tensors are not equal to those of MindSpeed alone.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distributed.layers import give_own_experts
from under_mindspeed.owners import owners

HIDDEN = 16
EXPERTS = 8
TOKENS = 12
WARM_UP = 2
TOKEN_DISPATCHER = "megatron.core.transformer.moe.token_dispatcher"


def main() -> None:
    task = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    _join(task)
    sys.argv[1:] = task["flags"]
    steps = [step() for step in (_alone, _enabled, _repatched, _repatched, _off, _on, _disabled, _dedicated)]
    reference = steps[0]["tensors"]
    for step in steps:
        step["different"] = [name for name, one in step.pop("tensors").items() if not torch.equal(one, reference[name])]
    found = {"rank": task["rank"], "compared": len(reference), "steps": steps}
    Path(task["folder"], f"rank{task['rank']}.json").write_text(json.dumps(found))
    dist.barrier()


def _join(task: dict[str, Any]) -> None:
    import torch_npu
    from torch_npu.contrib import transfer_to_npu  # noqa: F401

    from real_mindspeed import stand_ins

    torch_npu.npu.set_device(task["rank"])
    stand_ins.install_modules(triton=task["triton"])
    stand_ins.install_permutation()
    rendezvous = Path(task["folder"], "rendezvous")
    dist.init_process_group(
        "hccl", init_method=f"file://{rendezvous}", rank=task["rank"], world_size=task["world_size"]
    )


# ---------------------------------------------------------------------------------------------- steps


def _alone() -> dict[str, Any]:
    from real_mindspeed import stand_ins

    stand_ins.install_sorting()
    import mindspeed.megatron_adaptor  # noqa: F401

    stand_ins.install_grouped_matmul()
    from megatron.core import parallel_state
    from megatron.training.arguments import parse_args
    from megatron.training.global_vars import set_args

    set_args(parse_args())
    parallel_state.initialize_model_parallel(expert_model_parallel_size=dist.get_world_size())
    return _measure("MindSpeed alone")


def _enabled() -> dict[str, Any]:
    import mindspeed_moe.adaptor  # noqa: F401

    return _measure("import mindspeed_moe.adaptor")


def _repatched() -> dict[str, Any]:
    return _repatch({}, "repatch({})")


def _off() -> dict[str, Any]:
    return _repatch({"moe_npu_preprocess": False}, "repatch, moe_npu_preprocess: False")


def _on() -> dict[str, Any]:
    return _repatch({"moe_npu_preprocess": True}, "repatch, moe_npu_preprocess: True")


def _disabled() -> dict[str, Any]:
    import mindspeed_moe

    left = mindspeed_moe.disable()
    return {**_measure("disable()"), "left": list(left)}


def _dedicated() -> dict[str, Any]:
    import mindspeed_moe

    mindspeed_moe.enable({"preprocess": {"exchange_group": "dedicated"}})
    found = _measure("exchange_group: dedicated")
    mindspeed_moe.disable()
    return found


def _repatch(changes: dict[str, Any], name: str) -> dict[str, Any]:
    from mindspeed.megatron_adaptor import repatch

    repatch(changes)
    return _measure(name)


# ---------------------------------------------------------------------------------------------- one layer


def _measure(name: str) -> dict[str, Any]:
    """Build a layer, run it; returns whose code stands, the ledger of a warm forward, and every tensor."""
    from tests.ascend_sim import ledger

    module = _build().npu()
    generator = torch.Generator().manual_seed(dist.get_rank())
    inputs = [torch.randn(TOKENS, 1, HIDDEN, generator=generator).npu().requires_grad_() for _ in range(2)]
    weight = torch.randn(TOKENS, 1, HIDDEN, generator=generator).npu()
    with ledger.record() as made:
        for _ in range(WARM_UP):
            module(inputs[0])
            torch.npu.synchronize()
    with ledger.record() as counts:
        outputs = [module(inputs[0])[0]]
    outputs.append(module(inputs[1])[0])
    for output in outputs:
        (output * weight).sum().backward()
    torch.npu.synchronize()
    tensors = {f"output {at}": one.detach().cpu() for at, one in enumerate(outputs)}
    tensors |= {f"gradient of input {at}": one.grad.cpu() for at, one in enumerate(inputs)}
    tensors |= {f"gradient of {key}": one.grad.cpu() for key, one in module.named_parameters() if one.grad is not None}
    return {
        "step": name,
        "preprocess": _owners("preprocess"),
        "hook": _owners("_maybe_dtoh_and_synchronize"),
        "experts": type(module.experts).__name__,
        "ledger": {
            "kernels": counts.kernel_count,
            "collectives": counts.collective_count,
            "copies to host": counts.copy_count("device_to_host"),
            "copies to device": counts.copy_count("host_to_device"),
            "event records": counts.event_records,
            "event waits": counts.event_synchronizations,
            "stream syncs": counts.stream_synchronizations,
            "device syncs": counts.device_synchronizations,
        },
        "communicators": sorted(size >> 20 for size in made.communicators.values()),
        "tensors": tensors,
    }


def _build() -> Any:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.moe import moe_layer
    from megatron.core.transformer.transformer_config import TransformerConfig

    model_parallel_cuda_manual_seed(0)
    torch.manual_seed(0)
    config = TransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        num_attention_heads=4,
        num_moe_experts=EXPERTS,
        moe_router_topk=2,
        moe_router_load_balancing_type="aux_loss",
        moe_aux_loss_coeff=0.01,
        moe_token_dispatcher_type="alltoall",
        moe_grouped_gemm=True,
        moe_permute_fusion=True,
        moe_ffn_hidden_size=24,
        ffn_hidden_size=24,
        use_cpu_initialization=True,
        params_dtype=torch.float32,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        expert_model_parallel_size=dist.get_world_size(),
    )
    mlp = get_gpt_layer_local_spec(num_experts=EXPERTS, moe_grouped_gemm=True).submodules.mlp
    layer = moe_layer.MoELayer(config, mlp.submodules)
    give_own_experts(layer)
    return layer


def _owners(name: str) -> list[str]:
    return owners(vars(sys.modules[TOKEN_DISPATCHER].MoEAlltoAllTokenDispatcher)[name])


if __name__ == "__main__":
    main()
